"""D-PSGD: train, exchange models with fixed neighbours on a graph, take their weighted mean.

`x_i <- sum_j w_ij x_j` with Metropolis-Hastings weights `w_ij = 1 / (1 + max(d_i, d_j))`: symmetric, so that the mean of all
models is that of the local work, and disagreement shrinks by the second eigenvalue of W in every round. Both ends compute an
edge's weight from both degrees, which travel with the models.

Sources: X. Lian et al., "Can Decentralized Algorithms Outperform Centralized Algorithms?" (2017), for the algorithm;
L. Xiao and S. Boyd, "Fast linear iterations for distributed averaging" (2004), for the weights. Rounds, deadlines and
latecomers: `gossip.decentralized.rounds.base`.

What is not conserved: when a node crashes, its share of the mean is gone with it; when a message is lost for good, its edge
may count at one end only, and the mean moves by the difference of the two models, times the edge's weight. On the directed
graph ("one-peer-exponential", weight 1/2 for each of two) W is doubly stochastic while all models arrive; one that is missing
leaves its weight to the receiver alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any

import msgspec

from gossip.decentralized.mixing import composition
from gossip.decentralized.protocol import Context
from gossip.decentralized.rounds.base import Plan
from gossip.decentralized.rounds.inbox import Received
from gossip.decentralized.rounds.models import MixingSettings, ModelRounds
from gossip.decentralized.topology import (
    CHANGING,
    DIRECTED,
    Graph,
    Kind,
    check_lasting,
    graph,
    metropolis_row,
)
from transport.identity import NodeId


class DPSGDSettings(MixingSettings, frozen=True, forbid_unknown_fields=True):
    """Options of D-PSGD."""

    graph: Kind = "random-regular"
    """Who is whose neighbour. All nodes derive it from the run's id and the list of its members, and anew when members come or go."""
    degree: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 4
    """Neighbours of each node ("random-regular", there at least 2; "small-world"), or links that a new node brings ("barabasi-albert"). Others have no choice."""
    self_weight: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    """Share that a node's own model keeps; 0: Metropolis-Hastings weights, which give it what its neighbours leave."""


class DPSGD(ModelRounds):
    """Decentralized parallel SGD with Metropolis-Hastings weights."""

    name = "dpsgd"
    Settings = DPSGDSettings
    settings: DPSGDSettings
    conserves_mean = True

    @classmethod
    def parse_settings(cls, raw: Mapping[str, Any]) -> msgspec.Struct:
        """As for all; a graph that falls apart and a trim that leaves nothing on the chosen one are refused."""
        parsed = super().parse_settings(raw)
        assert isinstance(parsed, DPSGDSettings), "these are its settings"
        check_lasting(cls.name, parsed.graph, parsed.degree)
        fixed = {"ring": 2, "one-peer-exponential": 1, "full": None, "exponential": None}
        neighbours = fixed.get(parsed.graph, parsed.degree)
        models = None if neighbours is None else 1 + neighbours
        composition.check_trim(cls.name, parsed.mixing, parsed.trim, models)
        return parsed

    def __init__(self, settings: msgspec.Struct, context: Context) -> None:
        super().__init__(settings, context)
        self._near: tuple[tuple[NodeId, ...], frozenset[NodeId]] = ((), frozenset())

    def graph(self, stamp: int) -> Graph:
        """The graph of a stamp among the members known now."""
        return graph(
            self.settings.graph,
            [*self.others, self.context.me],
            self.context.run,
            degree=self.settings.degree,
            round_=stamp if self.settings.graph in CHANGING else 0,
        )

    def plan(self, stamp: int) -> Plan:
        """The neighbours in the stamp's graph."""
        me, edges = self.context.me, self.graph(stamp)
        if self.settings.graph in DIRECTED:
            return Plan(edges[me], tuple(node for node in sorted(edges) if me in edges[node]))
        return Plan(edges[me], edges[me])

    def neighbours(self) -> Collection[NodeId]:
        """Of the lasting graph."""
        if self.settings.graph in CHANGING:
            return ()
        if self._near[0] != self.others:
            self._near = (self.others, frozenset(self.graph(0)[self.context.me]))
        return self._near[1]

    def far_rounds(self) -> int:
        """On a changing graph a node may be ahead of another by as many rounds as news takes to get around."""
        changing = self.settings.graph in CHANGING
        return super().far_rounds() + (len(self.others).bit_length() if changing else 0)

    def weights(self, degree: int, received: Sequence[Received]) -> dict[NodeId, float]:
        """This node's row of W among the models that are there; they sum to 1."""
        me, own_share = self.context.me, self.settings.self_weight
        if self.settings.graph in DIRECTED:
            share = (1 - own_share) if own_share else 1 / 2
            row = {one.sender: share / len(received) for one in received}
            return {**row, me: 1 - sum(row.values())}
        return metropolis_row(me, degree, {one.sender: one.degree for one in received}, own_share)
