"""Mixing rules: a node's own model and those it received become its new model.

Problem: which models a node hears, and what it makes of them, are two decisions; the second one should work under any of
the first. Idea: a rule is a pure function of (own model, received models, weights), composed with protocols as
`gossip.decentralized.mixing.composition` allows.

All rules work on flat float32 vectors in pieces, add up in float64 in one fixed order, and round once. Statistics of a
normalisation layer (`running_mean` and its like) are this node's own and are kept, whatever the rule.

`gossip.decentralized.mixing.variance_correction` has the rule that needs more words. Median and trimmed mean are those of D. Yin et
al., "Byzantine-Robust Distributed Learning" (2018), coordinate by coordinate; they ignore weights, because a weight is
what a peer says about itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from gossip.decentralized import arithmetic
from gossip.decentralized.arithmetic import PIECE
from gossip.decentralized.protocol import AnyVector, TensorSpec, Vector
from gossip.errors import InvalidSettings

Mixing = Literal["mean", "variance-corrected", "median", "trimmed-mean"]
MIXINGS: Final[tuple[str, ...]] = get_args(Mixing)
ROBUST: Final = frozenset({"median", "trimmed-mean"})
VarianceTarget = Literal["others", "self", "blend", "median"]

KEPT_LOCAL: Final = ("running_mean", "running_var", "num_batches_tracked")
"""Last part of the name of a tensor that describes a node's own data, and means nothing beside another node's weights."""


class MixRule(ABC):
    """How models become one."""

    name: ClassVar[str]
    conserves_mean: ClassVar[bool] = False
    """With a doubly stochastic matrix of weights, the mean of all nodes' models stays what it is."""

    def mix(
        self,
        own: Vector,
        received: Sequence[AnyVector],
        weights: Sequence[float],
        tensors: Sequence[TensorSpec],
        *,
        place: int = 0,
    ) -> Vector:
        """A new vector from the node's own, shape (numel,), and the received ones, each of the same shape.

        Args:
            own: this node's model.
            received: the others', ascending by node id.
            weights: first the own model's, then one for each received; they sum to 1.
            tensors: what lies where; values outside are padding.
            place: how many of the received come before this node by id. Additions are made in that order, so that nodes which
                mix the same models with the same weights get the same bits.
        """
        assert len(weights) == 1 + len(received), "one weight for the own model and each received"
        if not received:
            return own.copy()
        mixed = self._mix(own, received, weights, tensors, place)
        for tensor in tensors:
            if tensor.name.rpartition(".")[2] in KEPT_LOCAL:
                span = slice(tensor.offset, tensor.offset + tensor.numel)
                mixed[span] = own[span]
        return mixed

    @abstractmethod
    def _mix(
        self,
        own: Vector,
        received: Sequence[AnyVector],
        weights: Sequence[float],
        tensors: Sequence[TensorSpec],
        place: int,
    ) -> Vector: ...


def weighted_mean(
    own: Vector, received: Sequence[AnyVector], weights: Sequence[float], place: int
) -> Vector:
    """`sum_j w_j x_j` with the own model at its place."""
    models = [*received[:place], own, *received[place:]]
    return arithmetic.combine(models, [*weights[1 : place + 1], weights[0], *weights[place + 1 :]])


class WeightedMean(MixRule):
    """The weighted mean: what every theorem about gossip averaging is about, and what one liar can move anywhere."""

    name = "mean"
    conserves_mean = True

    def _mix(
        self,
        own: Vector,
        received: Sequence[AnyVector],
        weights: Sequence[float],
        _tensors: Sequence[TensorSpec],
        place: int,
    ) -> Vector:
        return weighted_mean(own, received, weights, place)


class Median(MixRule):
    """Of each coordinate the median, the mean of the two middle ones if their number is even.

    Lies inside the range of the honest values while more than half of the models, the own one included, are honest.
    """

    name = "median"

    def _mix(
        self,
        own: Vector,
        received: Sequence[AnyVector],
        _weights: Sequence[float],
        _tensors: Sequence[TensorSpec],
        _place: int,
    ) -> Vector:
        count = 1 + len(received)
        return _by_coordinate([own, *received], (count - 1) // 2)


class TrimmedMean(MixRule):
    """Of each coordinate the mean without the `trim` largest and smallest values.

    With too few models to trim (2 * trim or fewer, the own one included) the node keeps its own: any of the others may be
    one of those it is to be safe from.
    """

    name = "trimmed-mean"

    def __init__(self, trim: int) -> None:
        self.trim = trim

    def _mix(
        self,
        own: Vector,
        received: Sequence[AnyVector],
        _weights: Sequence[float],
        _tensors: Sequence[TensorSpec],
        _place: int,
    ) -> Vector:
        if 1 + len(received) <= 2 * self.trim:
            return own.copy()
        return _by_coordinate([own, *received], self.trim)


def _by_coordinate(models: Sequence[AnyVector], trim: int) -> Vector:
    """Of each coordinate the mean of what is left without the `trim` smallest and largest."""
    size = models[0].size
    out = np.empty(size, np.float32)
    for start in range(0, size, PIECE):
        stop = min(start + PIECE, size)
        values: npt.NDArray[np.float64] = np.array(
            [model[start:stop] for model in models], np.float64
        )
        values.sort(axis=0)
        out[start:stop] = values[trim : len(models) - trim].mean(axis=0)
    return out


def mix_rule(
    name: str, *, variance_target: VarianceTarget | None = None, trim: int | None = None
) -> MixRule:
    """The rule of that name.

    Args:
        name: one of MIXINGS.
        variance_target: for "variance-corrected"; "others" unless given.
        trim: for "trimmed-mean", how many liars it is to bear; 1 unless given.

    Raises:
        InvalidSettings: there is no such rule.
    """
    from gossip.decentralized.mixing.variance_correction import VarianceCorrected

    made: dict[str, Callable[[], MixRule]] = {
        "mean": WeightedMean,
        "variance-corrected": lambda: VarianceCorrected(variance_target or "others"),
        "median": Median,
        "trimmed-mean": lambda: TrimmedMean(1 if trim is None else trim),
    }
    if name not in made:
        raise InvalidSettings(f"no mixing rule {name!r}", hint=f"there are: {', '.join(MIXINGS)}")
    return made[name]()
