"""Bounded log: the newest lines of many writers, with a quota for each.

Every line has its writer's timestamp, greater than that of all its lines before. The log keeps, of each
writer, the `QUOTA` latest lines, and of those of all writers together the `CAPACITY` latest. Taking
the greatest n of a union commutes with taking it on the parts, and a line that was dropped once is
dropped again wherever it comes back, so nothing has to remember it.

The quota comes first: a writer that floods replaces its own lines only.
"""

from collections.abc import Iterable

import attrs

from crdt.clock import Timestamp
from crdt.errors import MalformedState
from crdt.wire import Scalar, Wire, as_list, as_row, as_scalar, canonical, check_ascending

QUOTA = 16
CAPACITY = 256
MAX_LINE_BYTES = 256


@attrs.frozen
class BoundedLog:
    """Lines by timestamp. Edits return the new log and the delta to send to others."""

    lines: tuple[tuple[Timestamp, Scalar], ...] = ()
    """Ascending. Not more than the bounds allow: make it with `of`."""

    @classmethod
    def of(cls, lines: Iterable[tuple[Timestamp, Scalar]]) -> "BoundedLog":
        """Keep what the bounds allow. Of two lines with one timestamp the greater encoding holds."""
        by_stamp: dict[Timestamp, Scalar] = {}
        for stamp, text in lines:
            held = by_stamp.get(stamp)
            if stamp not in by_stamp or canonical(text) > canonical(held):
                by_stamp[stamp] = text
        return cls(tuple((stamp, by_stamp[stamp]) for stamp in _kept(by_stamp)))

    def append(self, text: Scalar, stamp: Timestamp) -> tuple["BoundedLog", "BoundedLog"]:
        """Add a line. Raises: CrdtError."""
        delta = BoundedLog(((stamp, as_scalar(text, "log line", most=MAX_LINE_BYTES)),))
        return self.join(delta), delta

    def join(self, other: "BoundedLog") -> "BoundedLog":
        """Merge with another replica or delta."""
        return BoundedLog.of([*self.lines, *other.lines])

    def summary(self) -> frozenset[Timestamp]:
        """What to tell a replica that shall compute our `delta_since`."""
        return frozenset(stamp for stamp, _ in self.lines)

    def delta_since(self, known: frozenset[Timestamp]) -> "BoundedLog":
        """What a replica with this summary lacks."""
        news = set(_kept({stamp for stamp, _ in self.lines} | known)) - known
        return BoundedLog(tuple(line for line in self.lines if line[0] in news))

    def to_wire(self) -> Wire:
        """[[ms, counter, node, text], ...], ascending."""
        return [[*stamp.to_wire(), text] for stamp, text in self.lines]

    @classmethod
    def from_wire(cls, untrusted: Wire) -> "BoundedLog":
        """Raises: CrdtError, also for more lines than the bounds allow."""
        lines = []
        for row in as_list(untrusted, "log", most=CAPACITY):
            *stamp, text = as_row(row, "log line", length=4)
            line = as_scalar(text, "log line", most=MAX_LINE_BYTES)
            lines.append((Timestamp.from_wire(stamp), line))
        check_ascending((stamp for stamp, _ in lines), "log")
        log = cls(tuple(lines))
        if cls.of(lines) != log:
            raise MalformedState("log: more lines of one writer than its quota")
        return log


def _kept(stamps: Iterable[Timestamp]) -> list[Timestamp]:
    """Which lines the bounds allow, ascending."""
    kept: list[Timestamp] = []
    counts: dict[bytes, int] = {}
    for stamp in sorted(stamps, reverse=True):
        counts[stamp.node] = counts.get(stamp.node, 0) + 1
        if counts[stamp.node] <= QUOTA and len(kept) < CAPACITY:
            kept.append(stamp)
    return kept[::-1]
