"""The base of protocols without rounds: a node trains leg after leg and hears others while it does.

A leg begins from a copy of the model. When it ends, what it *changed* is added to whatever the model has become
meanwhile (Lian et al. 2018, AD-PSGD, algorithm 1): nothing that arrived during the leg is lost, and nobody waits. A leg
whose result is not finite changes nothing; it counts, so that a node whose training has broken down still ends.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec
import numpy as np

from gossip.decentralized import topology
from gossip.decentralized.arithmetic import is_finite
from gossip.decentralized.protocol import (
    TASK_RULE,
    Completed,
    Context,
    DecentralizedProtocol,
    Finished,
    LocalRule,
    LocalWork,
    Train,
    Vector,
    frozen,
)
from gossip.decentralized.topology import Graph
from transport.identity import NodeId


class FreeRunning(DecentralizedProtocol):
    """One node that trains without end, or `Context.rounds` legs, and mixes whenever something comes."""

    rule: ClassVar[LocalRule] = TASK_RULE

    def __init__(self, settings: msgspec.Struct, context: Context) -> None:
        super().__init__(settings, context)
        self.others: tuple[NodeId, ...] = ()
        self.round = 0
        """Legs done."""
        self.unusable = 0
        """Legs, and models of others, that would have left a value that is not finite."""
        self.started = False
        self.finished = False
        self._drawn: Graph | None = None
        self._leg: Vector | None = None
        self._leg_at = 0.0
        self._met: set[NodeId] = set()

    # ---- for the protocol --------------------------------------------------------------------

    @abstractmethod
    def prepare(self, params: Vector, now: float) -> None:
        """Make the state from initial or saved parameters (lent)."""

    @abstractmethod
    def add(self, change: Vector, work: LocalWork, now: float) -> bool:
        """Add what a leg changed (params after minus before, float32); False, and nothing changed, if that is not finite."""

    def changed(self, now: float) -> None:
        """`others` has changed, or the node has just started."""

    def after_leg(self, now: float) -> None:
        """A leg is over, and there will be another unless `finished`."""
        self.next_leg(now)

    def next_leg(self, now: float) -> None:
        """Train from the model as it is now."""
        self._leg, self._leg_at = shared(self.model), now
        self._emit(Train(self._leg, self.context.every, self.rule))

    def graph(self, kind: str, degree: int) -> Graph:
        """The graph over all members known now, this node included; kept until they change."""
        if self._drawn is None:
            nodes = [*self.others, self.context.me]
            self._drawn = topology.graph(kind, nodes, self.context.run, degree=degree)
        return self._drawn

    @property
    def training(self) -> bool:
        """A leg is running."""
        return self._leg is not None

    def met(self, peer: NodeId) -> None:
        """This peer's work has come into the model."""
        self._met.add(peer)

    def leg_took(self, seconds: float, now: float) -> None:
        """A leg was measured."""

    # ---- inputs ------------------------------------------------------------------------------

    def start(self, params: Vector, now: float, *, round_: int = 0) -> None:
        """Begin, or go on after `round_` legs."""
        self.round = round_
        self.prepare(params, now)
        self.started = True
        self.changed(now)
        if not self._finish_if_done():
            self.next_leg(now)

    def members(self, others: Sequence[NodeId], now: float) -> None:
        """Newcomers are peers from now on."""
        self.others, self._drawn = tuple(others), None
        if self.started:
            self.changed(now)

    def trained(self, work: LocalWork, now: float) -> None:
        """Add what the leg changed, and go on."""
        before, self._leg = self._leg, None
        if before is None:
            return
        self.leg_took(now - self._leg_at, now)
        with np.errstate(over="ignore", invalid="ignore"):
            change = work.params - before
        if not (is_finite(change) and self.add(change, work, now)):
            self.unusable += 1
        self.round += 1
        members, self._met = 1 + len(self._met), set()
        self._emit(Completed(self.round, shared(self.model), members))
        if not self._finish_if_done():
            self.after_leg(now)

    def expects_others(self) -> bool:
        """There is somebody to meet."""
        return bool(self.others)

    def describe(self) -> Mapping[str, Any]:
        """Legs done and peers known."""
        phase = "finished" if self.finished else "training" if self.training else "waiting"
        return {
            "round": self.round,
            "phase": phase,
            "peers": len(self.others),
            "unusable": self.unusable,
        }

    def _finish_if_done(self) -> bool:
        if self.context.rounds and self.round >= self.context.rounds and not self.finished:
            self.finished = True
            self._emit(Finished())
        return self.finished


def shared(vector: Vector) -> Vector:
    """The vector itself if it is read-only, as those are that a core replaces instead of writing to them; else a copy that is."""
    return vector if not vector.flags.writeable else frozen(vector)
