"""Proof that a writer told two stories: two entries of its own that cannot both be honest.

An honest writer numbers its entries without reusing a number and links each to the one before it.
Hence two different entries contradict each other if

* they bear one sequence, or
* they bear adjoining sequences, and the later one names another entry as the one before it (a
  writer that has lost its memory names none: see `entry`).

Both are signed, so the pair convinces whoever gets it, and needs no trust in the one who sends it.
Detection is not complete (two stories whose entries never meet at one node stay two), conviction is
sound, and it spreads like any other state.
"""

import attrs

from crdt.entry import START, Entry, parse
from crdt.errors import MalformedState
from crdt.wire import Wire, as_row


def contradict(one: Entry, other: Entry) -> bool:
    """Whether an honest writer cannot have signed both."""
    apart = one.sequence - other.sequence
    if not -1 <= apart <= 1 or one.writer != other.writer or one.id == other.id:
        return False
    if apart == 0:
        return True
    first, second = (other, one) if apart > 0 else (one, other)
    return second.previous not in {START, first.id}


@attrs.frozen
class Evidence:
    """Two entries that contradict each other, in the order of sequence and id."""

    first: Entry
    second: Entry

    @classmethod
    def of(cls, one: Entry, other: Entry) -> "Evidence":
        """The evidence that two entries make; they must contradict."""
        assert contradict(one, other)
        return cls(*sorted((one, other), key=lambda entry: (entry.sequence, entry.id)))

    @property
    def writer(self) -> bytes:
        """Who is convicted."""
        return self.first.writer

    @property
    def reason(self) -> str:
        """For people."""
        if self.first.sequence == self.second.sequence:
            return f"two entries with sequence {self.first.sequence}"
        return f"entry {self.second.sequence} denies entry {self.first.sequence}"

    def to_wire(self) -> Wire:
        """Two entries' bytes."""
        return [self.first.raw, self.second.raw]

    @classmethod
    def from_wire(cls, untrusted: Wire, document: bytes) -> "Evidence":
        """Read it; says nothing about the signatures. Raises: CrdtError."""
        one, other = (parse(raw, document) for raw in as_row(untrusted, "evidence", length=2))
        if not contradict(one, other):
            raise MalformedState("evidence: the two entries do not contradict each other")
        evidence = cls.of(one, other)
        if evidence.first is not one:
            raise MalformedState("evidence: the entries are not in order")
        return evidence
