"""The base of protocols whose nodes meet two at a time: timers that say when, exchanges that happen once.

A protocol says with whom and how often (`rates`, in meetings per unit of the node's own time), what it shows
(`snapshot`) and what a meeting does (`meet`). All else is here: Poisson timers, the exactly-once exchange, and what
to do when the other is busy: nothing. The timer draws again, which thins the process a little and cannot make two nodes wait for
each other.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from gossip.decentralized.arithmetic import is_finite
from gossip.decentralized.asynchronous.exchange import (
    Asked,
    Exchanges,
    Outcome,
    Refused,
    Settled,
    Void,
)
from gossip.decentralized.asynchronous.free_running import FreeRunning
from gossip.decentralized.asynchronous.poisson import PoissonTimers, UnitClock
from gossip.decentralized.mixing.rules import KEPT_LOCAL
from gossip.decentralized.protocol import AnyVector, Context, Vector
from gossip.decentralized.topology import Graph, check_lasting
from transport.identity import NodeId


class PairSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of protocols that meet in pairs."""

    graph: Literal[
        "ring", "random-regular", "exponential", "barabasi-albert", "small-world", "full"
    ] = "random-regular"
    """Who may meet whom. All nodes derive it from the run's id and the list of its members."""
    degree: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 4
    """Neighbours of each node ("random-regular", there at least 2; "small-world"), or links that a new node brings ("barabasi-albert"). Others have no choice."""
    patience: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 10.0
    """Seconds for the answer to the first offer; later ones have four of the round trips measured. While it waits, a node refuses others."""
    forget: Annotated[float, msgspec.Meta(gt=0, le=86400)] = 300.0
    """Seconds after which a meeting without an answer, or a peer that is gone, is given up."""


class Pairwise(FreeRunning):
    """One node that trains and meets others in pairs."""

    settings: PairSettings

    @classmethod
    def parse_settings(cls, raw: Mapping[str, Any]) -> msgspec.Struct:
        """As all protocols; also a graph that falls apart is refused."""
        parsed = super().parse_settings(raw)
        assert isinstance(parsed, PairSettings), "the class says so"
        check_lasting(cls.name, parsed.graph, parsed.degree)
        return parsed

    def __init__(
        self,
        settings: PairSettings,
        context: Context,
        *,
        stretch: float = 1.0,
        unit_s: float = 0.0,
    ) -> None:
        super().__init__(settings, context)
        self.clock = UnitClock(stretch, unit_s)
        self.timers: PoissonTimers[NodeId] = PoissonTimers(context.rng)
        self.exchanges = Exchanges(
            context.numel,
            context.rng,
            patience_s=settings.patience,
            forget_s=settings.forget,
        )
        self.thinned = 0
        """Meetings that fell due while this node or the link to the peer was busy."""

    # ---- for the protocol --------------------------------------------------------------------

    @abstractmethod
    def rates(self) -> Mapping[NodeId, float]:
        """Whom this node turns to, ascending, and how often per unit of its time. Its own id may be among them: see `own_timer`."""

    @abstractmethod
    def snapshot(self, now: float) -> Vector:
        """What a meeting at this moment shows: a new float32 vector that nobody writes to."""

    @abstractmethod
    def meet(self, peer: NodeId, mine: Vector, theirs: Vector, gain: float, now: float) -> bool:
        """Apply a meeting by the two vectors shown; False, and nothing changed, if the result is not finite."""

    def gain(self) -> float:
        """A coefficient that both sides of a meeting have to use, said by who offers it."""
        return 0.0

    def void(self, peer: NodeId, now: float) -> None:
        """Whatever was exchanged with this peer counts for nothing on its side."""

    def open_to_meet(self) -> bool:
        """Whether a meeting may take place now."""
        return True

    def own_timer(self, now: float) -> None:
        """The timer under the node's own id has fired."""

    def neighbourhood(self) -> Graph:
        """The graph over all members known now."""
        return self.graph(self.settings.graph, self.settings.degree)

    def difference(self, mine: Vector, theirs: Vector) -> Vector:
        """Mine - theirs: on the other side the same with the other sign, bit for bit; 0 for a node's own statistics."""
        with np.errstate(over="ignore", invalid="ignore"):
            apart: Vector = mine - theirs
        for tensor in self.context.tensors:
            if tensor.name.rpartition(".")[2] in KEPT_LOCAL:
                apart[tensor.offset : tensor.offset + tensor.numel] = 0
        return apart

    # ---- inputs ------------------------------------------------------------------------------

    def start(self, params: Vector, now: float, *, round_: int = 0) -> None:
        """Begin with a session of its own."""
        self.exchanges.start(now)
        super().start(params, now, round_=round_)

    def changed(self, now: float) -> None:
        """Other members: another graph, other rates."""
        self.exchanges.members(self.others, now)
        self._set_timers(now)
        self._flush()

    def leg_took(self, seconds: float, now: float) -> None:
        """The first leg starts the timers."""
        began = not self.clock.running
        self.clock.measured(seconds, now)
        if began:
            self._set_timers(now)

    def receive(
        self, sender: NodeId, message: bytes, vectors: Sequence[AnyVector], now: float
    ) -> None:
        """A message of an exchange."""
        if self.started:
            self._handle(self.exchanges.receive(sender, message, vectors, now), now)
            self._flush()

    def undelivered(self, to: NodeId, key: int, now: float) -> None:
        """Ask about an offer that may be lost."""
        self.exchanges.undelivered(to, key, now)

    def tick(self, now: float) -> None:
        """Meet those whose timers have fired."""
        if not self.started:
            return
        self._handle(self.exchanges.tick(now), now)
        if self.finished:
            self.timers.set_rates({}, self.clock.read(now))
        for peer in self._fired(now):
            if peer == self.context.me:
                self.own_timer(now)
            else:
                self.turn_to(peer, now)
        self._flush()

    def leave(self, now: float) -> None:
        """Tell those it has met that it is gone."""
        del now
        self.exchanges.leave()
        self._flush()

    def next_deadline(self) -> float | None:
        """The next timer, or the next answer that is overdue."""
        moments: list[float] = []
        fires = self.timers.next_at()
        if fires is not None and not self.finished:
            moments.append(self.clock.when(fires))
        overdue = self.exchanges.next_deadline()
        if overdue is not None:
            moments.append(overdue)
        return min(moments, default=None)

    def describe(self) -> Mapping[str, Any]:
        """Legs, meetings and what became of them."""
        counts = self.exchanges.counts
        return {
            **super().describe(),
            "exchanges": counts.settled + counts.answered,
            "refused": counts.refused + counts.busy,
            "unsettled": counts.unsettled,
        }

    # ---- inside ------------------------------------------------------------------------------

    def turn_to(self, peer: NodeId, now: float) -> bool:
        """Offer a meeting if nothing stands against it."""
        busy = self.exchanges.locked or not self.exchanges.free(peer)
        if busy or not self.open_to_meet():
            self.thinned += 1
            return False
        mine = self.snapshot(now)
        if not is_finite(mine):
            self.unusable += 1
            return False
        self.exchanges.offer(peer, mine, now, gain=self.gain())
        return True

    def settled(self, peer: NodeId, now: float) -> None:
        """An own offer led to a meeting."""

    def refused(self, peer: NodeId, now: float) -> None:
        """An own offer did not."""

    def _fired(self, now: float) -> list[NodeId]:
        """Whose timers have fired: asked as `next_deadline` says it, so that no rounding comes between the two."""
        fires = self.timers.next_at()
        if fires is None or self.clock.when(fires) > now:
            return []
        return self.timers.due(max(fires, self.clock.read(now)))

    def _set_timers(self, now: float) -> None:
        if self.clock.running:
            self.timers.set_rates({} if self.finished else self.rates(), self.clock.read(now))

    def _handle(self, outcomes: Iterable[Outcome], now: float) -> None:
        for outcome in outcomes:
            match outcome:
                case Asked(peer=peer, theirs=theirs, gain=gain):
                    mine = self.snapshot(now) if self.open_to_meet() else None
                    if (
                        mine is not None
                        and is_finite(mine)
                        and self._meet(peer, mine, theirs, gain, now)
                    ):
                        self.exchanges.accept(outcome, mine, now)
                    else:
                        self.exchanges.refuse(outcome)
                case Settled(peer=peer, mine=mine, theirs=theirs, gain=gain):
                    self._meet(peer, mine, theirs, gain, now)
                    self.settled(peer, now)
                case Refused(peer=peer):
                    self.refused(peer, now)
                case Void(peer=peer):
                    self.void(peer, now)

    def _meet(self, peer: NodeId, mine: Vector, theirs: Vector, gain: float, now: float) -> bool:
        if not self.meet(peer, mine, theirs, gain, now):
            self.unusable += 1
            return False
        self.met(peer)
        return True

    def _flush(self) -> None:
        for send in self.exchanges.outgoing():
            self._emit(send)
