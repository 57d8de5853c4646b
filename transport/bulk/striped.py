"""Several bulk links used as one: transfers go out over whichever is free and are handed out in their order.

Problem: over a long path one connection carries no more than its window in a round trip, whatever the line could
(4 MiB of send buffer over 100 ms are 335 Mbit/s), and of several each has a pace of its own that changes. Idea: every
transfer has a number, before the caller's header; the sender gives it to a link that takes it, and the receiver
takes what comes on every link and hands out the one whose number is due. What comes early is put aside, at the price of a copy:
left in its socket it would keep the kernel from widening that connection's window, which grows with what is
read (measured over 100 ms and 1 Gbit/s: 64 MiB over six new connections took 6.6 s, mostly at 20 to 90 Mbit/s).

What a socket does not take at once leaves from a task of its link, so that the others are fed meanwhile.

Wire: the header of each transfer begins with its number, uint64, big-endian, counted from 0.

Invariants: as for `BulkLink`: one sender task and one receiver task at a time; when one link ends, all do, and what has
come before it can still be received; at most `AHEAD` transfers per link are put aside.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import trio

from transport.buffer import Buffer
from transport.bulk.link import MAX_PAYLOAD_BYTES, BulkLink, LinkClosed
from transport.errors import UsageError

AHEAD: Final = 3
"""Transfers of each link that are being received or wait for their turn: what links of about one pace are apart."""

_NUMBER = struct.Struct(">Q")


class _Arrived(NamedTuple):
    header: bytes
    payload: memoryview
    room: trio.Semaphore
    """Of its link, to be released when the payload has been taken."""


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
        self._arrived: dict[int, _Arrived] = {}  # at most `AHEAD` per link
        self._current: _Arrived | None = None
        self._taken = 0  # bytes of it
        self._rooms = [trio.Semaphore(AHEAD) for _ in self._links] if receiving else []
        for link, room in zip(self._links, self._rooms, strict=False):
            start(self._read, link, room)

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

    async def _read(self, link: BulkLink, room: trio.Semaphore) -> None:
        """Take what comes on one link, up to `AHEAD` transfers that nobody has asked for yet."""
        spare = [memoryview(bytearray(0)) for _ in range(AHEAD)]  # one for each place
        try:
            while True:
                await room.acquire()
                header, size = await link.receive_head(MAX_PAYLOAD_BYTES)
                number = _NUMBER.unpack_from(header)[0] if len(header) >= _NUMBER.size else -1
                if number < self._received or number in self._arrived:
                    self._end("a transfer without a number of its own")
                    return
                memory = spare.pop(0)
                if len(memory) < size:
                    memory = memoryview(bytearray(size))
                spare.append(memory)
                await link.receive_data(memory[:size])
                self._arrived[number] = _Arrived(header[_NUMBER.size :], memory[:size], room)
                if number == self._received:
                    self._notify()
        except LinkClosed as error:
            self._end(str(error))

    async def receive_head(self, most: int = MAX_PAYLOAD_BYTES) -> tuple[bytes, int]:
        """As `BulkLink.receive_head`; the transfer has arrived as a whole then."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while self._received not in self._arrived:
            if self._reason:
                raise LinkClosed(self._reason)
            changed = self._changed
            await changed.wait()
        arrived = self._arrived.pop(self._received)
        size = len(arrived.payload)
        if size > most:
            self.abort(f"transfer of {size} bytes announced, limit {most}")
            raise LinkClosed(self._reason)
        self._received += 1
        self._current, self._taken = arrived, 0
        self._go_on_if_complete()
        return arrived.header, size

    async def receive_data(self, target: memoryview) -> None:
        """As `BulkLink.receive_data`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if not target:
            return  # perhaps of a transfer without payload, which is over already
        if self._current is None:
            raise LinkClosed(self._reason or "no transfer is being received")
        end = self._taken + len(target)
        if end > len(self._current.payload):
            left = len(self._current.payload) - self._taken
            raise UsageError(f"{len(target)} bytes wanted, {left} are left of the transfer")
        target[:] = self._current.payload[self._taken : end]
        self._taken = end
        self._go_on_if_complete()

    def _go_on_if_complete(self) -> None:
        if self._current is not None and self._taken == len(self._current.payload):
            self._current.room.release()
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
        """Close all links hard and wake both sides' waiting tasks; what has arrived and was not received is dropped."""
        self._end(reason)
        self._arrived.clear()
        self._current = None

    def _end(self, reason: str) -> None:
        """Close all links hard; what has arrived can still be received."""
        self._reason = self._reason or reason
        for link in self._links:
            link.abort(reason)
        for room in self._rooms:
            room.release()  # who waits for room finds the link closed
        self._notify()


AnyLink = BulkLink | StripedLink
