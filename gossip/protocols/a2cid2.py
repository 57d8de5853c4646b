"""A2CiD2: asynchronous pairwise averaging with momentum, for deep models on poorly connected graphs.

A. Nabli, E. Belilovsky and E. Oyallon, "A2CiD2: Accelerating Asynchronous Communication in Decentralized Deep Learning" (2023, arXiv
2306.08289). As AD-PSGD, with a second vector xt beside the model x that mixes with it all the time (elapsed h, in legs)::

    between events   d = (1 - exp(-2 eta h)) / 2;  (x, xt) <- (x + d (xt - x), xt + d (x - xt))
    a leg of training  x += change;  xt += change
    a meeting          m = x_i - x_j;  x_i -= m/2, x_j += m/2;  xt_i -= at m, xt_j += at m

    eta = 1 / (2 sqrt(chi1 chi2));  at = sqrt(chi1 / chi2) / 2

with chi1 and chi2 of the graph at the rates of its meetings (`gossip.decentralized.asynchronous.graph_numbers`). Disagreement then fades at
sqrt(chi1 chi2) meetings instead of chi1: on a ring n^1.5 for n^2. On well connected graphs both are alike and there is nothing to
gain; nor over times shorter than sqrt(chi1 chi2).

Both sides apply the same m, from the two models that were shown, each at its node's own moment; the published code
takes one of them from before and the other from after that moment. So `sum (x + xt)` over all nodes is unchanged but for training, whatever the clocks and
delays; with one clock and no delay sum x and sum xt each. In float32, to its rounding. A leg is the task's own optimizer, with its momentum.

A checkpoint holds x; a node that begins again does so with xt = x. What else is not conserved: as with AD-PSGD.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import numpy as np

from gossip.decentralized.arithmetic import is_finite
from gossip.decentralized.asynchronous.graph_numbers import neighbour_rates, numbers_of
from gossip.decentralized.asynchronous.pairs import PairSettings, Pairwise
from gossip.decentralized.protocol import Context, LocalWork, Vector
from transport.identity import NodeId


class A2CiD2Settings(PairSettings, frozen=True, forbid_unknown_fields=True):
    """Options of A2CiD2."""

    exchanges: Annotated[float, msgspec.Meta(gt=0, le=1000)] = 1.0
    """Meetings that a node takes part in per leg of training, on average, at the moments of Poisson processes."""


class A2CiD2(Pairwise):
    """Accelerated asynchronous gossip."""

    name = "a2cid2"
    Settings = A2CiD2Settings
    settings: A2CiD2Settings
    conserves_mean = True
    depends_on_mean = True

    def __init__(self, settings: A2CiD2Settings, context: Context) -> None:
        super().__init__(settings, context)
        self._x: Vector = np.zeros(0, np.float32)
        self._twin: Vector = np.zeros(0, np.float32)
        self._at = 0.0
        self._eta = 0.0
        self._gain = 0.5

    # ---- training ----------------------------------------------------------------------------

    def prepare(self, params: Vector, now: float) -> None:
        """Both vectors begin there."""
        del now
        self._become(params.copy(), params.copy())

    @property
    def model(self) -> Vector:
        """x, as it was at the last event."""
        return self._x

    @property
    def twin(self) -> Vector:
        """xt, as it was at the last event."""
        return self._twin

    def next_leg(self, now: float) -> None:
        """From x as it is at this moment."""
        self._flow(now)
        super().next_leg(now)

    def add(self, change: Vector, work: LocalWork, now: float) -> bool:
        """To both."""
        del work
        self._flow(now)
        with np.errstate(over="ignore", invalid="ignore"):
            return self._become(self._x + change, self._twin + change)

    # ---- meeting -----------------------------------------------------------------------------

    def rates(self) -> Mapping[NodeId, float]:
        """Edges to higher ids are this node's to start."""
        me = self.context.me
        graph = self.neighbourhood()
        rated = neighbour_rates(graph, self.settings.exchanges)
        found = numbers_of(graph, rated)
        self._eta, self._gain = 0.0, 0.5
        if rated:
            self._eta = 1 / (2 * math.sqrt(found.chi1 * found.chi2))
            self._gain = math.sqrt(found.chi1 / found.chi2) / 2
        return {pair[1]: rate for pair, rate in sorted(rated.items()) if pair[0] == me}

    def changed(self, now: float) -> None:
        """Until now the old graph's eta counts."""
        self._flow(now)
        super().changed(now)

    def gain(self) -> float:
        """The at of who offers: both sides have to add the same to xt."""
        return self._gain

    def snapshot(self, now: float) -> Vector:
        """X at this moment."""
        self._flow(now)
        return self._x

    def meet(self, peer: NodeId, mine: Vector, theirs: Vector, gain: float, now: float) -> bool:
        """Half of the way for x, `gain` times it for its twin."""
        del peer
        self._flow(now)
        apart = self.difference(mine, theirs)
        with np.errstate(over="ignore", invalid="ignore"):
            x = self._x - apart * np.float32(0.5)
            return self._become(x, self._twin - apart * np.float32(gain))

    def describe(self) -> Mapping[str, Any]:
        """Also the meetings that did not take place."""
        return {**super().describe(), "thinned": self.thinned}

    # ---- inside ------------------------------------------------------------------------------

    def _flow(self, now: float) -> None:
        at = self.clock.read(now)
        if at <= self._at or not self._eta:
            self._at = max(self._at, at)
            return
        share = np.float32((1 - math.exp(-2 * self._eta * (at - self._at))) / 2)
        self._at = at
        moved = (self._twin - self._x) * share
        self._become(self._x + moved, self._twin - moved)

    def _become(self, x: Vector, twin: Vector) -> bool:
        if not (is_finite(x) and is_finite(twin)):
            return False
        # Replaced, never written to: whoever holds older ones keeps those.
        x.flags.writeable = twin.flags.writeable = False
        self._x, self._twin = x, twin
        return True
