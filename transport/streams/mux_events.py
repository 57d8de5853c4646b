"""What the multiplexed connection tells its driver, and what it holds.

Problem: a sans-IO core must say what happened without calling anybody. Idea: one frozen value per kind of event, taken from
`Mux.next_event()` in the order in which things happened. Invariant: no event of a stream follows its Reset; nothing follows Closed.
"""

from __future__ import annotations

from typing import TypeAlias

import attrs

from transport.streams.frames import Priority


@attrs.frozen
class Opened:
    """The other side opened a stream. To refuse it: `reset(stream_id, ResetCode.NO_SUCH_PROTOCOL)`."""

    stream_id: int
    protocol: str
    priority: Priority


@attrs.frozen
class DataReceived:
    """Bytes of a stream, in order. Owe a `consume` for each byte, or a `reset`."""

    stream_id: int
    data: bytes


@attrs.frozen
class Finished:
    """The other side will send nothing more on this stream."""

    stream_id: int


@attrs.frozen
class Reset:
    """The other side cancelled the stream; it is gone, what was not consumed is void."""

    stream_id: int
    code: int


@attrs.frozen
class Writable:
    """A stream whose last `send` took less than it was given has room again."""

    stream_id: int


@attrs.frozen
class Pong:
    """The answer to our `ping(token)`."""

    token: int


@attrs.frozen
class Closed:
    """The connection is over; always the last event."""

    code: int
    text: str
    by_remote: bool


Event: TypeAlias = Opened | DataReceived | Finished | Reset | Writable | Pong | Closed


@attrs.frozen
class MuxStatistics:
    """What a connection holds now; every figure is bounded."""

    streams: int
    """Streams not forgotten yet, both sides'."""
    queued_bytes: int
    """Accepted from the application, not sent yet."""
    unconsumed_bytes: int
    """Received, not consumed yet."""
    control_frames: int
    """Waiting to be sent."""
