"""One stream of a peer's control connection, as a `trio.abc.HalfCloseableStream`.

Problem: application code wants ordinary trio streams; the connection wants one writer task, no
torn frames, and a bound on memory. Idea: a stream only moves bytes between the application and
the queues of `transport.streams.mux`; it never touches the socket. Sending waits until the mux has taken
everything (256 KiB queued per stream, or as much as it may send), receiving grants credit as the
bytes are taken.

Closing is not cancelling. As with close(2) on a TCP socket, what was sent before `close` still
travels; unlike there, it arrives even when more comes in meanwhile: that is thrown away, and the
peer is told to stop after our last byte (TCP sends its RST at once, and the peer loses what it
had not read). `reset` drops both directions at once. A peer that stops us in this way leaves us
what it sent and the end of it to read; only sending fails.

Cancellation never harms the connection or the stream:

* `send_all` cancelled before the mux took anything sends nothing; cancelled later, a prefix of
  the data has been sent, and how much is not known.
* `send_message` cancelled halfway is completed by the next send on the stream; a stream closed
  in that state is reset, so that the peer never takes half a message for a whole one.
* `receive_some` and `receive_message` cancelled consume nothing.

Errors are those of `trio.abc.Stream`, and of `transport.errors` at the same time: a stream whose
peer is gone raises `PeerLost`, which is also a `trio.BrokenResourceError`.
"""

from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from transport.buffer import Buffer
from transport.codec import MAX_MESSAGE_BYTES
from transport.connect.outlet import PUSH_BYTES
from transport.errors import (
    EndOfStream,
    MalformedMessage,
    MessageTooLarge,
    PeerLost,
    StreamClosed,
    StreamReset,
)
from transport.streams.frames import ResetCode
from transport.wakeup import Waiter

if TYPE_CHECKING:
    from transport.connect.connection import Connection
    from transport.peer import Peer

LENGTH_BYTES: Final = 4
"""Before each message: its length, unsigned big-endian."""


class StreamPeerLost(PeerLost, trio.BrokenResourceError):
    """The connection that carried the stream is gone."""


class StreamBroken(StreamReset, trio.BrokenResourceError):
    """The other side reset the stream."""


class StreamIsClosed(StreamClosed, trio.ClosedResourceError):
    """The stream was closed on this side."""


class Stream(trio.abc.HalfCloseableStream):
    """A two-way byte stream to a peer, with message framing on top for who wants it.

    Made by `Peer.open_stream` and handed to the handlers of `Endpoint.serve`.

    Attributes:
        peer: who is at the other end.
        protocol: the name it was opened with.
        scope: cancelled when the stream fails; for a handler that is useless without it.
    """

    def __init__(self, connection: "Connection", stream_id: int, protocol: str) -> None:
        self.protocol = protocol
        self.scope: trio.CancelScope | None = None
        self._connection = connection
        self._mux = connection.mux
        self._id = stream_id
        self._inbox: deque[bytes] = deque()  # bounded by the mux's window
        self._offset = 0  # bytes already taken of the first chunk
        self._unread = 0
        self._finished = False  # the other side will send no more
        self._eof_sent = False
        self._closed = False
        self._failure: PeerLost | StreamReset | None = None
        self._full = False  # the mux took less than it was given; Writable will follow
        self._tail: Buffer = b""  # the rest of a message whose sending was cancelled
        self._sending = self._receiving = False
        self._reader = Waiter()
        self._writer = Waiter()

    def __repr__(self) -> str:
        state = " closed" if self._closed else " broken" if self._failure else ""
        return f"<Stream {self._id} {self.protocol!r} with {self.peer.node_id.short}{state}>"

    @property
    def peer(self) -> "Peer":
        """Who is at the other end."""
        return self._connection.peer

    def fix_window(self) -> None:
        """Never have more than 256 KiB unread or unsent here; for streams that are many, or passed on."""
        self._mux.fix_window(self._id)

    # Sending

    async def send_all(self, data: Buffer) -> None:
        """Hand `data` to the connection; returns when all of it is queued or sent.

        Cancelled before anything was queued, nothing is sent; later, an unknown prefix is.

        Raises:
            PeerLost: the connection is gone (also a `trio.BrokenResourceError`).
            StreamReset: the peer reset the stream (likewise).
            StreamClosed: closed or finished here (also a `trio.ClosedResourceError`).
            trio.BusyResourceError: another task is sending.
        """
        self._enter_send()
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            await self._flush_tail()
            await self._send(data)
            self._connection.push()
            await trio.lowlevel.cancel_shielded_checkpoint()  # what was sent does not wait for that
        finally:
            self._sending = False

    async def send_message(self, message: bytes) -> None:
        """Send one message of at most 64 KiB; the other side takes it with `receive_message`.

        Cancelled halfway, the rest goes out before whatever is sent next.

        Raises:
            MessageTooLarge: nothing was sent.
            PeerLost, StreamReset, StreamClosed, trio.BusyResourceError: as for `send_all`.
        """
        if len(message) > MAX_MESSAGE_BYTES:
            raise MessageTooLarge(f"message of {len(message)} bytes, limit {MAX_MESSAGE_BYTES}")
        framed = len(message).to_bytes(LENGTH_BYTES, "big") + message
        self._enter_send()
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            await self._flush_tail()
            await self._wait_room()
            self._tail = framed[self._offer(framed) :]
            await self._flush_tail()
            self._connection.push()
            await trio.lowlevel.cancel_shielded_checkpoint()  # as in `send_all`
        finally:
            self._sending = False

    def try_send_message(self, message: bytes) -> bool:
        """Do what `send_message` does if nothing is in the way; never blocks.

        Returns:
            False when nothing was sent: another task is sending, there is no room, or the stream has
            ended (`send_message` says why).

        Raises:
            MessageTooLarge: nothing was sent.
        """
        if len(message) > MAX_MESSAGE_BYTES:
            raise MessageTooLarge(f"message of {len(message)} bytes, limit {MAX_MESSAGE_BYTES}")
        if (
            self._sending
            or self._closed
            or self._eof_sent
            or self._failure is not None
            or self._full
            or self._tail
            or self._mux.room(self._id) < LENGTH_BYTES + len(message)
        ):
            return False
        self._mux.send(self._id, len(message).to_bytes(LENGTH_BYTES, "big") + message)
        self._connection.push()
        return True

    async def send_to_end(self, data: bytes) -> None:
        """Send `data` and finish our direction, without a checkpoint when nothing is in the way.

        Raises:
            PeerLost, StreamReset, StreamClosed, trio.BusyResourceError: as for `send_all`.
        """
        self._enter_send()
        try:
            await self._send(data)
        finally:
            self._sending = False
        self.finish()

    def _offer(self, data: Buffer) -> int:
        """Give the mux what it takes now; return how much that was."""
        taken = self._mux.send(self._id, data)
        self._full = taken < len(data)
        if self._full:
            self._connection.push(leave=PUSH_BYTES)  # which may have made room already
            if self._full:
                self._connection.kick()
        return taken

    async def _flush_tail(self) -> None:
        """Send the rest of a message whose sending was cancelled."""
        while self._tail:
            await self._wait_room()
            self._tail = memoryview(self._tail)[self._offer(self._tail) :]

    async def _send(self, data: Buffer) -> None:
        await self._wait_room()
        while (taken := self._offer(data)) < len(data):
            data = memoryview(data)[taken:]
            await self._wait_room()

    async def _wait_room(self) -> None:
        """Wait for the Writable that the mux owes after it took less than it was given."""
        while self._full:
            await self._writer.wait()
            self._check_send()

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        self._enter_send()
        try:
            await trio.lowlevel.checkpoint()
            self._check_send()
            await self._wait_room()
        finally:
            self._sending = False

    async def send_eof(self) -> None:
        """End our direction; the other side reads what was sent and then the end."""
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        if self._closed:
            raise StreamIsClosed("the stream was closed on this side")
        if not self._eof_sent:
            self._sending = True
            try:
                if self._tail:
                    await self._flush_tail()
                self.finish()
            finally:
                self._sending = False
        await trio.lowlevel.checkpoint()

    def finish(self) -> None:
        """End our direction without waiting; nothing happens on a stream that is gone."""
        if not self._eof_sent:
            self._eof_sent = True
            if self._failure is None:
                self._mux.finish(self._id)
                self._connection.push()
            if self._finished:
                self._connection.forget(self._id)

    def _enter_send(self) -> None:
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._check_send()
        self._sending = True

    def _check_send(self) -> None:
        if self._closed or self._eof_sent:
            raise StreamIsClosed("the stream was closed on this side")
        if self._failure is not None:
            raise _copy(self._failure)

    # Receiving

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for bytes and take them; b"" at the end of the stream.

        Raises:
            PeerLost, StreamReset, StreamClosed, trio.BusyResourceError: as for `send_all`.
        """
        if max_bytes is not None:
            if not isinstance(max_bytes, int):
                raise TypeError("max_bytes must be an integer")
            if max_bytes < 1:
                raise ValueError("max_bytes must be positive")
        self._enter_receive()
        try:
            if self._unread or self._finished:
                await trio.lowlevel.checkpoint()
            await self._wait_unread(1)
            if self._unread == 0:
                return b""
            available = len(self._inbox[0]) - self._offset
            return self._take(available if max_bytes is None else min(available, max_bytes))
        finally:
            self._receiving = False

    async def receive_message(self) -> bytes:
        """Wait for the next message sent with `send_message`.

        Raises:
            EndOfStream: the other side finished, and all messages were taken.
            MalformedMessage: a message over 64 KiB, or one cut off by the end of the stream.
            PeerLost, StreamReset, StreamClosed, trio.BusyResourceError: as for `send_all`.
        """
        self._enter_receive()
        try:
            if self._unread or self._finished:
                await trio.lowlevel.checkpoint()
            await self._wait_unread(LENGTH_BYTES)
            if self._unread == 0:
                raise EndOfStream("the other side finished the stream")
            size = int.from_bytes(self._peek(LENGTH_BYTES), "big")
            if size > MAX_MESSAGE_BYTES:
                raise MalformedMessage(f"message of {size} bytes, limit {MAX_MESSAGE_BYTES}")
            await self._wait_unread(LENGTH_BYTES + size)
            if self._unread < LENGTH_BYTES + size:
                raise MalformedMessage("a message is cut off by the end of the stream")
            return self._take(LENGTH_BYTES + size)[LENGTH_BYTES:]
        finally:
            self._receiving = False

    async def receive_to_end(self, limit: int) -> bytes:
        """Wait for everything up to the end of the stream, without an extra checkpoint.

        Raises:
            MessageTooLarge: more than `limit` bytes came.
            PeerLost, StreamReset, StreamClosed, trio.BusyResourceError: as for `send_all`.
        """
        self._enter_receive()
        try:
            await self._wait_unread(limit + 1)
            if self._unread > limit:
                raise MessageTooLarge(f"more than {limit} bytes")
            return self._take(self._unread)
        finally:
            self._receiving = False

    async def _wait_unread(self, count: int) -> None:
        """Wait until `count` bytes are there, or the end."""
        while self._unread < count and not self._finished:
            if self._failure is not None:
                raise _copy(self._failure)
            await self._reader.wait()
            if self._closed:
                raise StreamIsClosed("the stream was closed on this side")

    def _enter_receive(self) -> None:
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving on this stream")
        if self._closed:
            raise StreamIsClosed("the stream was closed on this side")
        self._receiving = True

    def _peek(self, count: int) -> bytes:
        first = self._inbox[0]
        if len(first) - self._offset >= count:
            return first[self._offset : self._offset + count]
        joined = first[self._offset :] + b"".join(list(self._inbox)[1:])
        self._inbox = deque([joined])
        self._offset = 0
        return joined[:count]

    def _take(self, count: int) -> bytes:
        """Remove `count` buffered bytes and grant their credit."""
        if count == 0:
            return b""
        self._unread -= count
        parts: list[bytes] = []
        left = count
        while left:
            first = self._inbox[0]
            available = len(first) - self._offset
            if available <= left:
                parts.append(first[self._offset :] if self._offset else first)
                self._inbox.popleft()
                self._offset = 0
                left -= available
            else:
                parts.append(first[self._offset : self._offset + left])
                self._offset += left
                left = 0
        if self._mux.consume(self._id, count):
            self._connection.push()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    # Ending

    async def aclose(self) -> None:
        """Close both directions; what was sent still travels, what comes in is refused.

        Cancelling does not prevent the closing.
        """
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Do what `aclose` does, without a checkpoint."""
        if self._closed:
            return
        if self._tail:
            self.reset(ResetCode.CANCELLED)
            return
        self.finish()
        self._closed = True
        if self._unread and self._failure is None:
            self._mux.consume(self._id, self._unread)
            self._connection.kick()
        self._release()

    def reset(self, code: int = ResetCode.CANCELLED) -> None:
        """Drop the stream at once, both ways; the peer learns `code`. Never blocks."""
        if self._closed:
            return
        self._closed = True
        if not (self._finished and self._eof_sent):
            self._mux.reset(self._id, code)
            self._connection.kick()
        self._release()

    def _release(self) -> None:
        self._inbox.clear()
        self._unread = self._offset = 0
        self._tail = b""
        self._connection.forget(self._id)
        self._wake()

    def _wake(self) -> None:
        self._reader.wake()
        self._writer.wake()

    # What the connection tells us

    def on_data(self, data: bytes) -> None:
        """More bytes have arrived."""
        self._inbox.append(data)
        self._unread += len(data)
        self._reader.wake()

    def on_finished(self) -> None:
        """The other side will send no more."""
        self._finished = True
        if self._eof_sent:
            self._connection.forget(self._id)
        self._reader.wake()

    def on_writable(self) -> None:
        """The mux has room again."""
        self._full = False
        self._writer.wake()

    def on_failure(self, failure: PeerLost | StreamReset) -> None:
        """The stream or its connection is gone; wakes every waiter."""
        if self._failure is None:
            self._failure = failure
            if isinstance(failure, StreamReset) and not self._finished:
                self._inbox.clear()
                self._unread = self._offset = 0
            if self.scope is not None:
                self.scope.cancel()
            self._wake()


def _copy(failure: PeerLost | StreamReset) -> PeerLost | StreamReset:
    """Return a fresh exception: one object raised in several tasks would mix their tracebacks."""
    if isinstance(failure, StreamReset):
        return StreamBroken(str(failure), reset_code=failure.reset_code)
    return StreamPeerLost(failure.reason)
