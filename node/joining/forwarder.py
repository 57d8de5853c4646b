"""What a member does with a newcomer's request: hand it to the node that decides, unchanged, and not too often.

Problem: requests come from anybody, cost a dial and a call each, and must not become a way to make members talk to whom a stranger
chooses. Idea: a request goes to one place only, the issuer that it names, and only if that is a member this node knows of; each source
has a small budget, and there is a bound on how many are under way.

Invariants: nothing is forwarded twice along one way (a forwarded request is not forwarded again); sources and requests under way
are bounded; nothing about the request is believed.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from node.joining.reasons import Reason
from node.joining.request import JoinRequest, MalformedRequest, parse_request
from node.joining.source_budget import SourceBudget

__all__ = ["Forwarder"]

MAX_UNDER_WAY: Final = 32
PER_MINUTE: Final = 60
"""Requests of one source: a whole classroom joins from one address."""
ALL_PER_MINUTE: Final = 300
"""Each may cost a search for its issuer."""


class Forwarder:
    """Which requests may pass; sans-IO. Each `admit` that returns a request is followed by one `done`.

    Args:
        swarm_id: of our swarm.
    """

    def __init__(self, swarm_id: bytes) -> None:
        self._swarm_id = swarm_id
        self._sources = SourceBudget(per_minute=PER_MINUTE, all_per_minute=ALL_PER_MINUTE)
        self._under_way = 0
        self.counters: Counter[str] = Counter()
        """Requests by what came of them here: `passed`, or why not."""

    @property
    def under_way(self) -> int:
        """Requests that wait for an issuer's answer."""
        return self._under_way

    def admit(self, data_untrusted: bytes, source: str, now: float) -> JoinRequest | Reason:
        """The request, if it may pass.

        Args:
            data_untrusted: what came.
            source: the network it came from.
            now: monotonic seconds.
        """
        result = self._judge(data_untrusted, source, now)
        if isinstance(result, Reason):
            self.counters[result.word] += 1
        else:
            self._under_way += 1
        return result

    def done(self, outcome: str) -> None:
        """A request that was admitted has its answer."""
        self._under_way -= 1
        self.counters[outcome] += 1

    def _judge(self, data_untrusted: bytes, source: str, now: float) -> JoinRequest | Reason:
        if self._under_way >= MAX_UNDER_WAY or not self._sources.take(source, now):
            return Reason.BUSY
        try:
            request = parse_request(data_untrusted)
        except MalformedRequest:
            return Reason.MALFORMED
        return request if request.swarm_id == self._swarm_id else Reason.MALFORMED
