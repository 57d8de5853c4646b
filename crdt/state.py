"""The shared document of one run: who is in it, how far each has come, the newest checkpoint.

Problem: every member wants the same picture of the run, with no server holding it, over links that
lose, repeat and reorder, while members crash and return. Idea: each member writes one record (see
`record`); the document is the newest record per writer and one max register. Joining two documents
takes the newer record for each writer and the higher checkpoint, so joins commute, associate and
may repeat, and any path that carries the records makes replicas equal.

Sequences. An owner's sequence is at least its wall clock in milliseconds and always greater than
the one before. After a crash the next process starts from the clock, hence above all that the
former one wrote. If the clock was set back meanwhile, the node meets its own former record at the
first exchange, continues above that sequence and states itself again. A record whose sequence lies
more than a minute ahead of the local clock is left out (`ahead` tells whose) and comes back
with a later exchange: one bad clock neither blocks other members' records nor reserves a sequence
that its owner could not exceed.

Bounds: `MAX_MEMBERS` records of at most `MAX_RECORD_BYTES`. Beyond that the records with the lowest
sequences (those not renewed for longest) are dropped. Taking the greatest n of a union commutes
with taking it on the parts, so replicas agree on who was dropped too.

Not decided here: who takes part in a collective operation. This is a picture, not a vote. Records
are not signed yet: whoever is let into the swarm is trusted to write under its own name.

Wires, version 1 (maps, unknown fields ignored; `mark` = first 8 bytes of a record's SHA-256):

    delta    {"v", "records": [record, ...] ascending by writer, "checkpoint": [] or [step, [...]]}
    context  {"v", "from": bytes, "to": bytes (empty: no end), "seen": [[writer, sequence, mark],
              ...] ascending, "checkpoint": [] or [step, mark]}     all that is known in [from, to)
    want     {"v", "writers": [writer, ...] ascending, "checkpoint": bool}
"""

import hashlib
from bisect import bisect_left, insort
from collections.abc import Mapping
from contextlib import suppress
from heapq import nsmallest
from itertools import pairwise
from types import MappingProxyType

import attrs

from crdt.clock import MAX_SKEW_MS, HybridClock
from crdt.errors import ClockSkew, MalformedState, StateTooLarge
from crdt.record import MAX_REASON_CHARS, CheckpointInfo, MemberInfo, Progress, Record
from crdt.register import MaxRegister
from crdt.wire import (
    Wire,
    as_bool,
    as_bytes,
    as_fields,
    as_int,
    as_list,
    as_row,
    canonical,
    check_ascending,
)

VERSION = 1
MAX_MEMBERS = 4096
MAX_AHEAD = 64
"""Writers with a clock ahead that are remembered for display."""
_DOMAIN = b"noded run state 1"
_MARK_BYTES = 8
"""Enough to notice that one sequence was used for two contents; collisions only delay that."""


class RunState:
    """One node's replica of a run's document.

    Args:
        node: this node's id; edits are written under it.
        clock: the node's hybrid clock.
    """

    def __init__(self, node: bytes, clock: HybridClock) -> None:
        self.node = as_bytes(node, "node", least=1, most=32)
        self._clock = clock
        self._records: dict[bytes, Record] = {}
        self._writers: list[bytes] = []  # the keys of _records, ascending
        self._checkpoint = MaxRegister()
        self._own: Record | None = None  # kept even if dropped from the document
        self._sequence = 0
        self._version = 0
        self._edits = 0
        self._taken_edits = 0
        self._digest: bytes | None = None
        self._ahead: dict[bytes, int] = {}

    # What it says

    @property
    def version(self) -> int:
        """Grows with every change of this replica; has no meaning on another one."""
        return self._version

    @property
    def edits(self) -> int:
        """Grows with every change made by this node itself."""
        return self._edits

    @property
    def ahead(self) -> Mapping[bytes, int]:
        """Writers whose latest record is left out, with their lead in ms (at most 64 of them)."""
        return MappingProxyType(self._ahead)

    def __len__(self) -> int:
        return len(self._records)

    def members(self) -> dict[bytes, MemberInfo]:
        """All known members, those that left included, in the order of their ids."""
        found = ((writer, self._records[writer].member) for writer in self._writers)
        return {writer: member for writer, member in found if member is not None}

    def progress(self) -> dict[bytes, Progress]:
        """Each member's own report, in the order of their ids."""
        found = ((writer, self._records[writer].progress) for writer in self._writers)
        return {writer: progress for writer, progress in found if progress is not None}

    def checkpoint(self) -> CheckpointInfo | None:
        """The checkpoint with the highest step."""
        return CheckpointInfo.from_register(self._checkpoint)

    def digest(self) -> bytes:
        """SHA-256 of the content: equal on two replicas exactly if they say the same."""
        if self._digest is None:
            digest = hashlib.sha256(_DOMAIN)
            digest.update(canonical(self._checkpoint.to_wire()))
            for writer in self._writers:
                digest.update(self._records[writer].body)
            self._digest = digest.digest()
        return self._digest

    # Edits by this node

    def set_member(self, member: MemberInfo) -> None:
        """State who this node is. Raises: StateTooLarge, and nothing changes."""
        if self._own is None or self._own.member != member:
            self._write(member, None if self._own is None else self._own.progress)

    def leave(self, reason: str = "") -> None:
        """State that this node left (an unprintable or long reason is cut down, not refused)."""
        if self._own is None or self._own.member is None:
            return
        printable = "".join(character if character.isprintable() else " " for character in reason)
        self.set_member(
            attrs.evolve(self._own.member, status="left", reason=printable[:MAX_REASON_CHARS])
        )

    def set_progress(self, progress: Progress) -> None:
        """State how far this node has come."""
        if self._own is None or self._own.progress != progress:
            self._write(None if self._own is None else self._own.member, progress)

    def set_checkpoint(self, checkpoint: CheckpointInfo) -> None:
        """Announce a checkpoint; without effect where one of a higher step is known."""
        if self._raise_checkpoint(checkpoint.to_register()):
            self._edits += 1
            self._changed()

    # Exchange

    def take_delta(self) -> Wire | None:
        """This node's own statements, if they changed since the last call."""
        if self._taken_edits == self._edits:
            return None
        self._taken_edits = self._edits
        return self.own_delta()

    def own_delta(self) -> Wire | None:
        """This node's own record and the checkpoint; None while there is neither."""
        records = [] if self._own is None else [self._own]
        return self._delta(records, checkpoint=True)

    def context(self, start: bytes = b"", end: bytes = b"") -> Wire:
        """What is known of the writers in [start, end); an empty `end` means no end."""
        checkpoint = self._checkpoint
        return {
            "v": VERSION,
            "from": start,
            "to": end,
            "seen": [
                [writer, self._records[writer].sequence, _mark(self._records[writer])]
                for writer in self._between(start, end)
            ],
            "checkpoint": [] if checkpoint.rank < 0 else [checkpoint.rank, _seal(checkpoint)],
        }

    def delta_since(self, untrusted_context: Wire) -> Wire | None:
        """What the sender of a context lacks; None if nothing. Raises: CrdtError."""
        theirs = _Context.from_wire(untrusted_context)
        records = []
        for writer in self._between(theirs.start, theirs.end):
            record = self._records[writer]
            sequence, mark = theirs.seen.get(writer, (0, b""))
            if record.sequence > sequence or (
                record.sequence == sequence and _mark(record) != mark
            ):
                records.append(record)
        mine = (self._checkpoint.rank, _seal(self._checkpoint))
        return self._delta(
            records,
            checkpoint=self._checkpoint.rank >= theirs.checkpoint[0] and mine != theirs.checkpoint,
        )

    def want_since(self, untrusted_context: Wire) -> Wire | None:
        """What the sender of a context has and we lack; None if nothing. Raises: CrdtError."""
        theirs = _Context.from_wire(untrusted_context)
        latest = self._clock.wall_ms() + MAX_SKEW_MS
        writers = []
        for writer, (sequence, mark) in theirs.seen.items():
            mine = self._records.get(writer)
            if sequence > latest:
                continue  # would be left out anyway
            if (
                mine is None
                or sequence > mine.sequence
                or (sequence == mine.sequence and mark != _mark(mine))
            ):
                writers.append(writer)
        rank, seal = theirs.checkpoint
        checkpoint = rank > self._checkpoint.rank or (
            rank >= 0 and rank == self._checkpoint.rank and seal != _seal(self._checkpoint)
        )
        if not writers and not checkpoint:
            return None
        return {"v": VERSION, "writers": writers, "checkpoint": checkpoint}

    def delta_for(self, untrusted_want: Wire) -> Wire | None:
        """Answer a want; None if there is nothing to give. Raises: CrdtError."""
        untrusted_writers, untrusted_checkpoint = as_fields(
            untrusted_want, "want", ("writers", "checkpoint"), version=VERSION
        )
        writers = [
            as_bytes(writer, "writer", least=1, most=32)
            for writer in as_list(untrusted_writers, "want", most=MAX_MEMBERS)
        ]
        check_ascending(writers, "want")
        checkpoint = as_bool(untrusted_checkpoint, "want checkpoint")
        records = [self._records[writer] for writer in writers if writer in self._records]
        return self._delta(records, checkpoint=checkpoint)

    def merge(self, untrusted: Wire) -> bool:
        """Join a delta (or a whole document) into this replica.

        Returns:
            Whether anything changed here.

        Raises:
            MalformedState, StateTooLarge: the wire is refused whole; nothing changed.
            ClockSkew: nothing changed, since all it had to tell comes from the future.
        """
        records, checkpoint = _parse_delta(untrusted)
        wall_ms = self._clock.wall_ms()
        changed = self._raise_checkpoint(checkpoint)
        worst_ms = 0
        news: list[Record] = []
        for record in records:
            held = self._records.get(record.writer)
            if held is not None and held.rank >= record.rank:
                continue
            ahead_ms = record.sequence - wall_ms
            if ahead_ms > MAX_SKEW_MS:
                worst_ms = max(worst_ms, ahead_ms)
                if record.writer in self._ahead or len(self._ahead) < MAX_AHEAD:
                    self._ahead[record.writer] = ahead_ms
                continue
            self._ahead.pop(record.writer, None)
            # The sequence, from the writer's own wall clock, was checked above. Its timestamp may
            # lead by what it observed from others: no reason to refuse it, only not to follow it.
            with suppress(ClockSkew):
                self._clock.observe(record.stamp)
            news.append(self._meet_self(record) if record.writer == self.node else record)
            self._put(news[-1])
        self._trim()
        if changed or any(self._records.get(record.writer) is record for record in news):
            self._changed()
            return True
        if worst_ms:
            raise ClockSkew(worst_ms)
        return False

    # Ranges of writers, for comparing large documents piece by piece

    def ranges(self, size: int, start: bytes = b"", end: bytes = b"") -> list[tuple[bytes, bytes]]:
        """Cut [start, end) into adjoining ranges of at most `size` known writers each."""
        writers = self._between(start, end)
        cuts = [start, *writers[size::size], end]
        return list(pairwise(cuts))

    def range_digest(self, start: bytes, end: bytes) -> bytes:
        """SHA-256 of the records of the writers in [start, end)."""
        digest = hashlib.sha256(_DOMAIN)
        for writer in self._between(start, end):
            digest.update(self._records[writer].body)
        return digest.digest()

    # Whole documents, for tests and storage

    def to_wire(self) -> Wire:
        """The whole document as one delta."""
        return {
            "v": VERSION,
            "records": [self._records[writer].to_wire() for writer in self._writers],
            "checkpoint": self._checkpoint.to_wire(),
        }

    @classmethod
    def from_wire(cls, untrusted: Wire, *, node: bytes, clock: HybridClock) -> "RunState":
        """Rebuild a replica. Raises: CrdtError."""
        state = cls(node, clock)
        state.merge(untrusted)
        return state

    # Inside

    def _write(self, member: MemberInfo | None, progress: Progress | None) -> None:
        self._put(self._compose(member, progress))
        self._trim()
        self._changed()

    def _compose(self, member: MemberInfo | None, progress: Progress | None) -> Record:
        """Make this node's next record."""
        sequence = max(self._sequence + 1, self._clock.wall_ms())
        record = Record(self.node, sequence, self._clock.now(), member, progress)
        self._own, self._sequence = record, sequence
        self._edits += 1
        return record

    def _meet_self(self, former: Record) -> Record:
        """Answer a record of this very node that is newer than the one held."""
        self._sequence = max(self._sequence, former.sequence)
        mine = self._own
        if mine is None:
            # This process has said nothing yet: until it does, its former statement stands.
            self._own = former
            return former
        # The clock was set back, or the state was lost: what this process says must hold.
        try:
            return self._compose(mine.member or former.member, mine.progress or former.progress)
        except StateTooLarge:  # the halves fit, together they do not
            return self._compose(mine.member, mine.progress)

    def _put(self, record: Record) -> None:
        held = self._records.get(record.writer)
        assert held is None or held.rank < record.rank
        if held is None:
            insort(self._writers, record.writer)
        self._records[record.writer] = record

    def _trim(self) -> None:
        """Drop those silent for longest; once per merge, since finding them reads everything."""
        excess = len(self._records) - MAX_MEMBERS
        if excess > 0:
            for record in nsmallest(excess, self._records.values(), key=_age):
                del self._records[record.writer]
                del self._writers[bisect_left(self._writers, record.writer)]

    def _raise_checkpoint(self, register: MaxRegister) -> bool:
        joined = self._checkpoint.join(register)
        changed = joined is not self._checkpoint
        self._checkpoint = joined
        return changed

    def _changed(self) -> None:
        self._version += 1
        self._digest = None

    def _between(self, start: bytes, end: bytes) -> list[bytes]:
        low = bisect_left(self._writers, start)
        high = bisect_left(self._writers, end) if end else len(self._writers)
        return self._writers[low:high]

    def _delta(self, records: list[Record], *, checkpoint: bool) -> Wire | None:
        register = self._checkpoint.to_wire() if checkpoint else []
        if not records and not register:
            return None
        wires = [record.to_wire() for record in records]
        return {"v": VERSION, "records": wires, "checkpoint": register}


def split_delta(delta: Wire, *, max_bytes: int, max_records: int) -> list[Wire]:
    """Cut a delta of our own making into deltas of bounded canonical size.

    Args:
        delta: as made by `RunState`.
        max_bytes: per piece, not below `MAX_RECORD_BYTES` and some room for the rest.
        max_records: per piece.
    """
    pieces: list[Wire] = []
    room, spare_bytes = 0, 0
    for record in delta["records"]:
        size_bytes = len(canonical(record))
        if room < 1 or size_bytes > spare_bytes:
            pieces.append({"v": VERSION, "records": [], "checkpoint": []})
            empty_bytes = len(canonical({**pieces[-1], "checkpoint": delta["checkpoint"]}))
            room, spare_bytes = max_records, max_bytes - empty_bytes - 8
        pieces[-1]["records"].append(record)
        room, spare_bytes = room - 1, spare_bytes - size_bytes
    if not pieces:
        return [delta]
    pieces[0]["checkpoint"] = delta["checkpoint"]
    return pieces


@attrs.frozen
class _Context:
    start: bytes
    end: bytes
    seen: dict[bytes, tuple[int, bytes]]
    checkpoint: tuple[int, bytes]

    @classmethod
    def from_wire(cls, untrusted: Wire) -> "_Context":
        fields = as_fields(
            untrusted, "context", ("from", "to", "seen", "checkpoint"), version=VERSION
        )
        start = as_bytes(fields[0], "context start", most=32)
        end = as_bytes(fields[1], "context end", most=32)
        seen: dict[bytes, tuple[int, bytes]] = {}
        rows = [
            as_row(row, "context entry", length=3)
            for row in as_list(fields[2], "context", most=MAX_MEMBERS)
        ]
        check_ascending((as_bytes(row[0], "writer", least=1, most=32) for row in rows), "context")
        for untrusted_writer, sequence, mark in rows:
            writer = bytes(untrusted_writer)
            if writer < start or (end and writer >= end):
                raise MalformedState("context: a writer lies outside the range")
            seen[writer] = (
                as_int(sequence, "sequence", low=1),
                as_bytes(mark, "mark", least=_MARK_BYTES, most=_MARK_BYTES),
            )
        checkpoint = (-1, _seal(MaxRegister()))
        if as_list(fields[3], "context checkpoint", most=2):
            step, seal = as_row(fields[3], "context checkpoint", length=2)
            checkpoint = (
                as_int(step, "checkpoint step"),
                as_bytes(seal, "checkpoint mark", least=_MARK_BYTES, most=_MARK_BYTES),
            )
        return cls(start, end, seen, checkpoint)


def _parse_delta(untrusted: Wire) -> tuple[list[Record], MaxRegister]:
    untrusted_records, untrusted_checkpoint = as_fields(
        untrusted, "delta", ("records", "checkpoint"), version=VERSION
    )
    records = [
        Record.from_wire(record)
        for record in as_list(untrusted_records, "delta records", most=MAX_MEMBERS)
    ]
    check_ascending((record.writer for record in records), "delta records")
    register = MaxRegister.from_wire(untrusted_checkpoint)
    CheckpointInfo.from_register(register)  # are its fields those of a checkpoint?
    return records, register


def _mark(record: Record) -> bytes:
    return hashlib.sha256(record.body).digest()[:_MARK_BYTES]


def _seal(register: MaxRegister) -> bytes:
    return hashlib.sha256(canonical(register.to_wire())).digest()[:_MARK_BYTES]


def _age(record: Record) -> tuple[int, bytes]:
    return (record.sequence, record.writer)
