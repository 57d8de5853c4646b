"""A parsed value that is its bytes: what was signed is what travelled, so nothing is ever encoded again to compare or to name it."""

from __future__ import annotations

import hashlib


class RawValue:
    """Equality, hash and id of a value by its `raw`, for attrs classes made with `eq=False`."""

    __slots__ = ()

    raw: bytes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self.raw == other.raw

    def __hash__(self) -> int:
        return hash(self.raw)

    @property
    def id(self) -> bytes:
        """SHA-256 of the bytes."""
        return hashlib.sha256(self.raw).digest()
