"""One end of a simulated connection; see `transport.simulated.memory` for the model.

Nothing moves the bytes: a chunk lies in the receiver's inbox with its arrival time, and the reader sleeps until then. Boxes on the way
(`transport.simulated.nat_model`) see every chunk, end and reset when it is sent; once one of them has forgotten the connection, what is sent
vanishes, or meets a reset where the box before the other end answers with one.
"""
# ruff: noqa: SLF001  (world, host, listener and stream are one model in four classes)

from __future__ import annotations

import math
import random
import zlib
from collections import deque
from typing import TYPE_CHECKING

import trio

from transport.address import Address
from transport.buffer import Buffer
from transport.network import RawStream
from transport.simulated.link_model import LinkModel
from transport.simulated.nat_model import Refusal
from transport.simulated.nat_topology import Way

if TYPE_CHECKING:
    from transport.simulated.host import MemoryHost
    from transport.simulated.memory import MemoryNetwork


class MemoryStream(RawStream):
    """One end of a simulated connection.

    The sending half of this end is the receiving half of the other: chunks lie in the
    *receiver's* `_inbox`, stamped with their arrival times.
    """

    def __init__(
        self,
        world: MemoryNetwork,
        number: int,
        link: LinkModel,
        rng: random.Random,
        *,
        host: MemoryHost,
        local: Address,
        remote: Address,
        way: Way,
    ) -> None:
        self._world = world
        self._host = host
        self._way = way if way.near or way.far else None
        self._number = number
        self.local = local
        self.remote = remote
        self._link = link  # from here to the other end
        self._rng = rng  # for what this end sends
        self._peer: MemoryStream
        self._inbox: deque[tuple[float, bytes]] = deque()  # bounded by the sender's window
        self._offset = 0  # bytes already read of the first chunk
        self._last_arrival = -math.inf  # of what the other end has sent so far
        self._busy_s, self._busy_until, self._sent_bytes = 0.0, -math.inf, 0
        self._in_window = 0  # bytes we have sent and whose credit has not come back
        self._credits: deque[tuple[float, int]] = deque()  # (time it is back here, bytes)
        self._finished_at: float | None = None  # the other end closed; its FIN arrives then
        self._reset_at: float | None = None  # the other end was reset; we notice then
        self._closed = False
        self._broken = ""  # why, once we have noticed
        self._sending = self._receiving = False
        self._readers = trio.lowlevel.ParkingLot()
        self._writers = trio.lowlevel.ParkingLot()

    def __repr__(self) -> str:
        return f"<MemoryStream {self._number} {self.local} -> {self.remote}>"

    async def send_all(self, data: Buffer) -> None:
        """See `RawStream.send_all`."""
        self._check()
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this connection")
        self._sending = True
        try:
            await trio.lowlevel.checkpoint_if_cancelled()  # the window makes us yield in the end
            with memoryview(data).cast("B") as view:
                done = 0
                while done < len(view):
                    await self._wait_window()
                    room = self._world.window_bytes - self._in_window
                    chunk = bytes(view[done : done + room])
                    self._emit(chunk)
                    done += len(chunk)
        finally:
            self._sending = False
        self._check()

    async def receive_into(self, buffer: memoryview) -> int:
        """See `RawStream.receive_into`."""
        assert len(buffer) > 0
        self._check()
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving on this connection")
        self._receiving = True
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            waited = False
            while True:
                self._check()
                now = trio.current_time()
                inbound = self._peer._link
                wake_at = math.inf
                if self._inbox:
                    wake_at = inbound.redelivery(self._inbox[0][0])
                    if wake_at <= now and not inbound.blocked:
                        count = self._take(buffer, now)
                        if not waited:
                            await trio.lowlevel.cancel_shielded_checkpoint()
                        return count
                elif self._finished_at is not None:
                    wake_at = inbound.redelivery(self._finished_at)
                    if wake_at <= now and not inbound.blocked:
                        return 0
                await self._wait(self._readers, wake_at, inbound)
                waited = True
        finally:
            self._receiving = False

    async def aclose(self) -> None:
        """See `RawStream.aclose`."""
        if not self._closed and not self._broken:
            unread = bool(self._inbox)
            if unread:  # like the kernel: closing with unread bytes is a reset
                self._tell_reset()
            elif self._carry() is None:
                self._peer._finished_at = self._stamp(0)
                self._peer._readers.unpark_all()
        self._close()
        await trio.lowlevel.checkpoint()

    def abort(self) -> None:
        """See `RawStream.abort`."""
        if not self._closed and not self._broken:
            self._tell_reset()
        self._close()

    # Internals

    def _check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError
        if not self._broken and self._reset_is_due():
            self._fail("connection reset by peer", tell_peer=False)
        if self._broken:
            raise trio.BrokenResourceError(self._broken)

    def _reset_is_due(self) -> bool:
        """Whether a reset has arrived that this end may not have noticed."""
        if self._reset_at is None:
            return False
        inbound = self._peer._link
        return inbound.redelivery(self._reset_at) <= trio.current_time() and not inbound.blocked

    def sending_measure(self) -> tuple[float, int] | None:
        """See `RawStream.sending_measure`; bytes count when they are sent, and are under way until they arrive."""
        return self._busy_s, self._sent_bytes

    def _stamp(self, size: int) -> float:
        """Return when `size` bytes sent now arrive at the other end, never before earlier ones."""
        arrival, stalled = self._link.arrival(trio.current_time(), size, self._rng)
        if stalled:
            self._world._record("stall", self._number)
        peer = self._peer
        peer._last_arrival = max(peer._last_arrival, self._world._arrival(arrival))
        self._busy_s += max(0.0, arrival - max(trio.current_time(), self._busy_until))
        self._busy_until = max(self._busy_until, arrival)
        self._sent_bytes += size
        return peer._last_arrival

    def _emit(self, chunk: bytes) -> None:
        reset = self._link.settings.reset
        if reset > 0 and self._rng.random() < reset:
            self._world._record("reset", self._number)
            self._fail("connection reset", tell_peer=True)
            self._check()
        peer = self._peer
        self._world._record("send", self._number, self.local.port, len(chunk), zlib.crc32(chunk))
        met = self._carry()
        if met is not None:
            self._world._record("nat-lost", self._number)
            if met == Refusal.RESET:
                self._be_reset(len(chunk))
            else:
                self._in_window += len(chunk)  # nobody will ever acknowledge it
            return
        if peer._closed or peer._broken:
            if self._world._dead.get(peer._host.name) == "silent":
                self._in_window += len(chunk)  # nobody will ever acknowledge it
            else:
                self._be_reset(len(chunk))  # the other kernel answers data for a closed socket
            return
        self._in_window += len(chunk)
        arrival = self._stamp(len(chunk))
        peer._inbox.append((arrival, chunk))
        if len(peer._inbox) == 1:
            peer._readers.unpark_all()

    def _take(self, buffer: memoryview, now: float) -> int:
        """Move what has arrived into `buffer` and send the credit back."""
        limit, settings = len(buffer), self._peer._link.settings
        if settings.split > 0 and self._rng.random() < settings.split:
            limit = self._rng.randint(1, min(limit, max(1, len(self._inbox[0][1]))))
            self._world._record("split", self._number)
        count = 0
        while count < limit and self._inbox and self._inbox[0][0] <= now:
            chunk = self._inbox[0][1]
            part = min(limit - count, len(chunk) - self._offset)
            buffer[count : count + part] = memoryview(chunk)[self._offset : self._offset + part]
            count += part
            self._offset += part
            if self._offset == len(chunk):
                self._inbox.popleft()
                self._offset = 0
        self._world._record("deliver", self._number, self.local.port, count)
        if self._carry() is None:
            peer = self._peer
            peer._credits.append((now + self._link.settings.latency_s, count))
            peer._writers.unpark_all()
        return count

    async def _wait_window(self) -> None:
        """Wait until at least one byte may be sent."""
        while True:
            self._check()
            now = trio.current_time()
            back = self._peer._link
            while self._credits and self._credits[0][0] <= now and not back.blocked:
                self._in_window -= self._credits.popleft()[1]
            if self._in_window < self._world.window_bytes:
                return
            wake_at = self._credits[0][0] if self._credits else math.inf
            await self._wait(self._writers, wake_at, back)

    async def _wait(self, lot: trio.lowlevel.ParkingLot, until: float, link: LinkModel) -> None:
        """Sleep until `until`, or until the lot or the healing of `link` wakes us."""
        if self._reset_at is not None:
            until = min(until, self._peer._link.redelivery(self._reset_at))
        if link.blocked:
            until = math.inf  # nothing comes through it, not even a reset; healing wakes us
        if until != math.inf:
            self._world._alarms.set(until, lot.unpark_all)
        await lot.park()

    def _carry(self) -> Refusal | None:
        """Show the boxes on the way a packet from here; what it met, or None if it came through."""
        return None if self._way is None else self._way.carry(self._world._now())

    def _be_reset(self, size: int) -> None:
        """Notice a reset once `size` bytes have got there and the answer is back."""
        if self._reset_at is None:
            self._reset_at = self._stamp(size) + self._peer._link.settings.latency_s
            self._readers.unpark_all()

    def _wake(self) -> None:
        self._readers.unpark_all()
        self._writers.unpark_all()

    def _tell_reset(self) -> None:
        peer = self._peer
        if peer._closed or peer._broken or peer._reset_at is not None:
            return
        if self._carry() is None:
            # A reset overtakes the bytes still in flight: what is not read by then is lost.
            peer._reset_at = self._world._arrival(
                trio.current_time() + self._link.settings.latency_s
            )
            peer._wake()

    def _fail(self, reason: str, *, tell_peer: bool) -> None:
        """Break this end for a reason other than a local close."""
        if self._closed or self._broken:
            return
        if tell_peer:
            self._tell_reset()
        self._broken = reason
        self._release()

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            self._release()

    def _release(self) -> None:
        self._inbox.clear()
        self._credits.clear()
        self._wake()
        if self._host._flows.get((self.local.port, self.remote)) is self:
            del self._host._flows[self.local.port, self.remote]
        peer = self._peer
        if peer._closed or peer._broken:
            self._world._connections.pop(self._number, None)
            if self._way is not None:
                self._way.close(self._world._now())
