"""Several bulk links used as one: transfers go out over them in turn and are received in the same turn.

Problem: over a long path one connection carries no more than its window in a round trip, whatever the line could
(4 MiB of send buffer over 100 ms are 335 Mbit/s). Idea: as with the stripes of a disk array, transfer i goes over link i
modulo their number. Both ends count, so order is kept without a word and nothing has to be put aside: what comes early
on a link waits in its socket. The slowest link sets the pace of all, which between the same two machines is
nearly the pace of each; who shares a path with unequal ones is better served by `transport.bulk.pool`.

What a socket does not take at once leaves from a task of its link, so that the others are fed meanwhile.

Invariants: as for `BulkLink`: one sender task and one receiver task at a time; when one link ends, all do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from transport.buffer import Buffer
from transport.bulk.link import MAX_PAYLOAD_BYTES, BulkLink, LinkClosed


class StripedLink:
    """One direction of bulk data over several links.

    Args:
        links: at least one, in the same order at both ends.
        start: starts a task that lives as long as the links; needed by the end that sends.
    """

    def __init__(
        self, links: Sequence[BulkLink], start: Callable[..., object] | None = None
    ) -> None:
        self._links = tuple(links)
        self._start = start
        self._draining: set[int] = set()
        self._drained = trio.Event()
        self._out = 0
        self._in = 0
        self._due = 0

    @property
    def closed(self) -> bool:
        """True once one of the links has failed or was closed on either side."""
        return any(link.closed for link in self._links)

    @property
    def local(self) -> bool:
        """True when both ends are on one machine."""
        return self._links[0].local

    @property
    def shares_memory(self) -> bool:
        """What passes through shared memory is no use of several links."""
        return False

    @property
    def waiting(self) -> bool:
        """Never: what is left of a transfer leaves by itself."""
        return False

    async def flush(self) -> None:
        """Nothing to wait for; see `waiting`."""
        await trio.lowlevel.checkpoint()

    # ---- sending -----------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """True while `try_send` would send nothing."""
        return self._links[self._out].busy

    def try_send(self, header: bytes, payload: Buffer) -> bool:
        """As `BulkLink.try_send`."""
        link = self._links[self._out]
        if not link.try_send(header, payload):
            return False
        if link.waiting and self._out not in self._draining:
            assert self._start is not None, "this end only receives"
            self._draining.add(self._out)
            self._start(self._drain, self._out)
        self._advance_out()
        return True

    async def send(self, header: bytes, payload: Buffer) -> None:
        """As `BulkLink.send`; returns once the transfer is sealed, perhaps before the network has taken it."""
        while not self.try_send(header, payload):
            link = self._links[self._out]
            if self._out not in self._draining:  # the network cannot tell, or memory is shared
                await link.send(header, payload)
                self._advance_out()
                return
            drained = self._drained
            await drained.wait()

    def _advance_out(self) -> None:
        self._out = (self._out + 1) % len(self._links)

    async def _drain(self, number: int) -> None:
        """Have the rest of a link's transfer taken by the network."""
        try:
            await self._links[number].flush()
        except LinkClosed as error:
            self.abort(str(error))
        finally:
            self._draining.discard(number)
            self._drained.set()
            self._drained = trio.Event()

    # ---- receiving ---------------------------------------------------------------------------

    async def receive_head(self, most: int = MAX_PAYLOAD_BYTES) -> tuple[bytes, int]:
        """As `BulkLink.receive_head`."""
        header, size = await self._links[self._in].receive_head(most)
        self._due = size
        self._turn_if_complete()
        return header, size

    async def receive_data(self, target: memoryview) -> None:
        """As `BulkLink.receive_data`."""
        if not target:
            return  # perhaps of a transfer without payload, which is over already
        await self._links[self._in].receive_data(target)
        self._due -= len(target)
        self._turn_if_complete()

    def take_measure(self) -> tuple[float, int]:
        """As `BulkLink.take_measure`; all links receive at once, so their seconds do not add up."""
        measures = [link.take_measure() for link in self._links]
        return max(seconds for seconds, _ in measures), sum(size for _, size in measures)

    def _turn_if_complete(self) -> None:
        if not self._due:
            self._in = (self._in + 1) % len(self._links)

    # ---- the end -----------------------------------------------------------------------------

    def abort(self, reason: str = "aborted") -> None:
        """Close all links hard and wake both sides' waiting tasks."""
        for link in self._links:
            link.abort(reason)
        self._drained.set()
        self._drained = trio.Event()


AnyLink = BulkLink | StripedLink
