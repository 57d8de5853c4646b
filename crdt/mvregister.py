"""Multi-value register: concurrent writes are all kept, for somebody to choose.

A write replaces the values it has seen and no others (their dots, see `delta`). Two members that set
it without knowing of each other leave both values, shown in canonical order; the next write that has
seen both settles it. For choices where losing a concurrent one unseen would be worse than a conflict
that people can look at.
"""

import attrs

from crdt.delta import DotStore, Summary
from crdt.wire import Scalar, Wire, as_scalar, canonical


@attrs.frozen
class MVRegister:
    """One value, or several that were written concurrently."""

    store: DotStore[tuple[Scalar]] = attrs.field(factory=DotStore)

    def values(self) -> list[Scalar]:
        """What stands, each once, in canonical order; empty until first set, or once cleared."""
        unique = {canonical(value): value for (value,) in self.store.entries.values()}
        return [unique[key] for key in sorted(unique)]

    def set(
        self, writer: bytes, value: Scalar, *, at_least: int = 1
    ) -> tuple["MVRegister", "MVRegister"]:
        """Replace all values seen. `at_least`: lowest number for the dot (see `delta`).

        Raises: CrdtError.
        """
        value = as_scalar(value, "register value")
        old = list(self.store.entries)
        delta = MVRegister(self.store.replace(writer, old, (value,), at_least=at_least))
        return self.join(delta), delta

    def clear(self) -> tuple["MVRegister", "MVRegister"]:
        """Remove all values seen."""
        delta = MVRegister(self.store.drop(self.store.entries))
        return self.join(delta), delta

    def join(self, other: "MVRegister") -> "MVRegister":
        """Merge with another replica or delta."""
        return MVRegister(self.store.join(other.store))

    def summary(self) -> Summary:
        """What to tell a replica that shall compute our `delta_since`."""
        return self.store.summary()

    def delta_since(self, known: Summary) -> "MVRegister":
        """What a replica with this summary lacks."""
        return MVRegister(self.store.delta_since(known))

    def to_wire(self) -> Wire:
        """[context, [[writer, number, value], ...]], ascending by dot."""
        return self.store.to_wire()

    @classmethod
    def from_wire(cls, untrusted: Wire) -> "MVRegister":
        """Raises: CrdtError."""
        context, rows = DotStore.dots_from_wire(untrusted, "multi-value register", width=1)
        entries = {dot: (as_scalar(row[0], "register value"),) for dot, row in rows}
        return cls(DotStore(entries, context))
