"""What the multiplexed connection remembers: per stream, per priority class, per record.

Problem: the rules of `transport.streams.mux` are easier to check when the numbers they move lie apart from them. Idea: plain mutable
records with no rules except "could it send something". Invariants (kept by `Mux`): `window + unconsumed + to_grant` is `limit` in each
class, and in each stream whose other side has not finished; a class's `queued` is the sum of its streams' `queued`.
"""

from __future__ import annotations

from collections import deque

from transport.streams.frames import CLASS_WINDOW_BYTES, WINDOW_BYTES, Priority, priority_of

SEND_QUEUE_BYTES = 262144
"""What a stream may queue (bytes)."""
WIDEST_QUEUE_BYTES = 524288
"""The same for a stream whose peer has widened the window."""


class Arrival:
    """DataReceived in the making: one per stream and record, so that tiny frames do not become many objects."""

    __slots__ = ("pieces", "stream_id")

    def __init__(self, stream_id: int) -> None:
        self.stream_id = stream_id
        self.pieces: list[bytes | memoryview] = []


class StreamState:
    """One stream, both directions."""

    __slots__ = (
        "abandoned",
        "credit",
        "cut",
        "fin_received",
        "fin_sent",
        "finishing",
        "id",
        "in_ring",
        "limit",
        "open_sent",
        "priority",
        "protocol",
        "queue",
        "queued",
        "remote",
        "silenced",
        "to_grant",
        "unconsumed",
        "unseen",
        "widened",
        "widens",
        "window",
    )

    def __init__(self, id_: int, protocol: str, *, remote: bool) -> None:
        self.id = id_
        self.priority = priority_of(id_)
        self.protocol = protocol
        self.remote = remote
        self.open_sent = remote
        self.unseen = remote  # its Opened event has not been taken yet
        self.silenced = False  # its queued events are void
        self.queue: deque[memoryview] = deque()
        self.queued = 0
        self.credit = WINDOW_BYTES
        self.finishing = False
        self.fin_sent = False
        self.in_ring = False
        self.abandoned = False  # nobody here takes what comes in any more
        self.cut = False  # the peer takes nothing more; what it sent is still being consumed
        self.widens = True  # its window may grow
        self.widened = False  # the peer has let its own grow
        self.limit = WINDOW_BYTES
        self.window = WINDOW_BYTES
        self.unconsumed = 0
        self.to_grant = 0
        self.fin_received = False

    @property
    def queue_bound(self) -> int:
        """What it may hold unsent (bytes)."""
        return WIDEST_QUEUE_BYTES if self.widened and self.widens else SEND_QUEUE_BYTES

    @property
    def over(self) -> bool:
        """Whether both directions have ended; it no longer counts as open."""
        return self.fin_received and (self.fin_sent or self.cut)

    def sendable(self) -> bool:
        """Whether it has a frame to send, class credit aside."""
        if not self.open_sent:
            return True
        if self.cut:
            return False
        if self.queued:
            return self.credit > 0
        return self.finishing and not self.fin_sent


class ClassState:
    """Both directions of one priority class."""

    __slots__ = (
        "blocked",
        "credit",
        "limit",
        "priority",
        "queued",
        "ring",
        "to_grant",
        "unconsumed",
        "window",
    )

    def __init__(self, priority: Priority) -> None:
        self.priority = priority
        self.ring: deque[StreamState] = (
            deque()
        )  # streams with `sendable()`, whose turn is next at the left
        self.credit = CLASS_WINDOW_BYTES[priority]
        self.queued = 0
        self.blocked: dict[int, StreamState] = {}  # owe a Writable, oldest first
        self.window = CLASS_WINDOW_BYTES[priority]
        self.unconsumed = 0
        self.to_grant = 0
        self.limit = CLASS_WINDOW_BYTES[priority]

    def wants_write(self) -> bool:
        """Whether a frame of the class could leave now."""
        if not self.ring:
            return False
        return self.credit > 0 or any(not s.open_sent or not s.queued for s in self.ring)

    def room(self, stream: StreamState, shared: int) -> int:
        """How much more a stream may queue, where all of the class share `shared` (bytes)."""
        return max(0, min(stream.queue_bound - stream.queued, shared - self.queued))

    def enter_ring(self, stream: StreamState) -> None:
        """Give a stream of the class its turn, if it has something to send."""
        if not stream.in_ring and stream.sendable():
            stream.in_ring = True
            self.ring.append(stream)

    def take(self, stream: StreamState, size: int, parts: list[bytes | memoryview]) -> None:
        """Move `size` queued bytes of a stream into `parts`, and use up their credit."""
        stream.queued -= size
        stream.credit -= size
        self.queued -= size
        self.credit -= size
        queue = stream.queue
        while size:
            head = queue[0]
            if len(head) <= size:
                size -= len(head)
                parts.append(queue.popleft())
            else:
                parts.append(head[:size])
                queue[0] = head[size:]
                size = 0

    def empty(self, stream: StreamState) -> None:
        """Drop what a stream has queued."""
        self.queued -= stream.queued
        stream.queued = 0
        stream.queue.clear()
        self.blocked.pop(stream.id, None)
        if stream.in_ring:
            self.ring.remove(stream)
            stream.in_ring = False


def widen(window: StreamState | ClassState, widest: int) -> None:
    """Let more be under way if what came was taken."""
    if window.limit < widest and window.unconsumed <= window.limit // 4:
        more = min(window.limit, widest - window.limit)
        window.limit += more
        window.to_grant += more
