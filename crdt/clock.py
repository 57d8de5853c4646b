"""Hybrid logical clock: timestamps that people can read and that never run backwards.

Problem: wall clocks of different machines disagree and step back; a pure counter says nothing to
a person. Idea (Kulkarni et al. 2014, "Logical Physical Clocks"): physical milliseconds, raised to
the largest value seen, plus a counter for events within one value.

Invariants: `now()` is greater than every timestamp given out or observed before; a timestamp
more than `MAX_SKEW_MS` ahead of the local wall clock is refused, so nobody can drag the swarm's
time further than that.

Timestamps are for display and for breaking ties. They authorise nothing, and an owner's own
sequence, not its timestamp, decides which of its records is the newer one.
"""

from collections.abc import Callable

import attrs

from crdt.errors import ClockSkew
from crdt.wire import Wire, as_int, as_row, as_writer

MAX_SKEW_MS = 60_000
"""How far ahead of the local clock a timestamp may be. Machines without a time service drift by
seconds; a minute is generous for them and still a bound."""

MAX_PHYSICAL_MS = 2**48 - 1
MAX_COUNTER = 2**16 - 1


@attrs.frozen(order=True)
class Timestamp:
    """A point in hybrid time. Ordered by time, then counter, then node: a total order."""

    physical_ms: int
    """Milliseconds since the Unix epoch, below 2**48."""
    counter: int
    """Events within the same millisecond, below 2**16."""
    node: bytes
    """Who gave it out."""

    def to_wire(self) -> Wire:
        """Plain builtins; `from_wire` takes them back."""
        return [self.physical_ms, self.counter, self.node]

    @classmethod
    def from_wire(cls, untrusted: Wire) -> "Timestamp":
        """Raises: CrdtError."""
        physical_ms, counter, node = as_row(untrusted, "timestamp", length=3)
        return cls(
            as_int(physical_ms, "timestamp time", high=MAX_PHYSICAL_MS),
            as_int(counter, "timestamp counter", high=MAX_COUNTER),
            as_writer(node, "timestamp node"),
        )


class HybridClock:
    """The clock of one node.

    Args:
        node: the node's id, put into every timestamp.
        wall_ms: reads the wall clock, in milliseconds since the Unix epoch.
    """

    def __init__(self, node: bytes, wall_ms: Callable[[], int]) -> None:
        self.node = as_writer(node, "clock node")
        self._wall_ms = wall_ms
        self._physical_ms = 0
        self._counter = 0

    def wall_ms(self) -> int:
        """Read the wall clock; it may step back."""
        return min(max(0, self._wall_ms()), MAX_PHYSICAL_MS)

    def now(self) -> Timestamp:
        """Give out a timestamp greater than all given out or observed before."""
        wall_ms = self.wall_ms()
        if wall_ms > self._physical_ms:
            self._physical_ms, self._counter = wall_ms, 0
        elif self._counter < MAX_COUNTER:
            self._counter += 1
        else:  # 65,536 events in a millisecond: borrow from the next one
            self._physical_ms, self._counter = self._physical_ms + 1, 0
        return Timestamp(self._physical_ms, self._counter, self.node)

    def observe(self, timestamp: Timestamp) -> None:
        """Move past a timestamp received from elsewhere.

        Raises:
            ClockSkew: it is more than a minute ahead; the clock is unchanged.
        """
        ahead_ms = timestamp.physical_ms - self.wall_ms()
        if ahead_ms > MAX_SKEW_MS:
            raise ClockSkew(ahead_ms)
        seen = (timestamp.physical_ms, timestamp.counter)
        self._physical_ms, self._counter = max((self._physical_ms, self._counter), seen)
