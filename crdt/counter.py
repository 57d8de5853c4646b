"""A counter that anybody may raise and lower: each writer keeps its own two totals.

Value = sum of all increments minus sum of all decrements. Both totals of a writer only grow, so
the join takes the larger of each (Shapiro et al. 2011, "A comprehensive study of CRDTs").
A writer that lost its state must first join a replica that saw its totals, or count under a fresh
name: restarting from zero would hide its next increments behind the old total.
"""

from collections.abc import Mapping

import attrs

from crdt.errors import MalformedState, StateTooLarge
from crdt.wire import MAX_INT, Wire, as_int, as_list, as_row, as_writer, check_ascending

MAX_WRITERS = 4096


@attrs.frozen
class PNCounter:
    """Totals per writer, as (raised, lowered)."""

    totals: Mapping[bytes, tuple[int, int]] = attrs.field(factory=dict)

    @property
    def value(self) -> int:
        """The count."""
        return sum(raised - lowered for raised, lowered in self.totals.values())

    def add(self, writer: bytes, amount: int) -> tuple["PNCounter", "PNCounter"]:
        """Count `amount` (which may be negative) by `writer`.

        Returns:
            The new counter, and the delta to send to others.

        Raises:
            CrdtError: a total would exceed 2**63 - 1, or there are too many writers.
        """
        writer = as_writer(writer)
        raised, lowered = self.totals.get(writer, (0, 0))
        change = (raised + max(amount, 0), lowered + max(-amount, 0))
        if max(change) > MAX_INT:
            raise StateTooLarge("counter: a total would exceed 64 bits")
        if change == (0, 0):
            return self, PNCounter()
        delta = PNCounter({writer: change})
        return self.join(delta), delta

    def join(self, other: "PNCounter") -> "PNCounter":
        """Merge with another replica or delta."""
        totals = dict(self.totals)
        for writer, (raised, lowered) in other.totals.items():
            mine = totals.get(writer, (0, 0))
            totals[writer] = (max(mine[0], raised), max(mine[1], lowered))
        if len(totals) > MAX_WRITERS:
            raise StateTooLarge(f"counter: more than {MAX_WRITERS} writers")
        return PNCounter(totals)

    def delta_since(self, known: "PNCounter") -> "PNCounter":
        """What a replica at `known` lacks: the writers of whom it has seen less."""
        none = (0, 0)
        return PNCounter(
            {
                writer: (raised, lowered)
                for writer, (raised, lowered) in self.totals.items()
                if raised > known.totals.get(writer, none)[0]
                or lowered > known.totals.get(writer, none)[1]
            }
        )

    def to_wire(self) -> Wire:
        """Plain builtins; `from_wire` takes them back."""
        return [[writer, *self.totals[writer]] for writer in sorted(self.totals)]

    @classmethod
    def from_wire(cls, untrusted: Wire) -> "PNCounter":
        """Raises: CrdtError."""
        totals: dict[bytes, tuple[int, int]] = {}
        rows = [as_row(row, "counter entry", length=3) for row in _rows(untrusted)]
        check_ascending((as_writer(row[0]) for row in rows), "counter")
        for writer, raised, lowered in rows:
            pair = (as_int(raised, "counter total"), as_int(lowered, "counter total"))
            if pair == (0, 0):  # an entry that says nothing has no place in a canonical form
                raise MalformedState("counter: an empty entry")
            totals[as_writer(writer)] = pair
        return cls(totals)


def _rows(untrusted: Wire) -> list[Wire]:
    return as_list(untrusted, "counter", most=MAX_WRITERS)
