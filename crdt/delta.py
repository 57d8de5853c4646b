"""Dots, sets of dots, and the join of what they stand for: removal without tombstones.

Problem: when one replica lacks an entry that another has, was it removed here or never seen here?
Idea (Almeida et al., "Delta State Replicated Data Types", arXiv 1410.2803): every addition gets a
*dot*, unique for ever (writer, number). A replica keeps the entries that are alive, by dot, and
the set of all dots it has ever seen, the *context*. A dot in the context without an entry is a
removal. That set is stored as ranges per writer, so it stays small: a version vector is the case
of one range per writer.

    alive here   alive there   in the other's context   ->  after the join
    yes          yes           (yes)                        alive
    yes          no            yes                          removed: they saw it and dropped it
    yes          no            no                           alive: news to them

Invariants: the dot of every entry is in the context; ranges are disjoint, ascending and not
adjacent, hence equal sets are equal values; a dot is never used twice.

The last one is the writer's duty. A process that lost its state must not write under the same
writer name from number 1 again: it numbers on from a start that grows over restarts (its clock in
milliseconds, `next_dot(..., at_least=...)`) or adds its incarnation to the writer name. Should
a dot be reused all the same, the greater canonical payload wins everywhere: replicas agree, one
of the two writes is lost.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, TypeAlias, TypeVar

import attrs

from crdt.errors import MalformedState, StateTooLarge
from crdt.wire import MAX_INT, Wire, as_int, as_list, as_row, as_writer, canonical, check_ascending

MAX_RANGES = 16_384
"""Ranges in a set of dots."""
MAX_ENTRIES = 65_536
"""Live entries in a store."""

Payload = TypeVar("Payload", bound=tuple[object, ...])
Ranges: TypeAlias = tuple[tuple[int, int], ...]


@attrs.frozen(order=True)
class Dot:
    """The unique name of one addition."""

    writer: bytes
    number: int
    """Counts from 1 or from any later start, upwards."""


@attrs.frozen
class DotSet:
    """A set of dots as inclusive ranges per writer. Build it with `of`, `union`, `minus`."""

    ranges: Mapping[bytes, Ranges] = attrs.field(factory=dict)

    @classmethod
    def of(cls, dots: Iterable[Dot]) -> "DotSet":
        """Collect dots."""
        numbers: dict[bytes, list[tuple[int, int]]] = {}
        for dot in dots:
            numbers.setdefault(dot.writer, []).append((dot.number, dot.number))
        return cls({writer: _normal(pairs) for writer, pairs in numbers.items()})

    def __contains__(self, dot: Dot) -> bool:
        return any(low <= dot.number <= high for low, high in self.ranges.get(dot.writer, ()))

    def __bool__(self) -> bool:
        return bool(self.ranges)

    def next_dot(self, writer: bytes, *, at_least: int = 1) -> Dot:
        """Name a new addition by `writer`: above all its dots known here, from `at_least` on.

        Raises:
            StateTooLarge: the numbers of this writer are used up.
        """
        ranges = self.ranges.get(writer)
        number = max(at_least, ranges[-1][1] + 1 if ranges else 1)
        if number > MAX_INT:
            raise StateTooLarge("dots: the writer's numbers are used up")
        return Dot(as_writer(writer), number)

    def union(self, other: "DotSet") -> "DotSet":
        """Dots in either set. Raises StateTooLarge beyond `MAX_RANGES`."""
        ranges = dict(self.ranges)
        for writer, theirs in other.ranges.items():
            mine = ranges.get(writer)
            ranges[writer] = theirs if mine is None else _normal([*mine, *theirs])
        if sum(map(len, ranges.values())) > MAX_RANGES:
            raise StateTooLarge(f"dots: more than {MAX_RANGES} ranges")
        return DotSet(ranges)

    def minus(self, other: "DotSet") -> "DotSet":
        """Dots of this set that are not in the other."""
        ranges = {}
        for writer, mine in self.ranges.items():
            left = _subtract(mine, other.ranges.get(writer, ()))
            if left:
                ranges[writer] = left
        return DotSet(ranges)

    def intersection(self, other: "DotSet") -> "DotSet":
        """Dots in both sets."""
        return self.minus(self.minus(other))

    def to_wire(self) -> Wire:
        """Plain builtins; `from_wire` takes them back."""
        return [
            [writer, [bound for pair in self.ranges[writer] for bound in pair]]
            for writer in sorted(self.ranges)
        ]

    @classmethod
    def from_wire(cls, untrusted: Wire) -> "DotSet":
        """Raises: CrdtError."""
        ranges: dict[bytes, Ranges] = {}
        total = 0
        rows = [
            as_row(row, "dots of a writer", length=2)
            for row in as_list(untrusted, "dots", most=MAX_RANGES)
        ]
        check_ascending((as_writer(row[0]) for row in rows), "dots")
        for writer, untrusted_bounds in rows:
            bounds = [
                as_int(bound, "dot", low=1)
                for bound in as_list(untrusted_bounds, "dot ranges", most=2 * MAX_RANGES)
            ]
            if not bounds or len(bounds) % 2:
                raise MalformedState("dot ranges: bounds come in pairs")
            pairs = tuple(zip(bounds[::2], bounds[1::2], strict=True))
            if any(low > high for low, high in pairs) or _normal(pairs) != pairs:
                raise MalformedState("dot ranges: not ascending, or not merged")
            ranges[as_writer(writer)] = pairs
            total += len(pairs)
        if total > MAX_RANGES:
            raise StateTooLarge(f"dots: {total} ranges, at most {MAX_RANGES} are allowed")
        return cls(ranges)


def _normal(pairs: Iterable[tuple[int, int]]) -> Ranges:
    """Sort and merge overlapping and adjacent ranges."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(pairs):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return tuple(merged)


def _subtract(mine: Ranges, theirs: Ranges) -> Ranges:
    """Cut `theirs` out of `mine`; both are in normal form, and so is the result."""
    left: list[tuple[int, int]] = []
    cuts = iter(theirs)
    cut = next(cuts, None)
    for low, high in mine:
        while cut is not None and cut[1] < low:
            cut = next(cuts, None)
        while cut is not None and cut[0] <= high:
            if cut[0] > low:
                left.append((low, cut[0] - 1))
            low = cut[1] + 1
            if low > high:
                break
            cut = next(cuts, None)
        if low <= high:
            left.append((low, high))
    return tuple(left)


@attrs.frozen
class Summary:
    """What a replica tells about itself so that another can compute what it lacks."""

    context: DotSet
    """Everything it has seen."""
    alive: DotSet
    """What of that is still there."""

    def to_wire(self) -> Wire:
        """Plain builtins; `from_wire` takes them back."""
        return [self.context.to_wire(), self.alive.to_wire()]

    @classmethod
    def from_wire(cls, untrusted: Wire) -> "Summary":
        """Raises: CrdtError."""
        context, alive = as_row(untrusted, "summary", length=2)
        return cls(DotSet.from_wire(context), DotSet.from_wire(alive))


@attrs.frozen
class DotStore(Generic[Payload]):
    """Live entries by dot, and the context: what `ORSet` and `AWMap` are made of."""

    entries: Mapping[Dot, Payload] = attrs.field(factory=dict)
    context: DotSet = attrs.field(factory=DotSet)

    def join(self, other: "DotStore[Payload]") -> "DotStore[Payload]":
        """Merge (see the table above). Raises StateTooLarge beyond `MAX_ENTRIES`."""
        entries: dict[Dot, Payload] = {}
        for dot, payload in self.entries.items():
            theirs = other.entries.get(dot)
            if theirs is not None:
                entries[dot] = max(payload, theirs, key=canonical)
            elif dot not in other.context:
                entries[dot] = payload
        entries |= {
            dot: payload
            for dot, payload in other.entries.items()
            if dot not in self.entries and dot not in self.context
        }
        if len(entries) > MAX_ENTRIES:
            raise StateTooLarge(f"store: more than {MAX_ENTRIES} entries")
        return DotStore(entries, self.context.union(other.context))

    def replace(
        self, writer: bytes, old: Iterable[Dot], payload: Payload, *, at_least: int = 1
    ) -> "DotStore[Payload]":
        """Return the delta that puts `payload` in the place of the entries `old`."""
        dot = self.context.next_dot(writer, at_least=at_least)
        return DotStore({dot: payload}, DotSet.of([dot, *old]))

    def drop(self, old: Iterable[Dot]) -> "DotStore[Payload]":
        """Return the delta that removes the entries `old`."""
        return DotStore({}, DotSet.of(old))

    def summary(self) -> Summary:
        """What to tell a replica that shall compute our `delta_since`."""
        return Summary(self.context, DotSet.of(self.entries))

    def delta_since(self, known: Summary) -> "DotStore[Payload]":
        """What a replica lacks: joined there, it has the effect of joining all of `self`."""
        news = {dot: payload for dot, payload in self.entries.items() if dot not in known.context}
        removed = known.alive.intersection(self.context).minus(DotSet.of(self.entries))
        return DotStore(news, self.context.minus(known.context).union(removed))

    def in_order(self) -> Iterator[tuple[Dot, Payload]]:
        """Entries by dot: the same order everywhere."""
        for dot in sorted(self.entries):
            yield dot, self.entries[dot]

    def to_wire(self) -> Wire:
        """Plain builtins; `from_wire` takes them back."""
        rows = [[dot.writer, dot.number, *payload] for dot, payload in self.in_order()]
        return [self.context.to_wire(), rows]

    @classmethod
    def dots_from_wire(
        cls, untrusted: Wire, what: str, *, width: int
    ) -> tuple[DotSet, list[tuple[Dot, list[Wire]]]]:
        """Check everything but the payloads (`width` items each), which the caller knows.

        Raises: CrdtError.
        """
        untrusted_context, untrusted_rows = as_row(untrusted, what, length=2)
        context = DotSet.from_wire(untrusted_context)
        rows: list[tuple[Dot, list[Wire]]] = []
        for untrusted_row in as_list(untrusted_rows, what, most=MAX_ENTRIES):
            writer, number, *payload = as_row(untrusted_row, f"{what} entry", length=width + 2)
            dot = Dot(as_writer(writer), as_int(number, "dot", low=1))
            if dot not in context:
                raise MalformedState(f"{what}: an entry's dot is missing from the context")
            rows.append((dot, payload))
        check_ascending((dot for dot, _ in rows), what)
        return context, rows
