"""Owner-keyed map: each key has one writer, so that writer's own sequence decides what holds.

The plain form of what the signed document is made of (see `part` and `ledger`, which add proofs,
leases and bounds to it). With one writer per key there are no concurrent writes: no clock is asked, no
value is lost, and comparing two maps takes one number per key. Removing a key is writing None.

A sequence used twice (a cloned machine) goes to the greater canonical value: replicas still agree.
"""

from collections.abc import Mapping
from typing import TypeAlias

import attrs

from crdt.errors import MalformedState, StateTooLarge
from crdt.map import MAX_KEY_BYTES
from crdt.wire import (
    MAX_INT,
    Scalar,
    Wire,
    as_int,
    as_list,
    as_row,
    as_scalar,
    as_writer,
    canonical,
    check_ascending,
)

MAX_ENTRIES = 65_536

Key: TypeAlias = tuple[bytes, str]
Cell: TypeAlias = tuple[int, Scalar]


@attrs.frozen
class OwnedMap:
    """(owner, key) to a single value. Edits return the new map and the delta to send to others."""

    cells: Mapping[Key, Cell] = attrs.field(factory=dict)

    def get(self, owner: bytes, key: str) -> Scalar:
        """What the owner wrote last; None where it wrote nothing."""
        return self.cells.get((owner, key), (0, None))[1]

    def items(self) -> dict[Key, Scalar]:
        """All that is not None, by owner and key."""
        return {k: self.cells[k][1] for k in sorted(self.cells) if self.cells[k][1] is not None}

    def set(self, owner: bytes, key: str, value: Scalar) -> tuple["OwnedMap", "OwnedMap"]:
        """Write a key of one's own. Raises: CrdtError."""
        name = (as_writer(owner), _key(key))
        sequence = self.cells.get(name, (0, None))[0] + 1
        if sequence > MAX_INT:
            raise StateTooLarge("owned map: the sequence is used up")
        delta = OwnedMap({name: (sequence, as_scalar(value, "owned value"))})
        return self.join(delta), delta

    def join(self, other: "OwnedMap") -> "OwnedMap":
        """Merge with another replica or delta. Raises StateTooLarge beyond `MAX_ENTRIES`."""
        cells = dict(self.cells)
        for name, theirs in other.cells.items():
            mine = cells.get(name)
            if mine is None or _rank(theirs) > _rank(mine):
                cells[name] = theirs
        if len(cells) > MAX_ENTRIES:
            raise StateTooLarge(f"owned map: more than {MAX_ENTRIES} keys")
        return OwnedMap(cells)

    def summary(self) -> dict[Key, int]:
        """What to tell a replica that shall compute our `delta_since`: a version vector."""
        return {name: sequence for name, (sequence, _) in self.cells.items()}

    def delta_since(self, known: Mapping[Key, int]) -> "OwnedMap":
        """What a replica with this summary lacks."""
        return OwnedMap(
            {name: cell for name, cell in self.cells.items() if cell[0] > known.get(name, 0)}
        )

    def to_wire(self) -> Wire:
        """[[owner, key, sequence, value], ...], ascending by owner and key."""
        return [[*name, *self.cells[name]] for name in sorted(self.cells)]

    @classmethod
    def from_wire(cls, untrusted: Wire) -> "OwnedMap":
        """Raises: CrdtError."""
        cells: dict[Key, Cell] = {}
        names: list[Key] = []
        for row in as_list(untrusted, "owned map", most=MAX_ENTRIES):
            owner, key, sequence, value = as_row(row, "owned entry", length=4)
            names.append((as_writer(owner), _key(key)))
            number = as_int(sequence, "owned sequence", low=1)
            cells[names[-1]] = (number, as_scalar(value, "owned value"))
        check_ascending(names, "owned map")
        return cls(cells)


def _key(untrusted: Wire) -> str:
    key = as_scalar(untrusted, "owned key", most=MAX_KEY_BYTES)
    if not isinstance(key, str):
        raise MalformedState("owned key: expected text")
    return key


def _rank(cell: Cell) -> tuple[int, bytes]:
    return (cell[0], canonical(cell[1]))
