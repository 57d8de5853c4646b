"""What a trainer starts from when it trusts no single aggregator (pure functions).

Problem: an aggregator that lies decides alone what all trainers of a round begin with. Idea: with `aggregators` >= 3 a trainer
takes the coordinate-wise median over distinct aggregators. Let f = (aggregators - 1) // 2:

* a majority sent equal bits: that model, at once. At least one honest aggregator stands behind it;
* all have answered: the median. Each coordinate lies between two honest values;
* time is over and a majority has answered: the votes missing to 2 f + 1 are cast for this node's own last model, so that
  each coordinate lies between honest values or between an honest one and this node's own;
* fewer: nothing, until the round is offered again.

This holds against at most f liars among those that claim to be aggregators of the round: any member may claim it, since who
is alive is known only to those who pinged. It does not protect from trainers that lie (the aggregators' `mixing` does,
within its bounds), from views that lie about who is there, or from members that answer pings and then stay silent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gossip.decentralized.mixing import Median
from gossip.decentralized.protocol import Vector


def tolerated(aggregators: int) -> int:
    """How many lying aggregators a round bears: f."""
    return (aggregators - 1) // 2


def majority(aggregators: int) -> int:
    """How many have to answer at least."""
    return aggregators // 2 + 1 if tolerated(aggregators) else 1


def decide(votes: Sequence[Vector], aggregators: int, own: Vector, *, late: bool) -> Vector | None:
    """The model to start from, or None as long as it is open.

    Args:
        votes: one model of each aggregator that has answered, by ascending sender.
        aggregators: how many were asked for.
        own: this node's last model.
        late: no more votes are waited for.
    """
    if len(votes) < majority(aggregators):
        return None
    if not tolerated(aggregators):
        return votes[0]
    for model in votes[: len(votes) - majority(aggregators) + 1]:
        if sum(np.array_equal(model, other) for other in votes) >= majority(aggregators):
            return model
    if len(votes) >= aggregators:
        return median(votes)
    if late:
        missing = max(0, 2 * tolerated(aggregators) + 1 - len(votes))
        return median([*votes, *[own] * missing])
    return None


def median(models: Sequence[Vector]) -> Vector:
    """Coordinate by coordinate; the mean of the middle two for an even number. Equal models give that model."""
    return Median().mix(models[0], models[1:], [1 / len(models)] * len(models), ())
