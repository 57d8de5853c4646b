"""Add-wins set: an element added here while it is removed there stays.

A removal takes away the additions it has seen (their dots) and no others (see `delta`). An element
re-added gets a new dot in place of its old ones, so the set holds one entry per live element once
replicas have met, and nothing for what was removed.
"""

from collections.abc import Iterator

import attrs

from crdt.delta import Dot, DotStore, Summary
from crdt.wire import Scalar, Wire, as_scalar, canonical


@attrs.frozen
class ORSet:
    """A set of single values. Edits return the new set and the delta to send to others."""

    store: DotStore[tuple[Scalar]] = attrs.field(factory=DotStore)

    def elements(self) -> list[Scalar]:
        """All elements, each once, in canonical order."""
        unique = {canonical(element): element for (element,) in self.store.entries.values()}
        return [unique[key] for key in sorted(unique)]

    def __contains__(self, element: Scalar) -> bool:
        return any(True for _ in self._dots(element))

    def add(self, writer: bytes, element: Scalar, *, at_least: int = 1) -> tuple["ORSet", "ORSet"]:
        """Add an element. `at_least`: lowest number for the dot (see `delta` on restarts).

        Raises: CrdtError.
        """
        element = as_scalar(element, "element")
        old = list(self._dots(element))
        delta = ORSet(self.store.replace(writer, old, (element,), at_least=at_least))
        return self.join(delta), delta

    def remove(self, element: Scalar) -> tuple["ORSet", "ORSet"]:
        """Remove what has been seen of an element; no effect where it is absent."""
        delta = ORSet(self.store.drop(self._dots(element)))
        return self.join(delta), delta

    def join(self, other: "ORSet") -> "ORSet":
        """Merge with another replica or delta."""
        return ORSet(self.store.join(other.store))

    def summary(self) -> Summary:
        """What to tell a replica that shall compute our `delta_since`."""
        return self.store.summary()

    def delta_since(self, known: Summary) -> "ORSet":
        """What a replica with this summary lacks."""
        return ORSet(self.store.delta_since(known))

    def to_wire(self) -> Wire:
        """[context, [[writer, number, element], ...]], ascending by dot."""
        return self.store.to_wire()

    @classmethod
    def from_wire(cls, untrusted: Wire) -> "ORSet":
        """Raises: CrdtError."""
        context, rows = DotStore.dots_from_wire(untrusted, "set", width=1)
        return cls(DotStore({dot: (as_scalar(row[0], "element"),) for dot, row in rows}, context))

    def _dots(self, element: Scalar) -> Iterator[Dot]:
        # By encoding: 1, 1.0 and True are equal in Python, yet three different elements here.
        key = canonical(element)
        return (dot for dot, (held,) in self.store.entries.items() if canonical(held) == key)
