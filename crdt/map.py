"""Add-wins map of registers, for keys that several nodes may write.

Setting a key replaces the entries seen for it; removing takes those away. A key set here while it
is removed there stays. Two concurrent settings are both kept, and the later timestamp is shown,
until somebody sets the key again: replicas agree at every moment, and nothing is a tombstone.
"""

from collections.abc import Iterator
from typing import TypeAlias

import attrs

from crdt.clock import Timestamp
from crdt.delta import Dot, DotStore, Summary
from crdt.errors import MalformedState
from crdt.wire import Scalar, Wire, as_scalar, canonical

MAX_KEY_BYTES = 256

Entry: TypeAlias = tuple[str, Scalar, int, int, bytes]
"""Key, value, and the three parts of the timestamp."""


@attrs.frozen
class AWMap:
    """Text keys to single values. Edits return the new map and the delta to send to others."""

    store: DotStore[Entry] = attrs.field(factory=DotStore)

    def items(self) -> dict[str, Scalar]:
        """The value shown for each key, sorted by key."""
        winners: dict[str, Entry] = {}
        for entry in self.store.entries.values():
            held = winners.get(entry[0])
            if held is None or _rank(entry) > _rank(held):
                winners[entry[0]] = entry
        return {key: winners[key][1] for key in sorted(winners)}

    def get(self, key: str) -> Scalar:
        """The value shown for a key; None where there is none."""
        entries = [entry for entry in self.store.entries.values() if entry[0] == key]
        return max(entries, key=_rank)[1] if entries else None

    def __contains__(self, key: str) -> bool:
        return any(True for _ in self._dots(key))

    def set(
        self, writer: bytes, key: str, value: Scalar, stamp: Timestamp, *, at_least: int = 1
    ) -> tuple["AWMap", "AWMap"]:
        """Set a key. `at_least`: lowest number for the dot (see `delta` on restarts).

        Raises: CrdtError.
        """
        entry: Entry = (
            _key(key),
            as_scalar(value, "map value"),
            stamp.physical_ms,
            stamp.counter,
            stamp.node,
        )
        old = list(self._dots(key))
        delta = AWMap(self.store.replace(writer, old, entry, at_least=at_least))
        return self.join(delta), delta

    def remove(self, key: str) -> tuple["AWMap", "AWMap"]:
        """Remove what has been seen of a key; no effect where it is absent."""
        delta = AWMap(self.store.drop(self._dots(key)))
        return self.join(delta), delta

    def join(self, other: "AWMap") -> "AWMap":
        """Merge with another replica or delta."""
        return AWMap(self.store.join(other.store))

    def summary(self) -> Summary:
        """What to tell a replica that shall compute our `delta_since`."""
        return self.store.summary()

    def delta_since(self, known: Summary) -> "AWMap":
        """What a replica with this summary lacks."""
        return AWMap(self.store.delta_since(known))

    def to_wire(self) -> Wire:
        """[context, [[writer, number, key, value, ms, counter, node], ...]], ascending by dot."""
        return self.store.to_wire()

    @classmethod
    def from_wire(cls, untrusted: Wire) -> "AWMap":
        """Raises: CrdtError."""
        context, rows = DotStore.dots_from_wire(untrusted, "map", width=5)
        entries: dict[Dot, Entry] = {}
        for dot, (key, value, *untrusted_stamp) in rows:
            stamp = Timestamp.from_wire(untrusted_stamp)
            entries[dot] = (
                _key(key),
                as_scalar(value, "map value"),
                stamp.physical_ms,
                stamp.counter,
                stamp.node,
            )
        return cls(DotStore(entries, context))

    def _dots(self, key: str) -> Iterator[Dot]:
        return (dot for dot, entry in self.store.entries.items() if entry[0] == key)


def _key(untrusted: Wire) -> str:
    key = as_scalar(untrusted, "map key", most=MAX_KEY_BYTES)
    if not isinstance(key, str):
        raise MalformedState("map key: expected text")
    return key


def _rank(entry: Entry) -> tuple[int, int, bytes, bytes]:
    _, value, physical_ms, counter, node = entry
    return (physical_ms, counter, node, canonical(value))
