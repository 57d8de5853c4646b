"""AD-PSGD: nodes train on their own and average with one neighbour at a time, nobody waiting for anybody.

X. Lian et al., "Asynchronous Decentralized Parallel Stochastic Gradient Descent" (2018, arXiv 1710.06952). Two halves run
freely beside each other on one model x::

    training   snap = x;  train from snap;            x += trained - snap
    gossip     with a random neighbour j, both sides: x += (x_j' - x_i') / 2     from the two models shown, x_i' and x_j'

Because both halves add differences to what x is *then*, a leg that ends between a meeting's offer and its answer is kept, and
the sum of both models is unchanged by a meeting, to the rounding of float32. The paper avoids deadlock with a bipartite graph;
here nobody can wait for somebody who waits (`gossip.decentralized.asynchronous.exchange`), and who finds the other busy backs off for a
random time. A leg's result is as stale as the meetings since it began; `max_staleness` bounds them: beyond it, meetings
have to wait for the end of the leg.

What is not conserved: a meeting whose answer never arrived has moved one side only (`unsettled` counts these), and a
node that crashes takes its model along.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np

from gossip.decentralized.arithmetic import is_finite
from gossip.decentralized.asynchronous.pairs import PairSettings, Pairwise
from gossip.decentralized.mixing.rules import MixRule, VarianceTarget, mix_rule
from gossip.decentralized.protocol import Context, LocalWork, Vector, frozen
from transport.identity import NodeId

LONGEST_BACK_OFF: Final = 4
"""Doublings of the time that a node waits after it was refused, at most: longer ones leave the links to who was lucky."""


class ADPSGDSettings(PairSettings, frozen=True, forbid_unknown_fields=True):
    """Options of AD-PSGD."""

    exchanges: Annotated[float, msgspec.Meta(ge=0, le=1000)] = 1.0
    """Meetings that a node starts per leg of training, at the moments of a Poisson process; 0: the next as soon as one is over."""
    max_staleness: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 16
    """Meetings that may change the model while a leg runs; further ones wait for its end."""
    mixing: Literal["mean", "variance-corrected"] = "mean"
    """What a pair makes of its two models. "variance-corrected" is for models that began apart; it does not conserve their mean."""
    variance_target: VarianceTarget | None = None
    """For "variance-corrected": whose variance the mixed model is to have; "others" unless given."""


class ADPSGD(Pairwise):
    """Asynchronous pairwise averaging."""

    name = "ad-psgd"
    Settings = ADPSGDSettings
    settings: ADPSGDSettings
    conserves_mean = True

    def __init__(self, settings: ADPSGDSettings, context: Context) -> None:
        super().__init__(settings, context)
        self.staleness = 0
        """Meetings since the running leg began."""
        self.worst_staleness = 0
        self._x: Vector = np.zeros(0, np.float32)
        self._refusals = 0
        self._again_at: float | None = None
        self._rule: MixRule | None = None
        if settings.mixing != "mean":
            self._rule = mix_rule(settings.mixing, variance_target=settings.variance_target)

    # ---- training ----------------------------------------------------------------------------

    def prepare(self, params: Vector, now: float) -> None:
        """The model, ours to write to."""
        self._x = frozen(params)
        self._again_at = now

    @property
    def model(self) -> Vector:
        """As it is now, in the middle of a leg, too."""
        return self._x

    def next_leg(self, now: float) -> None:
        """Its gradients are fresh now."""
        self.staleness = 0
        super().next_leg(now)

    def add(self, change: Vector, work: LocalWork, now: float) -> bool:
        """Onto whatever the model is now."""
        del work, now
        self.worst_staleness = max(self.worst_staleness, self.staleness)
        return self._move(change)

    # ---- meeting -----------------------------------------------------------------------------

    def rates(self) -> Mapping[NodeId, float]:
        """Every neighbour alike."""
        near = self.neighbourhood()[self.context.me]
        if not self.settings.exchanges:
            return {}
        return {peer: self.settings.exchanges / len(near) for peer in near}

    def open_to_meet(self) -> bool:
        """Unless the running leg has become too stale."""
        return not self.training or self.staleness < self.settings.max_staleness

    def snapshot(self, now: float) -> Vector:
        """The model as it is."""
        del now
        return self._x

    def meet(self, peer: NodeId, mine: Vector, theirs: Vector, gain: float, now: float) -> bool:
        """Half of the way towards each other."""
        del gain, now
        change: Vector
        with np.errstate(over="ignore", invalid="ignore"):
            if self._rule is None:
                change = self.difference(mine, theirs) * np.float32(-0.5)
            else:
                place = int(peer < self.context.me)
                tensors = self.context.tensors
                change = self._rule.mix(mine, [theirs], [0.5, 0.5], tensors, place=place) - mine
        moved = self._move(change)
        self.staleness += moved
        self._refusals = 0
        return moved

    def settled(self, peer: NodeId, now: float) -> None:
        """As fast as links allow, but for a moment in which others may be first: who has just won would win again."""
        del peer
        self._again_at = now + self.exchanges.wait_s / 8 * self.context.rng.random()

    def refused(self, peer: NodeId, now: float) -> None:
        """Back off for a random time, longer after each refusal."""
        del peer
        self._refusals = min(self._refusals + 1, LONGEST_BACK_OFF)
        pause_s = self.exchanges.wait_s / 8 * 2**self._refusals
        self._again_at = now + pause_s * self.context.rng.uniform(0.5, 1.0)

    def next_deadline(self) -> float | None:
        """Also the next try, when meetings follow each other."""
        soonest = super().next_deadline()
        if self._tries_again and self._again_at is not None:
            return self._again_at if soonest is None else min(soonest, self._again_at)
        return soonest

    def tick(self, now: float) -> None:
        """Also try again."""
        if self._tries_again and self._again_at is not None and now >= self._again_at:
            near = self.neighbourhood()[self.context.me]
            peer = self.context.rng.choice(near)
            if not self.turn_to(peer, now):
                self.refused(peer, now)
        super().tick(now)

    def describe(self) -> Mapping[str, Any]:
        """Also how stale gradients were."""
        return {**super().describe(), "worst_staleness": self.worst_staleness}

    # ---- inside ------------------------------------------------------------------------------

    @property
    def _tries_again(self) -> bool:
        """Meetings follow each other, and one can be tried now."""
        possible = self.started and not self.finished and self.others and self.open_to_meet()
        return bool(possible and not self.settings.exchanges and not self.exchanges.locked)

    def _move(self, change: Vector) -> bool:
        with np.errstate(over="ignore", invalid="ignore"):
            moved = self._x + change
        if not is_finite(moved):
            return False
        moved.flags.writeable = (
            False  # replaced, never written to: whoever holds an older one keeps that
        )
        self._x = moved
        return True
