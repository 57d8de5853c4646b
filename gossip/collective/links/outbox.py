"""What one member sends to another in an operation, made as it leaves (trio driver).

A receiver must never wait for its own sender: a circle of such waits would be a deadlock. So what is to be
sent is posted here and leaves by itself: at once as far as the link takes it without waiting and little time passes, the rest from a
task that is only started when it is needed. What is posted is an iterator of transfers, each of which is made
when its turn has come, so nothing is encoded, and no memory taken, before the link is free.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import trio

from transport.buffer import Buffer
from transport.bulk.striped import AnyLink
from transport.stretch import Stretch

Transfer = tuple[bytes, Buffer]


class Outbox:
    """Transfers to one member, in the order in which they were posted."""

    def __init__(self, link: AnyLink, nursery: trio.Nursery) -> None:
        self._link = link
        self._nursery = nursery
        # Bounded by the operation: an iterator for each thing that it sends.
        self._queue: deque[Iterator[Transfer]] = deque()
        self._next: Transfer | None = None
        self._sending = False

    def post(self, transfers: Iterator[Transfer]) -> None:
        """Send these after all that were posted before.

        Raises:
            LinkClosed: the link broke.
            NotFinite: a value cannot be carried.
        """
        self._queue.append(transfers)
        if not self._sending:
            self._pump()

    def _pump(self) -> None:
        """Send what needs no waiting, but not for long at a time, and leave the rest to the task."""
        link, stretch = self._link, Stretch()
        stretch.begin()
        while not link.busy and (transfer := self._peek()) is not None:
            if not link.try_send(*transfer):
                break
            self._next = None
            if stretch.hogs():
                break
        if link.waiting or self._next is not None or self._queue:
            self._sending = True
            self._nursery.start_soon(self._run)

    def _peek(self) -> Transfer | None:
        while self._next is None and self._queue:
            self._next = next(self._queue[0], None)
            if self._next is None:
                self._queue.popleft()
        return self._next

    async def _run(self) -> None:
        link = self._link
        if link.waiting:
            await link.flush()
        while (transfer := self._peek()) is not None:
            self._next = None
            await link.send(*transfer)
        self._sending = False
