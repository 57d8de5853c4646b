"""What replicas of a document say to each other, whichever document it is: a run's (`crdt.state`) or the swarm's (`crdt.statements`).

Wires, version 2 (maps, unknown fields ignored):

    delta    {"v", "entries": [bytes, ...], "evidence": [[bytes, bytes], ...]}
    context  {"v", "from": bytes, "to": bytes (empty: no end), "seen": [row, ...] ascending}
                  all that is known in [from, to)
    want     {"v", "seen": [row, ...] ascending}     what is known of writers of whom more is wanted
    row      [writer, mark, key, sequence, key, sequence, ...]      keys ascending; none: convicted

For the statements of a swarm, which have no writers, the id of a statement stands where a writer's does, and the entry is the statement. Who
compares and asks when: `gossip.antientropy`.
"""

from typing import Final, TypeAlias

import attrs

from crdt.errors import MalformedState
from crdt.ledger import MAX_WRITERS
from crdt.part import MARK_BYTES, MAX_FIELDS
from crdt.wire import Wire, as_bytes, as_fields, as_int, as_list, check_ascending

VERSION: Final = 2
FRAMING_BYTES: Final = 8
"""What the codec adds to an entry, at most."""

Name: TypeAlias = tuple[bytes, str]
"""What is told as one piece: a field of a writer, where an empty key stands for the evidence against it; or a statement, by its id and an empty key."""


@attrs.frozen
class Seen:
    """A context or a want of somebody else, read."""

    rows: dict[bytes, tuple[bytes, dict[str, int]]]
    whole: bool
    """Whether writers without a row are unknown to the sender, or just not asked about."""
    start: bytes = b""
    end: bytes = b""

    @classmethod
    def of(cls, untrusted: Wire) -> "Seen":
        """Read it, unless that has been done. Raises: CrdtError."""
        if isinstance(untrusted, cls):
            return untrusted
        (seen,) = as_fields(untrusted, "context", ("seen",), version=VERSION)
        whole = "from" in untrusted
        start = as_bytes(untrusted.get("from", b""), "context start", most=32)
        end = as_bytes(untrusted.get("to", b""), "context end", most=32)
        rows: dict[bytes, tuple[bytes, dict[str, int]]] = {}
        for untrusted_row in as_list(seen, "context", most=MAX_WRITERS):
            row = as_list(untrusted_row, "context entry", most=2 + 2 * MAX_FIELDS)
            if len(row) < 2 or len(row) % 2:
                raise MalformedState("context entry: names and numbers come in pairs")
            writer = as_bytes(row[0], "writer", least=32, most=32)
            mark = as_bytes(row[1], "mark", least=MARK_BYTES, most=MARK_BYTES)
            keys = row[2::2]
            if not all(isinstance(key, str) for key in keys):
                raise MalformedState("context entry: a key is not text")
            check_ascending(keys, "context entry")
            sequences = [as_int(number, "sequence", low=1) for number in row[3::2]]
            if writer < start or (end and writer >= end):
                raise MalformedState("context: a writer lies outside the range")
            rows[writer] = (mark, dict(zip(keys, sequences, strict=True)))
        check_ascending((row[0] for row in seen), "context")
        return cls(rows, whole, start, end)
