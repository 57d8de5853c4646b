"""Bulk link: large payloads over a connection of their own, at memory speed.

Problem: tensors must not queue behind control messages nor the other way round, and every copy
counts. Idea: after a handshake of kind "bulk" the connection carries transfers only. A transfer is
a small header (the caller's, opaque here) and up to 1 MiB of payload; it is sealed into one reused
buffer and handed to the kernel in one call. On the other side each record is decrypted straight
into the memory that the caller names once it has seen the authenticated header.

Wire, inside the records of `transport.secure.record`::

    REKEY       before a head, when the sender's key is an hour old
    BULK_HEAD   uint32 payload length, then the caller's header (<= 128 bytes)
    BULK_DATA   payload, in records of at most 256 KiB, in order
    CLOSE       the sender ends the link on purpose

Invariants: one sender task and one receiver task per link at a time; a cancelled or failed
operation leaves an unknown amount on the wire, so the link is dead afterwards and says why; what a
failed record decrypted is wiped and never reported as received.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import trio

from transport.errors import AuthenticationFailed, RecordError, TransportError, UsageError
from transport.network import Buffer, RawStream
from transport.secure.handshake import HandshakeResult
from transport.secure.record import (
    HEADER_BYTES,
    OVERHEAD_BYTES,
    RECORD_BYTES,
    TAG_BYTES,
    RecordKind,
)

MAX_HEADER_BYTES = 128
MAX_PAYLOAD_BYTES = 1 << 20
"""One transfer: large enough to hide per-call costs, small enough to stay in the cache."""

_LENGTH = struct.Struct(">I")
_HEAD_BYTES = _LENGTH.size + MAX_HEADER_BYTES
_MAX_RECORDS = 2 + -(-MAX_PAYLOAD_BYTES // RECORD_BYTES)
_WIRE_BYTES = _HEAD_BYTES + MAX_PAYLOAD_BYTES + _MAX_RECORDS * OVERHEAD_BYTES
_RECEIVE_BYTES = 1 << 20
_NOWHERE = memoryview(b"")
_COMPACT_BELOW = RECORD_BYTES + OVERHEAD_BYTES


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
        self._receive_buffer = memoryview(bytearray(max(_RECEIVE_BYTES, len(result.leftover))))
        self._target = _NOWHERE  # of the transfer being received
        self.ended_in_order = False
        self._start, self._end = 0, len(result.leftover)
        self._receive_buffer[: self._end] = result.leftover

    @property
    def closed(self) -> bool:
        """True once the link has failed or was closed on either side."""
        return self._reason is not None

    async def send(self, header: bytes, payload: Buffer) -> None:
        """Send one transfer.

        Cancellation leaves the link unusable (part of the transfer may be on the wire).

        Raises:
            LinkClosed: the link is closed or broke; the message says why.
            UsageError: header or payload too large; nothing was sent.
        """
        view = memoryview(payload).cast("B")
        size = len(view)
        if len(header) > MAX_HEADER_BYTES or size > MAX_PAYLOAD_BYTES:
            raise UsageError(f"transfer of {len(header)} + {size} bytes is over the limit")
        self._check_open()
        out = self._send_buffer
        if out is None:
            out = self._send_buffer = memoryview(bytearray(_WIRE_BYTES))
        seal = self._sealer.seal_into
        head_end = _LENGTH.size + len(header)
        _LENGTH.pack_into(self._head, 0, size)
        self._head[_LENGTH.size : head_end] = header
        end = 0
        if self._sealer.rekey_due(trio.current_time()):
            end = seal(RecordKind.REKEY, b"", out)
        end += seal(RecordKind.BULK_HEAD, memoryview(self._head)[:head_end], out[end:])
        for start in range(0, size, RECORD_BYTES):
            end += seal(RecordKind.BULK_DATA, view[start : start + RECORD_BYTES], out[end:])
        try:
            await self._raw.send_all(out[:end])
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise self._fail(str(error) or "connection closed") from None
        except BaseException:
            self._fail("a transfer was cancelled halfway")
            raise
        self._on_bytes(end, 0)

    async def receive(self, sink: Callable[[bytes, int], memoryview]) -> bytes:
        """Receive one transfer; returns its header once the whole payload is in place.

        Args:
            sink: called with (header, payload size) before any payload is decrypted; returns the
                writable memory of exactly that size. It may raise: the link is then closed.

        Cancellation leaves the link unusable.

        Raises:
            LinkClosed: ended or broken; the message says why.
        """
        self._check_open()
        try:
            head = bytearray(_HEAD_BYTES)
            kind, length = await self._next_header(head)
            while kind == RecordKind.REKEY:  # opening it has changed the key
                self._open_record(length, memoryview(head))
                kind, length = await self._next_header(head)
            if kind == RecordKind.CLOSE:
                self._open_record(length, memoryview(head))
                self.ended_in_order = True
                raise self._fail("closed by the peer")
            if kind != RecordKind.BULK_HEAD or length < _LENGTH.size:
                raise self._fail(f"unexpected record of kind {kind}, {length} bytes")
            self._open_record(length, memoryview(head))
            (size,) = _LENGTH.unpack_from(head)
            if size > MAX_PAYLOAD_BYTES:
                raise self._fail(f"transfer of {size} bytes announced, limit {MAX_PAYLOAD_BYTES}")
            header = bytes(head[_LENGTH.size : length])
            self._target = target = sink(header, size).cast("B")
            if len(target) != size:
                raise UsageError(f"sink gave {len(target)} bytes for a transfer of {size}")
            done = 0
            while done < size:
                kind, length = await self._parse_header()
                if kind != RecordKind.BULK_DATA or not 0 < length <= min(RECORD_BYTES, size - done):
                    raise self._fail(f"unexpected record of kind {kind}, {length} bytes")
                await self._fill(HEADER_BYTES + length + TAG_BYTES)
                done += self._open_record(length, self._target[done:])
        except LinkClosed:
            raise
        except (AuthenticationFailed, RecordError) as error:
            raise self._fail(str(error)) from None
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise self._fail(str(error) or "connection closed") from None
        except BaseException:
            self._fail("a transfer was cancelled halfway")
            raise
        finally:
            self._target = _NOWHERE  # the caller's memory is the caller's again
        return header

    def redirect(self, target: memoryview) -> None:
        """Have what is still to come of the transfer being received go to `target` instead.

        The memory that the sink gave is not touched after this returns. `target` must be as large
        as that memory; its start stays as it is. Nothing happens between two transfers.
        """
        self._target = target

    async def _next_header(self, head: bytearray) -> tuple[int, int]:
        """Wait for a whole record that fits into `head`."""
        kind, length = await self._parse_header()
        if length > len(head):
            raise self._fail(f"unexpected record of kind {kind}, {length} bytes")
        await self._fill(HEADER_BYTES + length + TAG_BYTES)
        return kind, length

    async def _parse_header(self) -> tuple[int, int]:
        await self._fill(HEADER_BYTES)
        return self._opener.parse_header(
            self._receive_buffer[self._start : self._start + HEADER_BYTES]
        )

    def _open_record(self, length: int, target: memoryview) -> int:
        """Decrypt the record at the start of the buffered part, which is there as a whole."""
        whole = HEADER_BYTES + length + TAG_BYTES
        buffer, start = self._receive_buffer, self._start
        body = start + HEADER_BYTES
        opened = self._opener.open_into(buffer[start:body], buffer[body : start + whole], target)
        self._start = start + whole
        if self._start == self._end:
            self._start = self._end = 0
        return opened

    async def _fill(self, needed: int) -> None:
        """Wait until `needed` bytes lie at the start of the buffered part."""
        buffer = self._receive_buffer
        while self._end - self._start < needed:
            if len(buffer) - self._end < _COMPACT_BELOW and self._start:
                kept = self._end - self._start
                buffer[:kept] = buffer[self._start : self._end]  # a memmove: they may overlap
                self._start, self._end = 0, kept
            got = await self._raw.receive_into(buffer[self._end :])
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

    async def aclose(self) -> None:
        """Tell the peer and close; waits for nothing. No send may be under way."""
        if self._reason is not None:
            return
        self._reason = "closed here"
        out = memoryview(bytearray(OVERHEAD_BYTES))
        self._sealer.seal_into(RecordKind.CLOSE, b"", out)
        try:
            with trio.move_on_after(1.0, shield=True):
                await self._raw.send_all(out)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            self._raw.abort()
        finally:
            self._on_end()
            await self._raw.aclose()

    def abort(self, reason: str = "aborted") -> None:
        """Close hard and wake both sides' waiting tasks."""
        self._fail(reason)
