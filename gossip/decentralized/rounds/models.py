"""Protocols with rounds that exchange whole models and mix them by a rule that the operator chooses.

`base` says when models are exchanged, `mixing` what is made of them; a protocol on this base only says whom it exchanges
with (`plan`) and with which weights (`weights`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated

import msgspec

from gossip.decentralized.mixing.rules import Mixing, VarianceTarget, mix_rule
from gossip.decentralized.protocol import Context, Vector
from gossip.decentralized.rounds.base import RoundProtocol
from gossip.decentralized.rounds.inbox import Received
from transport.identity import NodeId


class MixingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of every protocol on this base."""

    mixing: Mixing = "mean"
    """How the models of a round become one. Any rule but "mean" gives up that the mean of all models is conserved."""
    variance_target: VarianceTarget | None = None
    """Whose spread "variance-corrected" restores: "others" (the default), "self", "blend", or "median" where peers are not trusted."""
    trim: Annotated[int, msgspec.Meta(ge=1, le=1000)] | None = None
    """Liars among a node's neighbours that "trimmed-mean" bears (default 1); with 2 * trim models or fewer a node keeps its own."""
    patience: Annotated[float, msgspec.Meta(gt=0, le=86400)] = 60.0
    """Seconds that a node waits for the models of a round, from sending its own. More waits for slower nodes, less loses less time to silent ones."""


class ModelRounds(RoundProtocol):
    """A core that mixes the round's models with `weights` and the rule of its settings."""

    settings: MixingSettings

    def __init__(self, settings: msgspec.Struct, context: Context) -> None:
        super().__init__(settings, context)
        self.mixing = mix_rule(
            self.settings.mixing,
            variance_target=self.settings.variance_target,
            trim=self.settings.trim,
        )

    @property
    def patience(self) -> float:
        """As set."""
        return self.settings.patience

    @abstractmethod
    def weights(self, degree: int, received: Sequence[Received]) -> dict[NodeId, float]:
        """This node's row of the mixing matrix among the models that are there, its own included; it sums to 1."""

    def mix(self, own: Vector, degree: int, received: Sequence[Received]) -> Vector:
        """One row of the matrix, or another rule over the same models."""
        me, row = self.context.me, self.weights(degree, received)
        return self.mixing.mix(
            own,
            [one.vectors[0] for one in received],
            [row[me], *(row[one.sender] for one in received)],
            self.context.tensors,
            place=sum(one.sender < me for one in received),
        )
