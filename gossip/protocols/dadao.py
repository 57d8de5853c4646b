"""DADAO: accelerated decentralized optimization of convex models, exact, with gradients and meetings at random moments.

Where gossip with a constant step stalls at a distance from the optimum that grows with how different the nodes' data are, DADAO
converges to it: every node keeps a dual for its own function and one for what it has exchanged, both with momentum
(`gossip.protocols.dadao_dynamics` has the equations and the paper). Gradients and meetings do not wait for each other; rates of meetings
follow from the graph: with chi1 and chi2 of the graph whose edges have probability 1/|E|, all edges together meet
`sqrt(2 chi1 chi2)` times per unit of time (`gossip.decentralized.asynchronous.graph_numbers`), in which each node takes one gradient on average.

It is for losses that are L-smooth and mu-strongly convex at every node: linear and logistic models with weight decay, and the
optimizer of the task is not used. `smoothness` must not be chosen too small: then it diverges.

On real nodes. There is no common clock: a node divides its own time by how long its gradients take (`poisson`). A gradient
belongs to the moment at which it was asked for and is applied when it is there. A meeting takes a round trip, both sides flow to
their own moments before it and use what both have shown; a busy peer refuses, and the timer draws again, which thins the process: when many are thinned
(`describe`), set `unit` to a longer time. A peer that crashed, or came back as another life, is taken out of the duals of
all that met it, so that the others converge to the optimum of those that are there; after a restart the duals begin at 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

import msgspec
import numpy as np

from gossip.decentralized.asynchronous.exchange import MOST_GAIN
from gossip.decentralized.asynchronous.graph_numbers import edges, numbers_of, uniform_rates
from gossip.decentralized.asynchronous.pairs import PairSettings, Pairwise
from gossip.decentralized.protocol import Context, LocalRule, LocalWork, Vector
from gossip.errors import InvalidSettings
from gossip.protocols.dadao_dynamics import Coefficients, State, X
from transport.identity import NodeId

STRETCH: Final = 2.0
"""Units are this many times as long as a gradient takes, so that a node is busy half of the time and its gradients can keep to random moments."""
MOST_DUE: Final = 8
"""Gradients that fell due while one was computed, and are made up for."""
MOST_ACCOUNTS: Final = 64
"""Peers whose share of the duals can be taken out again; of further ones the oldest is kept for good."""


class DadaoSettings(PairSettings, frozen=True, forbid_unknown_fields=True):
    """Options of DADAO."""

    smoothness: Annotated[float, msgspec.Meta(ge=1e-9, le=1e9)] = 1.0
    """L: the largest curvature of any node's loss. Too small a value diverges, too large a one is slow."""
    convexity: Annotated[float, msgspec.Meta(ge=1e-9, le=1e9)] = 0.1
    """mu: the least curvature of any node's loss, as a rule its weight decay. At most `smoothness`."""
    pace: Literal["poisson", "steady"] = "poisson"
    """When gradients are taken: "poisson", at random moments, as the proof wants it, the node idle half of the time; "steady", one after the other."""
    unit: Annotated[float, msgspec.Meta(ge=0, le=86400)] = 0.0
    """Seconds of a unit of time, in which a node takes one gradient on average and the graph has its meetings; 0: as gradients take, twice that with "poisson"."""


class Dadao(Pairwise):
    """Accelerated, asynchronous, exact: for convex models."""

    name = "dadao"
    Settings = DadaoSettings
    settings: DadaoSettings
    depends_on_mean = True
    rule: ClassVar[LocalRule] = LocalRule("gradient")

    def __init__(self, settings: DadaoSettings, context: Context) -> None:
        stretch = STRETCH if settings.pace == "poisson" else 1.0
        super().__init__(settings, context, stretch=stretch, unit_s=settings.unit)
        self.coefficients = Coefficients(settings.smoothness, settings.convexity)
        self._state = State(self.coefficients, np.zeros(0))
        self._asked: Vector = np.zeros(0, np.float32)
        self._due = 0
        self._gain = 0.0
        self._model: Vector | None = None

    @classmethod
    def parse_settings(cls, raw: Mapping[str, Any]) -> msgspec.Struct:
        """As all protocols; also the two curvatures have to fit each other."""
        settings = super().parse_settings(raw)
        assert isinstance(settings, DadaoSettings), "the class says so"
        if settings.convexity > settings.smoothness:
            raise InvalidSettings(
                f"protocol 'dadao': convexity {settings.convexity} is larger than smoothness {settings.smoothness}",
                hint="no function curves at least more than it curves at most: exchange them?",
            )
        return settings

    # ---- training ----------------------------------------------------------------------------

    def prepare(self, params: Vector, now: float) -> None:
        """At these parameters, with duals of 0."""
        del now
        self._state = State(self.coefficients, params)
        self._model = None

    @property
    def model(self) -> Vector:
        """x, as it was at the last event."""
        if self._model is None:
            self._model = self._state.vectors[X].astype(np.float32)
            self._model.flags.writeable = False
        return self._model

    @property
    def state(self) -> State:
        """The six vectors."""
        return self._state

    def next_leg(self, now: float) -> None:
        """A gradient at x as it is at this moment."""
        self._flow(now)
        self._asked = self.model
        super().next_leg(now)

    def add(self, change: Vector, work: LocalWork, now: float) -> bool:
        """Apply the gradient."""
        del change
        if work.gradient is None:
            return False
        self._flow(now)
        self._model = None
        return self._state.gradient(work.gradient, self._asked)

    def after_leg(self, now: float) -> None:
        """Wait for the next moment, unless it is over."""
        if self.settings.pace == "steady" or self._due:
            self._due = max(0, self._due - 1)
            self.next_leg(now)

    def own_timer(self, now: float) -> None:
        """Time for a gradient."""
        if self.training:
            self._due = min(self._due + 1, MOST_DUE)
        elif not self.finished:
            self.next_leg(now)

    # ---- meeting -----------------------------------------------------------------------------

    def rates(self) -> Mapping[NodeId, float]:
        """Edges to higher ids are this node's to start, gradients are under its own id."""
        me = self.context.me
        graph = self.neighbourhood()
        uniform = uniform_rates(edges(graph))
        found = numbers_of(graph, uniform)
        together = math.sqrt(2 * found.chi1 * found.chi2)
        rates: dict[NodeId, float] = {}
        self._gain = 0.0
        if uniform:
            # chi1 of the graph at these rates is chi1 / together.
            self._gain = min(2 * found.chi1 / together / self.coefficients.root, MOST_GAIN)
            rates = {pair[1]: together * p for pair, p in uniform.items() if pair[0] == me}
        if self.settings.pace == "poisson":
            rates[me] = 1.0
        return dict(sorted(rates.items()))

    def gain(self) -> float:
        """2 chi1 sqrt(L/nu) of who offers: both sides have to add the same to zt."""
        return self._gain

    def snapshot(self, now: float) -> Vector:
        """Y + z at this moment."""
        self._flow(now)
        shown: Vector = self._state.shown.astype(np.float32)
        shown.flags.writeable = False
        return shown

    def meet(self, peer: NodeId, mine: Vector, theirs: Vector, gain: float, now: float) -> bool:
        """Z and zt towards agreement."""
        self._flow(now)
        return self._state.meet(peer, mine.astype(np.float64) - theirs, gain)

    def met(self, peer: NodeId) -> None:
        """Keep few accounts."""
        super().met(peer)
        if len(self._state.accounts) > MOST_ACCOUNTS:
            self._state.keep(next(iter(self._state.accounts)))

    def void(self, peer: NodeId, now: float) -> None:
        """That peer's half is gone: take back this one."""
        self._flow(now)
        self._state.take_back(peer)

    def describe(self) -> Mapping[str, Any]:
        """Also the meetings that did not take place."""
        return {**super().describe(), "thinned": self.thinned}

    # ---- inside ------------------------------------------------------------------------------

    def _flow(self, now: float) -> None:
        self._state.advance(self.clock.read(now))
        self._model = None
