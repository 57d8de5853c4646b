"""Whose block is sent next: fair turns between peers, an upload cap, bounded queues; sans-IO.

Problem: one fetcher asks for everything, another one crawls on a thin line, and the node has its own training to feed. Idea: of the peers that wait, the one
that has been given the fewest bytes is next, a newcomer starting level with the least served (start-time fair queueing, as in
`transport.bulk.chunks`); nobody holds more than an equal share of the places, so that slow ones cannot occupy them all; and a
token bucket caps the whole.

Invariants: at most `places` items are being sent, at most `queue` wait per peer; bytes given out in any span of t seconds are at most
`rate * (t + BURST_S)` plus one item. Times are seconds on the caller's clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

import attrs

__all__ = ["Turns"]

P = TypeVar("P", bound=Hashable)
T = TypeVar("T")

BURST_S: Final = 0.25
"""The cap is kept over spans longer than this."""


@attrs.define(eq=False)
class _Peer(Generic[T]):
    served: int  # bytes, on a scale common to all
    waiting: deque[tuple[T, int]] = attrs.field(factory=deque)
    sending: int = 0


class Turns(Generic[P, T]):
    """The order of serving.

    Args:
        places: items being sent at once.
        queue: items waiting per peer.
        bytes_per_s: the cap; 0 for none.
    """

    def __init__(self, *, places: int, queue: int, bytes_per_s: int = 0) -> None:
        self._places, self._queue, self._rate = places, queue, bytes_per_s
        self._peers: dict[P, _Peer[T]] = {}
        self._sending = 0
        self._tokens = bytes_per_s * BURST_S
        self._filled_at: float | None = None

    @property
    def waiting(self) -> int:
        """Items that wait."""
        return sum(len(peer.waiting) for peer in self._peers.values())

    @property
    def sending(self) -> int:
        """Items being sent."""
        return self._sending

    def put(self, name: P, item: T, size: int) -> bool:
        """Have `item` of `size` bytes wait for the turn of peer `name`; False if its queue is full."""
        peer = self._peers.get(name)
        if peer is None:
            least = min((other.served for other in self._peers.values()), default=0)
            peer = self._peers[name] = _Peer(least)
        if len(peer.waiting) >= self._queue:
            return False
        peer.waiting.append((item, size))
        return True

    def next(self, now: float) -> tuple[P, T] | None:
        """The next item to send, which counts as being sent until `done`; None if none may be sent now."""
        name = self._first()
        if name is None:
            return None
        self._fill(now)
        if self._rate and self._tokens < 0:
            return None
        peer = self._peers[name]
        item, size = peer.waiting.popleft()
        peer.served += size
        peer.sending += 1
        self._sending += 1
        if self._rate:
            self._tokens -= size
        return name, item

    def next_at(self, now: float) -> float | None:
        """When the cap allows the next item; None if it is not the cap that forbids it."""
        self._fill(now)
        if self._first() is None or not self._rate or self._tokens >= 0:
            return None
        return now - self._tokens / self._rate

    def done(self, name: P) -> None:
        """An item of `name` is not being sent any more."""
        peer = self._peers[name]
        peer.sending -= 1
        self._sending -= 1
        self._forget(name)

    def drop(self, name: P) -> list[T]:
        """Forget what waits for `name`; returns it."""
        peer = self._peers.get(name)
        if peer is None:
            return []
        dropped = [item for item, _ in peer.waiting]
        peer.waiting.clear()
        self._forget(name)
        return dropped

    def _first(self) -> P | None:
        if self._sending >= self._places:
            return None
        wanting = [name for name, peer in self._peers.items() if peer.waiting]
        # Those that are being served count: a place that one of them gives up is its own again.
        share = max(1, self._places // max(1, len(self._peers)))
        allowed = [name for name in wanting if self._peers[name].sending < share]
        return min(allowed, key=lambda name: self._peers[name].served, default=None)

    def _forget(self, name: P) -> None:
        peer = self._peers[name]
        if not peer.waiting and not peer.sending:
            del self._peers[name]

    def _fill(self, now: float) -> None:
        if self._rate:
            since = 0.0 if self._filled_at is None else max(0.0, now - self._filled_at)
            self._tokens = min(self._rate * BURST_S, self._tokens + self._rate * since)
            self._filled_at = now
