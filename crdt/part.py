"""What one writer has said, as one replica knows it: the newest entry of each of its fields.

An owner-keyed last-writer-wins map whose order is the owner's own sequence (there is one writer, so
no clock is needed to decide), with one addition: evidence against the writer takes the place of
everything it said.

    join       per field the higher sequence; at most `MAX_FIELDS` fields, those with the highest
               sequences; evidence on either side wins over all entries, and any evidence is as good
               as any other (digests say "convicted", not by what: a convict that goes on
               contradicting itself changes nothing any more)
"""

import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from crdt.entry import Entry
from crdt.evidence import Evidence, contradict

MAX_FIELDS: Final = 16
"""Fields of one writer; with `MAX_ENTRY_BYTES` that is 64 KiB."""
MARK_BYTES: Final = 8
"""Enough to notice a difference; a collision only delays that until the next entry."""


class Part:
    """One writer's fields."""

    def __init__(self, writer: bytes) -> None:
        self.writer = writer
        self.evidence: Evidence | None = None
        self._fields: dict[str, Entry] = {}
        self._digest: bytes | None = None
        self._head = 0

    @property
    def fields(self) -> Mapping[str, Entry]:
        """The newest entry by key; empty once convicted."""
        return MappingProxyType(self._fields)

    @property
    def head(self) -> int:
        """The highest sequence of what is held."""
        return self._head if self.evidence is None else self.evidence.second.sequence

    @property
    def size_bytes(self) -> int:
        """What it takes, entries alone."""
        if self.evidence is not None:
            return len(self.evidence.first.raw) + len(self.evidence.second.raw)
        return sum(len(entry.raw) for entry in self._fields.values())

    @property
    def digest(self) -> bytes:
        """SHA-256 of the value: equal on two replicas exactly if they hold the same."""
        if self._digest is None:
            if self.evidence is not None:
                self._digest = convicted_digest(self.writer)
            else:
                digest = hashlib.sha256(self.writer)
                for key in sorted(self._fields):
                    digest.update(self._fields[key].id)
                self._digest = digest.digest()
        return self._digest

    @property
    def mark(self) -> bytes:
        """The first bytes of the digest."""
        return self.digest[:MARK_BYTES]

    def __bool__(self) -> bool:
        return bool(self._fields) or self.evidence is not None

    def holds(self, entry: Entry) -> bool:
        """Whether this very entry is the newest of its field."""
        held = self._fields.get(entry.key)
        return held is not None and held.id == entry.id

    def is_news(self, entry: Entry) -> bool:
        """Whether taking it would change the value."""
        if self.evidence is not None:
            return False
        held = self._fields.get(entry.key)
        if held is not None:
            return entry.sequence > held.sequence
        return len(self._fields) < MAX_FIELDS or entry.sequence > min(
            field.sequence for field in self._fields.values()
        )

    def contradiction(self, entry: Entry) -> Entry | None:
        """The field's entry that this one contradicts."""
        if self.evidence is not None:
            return None
        return next((held for held in self._fields.values() if contradict(entry, held)), None)

    def put(self, entry: Entry) -> None:
        """Take an entry that `is_news` and whose signature is good."""
        self._fields[entry.key] = entry
        if len(self._fields) > MAX_FIELDS:
            oldest = min(self._fields.values(), key=lambda field: field.sequence)
            del self._fields[oldest.key]
        self._changed()

    def convict(self, evidence: Evidence) -> None:
        """Nothing this writer said or will say counts any more."""
        if self.evidence is None:
            self.evidence = evidence
            self._fields.clear()
            self._changed()

    def drop(self, key: str) -> None:
        """Forget a field whose lease is over."""
        del self._fields[key]
        self._changed()

    def _changed(self) -> None:
        self._digest = None
        self._head = max((entry.sequence for entry in self._fields.values()), default=0)


def convicted_digest(writer: bytes) -> bytes:
    """The digest of every convicted part of that writer."""
    return hashlib.sha256(b"convicted" + writer).digest()


def convicted_mark(writer: bytes) -> bytes:
    """The mark of every convicted part of that writer."""
    return convicted_digest(writer)[:MARK_BYTES]
