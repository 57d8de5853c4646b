"""Many streams over one sealed connection, with credit, priorities and cancellation; sans-IO.

Problem: dozens of conversations share the control connection of a peer. A slow reader must not hold up the others, a cancelled
one must not tear the connection, and a hostile peer must not make us hold more than a fixed amount. Idea: credit per stream and
per priority class, granted when the application *consumes* bytes (not when they arrive); strict priority between the two classes,
one frame per turn inside a class; RESET for one stream, GOAWAY for all. Layout: `transport.streams.frames`.

    driver                                        core
      stream_id = open(name, priority)
      accepted = send(stream_id, data)              queued, up to 256 or 512 KiB each; Writable follows when accepted < len(data)
      while wants_write: seal(outgoing(n))          whole frames, URGENT first
      receive(plaintext of a DATA record, now)      raises ProtocolViolation at most once; then send outgoing() and close
      while (event := next_event()): ...            after every receive, and after outgoing (Writable)
      consume(stream_id, n)                         the application took n bytes: grants credit

Half-close: `finish` ends our direction after what is queued; the stream is forgotten when both directions have ended and what
came in was consumed (or `reset`). A reset of either side ends both directions, drops what was queued, and returns the credit of what
was not consumed. Frames for forgotten streams are ignored (they were under way), their bytes go straight back to the class.

Closing both directions is `finish` and then, if more comes in, `abandon`: what was queued still leaves, what comes in meanwhile is thrown
away, and after our FIN a RESET tells the peer to stop. So an answer that refuses an upload arrives although the upload goes on. For
the peer that RESET ends its own direction only: what came before the FIN is complete, and stays.

A window whose readers keep up is widened: at a grant, when less than a quarter of it is unconsumed, it doubles, up to WIDEST_BYTES for a
stream and WIDEST_CLASS_BYTES for a class. A sender that sees it may queue more.

Invariants, for each direction of each class: peer's credit + bytes and credits under way + unconsumed + to be granted =
its window, and the same per stream. Every container is bounded by `Limits` or by a window. No stream
event follows its Reset; nothing follows Closed. A call that raises has changed nothing (except `receive`, which closes).
"""

from __future__ import annotations

from collections import deque

from transport.buffer import Buffer
from transport.errors import ProtocolViolation, StreamClosed, StreamLimitReached, UsageError
from transport.limits import Limits
from transport.secure.noise import Role
from transport.secure.record import RECORD_BYTES
from transport.streams import frames
from transport.streams.frames import (
    FRAME_HEADER_BYTES,
    FRAME_PAYLOAD_BYTES,
    MAX_CREDIT_BYTES,
    MAX_FRAME_PAYLOAD_BYTES,
    WIDEST_BYTES,
    WIDEST_CLASS_BYTES,
    WINDOW_BYTES,
    CloseCode,
    Priority,
    ResetCode,
    data_header,
    decode,
    encode,
    is_protocol_name,
    opened_by_responder,
    priority_of,
)
from transport.streams.mux_events import (
    Closed,
    DataReceived,
    Event,
    Finished,
    MuxStatistics,
    Opened,
    Pong,
    Reset,
    Writable,
)
from transport.streams.mux_state import Arrival, ClassState, StreamState, widen

__all__ = [
    "Closed",
    "DataReceived",
    "Event",
    "Finished",
    "Mux",
    "MuxStatistics",
    "Opened",
    "Pong",
    "Reset",
    "Writable",
]

MIN_OUTGOING_BYTES = 1024
"""Smallest `max_bytes`: the largest control frame fits."""
MAX_CONTROL_FRAMES = 2048
"""Control frames (resets, credits) waiting to be sent; honest use needs a few per open stream."""
MAX_PINGS = 32
"""Pings under way, and answers waiting; older ones are forgotten."""
MAX_NUMBER = 2**30 - 1
"""Streams a side may open in one priority class of one connection."""
_SMALLEST_PART = 512  # do not cut a frame shorter than this only because the record is nearly full


class Mux:
    """One side of a multiplexed connection.

    Args:
        role: of this side in the handshake; decides the stream numbers.
        limits: streams_per_peer, accept_backlog, send_buffer_bytes are used.
    """

    def __init__(self, *, role: Role, limits: Limits) -> None:
        self._responder = role == "responder"
        self._limits = limits
        self._classes = tuple(ClassState(priority) for priority in Priority)
        self._streams: dict[int, StreamState] = {}
        self._live = [0, 0]  # streams not ended in both directions: ours, the other side's
        self._held = [0, 0]  # in _streams, likewise
        self._unseen = 0
        self._last_local, self._last_remote = [0, 0], [0, 0]  # stream numbers by class
        self._control: deque[bytes] = deque()
        self._pings: deque[bytes] = deque(maxlen=MAX_PINGS)
        self._pongs: deque[bytes] = deque(maxlen=MAX_PINGS)
        self._awaited: deque[int] = deque(maxlen=MAX_PINGS)
        self._events: deque[tuple[StreamState | None, Event | Arrival]] = deque()
        self._arrivals: dict[int, Arrival] = {}
        self._closed = False
        self.last_received: float | None = None
        """`now` of the last `receive` (monotonic seconds)."""

    # What the application does.

    def open(self, protocol: str, priority: Priority = Priority.NORMAL) -> int:
        """Open a stream; its OPEN frame leaves with the first data or alone.

        Raises:
            StreamLimitReached: limits.streams_per_peer of ours are open already.
            StreamClosed: the connection is over.
            UsageError: not a protocol name.
        """
        if self._closed:
            raise StreamClosed("the connection is closed")
        if not is_protocol_name(protocol):
            raise UsageError("a protocol name is 1 to 64 printable ASCII characters without spaces")
        limit = self._limits.streams_per_peer
        if self._live[0] >= limit or self._held[0] >= 2 * limit:
            raise StreamLimitReached(f"{limit} streams to this peer are open")
        number = self._last_local[priority] + 1
        if number > MAX_NUMBER:
            raise StreamLimitReached("the stream numbers of this connection are used up")
        self._last_local[priority] = number
        id_ = frames.stream_id(number, priority, opened_by_responder=self._responder)
        stream = self._streams[id_] = StreamState(id_, protocol, remote=False)
        self._live[0] += 1
        self._held[0] += 1
        self._enter_ring(stream)
        return id_

    def send(self, stream_id: int, data: Buffer) -> int:
        """Queue bytes; return how many were taken. If fewer than given, a Writable event will follow.

        `bytes`, and views of them, are kept by reference; anything else is copied.

        Raises:
            StreamClosed: finished, reset or unknown.
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            raise StreamClosed("the stream is closed")
        if stream.finishing or stream.cut:
            raise StreamClosed("the stream was finished on this side, or is not read on the other")
        class_ = self._classes[stream.priority]
        view = memoryview(data)
        if view.format != "B" or view.ndim != 1:
            view = view.cast("B")
        accepted = min(len(view), class_.room(stream, self._limits.send_buffer_bytes))
        if accepted:
            part = view[:accepted]
            stream.queue.append(part if type(view.obj) is bytes else memoryview(bytes(part)))
            stream.queued += accepted
            class_.queued += accepted
            self._enter_ring(stream)
        if accepted < len(view):
            class_.blocked[stream_id] = stream
        return accepted

    def room(self, stream_id: int) -> int:
        """How many bytes `send` would take now; 0 where it would raise."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.finishing or stream.cut:
            return 0
        return self._classes[stream.priority].room(stream, self._limits.send_buffer_bytes)

    def finish(self, stream_id: int) -> None:
        """End our direction after what is queued; nothing happens if that was done already.

        Raises:
            StreamClosed: reset or unknown.
        """
        if (stream := self._streams.get(stream_id)) is None:
            raise StreamClosed("the stream is closed")
        if not stream.finishing:
            stream.finishing = True
            self._classes[stream.priority].blocked.pop(stream_id, None)
            self._enter_ring(stream)

    def reset(self, stream_id: int, code: int = ResetCode.CANCELLED) -> None:
        """Cancel both directions at once; no event of this stream follows. Nothing happens if it is gone.

        The one exception: the Finished of a stream that had ended in both directions, if it was queued already.
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if stream.open_sent and not stream.over:  # else the other side has forgotten it
            self._control.append(encode(frames.Reset(stream_id, code)))
        self._forget(stream)

    def abandon(self, stream_id: int) -> None:
        """Throw away what has come in; what was sent before `finish` still leaves, then a RESET.

        Call it again when more comes in. A stream that was not finished is reset at once. Nothing happens if it is gone.
        """
        if (stream := self._streams.get(stream_id)) is None:
            return
        if stream.finishing and not (stream.fin_sent or stream.cut):
            stream.abandoned = True
            self.consume(stream_id, stream.unconsumed)
        elif stream.fin_received:
            self.consume(stream_id, stream.unconsumed)
        else:
            self.reset(stream_id)

    def fix_window(self, stream_id: int) -> None:
        """Keep the window of a stream, and what it queues here, at 256 KiB. Nothing happens if the stream is gone."""
        if stream_id in self._streams:
            self._streams[stream_id].widens = False

    def consume(self, stream_id: int, count: int) -> bool:
        """The application took `count` received bytes: grant that much again. Nothing happens if the stream is gone.

        Returns whether a grant waits to be sent.

        Raises:
            UsageError: more than was received.
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            return bool(self._control)
        if not 0 <= count <= stream.unconsumed:
            raise UsageError(f"consumed {count} bytes where {stream.unconsumed} are held")
        stream.unconsumed -= count
        class_ = self._classes[stream.priority]
        self._return_to_class(class_, count)
        if stream.fin_received:
            if stream.over and stream.unconsumed == 0:
                self._forget(stream)
            return bool(self._control)
        stream.to_grant += count
        if stream.to_grant >= stream.limit // 2:
            if stream.widens:
                widen(stream, WIDEST_BYTES[stream.priority])
            self._control.append(encode(frames.Credit(stream_id, stream.to_grant)))
            stream.window += stream.to_grant
            stream.to_grant = 0
            self._grant_class(class_, 8)  # with the next one it would cost a record of its own
        return bool(self._control)

    def ping(self, token: int) -> None:
        """Ask for a Pong(token), 0 <= token < 2^64. Beyond MAX_PINGS unanswered, the oldest is forgotten."""
        if self._closed:
            return
        self._pings.append(encode(frames.Ping(token)))
        self._awaited.append(token)

    def close(self, code: int = CloseCode.NORMAL, text: str = "") -> None:
        """End the connection: everything queued is dropped, a GOAWAY is the last thing to send, Closed the last event."""
        if not self._closed:
            self._events.clear()
            self._shut(code, text, by_remote=False)
            self._control.append(encode(frames.GoAway(code, text)))

    # What the driver does.

    @property
    def closed(self) -> bool:
        """Whether the connection is over (a last GOAWAY may still have to be sent)."""
        return self._closed

    @property
    def queued_bytes(self) -> int:
        """Accepted from the application, not sent yet."""
        return self._classes[0].queued + self._classes[1].queued

    @property
    def wants_write(self) -> bool:
        """Whether `outgoing` would give something."""
        return bool(
            self._control
            or self._pongs
            or self._pings
            or any(c.wants_write() for c in self._classes)
        )

    def outgoing(self, max_bytes: int = RECORD_BYTES) -> bytes:
        """Whole frames to seal as one DATA record; b"" if there is nothing to send.

        Raises:
            UsageError: max_bytes below MIN_OUTGOING_BYTES or above RECORD_BYTES.
        """
        return b"".join(self.outgoing_parts(max_bytes))

    def outgoing_parts(self, max_bytes: int = RECORD_BYTES) -> list[bytes | memoryview]:
        """What `outgoing` gives, in pieces to be put together by who has a buffer for them."""
        if not MIN_OUTGOING_BYTES <= max_bytes <= RECORD_BYTES:
            raise UsageError(f"max_bytes must be {MIN_OUTGOING_BYTES} to {RECORD_BYTES}")
        parts: list[bytes | memoryview] = []
        room = max_bytes
        for queue in (self._control, self._pongs, self._pings):
            while queue:
                if len(queue[0]) > room:
                    return parts
                room -= len(queue[0])
                parts.append(queue.popleft())
        for class_ in self._classes:
            room = self._fill(class_, parts, room)
            self._wake(class_)
            if room < 0:
                break  # a lower class must not slip past one that only lacked room
        return parts

    def receive(self, data_untrusted: Buffer, now: float) -> None:
        """Take the plaintext of one DATA record: whole frames.

        After the connection is over, everything is ignored.

        Raises:
            ProtocolViolation: the peer broke the rules. The connection is closed: send `outgoing()`, then close.
        """
        if self._closed:
            return
        self.last_received = now
        try:
            if memoryview(data_untrusted).nbytes > RECORD_BYTES:
                raise ProtocolViolation(f"a data record of more than {RECORD_BYTES} bytes")
            for frame in decode(data_untrusted):
                self._receive_frame(frame)
                if self.closed:
                    break
                if len(self._control) > MAX_CONTROL_FRAMES:
                    raise ProtocolViolation("too many frames that need an answer")
        except ProtocolViolation as error:
            self.close(CloseCode.VIOLATION, str(error))
            raise
        finally:
            # The views end with this call: the caller uses the record's buffer again.
            for arrival in self._arrivals.values():
                arrival.pieces = [b"".join(arrival.pieces)]
            self._arrivals.clear()

    def next_event(self) -> Event | None:
        """The oldest event not taken yet, or None."""
        while self._events:
            stream, event = self._events.popleft()
            if stream is not None and stream.silenced:
                continue
            if isinstance(event, Arrival):
                return DataReceived(event.stream_id, bytes(event.pieces[0]))
            if isinstance(event, Opened) and stream is not None:
                stream.unseen = False
                self._unseen -= 1
            return event
        return None

    def statistics(self) -> MuxStatistics:
        """What is held now."""
        return MuxStatistics(
            streams=len(self._streams),
            queued_bytes=self.queued_bytes,
            unconsumed_bytes=sum(class_.unconsumed for class_ in self._classes),
            control_frames=len(self._control) + len(self._pongs) + len(self._pings),
        )

    # Sending.

    def _enter_ring(self, stream: StreamState) -> None:
        self._classes[stream.priority].enter_ring(stream)

    def _fill(self, class_: ClassState, parts: list[bytes | memoryview], room: int) -> int:
        """Frames of one class into `parts`; the room left, negative if something ready did not fit."""
        ring = class_.ring
        idle = 0  # streams looked at since the last frame
        while ring and idle < len(ring):
            stream = ring[0]
            before = room
            if not stream.open_sent:
                frame = encode(frames.Open(stream.id, stream.protocol))
                if len(frame) > room:
                    return -1
                parts.append(frame)
                room -= len(frame)
                stream.open_sent = True
            turn = FRAME_PAYLOAD_BYTES if len(ring) > 1 else MAX_FRAME_PAYLOAD_BYTES
            size = min(stream.queued, stream.credit, class_.credit, turn)
            if size > 0 or (stream.sendable() and not stream.queued):
                if room - FRAME_HEADER_BYTES < min(size, _SMALLEST_PART):
                    return -1
                size = min(size, room - FRAME_HEADER_BYTES)
                room -= FRAME_HEADER_BYTES + size
                self._emit(class_, stream, parts, size)
            ring.popleft()
            if stream.sendable():
                ring.append(stream)
            else:
                stream.in_ring = False
                if stream.fin_sent and stream.abandoned:
                    self.abandon(stream.id)
            idle = 0 if room != before else idle + 1
        return room

    def _emit(
        self, class_: ClassState, stream: StreamState, parts: list[bytes | memoryview], size: int
    ) -> None:
        fin = stream.finishing and size == stream.queued
        parts.append(data_header(stream.id, size, fin=fin))
        class_.take(stream, size, parts)
        if fin:
            stream.fin_sent = True
            self._maybe_end(stream)

    def _wake(self, class_: ClassState) -> None:
        """Writable for the blocked streams that have room, if the class has any."""
        if not class_.blocked or class_.queued >= self._limits.send_buffer_bytes:
            return
        for stream in [s for s in class_.blocked.values() if s.queued <= s.queue_bound // 2]:
            del class_.blocked[stream.id]
            self._events.append((stream, Writable(stream.id)))

    # Receiving.

    def _receive_frame(self, frame: frames.Frame) -> None:
        match frame:
            case frames.Data():
                self._receive_data(frame)
            case frames.Credit(id_, amount):
                stream = self._find(id_)
                if stream is not None:
                    stream.credit += amount
                    stream.widened = stream.widened or stream.credit > WINDOW_BYTES
                    if stream.credit > MAX_CREDIT_BYTES:
                        raise ProtocolViolation("a stream's credit overflows")
                    self._enter_ring(stream)
            case frames.ClassCredit(priority, amount):
                class_ = self._classes[priority]
                class_.credit += amount
                if class_.credit > MAX_CREDIT_BYTES:
                    raise ProtocolViolation("a class's credit overflows")
            case frames.Open(id_, protocol):
                self._receive_open(id_, protocol)
            case frames.Reset(id_, code):
                stream = self._find(id_)
                if stream is not None:
                    seen = not stream.unseen
                    if seen and stream.fin_received:
                        self._cut(stream)
                    else:
                        self._forget(stream)
                    if seen:
                        self._events.append((None, Reset(id_, code)))
            case frames.Ping(token):
                self._pongs.append(encode(frames.Pong(token)))
            case frames.Pong(token):
                if token in self._awaited:
                    self._awaited.remove(token)
                    self._events.append((None, Pong(token)))
            case frames.GoAway(code, text):
                self._shut(code, text, by_remote=True)

    def _find(self, id_: int) -> StreamState | None:
        """The stream of a frame; None for one that was forgotten; a violation for one that never was."""
        stream = self._streams.get(id_)
        if stream is not None:
            if not stream.open_sent:
                raise ProtocolViolation("a frame for a stream the peer cannot know")
            return stream
        ours = opened_by_responder(id_) == self._responder
        last = self._last_local if ours else self._last_remote
        if id_ >> 2 > last[priority_of(id_)]:
            raise ProtocolViolation("a frame for a stream that was never opened")
        return None

    def _receive_open(self, id_: int, protocol: str) -> None:
        if opened_by_responder(id_) == self._responder:
            raise ProtocolViolation("a stream was opened with a number of the other side's series")
        priority = priority_of(id_)
        if id_ >> 2 <= self._last_remote[priority]:
            raise ProtocolViolation("a stream number was used twice")
        self._last_remote[priority] = id_ >> 2
        limit = self._limits.streams_per_peer
        if (
            self._live[1] >= limit
            or self._held[1] >= 2 * limit
            or self._unseen >= self._limits.accept_backlog
        ):
            self._control.append(encode(frames.Reset(id_, ResetCode.REFUSED)))
            return
        stream = self._streams[id_] = StreamState(id_, protocol, remote=True)
        self._live[1] += 1
        self._held[1] += 1
        self._unseen += 1
        self._events.append((stream, Opened(id_, protocol, priority)))

    def _receive_data(self, frame: frames.Data) -> None:
        stream = self._find(frame.stream_id)
        class_ = self._classes[priority_of(frame.stream_id)]
        size = len(frame.data)
        class_.window -= size
        class_.unconsumed += size
        if class_.window < 0:
            raise ProtocolViolation("more bytes than the class's credit")
        if stream is None:  # it was under way when the stream ended here
            self._return_to_class(class_, size)
            return
        if stream.fin_received:
            raise ProtocolViolation("data after the end of a stream")
        stream.window -= size
        stream.unconsumed += size
        if stream.window < 0:
            raise ProtocolViolation("more bytes than the stream's credit")
        if size:
            arrival = self._arrivals.get(stream.id)
            if arrival is None:
                arrival = self._arrivals[stream.id] = Arrival(stream.id)
                self._events.append((stream, arrival))
            arrival.pieces.append(frame.data)
        if frame.fin:
            stream.fin_received = True
            self._events.append((stream, Finished(stream.id)))
            self._maybe_end(stream)

    def _return_to_class(self, class_: ClassState, count: int) -> None:
        class_.unconsumed -= count
        class_.to_grant += count
        self._grant_class(class_, 4)

    def _grant_class(self, class_: ClassState, part: int) -> None:
        """Give a class its credit back once that is the `part`th part of its window."""
        if class_.to_grant >= class_.limit // part:
            widen(class_, WIDEST_CLASS_BYTES[class_.priority])
            self._control.append(encode(frames.ClassCredit(class_.priority, class_.to_grant)))
            class_.window += class_.to_grant
            class_.to_grant = 0

    # Endings.

    def _maybe_end(self, stream: StreamState) -> None:
        """Both directions may have ended; what is not consumed keeps the entry, but it no longer counts as open."""
        if stream.over:
            self._live[stream.remote] -= 1
            if stream.unconsumed == 0:
                self._drop(stream)

    def _cut(self, stream: StreamState) -> None:
        """The peer has sent all it had, and takes nothing more: what it sent stays until it is consumed."""
        if stream.over:
            return
        self._classes[stream.priority].empty(stream)
        stream.cut = True
        self._maybe_end(stream)
        self._wake(self._classes[stream.priority])

    def _forget(self, stream: StreamState) -> None:
        """Reset, or the end of an ended stream: void its events, drop its queue, return its credit."""
        class_ = self._classes[stream.priority]
        if not stream.over:
            self._live[stream.remote] -= 1
        if stream.unseen:
            stream.unseen = False
            self._unseen -= 1
        stream.silenced = True
        class_.empty(stream)
        self._return_to_class(class_, stream.unconsumed)
        stream.unconsumed = 0
        arrival = self._arrivals.pop(stream.id, None)
        if arrival is not None:
            arrival.pieces.clear()  # views into a buffer that is not ours
        self._drop(stream)
        self._wake(class_)

    def _drop(self, stream: StreamState) -> None:
        del self._streams[stream.id]
        self._held[stream.remote] -= 1

    def _shut(self, code: int, text: str, *, by_remote: bool) -> None:
        """Everything of ours ends; events that came before stay in front of Closed (the caller clears them if not)."""
        self._closed = True
        self._streams.clear()
        self._live, self._held = [0, 0], [0, 0]
        for queue in (self._control, self._pings, self._pongs):
            queue.clear()
        self._awaited.clear()
        for class_ in self._classes:
            class_.ring.clear()
            class_.blocked.clear()
            class_.queued = class_.unconsumed = 0
        self._events.append((None, Closed(code, text, by_remote)))
