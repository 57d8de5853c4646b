"""How an aggregator makes one model of those of a round (pure functions)."""

from __future__ import annotations

from collections.abc import Sequence

from gossip.decentralized import arithmetic
from gossip.decentralized.mixing.rules import Median, MixRule, TrimmedMean
from gossip.decentralized.protocol import Vector
from gossip.protocols.modest.settings import OneLineMixing


def average(models: Sequence[Vector], mixing: OneLineMixing, trim: int = 1) -> Vector:
    """One new model, shape (numel,); the plain mean, or what bears trainers that lie.

    Every tensor is averaged, also those that describe a node's data (running means): there is one line of models, and no
    node's own values to keep.

    Args:
        models: by ascending node id, so that aggregators with equal models get equal bits.
        mixing: "mean", "median" or "trimmed-mean".
        trim: of each coordinate so many largest and smallest values are left out; fewer if there would be none left.
    """
    if mixing == "mean" or len(models) == 1:
        return arithmetic.mean(models)
    rule: MixRule = Median()
    if mixing == "trimmed-mean":
        rule = TrimmedMean(min(trim, (len(models) - 1) // 2))
    return rule.mix(models[0], models[1:], [1 / len(models)] * len(models), ())
