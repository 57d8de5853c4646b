"""Variance-corrected averaging: the mean of models that do not know each other, with the spread that they had.

Problem: the mean of n models with independent weights of variance s² has weights of variance s²/n. Nodes that begin
independently, or swarms that merge, so average their models to nearly nothing, and a deep net does not learn its way out.
Idea: keep the mean of each averaged tensor, and scale its deviations so that its variance is that of the models that went
in. Where these are alike the two are the same, and the correction switches itself off: with correlation r between models
and weights p the variance of the mean is `s² (Σp² + (1 - Σp²) r)`.

Per tensor, with the own model o, weight c, and received models r_j::

    a = c o + Σ p_j r_j                                   (1 - c in equal parts, or the weights of the protocol)
    T = mean_j var(r_j)      target "others"
      | var(o)                      "self"
      | c var(o) + (1 - c) mean_j var(r_j)   "blend"
      | median_j var(r_j)           "median"
    out = (a - mean(a)) sqrt(T / var(a)) + mean(a)

Variances are unbiased and measured, never computed from the shape; biases and the scales of normalisation layers are
tensors like any other. Source: arXiv 2404.04616. Three things are deliberately other than in its authors' code: T is
measured before anything is mixed; a tensor is left alone if its spread is nothing beside T and its own mean (relative,
instead of adding a constant that leaves the weights some percent small); and there is the target "median", without which
one peer that sends huge weights sets everybody's scale.

Not linear: the mean of all nodes' models is *not* conserved. Of no use where all nodes begin with one model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from gossip.decentralized.arithmetic import PIECE
from gossip.decentralized.mixing.rules import MixRule, VarianceTarget, weighted_mean
from gossip.decentralized.protocol import AnyVector, TensorSpec, Vector

FLAT: Final = 1e-12
"""Share of T and the squared mean below which the variance of a mixed tensor is rounding, not spread: a constant tensor."""
NO_CHANGE: Final = 1e-7
"""A scale this close to 1 is 1: below the resolution of float32, and equal models stay equal bit for bit."""


class VarianceCorrected(MixRule):
    """The weighted mean, each tensor scaled about its mean to the variance of the models that went in."""

    name = "variance-corrected"

    def __init__(self, target: VarianceTarget = "others") -> None:
        self.target = target

    def _mix(
        self,
        own: Vector,
        received: Sequence[AnyVector],
        weights: Sequence[float],
        tensors: Sequence[TensorSpec],
        place: int,
    ) -> Vector:
        mixed = weighted_mean(own, received, weights, place)
        for tensor in tensors:
            if tensor.numel < 2:
                continue
            span = slice(tensor.offset, tensor.offset + tensor.numel)
            target = self.variance(own[span], [model[span] for model in received], weights[0])
            _rescale(mixed[span], target)
        return mixed

    def variance(self, own: AnyVector, received: Sequence[AnyVector], own_weight: float) -> float:
        """T of one tensor."""
        if self.target == "self":
            return moments(own)[1]
        others = [moments(model)[1] for model in received]
        if self.target == "median":
            return float(np.median(others))
        mean = math.fsum(others) / len(others)
        if self.target == "others":
            return mean
        return own_weight * moments(own)[1] + (1 - own_weight) * mean


def moments(values: AnyVector) -> tuple[float, float]:
    """Mean and unbiased variance in float64, in two passes over pieces; of two values at least."""
    pieces = [values[at : at + PIECE] for at in range(0, values.size, PIECE)]
    mean = sum(float(piece.sum(dtype=np.float64)) for piece in pieces) / values.size
    squares = sum(
        float(np.square(np.subtract(piece, mean, dtype=np.float64)).sum()) for piece in pieces
    )
    return mean, squares / (values.size - 1)


def _rescale(tensor: Vector, target: float) -> None:
    """Bring a tensor's variance to the target, in place, about its mean."""
    mean, variance = moments(tensor)
    if variance <= FLAT * (target + mean * mean):
        return
    scale = math.sqrt(target / variance)
    if abs(scale - 1) < NO_CHANGE:
        return
    for at in range(0, tensor.size, PIECE):
        piece = tensor[at : at + PIECE]
        with np.errstate(over="ignore"):  # what does not fit is infinite, and callers look for that
            piece[:] = np.subtract(piece, mean, dtype=np.float64) * scale + mean
