"""What a trainer starts from when it trusts no single aggregator (sans-IO).

Problem: an aggregator that lies decides alone what all trainers of a round begin with. Idea: with `aggregators` >= 3 a trainer
takes the coordinate-wise median over distinct aggregators. Let f = (aggregators - 1) // 2:

* a majority sent equal bits: that model, at once. At least one honest aggregator stands behind it;
* all have answered: the median. Each coordinate lies between two honest values;
* time is over and a majority has answered: the votes missing to 2 f + 1 are cast for this node's own last model, so that
  each coordinate lies between honest values or between an honest one and this node's own;
* fewer: nothing, until the round is offered again;
* the run has stood still for several attempts, because too few hold one and the same round (most were lost, or two parts went
  on without each other): the coordinate-wise median over 2 f + 1 nodes or more, this one included, of whatever
  round each offers, taken up at the lower median of these rounds. Nobody has to believe one.

This holds against at most f liars among those that claim to be aggregators of the round: any member may claim it, since who
is alive is known only to those who pinged. It does not protect from trainers that lie (the aggregators' `mixing` does,
within its bounds), from views that lie about who is there, or from members that answer pings and then stay silent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import numpy as np

from gossip.decentralized.mixing.rules import Median
from gossip.decentralized.protocol import Vector
from gossip.protocols.modest.inbox import Held, OpenRound, RoundInbox
from transport.identity import NodeId


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


@attrs.frozen(eq=False)
class Decision:
    """What to start from."""

    round: int
    model: Vector
    members: int
    """Models in the mean, as was said."""
    sample: int
    """Trainers that the round is given to, as was said."""


class Poll:
    """The votes that a trainer has heard.

    Args:
        limit: models held at most.
        timeout_s: from a round's first vote until those that are there decide.
    """

    def __init__(self, limit: int, timeout_s: float) -> None:
        self._inbox = RoundInbox(limit)
        self._timeout_s = timeout_s

    def add(self, k: int, sender: NodeId, held: Held, now: float) -> None:
        """An aggregator says what round `k` starts from; its last word counts."""
        self._inbox.add(k, sender, held, now)

    def due(self, aggregators: int) -> float:
        """When the next round is decided by those that are there."""
        return min(
            (self._due(e, aggregators) for e in self._inbox.rounds.values()), default=math.inf
        )

    def decided(self, aggregators: int, own: Vector, now: float) -> Decision | None:
        """The latest round on which enough agree."""
        for k, each in sorted(self._inbox.rounds.items(), reverse=True):
            late = self._due(each, aggregators) <= now
            model = decide(each.ascending(), aggregators, own, late=late)
            if model is not None:
                return _decision(k, model, list(each.held.values()))
        return None

    def settled(self, aggregators: int, me: NodeId, own_round: int, own: Vector) -> Decision | None:
        """For a run that stands still: something between all that is offered, and what this node has."""
        held = [
            (k, each.held[node])
            for k, each in sorted(self._inbox.rounds.items())
            for node in sorted(each.held)
            if node != me
        ]
        if 1 + len(held) < 2 * tolerated(aggregators) + 1:
            return None
        rounds = sorted([own_round, *(k for k, _ in held)])
        model = median([own, *(each.model for _, each in held)])
        return _decision(rounds[(len(rounds) - 1) // 2], model, [each for _, each in held])

    def close_through(self, k: int) -> None:
        """Forget round `k` and all before it."""
        self._inbox.close_through(k)

    def clear(self) -> None:
        """Forget all."""
        self._inbox.clear()

    def _due(self, each: OpenRound, aggregators: int) -> float:
        enough = len(each.held) >= majority(aggregators)
        return each.since + self._timeout_s if enough else math.inf


def _decision(k: int, model: Vector, held: Sequence[Held]) -> Decision:
    members, sample = max(each.members for each in held), max(each.sample for each in held)
    return Decision(k, model, members, sample)
