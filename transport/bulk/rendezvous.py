"""Where bulk connections that have come in meet the tasks that wait for them.

Problem: one side dials a bulk connection with a label, the other side asks for that label; either
may be first, and either may never come. Idea: a table keyed by (peer, label) with places for
both. An arrival waits a bounded time for its taker and occupies its own task meanwhile, so that
no connection lies in a table with nobody responsible for it.

Invariants: at most `MAX_WAITING_PER_PEER` arrivals and takers each per peer; each arrival is
taken once or closed; when a peer is lost all its takers fail and all its arrivals are closed.
"""

from collections import deque
from typing import Final, TypeVar

import attrs
import trio

from transport.errors import PeerLost, StreamLimitReached
from transport.identity import NodeId
from transport.network import RawStream
from transport.secure.handshake import HandshakeResult

MAX_WAITING_PER_PEER: Final = 16
ARRIVAL_WAIT_S: Final = 10.0
"""How long an arrival waits for its taker: the two sides of an operation start close together."""

Key = tuple[NodeId, bytes]
T = TypeVar("T")
Delivery = tuple[RawStream, HandshakeResult]


@attrs.define(eq=False)
class Taker:
    """Somebody who wants the next arrival with a key."""

    key: Key
    done: trio.Event = attrs.field(factory=trio.Event)
    delivery: Delivery | None = None
    lost: str = ""


@attrs.define(eq=False)
class _Arrival:
    delivery: Delivery
    done: trio.Event = attrs.field(factory=trio.Event)
    taken: bool = False


class Rendezvous:
    """The table; one per endpoint."""

    def __init__(self) -> None:
        self._takers: dict[Key, deque[Taker]] = {}
        self._arrivals: dict[Key, deque[_Arrival]] = {}
        self._counts: dict[NodeId, list[int]] = {}  # peer -> [takers, arrivals]; no zero entries

    def expect(self, key: Key) -> Taker:
        """Take an arrival, or a place in the queue; `wait` for it, or `forget` it.

        Raises:
            StreamLimitReached: too many wait for this peer.
        """
        taker = Taker(key)
        waiting = self._arrivals.get(key)
        if waiting:
            arrival = waiting[0]
            self._leave(self._arrivals, key, arrival, 1)
            arrival.taken = True
            arrival.done.set()
            taker.delivery = arrival.delivery
            taker.done.set()
            return taker
        if self._counts.get(key[0], [0, 0])[0] >= MAX_WAITING_PER_PEER:
            raise StreamLimitReached(
                f"{MAX_WAITING_PER_PEER} tasks wait for bulk links of one peer",
                hint="wait until some of them have theirs",
            )
        self._enter(self._takers, key, taker, 0)
        return taker

    async def wait(self, taker: Taker) -> Delivery:
        """Wait for the arrival; cancelling gives the place up.

        Raises:
            PeerLost: the peer was lost first.
        """
        try:
            await taker.done.wait()
        except BaseException:
            self.forget(taker)
            raise
        if taker.delivery is None:
            raise PeerLost(taker.lost)
        return taker.delivery

    def forget(self, taker: Taker) -> None:
        """Give the place up; closes an arrival that came at the same moment."""
        if taker.delivery is not None:
            taker.delivery[0].abort()
        self._leave(self._takers, taker.key, taker, 0)

    async def offer(self, key: Key, delivery: Delivery) -> str:
        """Hand an arrival to its taker, waiting for one; closes it when nobody comes.

        Returns:
            "" if it was taken, else the reason as a counter's name.
        """
        takers = self._takers.get(key)
        if takers:
            taker = takers[0]
            self._leave(self._takers, key, taker, 0)
            taker.delivery = delivery
            taker.done.set()
            return ""
        if self._counts.get(key[0], [0, 0])[1] >= MAX_WAITING_PER_PEER:
            delivery[0].abort()
            return "refused-bulk-pending"
        arrival = _Arrival(delivery)
        self._enter(self._arrivals, key, arrival, 1)
        try:
            with trio.move_on_after(ARRIVAL_WAIT_S):
                await arrival.done.wait()
        finally:
            if not arrival.taken:
                delivery[0].abort()
                self._leave(self._arrivals, key, arrival, 1)
        return "" if arrival.taken else "refused-bulk-unclaimed"

    def drop_peer(self, node_id: NodeId, reason: str) -> None:
        """Fail all takers and close all arrivals of a peer that is lost."""
        for key in [key for key in self._takers if key[0] == node_id]:
            for taker in list(self._takers.get(key, ())):
                taker.lost = reason
                taker.done.set()
                self._leave(self._takers, key, taker, 0)
        for key in [key for key in self._arrivals if key[0] == node_id]:
            for arrival in list(self._arrivals.get(key, ())):
                arrival.done.set()
                self._leave(self._arrivals, key, arrival, 1)

    def _enter(self, table: dict[Key, deque[T]], key: Key, item: T, which: int) -> None:
        table.setdefault(key, deque()).append(item)
        self._counts.setdefault(key[0], [0, 0])[which] += 1

    def _leave(self, table: dict[Key, deque[T]], key: Key, item: T, which: int) -> None:
        queue = table.get(key)
        if queue is None or item not in queue:
            return
        queue.remove(item)
        if not queue:
            del table[key]
        counts = self._counts[key[0]]
        counts[which] -= 1
        if counts == [0, 0]:
            del self._counts[key[0]]
