"""Who of a sample is alive: pings in hash order until enough have answered (sans-IO).

Problem: the order of a round names nodes that are gone. Idea (MoDeST, algorithm "sample"): ping the first `count` of the order
at once; each one whose answer is missing after `timeout_s` is replaced by the next; stop when `count` have answered or the
order is at its end. The sample is the first `count` responders *in hash order*, not in order of arrival, so that two
nodes with the same view and the same luck find the same sample. An answer that comes late still counts while the probe runs.

Invariants: at most `count` candidates are waited for at a time; everybody ranked before a member of the sample has
answered or was given its time; a candidate is pinged at most twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import attrs

from transport.identity import NodeId


@attrs.define
class _Waiting:
    resend_at: float | None
    until: float


class LivenessProbe:
    """One `live(k, count)`; done as soon as `sample` is not None.

    Args:
        order: the round's candidates in hash order.
        count: how many live ones are wanted.
        me: answers at once, if it is in the order.
        timeout_s: from a ping to giving up on it.
        resend_s: a ping without an answer is repeated once after this time.
    """

    def __init__(
        self,
        order: Sequence[NodeId],
        count: int,
        me: NodeId,
        now: float,
        *,
        timeout_s: float,
        resend_s: float,
    ) -> None:
        self._rank = {node: rank for rank, node in enumerate(order)}
        self._next = deque(order)
        self._count = count
        self._me = me
        self._timeout_s, self._resend_s = timeout_s, resend_s
        self._waiting: dict[NodeId, _Waiting] = {}
        self._asked: set[NodeId] = set()
        self._responders: list[NodeId] = []
        self._pings: deque[NodeId] = deque()
        self._advance(now)

    @property
    def sample(self) -> tuple[NodeId, ...] | None:
        """The live ones in hash order, fewer than wanted if there are no more; None while that is open."""
        enough = len(self._responders) >= self._count
        if not enough and (self._waiting or self._next):
            return None
        return tuple(sorted(self._responders, key=self._rank.__getitem__)[: self._count])

    def precedes(self, node: NodeId, other: NodeId) -> bool:
        """Whether `node` comes first in the order; who is not in it comes last."""
        last = len(self._rank)
        return self._rank.get(node, last) < self._rank.get(other, last)

    def answered(self, node: NodeId, now: float) -> None:
        """A pong has come; anybody's that was not asked, or was counted already, is ignored."""
        if self.sample is not None or node not in self._asked or node in self._responders:
            return
        self._waiting.pop(node, None)
        self._responders.append(node)
        self._advance(now)

    def unreachable(self, node: NodeId, now: float) -> None:
        """A ping could not be sent: its time is over at once."""
        if self._waiting.pop(node, None) is not None:
            self._advance(now)

    def tick(self, now: float) -> None:
        """Repeat pings and give up on those whose time is over."""
        for node, waiting in list(self._waiting.items()):
            if waiting.until <= now:
                del self._waiting[node]
            elif waiting.resend_at is not None and waiting.resend_at <= now:
                waiting.resend_at = None
                self._pings.append(node)
        self._advance(now)

    def next_deadline(self) -> float | None:
        """When `tick` is due."""
        if self.sample is not None:
            return None
        times = [
            waiting.until if waiting.resend_at is None else min(waiting.resend_at, waiting.until)
            for waiting in self._waiting.values()
        ]
        return min(times, default=None)

    def next_ping(self) -> NodeId | None:
        """Whom to ping now."""
        return self._pings.popleft() if self._pings else None

    def _advance(self, now: float) -> None:
        while self._next and len(self._waiting) + len(self._responders) < self._count:
            node = self._next.popleft()
            if node == self._me:
                self._responders.append(node)
                continue
            self._waiting[node] = _Waiting(now + self._resend_s, now + self._timeout_s)
            self._asked.add(node)
            self._pings.append(node)
