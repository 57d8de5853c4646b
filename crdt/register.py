"""Registers: one value, and a rule for which of two wins.

* `LWW`: the later timestamp wins. For a value that anybody may set and where a lost concurrent
  write is acceptable.
* `MaxRegister`: the higher rank wins, whoever wrote when. For heights that only grow, such as the
  newest checkpoint.

Ties (equal timestamp or rank with different values: an honest race for the max register, a reused
timestamp for the other) go to the greater canonical encoding, so that every replica picks alike.
A register is its own delta: joining the register is joining the change.
"""

import attrs

from crdt.clock import Timestamp
from crdt.wire import MAX_INT, Scalar, Wire, as_int, as_list, as_row, as_scalar, canonical

MAX_FIELDS = 16
"""Values per max register entry."""


@attrs.frozen
class LWW:
    """Last-writer-wins register; empty until first set."""

    stamp: Timestamp | None = None
    value: Scalar = None

    def set(self, value: Scalar, stamp: Timestamp) -> "LWW":
        """Return the register after this write (the old one, if that is later)."""
        return self.join(LWW(stamp, as_scalar(value, "register value")))

    def join(self, other: "LWW") -> "LWW":
        """Merge with another replica or delta."""
        return other if other.order > self.order else self

    @property
    def order(self) -> tuple[bool, Timestamp, bytes]:
        """Of two registers, the one with the greater order holds."""
        stamp = self.stamp or Timestamp(0, 0, b"")
        return (self.stamp is not None, stamp, canonical(self.value))

    def to_wire(self) -> Wire:
        """Plain builtins; `from_wire` takes them back."""
        return [] if self.stamp is None else [self.stamp.to_wire(), self.value]

    @classmethod
    def from_wire(cls, untrusted: Wire) -> "LWW":
        """Raises: CrdtError."""
        if not as_list(untrusted, "register", most=2):
            return cls()
        stamp, value = as_row(untrusted, "register", length=2)
        return cls(Timestamp.from_wire(stamp), as_scalar(value, "register value"))


@attrs.frozen
class MaxRegister:
    """Keeps the fields written with the highest rank; empty until first raised."""

    rank: int = -1
    """Not negative once raised."""
    fields: tuple[Scalar, ...] = ()

    def raise_to(self, rank: int, fields: tuple[Scalar, ...]) -> "MaxRegister":
        """Return the register after this write (the old one, if that is higher)."""
        return self.join(MaxRegister.from_wire([rank, list(fields)]))

    def join(self, other: "MaxRegister") -> "MaxRegister":
        """Merge with another replica or delta."""
        mine, theirs = (self.rank, canonical(self.fields)), (other.rank, canonical(other.fields))
        return other if theirs > mine else self

    def to_wire(self) -> Wire:
        """Plain builtins; `from_wire` takes them back."""
        return [] if self.rank < 0 else [self.rank, list(self.fields)]

    @classmethod
    def from_wire(cls, untrusted: Wire) -> "MaxRegister":
        """Raises: CrdtError."""
        if not as_list(untrusted, "max register", most=2):
            return cls()
        rank, fields = as_row(untrusted, "max register", length=2)
        return cls(
            as_int(rank, "max register rank", high=MAX_INT),
            tuple(
                as_scalar(field, "max register field")
                for field in as_list(fields, "max register fields", most=MAX_FIELDS)
            ),
        )
