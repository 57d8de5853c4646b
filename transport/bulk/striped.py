"""Several bulk links used as one: transfers go out over whichever is free and are handed out in their order.

Problem: over a long path one connection carries no more than its window in a round trip, whatever the line could
(4 MiB of send buffer over 100 ms are 335 Mbit/s), and of several each has a pace of its own that changes. Idea: every
transfer has a number, before the caller's header; the sender gives it to a link that takes it, and the receiver
reads the head of the next transfer of every link and goes on with the one whose number is due. What comes early waits in
its socket: nothing is put aside, and no link waits for a slower one, as it would if they were taken strictly in turn.

What a socket does not take at once leaves from a task of its link, so that the others are fed meanwhile.

Wire: the header of each transfer begins with its number, uint64, big-endian, counted from 0.

Invariants: as for `BulkLink`: one sender task and one receiver task at a time; when one link ends, all do.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import trio

from transport.buffer import Buffer
from transport.bulk.link import MAX_PAYLOAD_BYTES, BulkLink, LinkClosed
from transport.errors import UsageError

_NUMBER = struct.Struct(">Q")


class StripedLink:
    """One direction of bulk data over several links.

    Args:
        links: at least one; each of them has its other end in the same striped link.
        start: starts a task that lives as long as the links.
        receiving: this end receives; else it sends.
    """

    def __init__(
        self, links: Sequence[BulkLink], start: Callable[..., object], *, receiving: bool
    ) -> None:
        self._links = tuple(links)
        self._start = start
        self._changed = trio.Event()
        self._reason = ""
        self._sent = self._received = 0
        self._sending = False
        self._begun: int | None = None  # the link of the transfer that was begun and not ended
        self._draining: set[int] = set()
        self._turn = 0
        self._heads: dict[int, tuple[BulkLink, trio.Event, bytes, int]] = {}  # at most one per link
        self._current: tuple[BulkLink, trio.Event] | None = None
        self._due = 0
        if receiving:
            for link in self._links:
                start(self._read_heads, link)

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
        """What passes through shared memory has no use for several links."""
        return False

    @property
    def waiting(self) -> bool:
        """Never: what is left of a transfer leaves by itself."""
        return False

    async def flush(self) -> None:
        """Nothing to wait for; see `waiting`."""
        await trio.lowlevel.checkpoint()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # ---- sending -----------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """True while `try_send` would send nothing."""
        return self._sending or self._begun is not None or all(link.busy for link in self._links)

    def try_send(self, header: bytes, payload: Buffer) -> bool:
        """As `BulkLink.try_send`."""
        return not self._sending and self._send_now(header, payload)

    def _begin_now(self, header: bytes, size: int) -> bool:
        if self.closed:
            self.abort("one of its links has ended")
            raise LinkClosed(self._reason)
        if self._begun is not None:
            return False
        for step in range(len(self._links)):
            at = (self._turn + step) % len(self._links)
            if self._links[at].try_begin(_NUMBER.pack(self._sent) + header, size):
                self._sent += 1
                self._turn = (at + 1) % len(self._links)
                self._begun = at
                return True
        return False

    def _send_now(self, header: bytes, payload: Buffer) -> bool:
        if not self._begin_now(header, memoryview(payload).nbytes):
            return False
        self.put(payload)
        self.end()
        return True

    def try_begin(self, header: bytes, size: int) -> bool:
        """As `BulkLink.try_begin`, on a link that takes it."""
        return not self._sending and self._begin_now(header, size)

    def put(self, part: Buffer) -> None:
        """As `BulkLink.put`."""
        if self._begun is None:
            raise UsageError("no transfer is begun")
        self._links[self._begun].put(part)

    def end(self) -> None:
        """As `BulkLink.end`."""
        if self._begun is None:
            raise UsageError("no transfer is begun")
        at = self._begun
        link = self._links[at]
        link.end()
        self._begun = None
        if link.waiting and at not in self._draining:
            self._draining.add(at)
            self._start(self._drain, at)

    async def send(self, header: bytes, payload: Buffer) -> None:
        """As `BulkLink.send`; returns once the transfer is sealed, perhaps before the network has taken it."""
        if self._sending or self._begun is not None:
            raise UsageError("another task is sending on this link")
        self._sending = True  # what is sent meanwhile must not overtake
        try:
            while not self._send_now(header, payload):
                changed = self._changed
                if self._draining:
                    await changed.wait()
                    continue
                link = self._links[self._turn]  # a network that cannot tell what it would take
                number, self._sent = self._sent, self._sent + 1
                self._turn = (self._turn + 1) % len(self._links)
                await link.send(_NUMBER.pack(number) + header, payload)
                return
        finally:
            self._sending = False

    async def _drain(self, at: int) -> None:
        """Have the rest of a link's transfer taken by the network."""
        try:
            await self._links[at].flush()
        except LinkClosed as error:
            self.abort(str(error))
        finally:
            self._draining.discard(at)
            self._notify()

    # ---- receiving ---------------------------------------------------------------------------

    async def _read_heads(self, link: BulkLink) -> None:
        """Have the head of a link's next transfer at hand, whenever the one before has been received."""
        try:
            while True:
                header, size = await link.receive_head()
                number = _NUMBER.unpack_from(header)[0] if len(header) >= _NUMBER.size else -1
                if number < self._received or number in self._heads:
                    self.abort("a transfer without a number of its own")
                    return
                taken = trio.Event()
                self._heads[number] = (link, taken, header[_NUMBER.size :], size)
                self._notify()
                await taken.wait()
        except LinkClosed as error:
            self.abort(str(error))

    async def receive_head(self, most: int = MAX_PAYLOAD_BYTES) -> tuple[bytes, int]:
        """As `BulkLink.receive_head`."""
        while self._received not in self._heads:
            if self._reason:
                raise LinkClosed(self._reason)
            changed = self._changed
            await changed.wait()
        link, taken, header, size = self._heads.pop(self._received)
        if size > most:
            self.abort(f"transfer of {size} bytes announced, limit {most}")
            raise LinkClosed(self._reason)
        self._received += 1
        self._current, self._due = (link, taken), size
        self._go_on_if_complete()
        return header, size

    async def receive_data(self, target: memoryview) -> None:
        """As `BulkLink.receive_data`."""
        if not target:
            return  # perhaps of a transfer without payload, which is over already
        if self._current is None:
            raise LinkClosed(self._reason or "no transfer is being received")
        await self._current[0].receive_data(target)
        self._due -= len(target)
        self._go_on_if_complete()

    def _go_on_if_complete(self) -> None:
        if not self._due and self._current is not None:
            self._current[1].set()
            self._current = None

    @property
    def received_at(self) -> float:
        """As `BulkLink.received_at`."""
        return max(link.received_at for link in self._links)

    def take_measure(self) -> tuple[float, int]:
        """As `BulkLink.take_measure`; all links send at once, so their seconds do not add up."""
        measures = [link.take_measure() for link in self._links]
        return max(seconds for seconds, _ in measures), sum(size for _, size in measures)

    # ---- the end -----------------------------------------------------------------------------

    def abort(self, reason: str = "aborted") -> None:
        """Close all links hard and wake both sides' waiting tasks."""
        self._reason = self._reason or reason
        for link in self._links:
            link.abort(reason)
        for _, taken, *_ in self._heads.values():
            taken.set()
        if self._current is not None:
            self._current[1].set()
        self._notify()


AnyLink = BulkLink | StripedLink
