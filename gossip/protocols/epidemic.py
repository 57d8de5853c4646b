"""Epidemic learning: in every round each node sends its model to a few others, anew drawn.

Fresh neighbours in every round carry news through n nodes in about log n rounds, which no lasting graph of the same degree
does. Two ways to draw them (M. de Vos et al., "Epidemic Learning", 2023):

* "oracle": the neighbours are those of a random regular graph of this round. No oracle is asked: all nodes derive it from the
  run, the round and the members they know. The matrix is symmetric and doubly stochastic, the mean is conserved, and a
  node knows whose models to wait for;
* "local": each node draws whom it sends to, alone, and takes the plain mean of its own model and those that reach it while
  the round is open. Nobody need know the same members, and nobody can know how many models will come: a round lasts
  `window` seconds from sending, and a late model is dropped, not carried over. Rows sum to 1 and columns do not, so that the
  mean drifts a little.

Rounds, deadlines and latecomers: `gossip.decentralized.rounds.base`. The graph here is simple and exactly regular (`topology`), where
the authors' code takes a union of cycles that may share edges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

from gossip.decentralized.mixing import composition
from gossip.decentralized.rounds.base import Plan
from gossip.decentralized.rounds.inbox import Received
from gossip.decentralized.rounds.models import MixingSettings, ModelRounds
from gossip.decentralized.topology import graph, metropolis_row
from transport.identity import NodeId


class EpidemicSettings(MixingSettings, frozen=True, forbid_unknown_fields=True):
    """Options of epidemic learning."""

    sampling: Literal["oracle", "local"] = "oracle"
    """Who draws the receivers of a round: "oracle", a regular graph that all derive alike; "local", each node for itself."""
    fanout: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    """Receivers of each node's model in a round; 0: the logarithm to base 2 of the number of nodes, rounded up."""
    window: Annotated[float, msgspec.Meta(gt=0, le=86400)] = 2.0
    """Seconds that a round stays open after a node has sent its model, with "local" sampling. Too short a time drops what slower links and nodes send."""


class EpidemicLearning(ModelRounds):
    """Epidemic learning: each model goes to a few others, drawn anew in each round (EL-Oracle, EL-Local)."""

    name = "epidemic"
    Settings = EpidemicSettings
    settings: EpidemicSettings
    conserves_mean = True

    @classmethod
    def parse_settings(cls, raw: Mapping[str, Any]) -> msgspec.Struct:
        """As for all; a trim that leaves nothing of the oracle's neighbours is refused."""
        parsed = super().parse_settings(raw)
        assert isinstance(parsed, EpidemicSettings), "these are its settings"
        known = parsed.sampling == "oracle" and parsed.fanout > 0
        models = 1 + parsed.fanout if known else None
        composition.check_trim(cls.name, parsed.mixing, parsed.trim, models)
        return parsed

    @classmethod
    def keeps_mean(cls, settings: msgspec.Struct) -> bool:
        """With the oracle only: what a node gives away is what others take."""
        assert isinstance(settings, EpidemicSettings), "these are its settings"
        return super().keeps_mean(settings) and settings.sampling == "oracle"

    @property
    def patience(self) -> float:
        """Until everybody's model is there at the longest, or the length of a round."""
        local = self.settings.sampling == "local"
        return self.settings.window if local else self.settings.patience

    @property
    def fanout(self) -> int:
        """Receivers in a round among the members known now."""
        return min(self.settings.fanout or len(self.others).bit_length(), len(self.others))

    def plan(self, stamp: int) -> Plan:
        """This round's receivers; with the oracle they are also those to wait for."""
        if self.settings.sampling == "local":
            chosen = self.context.rng.sample(self.others, self.fanout)
            return Plan(tuple(sorted(chosen)), None)
        if not self.others:
            return Plan((), ())
        edges = graph(
            "random-regular",
            [*self.others, self.context.me],
            self.context.run,
            degree=self.fanout,
            round_=1 + stamp,
        )[self.context.me]
        return Plan(edges, edges)

    def capacity(self) -> int:
        """Several times what is expected of this round and the next: how many come is chance."""
        return super().capacity() + 4 * self.fanout

    def far_rounds(self) -> int:
        """With fresh neighbours in every round, a node is ahead of another by as many rounds as news takes to get around."""
        return super().far_rounds() + len(self.others).bit_length()

    def weights(self, degree: int, received: Sequence[Received]) -> dict[NodeId, float]:
        """Equal parts of what is there ("local"), or Metropolis-Hastings weights of the round's graph."""
        me = self.context.me
        if self.settings.sampling == "oracle":
            return metropolis_row(me, degree, {one.sender: one.degree for one in received})
        share = 1 / (1 + len(received))
        return {me: share, **{one.sender: share for one in received}}
