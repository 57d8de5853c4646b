"""From a raw stream to a secure link: the handshake under one deadline, then sealed records.

Problem: the handshake core and the record ciphers know nothing of sockets; something must feed
them, bound the time and the bytes a stranger may use, and make sure that a half-written record
never leads to a reused or skipped counter. Idea: `shake_hands` drives a `Handshake` under one
absolute deadline; `SecureLink` owns the stream afterwards and moves whole records.

Invariants:

* A handshake that does not end in a result leaves the raw stream closed.
* The initiator sends its last message only when `commit` agrees. Several attempts may thus run
  side by side and the responder never sees a completed handshake that nobody wants.
* A record is sealed immediately before it is written. After an error or a cancellation in
  `send` the link is dead: the counter has moved on and an unknown part of the record is out.
* The receive buffer grows with bytes received, never with a length announced. Both buffers go back
  to their size at rest when nothing large has passed for `REST_AFTER_S`; not earlier, since making
  them anew for each record costs more than sealing it.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import trio

from transport.buffer import Buffer
from transport.errors import ConnectionBroken, HandshakeFailed, HandshakeTimeout
from transport.network import RawStream
from transport.secure.handshake import HELLO_BYTES, Handshake, HandshakeResult
from transport.secure.record import HEADER_BYTES, OVERHEAD_BYTES, RecordKind

HANDSHAKE_READ_BYTES: Final = 4096
"""The most read at once before the peer is authenticated; the handshake core bounds the sum."""

RECEIVE_BYTES: Final = 32 << 10
"""Receive buffer at rest: several control records, and small beside what a connection costs."""

SEND_BYTES: Final = 8 << 10
"""Send buffer at rest: a small message and its overhead."""

KEPT_BYTES: Final = 4 << 20
"""Freeing a block of this size makes the C library keep twice as much free memory for the next blocks (mallopt(3): glibc's thresholds
follow the largest block freed). Until then, each record of 256 KiB that the application has taken goes back to the kernel,
and the page faults for the next one cost a receiver as much as everything else."""

REST_AFTER_S: Final = 1.0
"""After the last large record a buffer is made small again (seconds)."""

GOODBYE_S: Final = 0.5
"""How long the last words of a failed handshake or of a closing link may take."""

_NOTHING: Final = memoryview(b"")


async def shake_hands(
    raw: RawStream,
    handshake: Handshake,
    *,
    deadline: float,
    commit: Callable[[], bool] = lambda: True,
    on_answer: Callable[[], None] = lambda: None,
) -> HandshakeResult:
    """Run `handshake` over `raw` until it has a result.

    Cancelling aborts the stream.

    Args:
        raw: a fresh connection; closed here unless a result is returned.
        handshake: the core, in its initial state.
        deadline: trio time by which everything must be done, whatever trickles in.
        commit: asked once there is a result and before our last message leaves; on False the
            stream is aborted and `HandshakeFailed` raised.
        on_answer: called before more than a bare hello leaves; a responder says more only to who
            has proved that it holds the swarm's key.

    Raises:
        HandshakeFailed: (or a subclass) what went wrong; `HandshakeTimeout` for the deadline.
        ConnectionBroken: the connection ended or was reset meanwhile.
    """
    done = False
    try:
        with trio.CancelScope(deadline=deadline) as scope:
            result = await _drive(raw, handshake, commit, on_answer)
            done = True
            return result
        assert scope.cancelled_caught
        raise HandshakeTimeout("the handshake did not finish in time")
    except trio.BrokenResourceError as error:
        raise ConnectionBroken(f"{error} during the handshake") from error
    except trio.ClosedResourceError as error:
        raise ConnectionBroken("closed here during the handshake") from error
    finally:
        if not done:
            raw.abort()


async def _drive(
    raw: RawStream,
    handshake: Handshake,
    commit: Callable[[], bool],
    on_answer: Callable[[], None],
) -> HandshakeResult:
    buffer = memoryview(bytearray(HANDSHAKE_READ_BYTES))
    while True:
        outgoing = handshake.outgoing()
        result = handshake.result
        if result is not None and not commit():
            raise HandshakeFailed("another attempt was faster")
        if outgoing:
            if len(outgoing) > HELLO_BYTES:
                on_answer()
            await raw.send_all(outgoing)
        if result is not None:
            return result
        count = await raw.receive_into(buffer)
        if count == 0:
            handshake.receive_eof()
            raise AssertionError("receive_eof always raises")
        try:
            handshake.receive(bytes(buffer[:count]))
        except HandshakeFailed:
            await _last_words(raw, handshake)
            raise


async def _last_words(raw: RawStream, handshake: Handshake) -> None:
    """Send what a failed handshake still wants to say, so that the other side can tell why."""
    outgoing = handshake.outgoing()
    if outgoing:
        with trio.move_on_after(GOODBYE_S):
            await raw.send_all(outgoing)
            if len(outgoing) > HELLO_BYTES:
                # It thinks it is connected and sends already; closing on unread bytes would be a reset, which overtakes our words.
                await _until_closed(raw)
            await raw.aclose()


async def _until_closed(raw: RawStream) -> None:
    unread = memoryview(bytearray(HANDSHAKE_READ_BYTES))
    with suppress(trio.BrokenResourceError):
        while await raw.receive_into(unread):
            pass


class SecureLink:
    """Whole sealed records over a raw stream, after a handshake.

    One task may send and one may receive at a time.

    Attributes:
        raw: the stream; owned by the link.
        result: who is at the other end, and the keys.
        bytes_sent: on the wire since the handshake.
        bytes_received: likewise.
        received_at: trio time of the last byte from the peer.
        unsent: sealed by `send_now` and not taken by the network yet; `flush` it before anything else.
    """

    def __init__(self, raw: RawStream, result: HandshakeResult) -> None:
        self.raw = raw
        self.result = result
        self.bytes_sent = 0
        self.bytes_received = len(result.leftover)
        self.received_at = trio.current_time()
        self._sealer = result.sealer
        self._opener = result.opener
        self._peeked: tuple[int, memoryview] | None = None
        self.unsent = _NOTHING
        self._out = memoryview(bytearray(SEND_BYTES))
        self._large_sent_at = self._large_received_at = self.received_at
        self._buffer = memoryview(bytearray(max(RECEIVE_BYTES, len(result.leftover))))
        self._start, self._end = 0, len(result.leftover)
        self._buffer[: self._end] = result.leftover

    async def send(self, kind: RecordKind, *parts: Buffer) -> None:
        """Seal `parts`, put together, as one record and write it.

        Cancelling kills the link: call it only from the connection's writer task.

        Raises:
            ConnectionBroken: the connection is broken, or was closed here.
        """
        if self.unsent:
            await self.flush()
        await self._write(self._seal(kind, parts))

    @property
    def can_send_now(self) -> bool:
        """Whether `send_now` is of use on this network."""
        return self.raw.can_send_now

    def send_now(self, kind: RecordKind, *parts: Buffer) -> None:
        """Seal `parts` as one record and write what goes without waiting; the rest is `unsent`.

        Only while nobody is in `send`, and nothing is unsent.
        """
        record = self._seal(kind, parts)
        taken = self.raw.send_now(record)
        self.bytes_sent += taken
        self.unsent = record[taken:]

    async def flush(self) -> None:
        """Write what is unsent; as for `send`."""
        record, self.unsent = self.unsent, _NOTHING
        await self._write(record)

    def _seal(self, kind: RecordKind, parts: Sequence[Buffer]) -> memoryview:
        size = sum(map(len, parts)) + 2 * OVERHEAD_BYTES
        now = trio.current_time()
        if size > SEND_BYTES:
            self._large_sent_at = now
            if len(self._out) < size:
                self._out = memoryview(bytearray(max(size, 2 * len(self._out))))
        elif len(self._out) > SEND_BYTES and now - self._large_sent_at > REST_AFTER_S:
            self._out = memoryview(bytearray(SEND_BYTES))
        out, end = self._out, 0
        if self._sealer.rekey_due(now):
            end = self._sealer.seal_into(RecordKind.REKEY, b"", out)
        start = stop = end + HEADER_BYTES
        for part in parts:
            out[stop : (stop := stop + len(part))] = part
        return out[: end + self._sealer.seal_into(kind, out[start:stop], out[end:])]

    async def _write(self, record: memoryview) -> None:
        try:
            await self.raw.send_all(record)
        except trio.BrokenResourceError as error:
            raise ConnectionBroken(str(error)) from error
        except trio.ClosedResourceError as error:
            raise ConnectionBroken("the connection was closed here") from error
        except BaseException:
            self.raw.abort()
            raise
        self.bytes_sent += len(record)

    async def receive(self) -> tuple[int, memoryview]:
        """Wait for one record; return its kind and plaintext.

        The plaintext is valid until the next call. Cancelling loses nothing.

        Raises:
            ConnectionBroken: the connection ended without a goodbye, is broken, or was closed.
            RecordError: the bytes are not the peer's records. Fatal.
        """
        if self._peeked is not None:
            record, self._peeked = self._peeked, None
            return record
        while True:
            start, available = self._start, self._end - self._start
            if available >= HEADER_BYTES:
                header = self._buffer[start : start + HEADER_BYTES]
                kind, length = self._opener.parse_header(header)
                whole = length + OVERHEAD_BYTES
                if available >= whole:
                    body = self._buffer[start + HEADER_BYTES : start + whole]
                    self._opener.open_into(header, body, body[:length])
                    self._start = start + whole
                    if kind == RecordKind.REKEY:
                        continue
                    return kind, body[:length]
            self._make_room()
            try:
                count = await self.raw.receive_into(self._buffer[self._end :])
            except trio.BrokenResourceError as error:
                raise ConnectionBroken(str(error)) from error
            except trio.ClosedResourceError as error:
                raise ConnectionBroken("the connection was closed here") from error
            if count == 0:
                raise ConnectionBroken("the connection was cut")
            self._end += count
            self.bytes_received += count
            self.received_at = trio.current_time()

    async def peek(self) -> tuple[int, memoryview]:
        """Wait for one record as `receive` does, and leave it for the next `receive`.

        Cancelling loses nothing.

        Raises:
            ConnectionBroken, RecordError: as for `receive`.
        """
        self._peeked = await self.receive()
        return self._peeked

    @property
    def buffered(self) -> int:
        """Bytes received that no record returned so far has used."""
        return self._end - self._start

    def _make_room(self) -> None:
        """Have free space behind the buffered bytes: move them, or double a full buffer."""
        kept, size = self._end - self._start, len(self._buffer)
        if self._end > RECEIVE_BYTES:
            self._large_received_at = self.received_at
        if kept == 0:
            if size > RECEIVE_BYTES and self._rested():
                self._buffer = memoryview(bytearray(RECEIVE_BYTES))
        elif self._start == 0 and self._end == size:
            if size == RECEIVE_BYTES:
                bytearray(KEPT_BYTES)  # freed at once; see there
            larger = memoryview(bytearray(2 * size))
            larger[:kept] = self._buffer
            self._buffer = larger
        elif self._start and size - self._end < size // 4:
            self._buffer[:kept] = self._buffer[self._start : self._end]  # a memmove: may overlap
        else:
            return
        self._start, self._end = 0, kept

    def _rested(self) -> bool:
        return self.received_at - self._large_received_at > REST_AFTER_S

    def abort(self) -> None:
        """Close hard and wake whoever uses the link."""
        self.raw.abort()
