"""Bulk link: large payloads over a connection of their own, at memory speed.

Problem: tensors must not queue behind control messages nor the other way round, and every copy
counts. Idea: after a handshake of kind "bulk" the connection carries transfers only. A transfer is
a small header (the caller's, opaque here) and a payload of bounded size; it is sealed into one reused
buffer and handed to the kernel in one call. On the other side each record is decrypted straight
into the memory that the caller names once it has seen the authenticated header, and no more than one
record is read before it is opened, so that both ends work in the processor's cache. Within one machine
the records of a direction may pass through shared memory instead (`transport.bulk.shared`).

Wire, inside the records of `transport.secure.record`::

    REKEY       before a head, when the sender's key is an hour old
    BULK_HEAD   uint32 payload length, then the caller's header (<= 128 bytes)
    BULK_DATA   payload, in records of at most 512 KiB (shared memory: 1 MiB), in order
    CLOSE       the sender ends the link on purpose

Invariants: one sender task and one receiver task per link at a time; a cancelled or failed
operation leaves an unknown amount on the wire, so the link is dead afterwards and says why; what a
failed record decrypted is wiped and never reported as received.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from contextlib import suppress

import trio

from transport.bulk import shared
from transport.errors import AuthenticationFailed, RecordError, TransportError, UsageError
from transport.network import Buffer, PathState, RawStream
from transport.secure.handshake import HandshakeResult
from transport.secure.record import (
    BULK_RECORD_BYTES,
    HEADER_BYTES,
    OVERHEAD_BYTES,
    SHARED_RECORD_BYTES,
    RecordKind,
)

MAX_HEADER_BYTES = 128
MAX_PAYLOAD_BYTES = 1 << 20
"""One transfer over a connection: large enough to hide per-call costs, small enough to stay in the cache. Through shared memory: `largest`."""

_LENGTH = struct.Struct(">I")
_HEAD_BYTES = _LENGTH.size + MAX_HEADER_BYTES
_MAX_RECORDS = 2 + -(-MAX_PAYLOAD_BYTES // BULK_RECORD_BYTES)
_WIRE_BYTES = _HEAD_BYTES + MAX_PAYLOAD_BYTES + _MAX_RECORDS * OVERHEAD_BYTES
_NEAR_BYTES = 4096
"""Read at once where a head is expected: it and what follows, if that is small."""
_RECEIVE_BYTES = BULK_RECORD_BYTES + OVERHEAD_BYTES + _NEAR_BYTES
_NOWHERE = memoryview(b"")
_SHARED, _NOT_SHARED = b"shared", b"not shared"
# Looking a member of an enumeration up costs as much as the comparison that it is for.
_BULK_HEAD, _BULK_DATA = int(RecordKind.BULK_HEAD), int(RecordKind.BULK_DATA)
_REKEY, _CLOSE = int(RecordKind.REKEY), int(RecordKind.CLOSE)
MEASURED_BYTES = 1 << 16
"""Sent since the last measurement, from which on the time says something about the network."""


class LinkClosed(TransportError):
    """The bulk link is closed; the message says why."""

    default_hint = "open a new one"


class BulkLink:
    """One established bulk connection.

    Args:
        raw: the connection, right after the handshake.
        result: keys, peer and the bytes that came along with the handshake's end.
        on_bytes: told (sent, received) wire bytes, for the peer's statistics.
        on_end: called once, when the link is closed on either side.

    Attributes:
        ended_in_order: the peer closed the link on purpose.
    """

    def __init__(
        self,
        raw: RawStream,
        result: HandshakeResult,
        on_bytes: Callable[[int, int], None],
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._raw = raw
        raw.expect_bulk()
        self._sealer = result.sealer
        self._opener = result.opener
        self._on_bytes = on_bytes
        self._on_end = on_end
        self._reason: str | None = None
        self._head = bytearray(_HEAD_BYTES)
        self._send_buffer: memoryview | None = None
        self._sending = False
        self._out = _NOWHERE  # where the transfer that was begun is sealed to
        self._sealed = 0  # bytes of it that are there
        self._promised: int | None = (
            None  # of its payload, still to be put; None: no transfer is begun
        )
        self._tail = _NOWHERE  # sealed, and not taken by the network yet
        self._receive_buffer = memoryview(bytearray(_RECEIVE_BYTES + len(result.leftover)))
        self._target = _NOWHERE  # of the transfer being received
        self._due = 0  # bytes of it that are still to be received
        self.received_at = -math.inf
        """Trio time at which the last payload had come."""
        self._measured: tuple[float, int] = (0.0, 0)  # up to the last `take_measure`
        self._lane_out: shared.Outgoing | None = None
        self._lane_in: shared.Incoming | None = None
        self.ended_in_order = False
        self._start, self._end = 0, len(result.leftover)
        self._receive_buffer[: self._end] = result.leftover

    @property
    def closed(self) -> bool:
        """True once the link has failed or was closed on either side."""
        return self._reason is not None

    @property
    def local(self) -> bool:
        """True when both ends are on one machine, without a relay between them."""
        return self._raw.within_machine

    @property
    def shares_memory(self) -> bool:
        """True once both ends have agreed that what is sent here passes through shared memory."""
        return self._lane_out is not None or self._lane_in is not None

    @property
    def largest(self) -> int:
        """Bytes of payload that one transfer may have here."""
        return shared.MAX_SHARED_BYTES if self.shares_memory else MAX_PAYLOAD_BYTES

    async def send(self, header: bytes, payload: Buffer) -> None:
        """Send one transfer.

        Cancellation leaves the link unusable (part of the transfer may be on the wire).

        Raises:
            LinkClosed: the link is closed or broke; the message says why.
            UsageError: header or payload too large, or this end only receives; nothing was sent.
        """
        if self._sending or self._promised is not None:
            raise UsageError("another task is sending on this link")
        if self._tail:
            await self.flush()
        if self._lane_out is not None:
            await self._wait_free(self._lane_out)
        view = _flat(payload)
        self._begin(header, len(view))
        self._put_all(view)
        await self._write(self._complete())

    def try_send(self, header: bytes, payload: Buffer) -> bool:
        """Send one transfer if it can be begun without waiting.

        What the network does not take at once leaves with `flush` or before whatever is sent next.

        Returns:
            False when nothing was sent: another transfer is under way, or the network cannot tell.

        Raises:
            LinkClosed, UsageError: as for `send`.
        """
        view = _flat(payload)
        if not self.try_begin(header, len(view)):
            return False
        self._put_all(view)
        self.end()
        return True

    def try_begin(self, header: bytes, size: int) -> bool:
        """As `try_send`, of a transfer whose `size` bytes of payload follow in parts: `put` each, then `end`.

        So what arrives in parts can be sealed while it is in the cache. One that is begun and not ended leaves the link unusable.
        """
        if self.busy or (self._lane_out is not None and not self._lane_out.free_now()):
            return False
        self._begin(header, size)
        return True

    def put(self, part: Buffer) -> None:
        """Seal the next bytes of the transfer that was begun; the receiver may take parts that end where these do.

        There is room for a few small parts; those of a large transfer are of `BULK_RECORD_BYTES` or more.

        Raises:
            UsageError: they are more than was announced.
        """
        view = _flat(part)
        if self._promised is None or len(view) > self._promised:
            raise UsageError(f"{len(view)} bytes are more than is left of the transfer")
        self._promised -= len(view)
        most = BULK_RECORD_BYTES if self._lane_out is None else SHARED_RECORD_BYTES
        seal, out, end = self._sealer.seal_into, self._out, self._sealed
        for start in range(0, len(view), most):
            end += seal(_BULK_DATA, view[start : start + most], out[end:])
        self._sealed = end

    def _put_all(self, payload: memoryview) -> None:
        """In parts that any receiver can take."""
        for start in range(0, len(payload), BULK_RECORD_BYTES):
            self.put(payload[start : start + BULK_RECORD_BYTES])

    def end(self) -> None:
        """Send the transfer whose parts are all put.

        Raises:
            UsageError: they are less than was announced.
        """
        wire = self._complete()
        taken = self._raw.send_now(wire)
        if taken < len(wire):
            self._tail = wire[taken:]

    @property
    def busy(self) -> bool:
        """True while `try_send` would send nothing."""
        return (
            self._sending
            or self._promised is not None
            or bool(self._tail)
            or not self._raw.can_send_now
        )

    @property
    def waiting(self) -> bool:
        """True while `flush` has something to do."""
        return bool(self._tail)

    async def flush(self) -> None:
        """Wait until the network has taken what `try_send` began; otherwise like `send`."""
        self._check_open()
        tail, self._tail = self._tail, _NOWHERE
        if tail:
            await self._write(tail)

    def _begin(self, header: bytes, size: int) -> None:
        """Seal the head of a transfer; with an outgoing lane into its next slot (one must be free).

        The memory is used again by the transfer after it.
        """
        self._check_open()
        if len(header) > MAX_HEADER_BYTES or size > self.largest:
            raise UsageError(f"transfer of {len(header)} + {size} bytes is over the limit")
        if self._lane_in is not None:
            raise UsageError("this end of the link only receives")
        if self._lane_out is not None:
            out = self._lane_out.slot
        elif self._send_buffer is not None:
            out = self._send_buffer
        else:
            out = self._send_buffer = memoryview(bytearray(_WIRE_BYTES))
        head_end = _LENGTH.size + len(header)
        _LENGTH.pack_into(self._head, 0, size)
        self._head[_LENGTH.size : head_end] = header
        end = 0
        if self._sealer.rekey_due(trio.current_time()):
            end = self._sealer.seal_into(_REKEY, b"", out)
        end += self._sealer.seal_into(_BULK_HEAD, memoryview(self._head)[:head_end], out[end:])
        self._out, self._sealed, self._promised = out, end, size

    def _complete(self) -> memoryview:
        """What goes on the wire for the transfer that was begun: its records, or the notice of them."""
        if self._promised is None:
            raise UsageError("no transfer is begun")
        if self._promised:
            raise UsageError(f"{self._promised} bytes of the transfer have not been put")
        self._promised = None
        end = self._sealed
        self._on_bytes(end, 0)
        if self._lane_out is None:
            return self._out[:end]
        return self._lane_out.filled(end)

    async def _write(self, wire: memoryview) -> None:
        self._sending = True
        try:
            await self._raw.send_all(wire)
        except BaseException as error:
            failure = self._ended_by(error)
            if failure is None:
                raise
            raise failure from None
        finally:
            self._sending = False

    # ---- shared memory -----------------------------------------------------------------------

    async def offer_memory(self) -> bool:
        """Let what this end sends pass through shared memory, if the other end is on this machine.

        Call it before anything else, while the other end calls `accept_memory`; after that, this
        end only sends and the other only receives. Returns whether the memory is shared. Cancellation
        leaves the link unusable.

        Raises:
            LinkClosed: as for `send`.
        """
        offer = None
        if self.local and self._raw.can_send_now:
            with suppress(shared.NotShared):
                offer = shared.Offer()
        if offer is None:
            await self.send(b"", b"")
            return False
        try:
            await self.send(offer.path, offer.lane.word)
            answer, _ = await self.receive_head(0)
        finally:
            offer.close()
        if answer == _SHARED:
            self._lane_out = shared.Outgoing(offer.lane, self._raw)
        return answer == _SHARED

    async def accept_memory(self) -> bool:
        """The other end's part of `offer_memory`."""
        path, size = await self.receive_head(shared.WORD_BYTES)
        word = bytearray(size)
        await self.receive_data(memoryview(word))
        if not path:
            return False
        lane = None
        if self.local and self._raw.can_send_now:
            with suppress(shared.NotShared):
                lane = shared.accept(path, bytes(word))
        await self.send(_SHARED if lane is not None else _NOT_SHARED, b"")
        if lane is not None:
            self._lane_in = shared.Incoming(lane, self._raw)
        return lane is not None

    async def _wait_free(self, lane: shared.Outgoing) -> None:
        self._sending = True
        try:
            await lane.wait_free()
        except BaseException as error:
            failure = self._ended_by(error)
            if failure is None:
                raise
            raise failure from None
        finally:
            self._sending = False

    # ---- receiving ---------------------------------------------------------------------------

    async def receive(self, sink: Callable[[bytes, int], memoryview]) -> bytes:
        """Receive one transfer; returns its header once the whole payload is in place.

        Args:
            sink: called with (header, payload size) before any payload is decrypted; returns the
                writable memory of exactly that size. It may raise: the link is then closed.

        Cancellation leaves the link unusable.

        Raises:
            LinkClosed: ended or broken; the message says why.
        """
        header, size = await self.receive_head()
        try:
            target = sink(header, size).cast("B")
            if len(target) != size:
                raise UsageError(f"sink gave {len(target)} bytes for a transfer of {size}")
        except BaseException:
            self._fail("a transfer was refused here")
            raise
        await self.receive_data(target)
        return header

    async def receive_head(self, most: int | None = None) -> tuple[bytes, int]:
        """Receive the start of a transfer: its header, and the size of the payload that follows.

        A transfer of more than `most` bytes (`largest`, if None) ends the link. Cancellation leaves it unusable.

        Raises:
            LinkClosed: ended or broken; the message says why.
            UsageError: the transfer before is not complete.
        """
        self._check_open()
        if self._due:
            raise UsageError(f"{self._due} bytes of the transfer before are to be received")
        try:
            head = bytearray(_HEAD_BYTES)
            kind, length = await self._next_header(head)
            while kind == _REKEY:  # opening it has changed the key
                self._open_record(length, memoryview(head))
                kind, length = await self._next_header(head)
            if kind == _CLOSE:
                self._open_record(length, memoryview(head))
                self.ended_in_order = True
                raise self._fail("closed by the peer")
            if kind != _BULK_HEAD or length < _LENGTH.size:
                raise self._fail(f"unexpected record of kind {kind}, {length} bytes")
            self._open_record(length, memoryview(head))
            (size,) = _LENGTH.unpack_from(head)
            if size > (limit := self.largest if most is None else most):
                raise self._fail(f"transfer of {size} bytes announced, limit {limit}")
            self._due = size
            return bytes(head[_LENGTH.size : length]), size
        except BaseException as error:
            failure = self._ended_by(error)
            if failure is None:
                raise
            raise failure from None

    async def receive_data(self, target: memoryview) -> None:
        """Receive the next bytes of the transfer into all of `target` (bytes, at most what is left).

        No record may reach beyond `target`. Cancellation leaves the link unusable.

        Raises:
            LinkClosed: ended or broken; the message says why.
            UsageError: `target` is larger than what is left.
        """
        size = len(target)
        if size > self._due:
            raise UsageError(f"{size} bytes wanted, {self._due} are left of the transfer")
        self._check_open()
        self._target = target
        done = 0
        limit = BULK_RECORD_BYTES if self._lane_in is None else SHARED_RECORD_BYTES
        try:
            while done < size:
                most = min(limit, size - done)
                if self._end - self._start < HEADER_BYTES:
                    await self._fill(HEADER_BYTES, most + OVERHEAD_BYTES + HEADER_BYTES)
                start = self._start
                kind, length = self._opener.parse_header(
                    self._receive_buffer[start : start + HEADER_BYTES]
                )
                if kind != _BULK_DATA or not 0 < length <= most:
                    raise self._fail(f"unexpected record of kind {kind}, {length} bytes")
                whole = length + OVERHEAD_BYTES
                if self._end - start < whole:
                    await self._fill(whole, whole + HEADER_BYTES)
                done += self._open_record(length, self._target[done:])
            self._due -= size
            if not self._due:
                self.received_at = trio.current_time()
        except BaseException as error:
            failure = self._ended_by(error)
            if failure is None:
                raise
            raise failure from None
        finally:
            self._target = _NOWHERE  # the caller's memory is the caller's again

    def take_measure(self) -> tuple[float, int]:
        """Seconds in which what was sent here was under way since the last call, and the bytes that arrived.

        (0, 0) where that is not known, through shared memory, and while it is too little to say something about the path.
        """
        now = self._raw.sending_measure()
        if now is None or self._lane_out is not None:
            return 0.0, 0
        seconds, size = now[0] - self._measured[0], now[1] - self._measured[1]
        if size < MEASURED_BYTES or seconds <= 0:
            return 0.0, 0
        self._measured = now
        return seconds, size

    def path_state(self) -> PathState | None:
        """As `RawStream.path_state`; None through shared memory."""
        return None if self._lane_out is not None else self._raw.path_state()

    def redirect(self, target: memoryview) -> None:
        """Have what is still to come of the transfer being received go to `target` instead.

        The memory that the sink gave is not touched after this returns. `target` must be as large
        as that memory; its start stays as it is. Nothing happens between two transfers.
        """
        self._target = target

    async def _next_header(self, head: bytearray) -> tuple[int, int]:
        """Wait for a whole record that fits into `head`."""
        await self._fill(HEADER_BYTES, _NEAR_BYTES)
        kind, length = self._opener.parse_header(
            self._receive_buffer[self._start : self._start + HEADER_BYTES]
        )
        if length > len(head):
            raise self._fail(f"unexpected record of kind {kind}, {length} bytes")
        await self._fill(length + OVERHEAD_BYTES, _NEAR_BYTES)
        return kind, length

    def _open_record(self, length: int, target: memoryview) -> int:
        """Decrypt the record at the start of the buffered part, which is there as a whole."""
        whole = length + OVERHEAD_BYTES
        buffer, start = self._receive_buffer, self._start
        body = start + HEADER_BYTES
        opened = self._opener.open_into(buffer[start:body], buffer[body : start + whole], target)
        self._start = start + whole
        if self._start == self._end:
            self._start = self._end = 0
            if self._lane_in is not None:
                self._lane_in.emptied()
        return opened

    async def _fill(self, needed: int, wanted: int) -> None:
        """Wait until `needed` bytes lie at the start of the buffered part; read no more than `wanted`."""
        if self._lane_in is not None:
            if self._start == self._end:
                self._receive_buffer, self._end = await self._lane_in.next()
                self._on_bytes(0, self._end)
            if self._end - self._start < needed:
                raise self._fail("a record in shared memory was cut")
            return
        buffer = self._receive_buffer
        while self._end - self._start < needed:
            if self._start + wanted > len(buffer):
                kept = self._end - self._start
                buffer[:kept] = buffer[self._start : self._end]  # a memmove: they may overlap
                self._start, self._end = 0, kept
            got = await self._raw.receive_into(buffer[self._end : self._start + wanted])
            if not got:
                raise self._fail("the connection was cut")
            self._end += got
            self._on_bytes(0, got)

    def _check_open(self) -> None:
        if self._reason is not None:
            raise LinkClosed(self._reason)

    def _fail(self, reason: str) -> LinkClosed:
        if self._reason is None:
            self._reason = reason
            self._raw.abort()
            self._on_end()
        return LinkClosed(self._reason)

    def _ended_by(self, error: BaseException) -> LinkClosed | None:
        """Close the link over `error`; returns what to raise instead of it, if anything."""
        if isinstance(error, LinkClosed):
            return error
        if isinstance(error, AuthenticationFailed | RecordError):
            return self._fail(str(error))
        if isinstance(error, trio.BrokenResourceError | trio.ClosedResourceError):
            return self._fail(str(error) or "connection closed")
        self._fail("a transfer was cancelled halfway")
        return None

    async def aclose(self) -> None:
        """Tell the peer and close; waits for nothing. No send may be under way."""
        if self._reason is not None:
            return
        self._reason = "closed here"
        if self._lane_in is not None or self._lane_out is not None:
            self._on_end()
            await self._raw.aclose()
            return
        out = memoryview(bytearray(OVERHEAD_BYTES))
        self._sealer.seal_into(_CLOSE, b"", out)
        try:
            with trio.move_on_after(1.0, shield=True):
                if self._tail:
                    await self._raw.send_all(self._tail)
                await self._raw.send_all(out)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            self._raw.abort()
        finally:
            self._on_end()
            await self._raw.aclose()

    def abort(self, reason: str = "aborted") -> None:
        """Close hard and wake both sides' waiting tasks."""
        self._fail(reason)


def _flat(payload: Buffer) -> memoryview:
    view = memoryview(payload)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")
