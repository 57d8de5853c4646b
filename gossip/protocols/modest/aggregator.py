"""What an aggregator does with the models of a round: wait for enough of them, and average (sans-IO).

A round is complete with the success fraction of as many trainers as it was given to. When its time is over, the floor is enough.
Neither counts a node that nobody knows to be there: in a run of two nodes a floor of three would end it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import attrs
import numpy as np

from gossip.decentralized.protocol import Vector
from gossip.protocols.modest import votes
from gossip.protocols.modest.averages import average
from gossip.protocols.modest.inbox import OpenRound, RoundInbox
from gossip.protocols.modest.settings import MoDeSTSettings
from gossip.protocols.modest.view import View
from transport.identity import NodeId


@attrs.frozen(eq=False)
class Average:
    """A round's model."""

    model: Vector
    """Read-only, finite."""
    contributors: tuple[NodeId, ...]
    """Whose models are in it, ascending."""
    is_superseded: bool
    """The run is further already: nobody would train it."""


class Aggregator:
    """The rounds that this node may average.

    Attributes:
        round: the newest one that was averaged here.
        inbox: models that wait for others of their round.
    """

    def __init__(self, settings: MoDeSTSettings) -> None:
        self.round = 0
        self.inbox = RoundInbox(2 * settings.sample_size)
        self._settings = settings

    def overdue(self, now: float) -> Iterator[tuple[int, OpenRound]]:
        """Rounds whose time is over, ascending; each has its time again from `now`, should it stay open."""
        for k, each in sorted(self.inbox.rounds.items()):
            if each.since + self._settings.aggregation_timeout <= now and k in self.inbox.rounds:
                each.since = now
                yield k, each

    def next_deadline(self) -> float:
        """When the first round is overdue; infinite without one."""
        wait = self._settings.aggregation_timeout
        return min((each.since + wait for each in self.inbox.rounds.values()), default=math.inf)

    def wanted(self, each: OpenRound, floor: int) -> int:
        """Models that complete a round: the success fraction of as many trainers as it was given to."""
        trainers = max(held.sample for held in each.held.values())
        wanted = self._settings.success_fraction * min(trainers, self._settings.sample_size)
        return max(math.ceil(wanted - 1e-9), floor)

    def floor(self, k: int, own: int, view: View, reachable: int) -> int:
        """No average of fewer, unless there are no more nodes.

        Args:
            k: the round.
            own: the newest round that this node has a part in; none was seen in one far ahead, so at most that counts.
            view: who is known.
            reachable: nodes, this one included.
        """
        seen = view.candidates(min(k - 1, own), self._settings.inactivity_window)
        there = min(len(seen), reachable)
        return max(1, min(self._settings.aggregation_floor, self._settings.sample_size, there))

    def close(self, k: int, each: OpenRound, aggregators: int) -> Average | None:
        """Average round `k` and forget all rounds up to it; None if the mean is not finite."""
        support = max(1, votes.tolerated(aggregators), len(each.held) // 2) + 1
        is_superseded = self.inbox.newer(k, support)
        self.round = k
        self.inbox.close_through(k)
        with np.errstate(over="ignore"):
            model = average(each.ascending(), self._settings.mixing, self._settings.trim or 1)
        if not np.isfinite(model).all():
            return None
        model.flags.writeable = False
        return Average(model, tuple(sorted(each.held)), is_superseded)
