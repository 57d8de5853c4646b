"""The shared document of one run: who is in it, how far each has come, who holds which checkpoint.

Problem: every member wants the same picture of the run, with no server holding it, over links that
lose, repeat and reorder, through members that may crash, return or lie. Idea: each member signs
fields about itself (`rules` says which); the document is the newest entry of each field (`ledger`),
so any path that carries the entries makes replicas equal. What is shared is read as a join of what
each member says: the newest checkpoint is the join of one max register per member, the revocation
list the union of the creator's.

Sequences. A process numbers its entries from its wall clock in milliseconds on, one by one, each
linked to the one before. After a crash the next process starts from the clock, hence above all that
the former one wrote; `reserve` lets the owner keep a mark that holds even where the clock was set
back, for a number used twice convicts its writer. If the node meets its own former entry with a
number above its own, it starts a chain well above that and states itself again. An entry whose number lies
more than a minute ahead of the local clock is left out (`ahead` tells whose) and comes back with a
later exchange: one bad clock neither blocks other members nor reserves numbers that its owner could
not exceed.

Not decided here: who takes part in a collective operation. This is a picture, not a vote.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import attrs

from crdt import rules as r
from crdt.clock import HybridClock
from crdt.entry import START, Author, Entry, Verify, write
from crdt.errors import MalformedState
from crdt.evidence import Evidence
from crdt.exchange import FRAMING_BYTES, VERSION, Name, Seen
from crdt.ledger import MAX_BYTES, MAX_WRITERS, Ledger, Merged
from crdt.part import MARK_BYTES, MAX_FIELDS, Part, convicted_mark
from crdt.record import (
    MAX_CHECKPOINTS,
    MAX_LINKS,
    MAX_REASON_CHARS,
    CheckpointInfo,
    LinkTime,
    MemberInfo,
    Metrics,
    Progress,
    Revocation,
    RunInfo,
    checkpoints_from_wire,
    links_from_wire,
    revocations_from_wire,
    site_from_wire,
)
from crdt.register import MaxRegister
from crdt.rules import RunRules
from crdt.verifier import Verifier
from crdt.wire import Wire, as_fields, as_list

RESERVED: Final = 1000
"""Sequences that are reserved at once: about an hour of a busy trainer's entries."""

MEETING_GAP: Final = 30_000
"""Left free above an entry of a former process: more than it can have written meanwhile, and less
than the minute that others let a sequence be ahead."""


class RunState:
    """One node's replica of a run's document.

    Args:
        author: this node's identity; edits are signed with it.
        clock: the node's hybrid clock.
        document: the run's id, 32 bytes.
        verify: checks a signature, or a `Verifier` shared with other documents.
        creator: the node that may write the shared fields; empty: nobody.
        start: the least sequence this process may use; 0: whatever the wall clock says.
        reserve: told a sequence before any number up to it is used; the next process is to `start`
            above the last one told.
    """

    def __init__(
        self,
        author: Author,
        clock: HybridClock,
        document: bytes,
        verify: Verify | Verifier,
        *,
        creator: bytes = b"",
        start: int = 0,
        reserve: Callable[[int], None] = lambda _sequence: None,
    ) -> None:
        self.node = author.writer
        self._author = author
        self._clock = clock
        verifier = verify if isinstance(verify, Verifier) else Verifier(verify)
        self._rules = RunRules(document, creator)
        self.ledger = Ledger(document, clock, verifier, self._rules.check)
        self._own: dict[str, tuple[Wire, int, int]] = {}  # key -> value, lease, sequence
        self._least = start
        self._reserve = reserve
        self._reserved = 0
        self._last: Entry | None = None
        self._edits = 0

    # What it says

    @property
    def version(self) -> int:
        """Grows with every change of this replica; has no meaning on another one."""
        return self.ledger.version

    @property
    def edits(self) -> int:
        """Grows with every change made by this node itself."""
        return self._edits

    @property
    def sequence(self) -> int:
        """Number of this node's latest entry; 0 before the first."""
        return 0 if self._last is None else self._last.sequence

    @property
    def ahead(self) -> Mapping[bytes, int]:
        """Writers whose latest entry is left out, with its lead in ms (at most 64 of them)."""
        return self.ledger.ahead

    @property
    def convictions(self) -> int:
        """Grows with every writer convicted here."""
        return self.ledger.counters["convicted"]

    @property
    def counters(self) -> Counter[str]:
        """What the ledger and the verifier counted."""
        return self.ledger.counters + self.ledger.verifier.counters

    def __len__(self) -> int:
        return len(self.ledger)

    def members(self) -> dict[bytes, MemberInfo]:
        """All known members, those that left included, in the order of their ids."""
        return {w: MemberInfo.from_wire(e.value) for w, e in self.ledger.entries(r.MEMBER).items()}

    def progress(self) -> dict[bytes, Progress]:
        """Each member's own report, in the order of their ids."""
        return {w: Progress.from_wire(e.value) for w, e in self.ledger.entries(r.PROGRESS).items()}

    def metrics(self) -> dict[bytes, Metrics]:
        """Each member's further figures, in the order of their ids."""
        return {w: Metrics.from_wire(e.value) for w, e in self.ledger.entries(r.METRICS).items()}

    def sites(self) -> dict[bytes, str]:
        """The sites of those that named one, in the order of their ids."""
        return {w: site_from_wire(e.value) for w, e in self.ledger.entries(r.SITE).items()}

    def links(self) -> dict[bytes, tuple[LinkTime, ...]]:
        """What each member measured of the links from itself, in the order of their ids."""
        found = self.ledger.entries(r.LINKS)
        return {w: links_from_wire(entry.value) for w, entry in found.items()}

    def checkpoints(self) -> dict[bytes, tuple[CheckpointInfo, ...]]:
        """The checkpoint index: what each member holds, newest first, in the order of their ids."""
        found = self.ledger.entries(r.CHECKPOINTS)
        return {w: checkpoints_from_wire(entry.value, w) for w, entry in found.items()}

    def checkpoint(self) -> CheckpointInfo | None:
        """The checkpoint with the highest step of all."""
        highest = MaxRegister()
        for held in self.checkpoints().values():
            for each in held:
                highest = highest.join(each.register)
        return CheckpointInfo.of_register(highest)

    def run(self) -> RunInfo | None:
        """What the run's creator registered."""
        entry = self.ledger.entry(self._rules.creator, r.RUN)
        return None if entry is None else RunInfo.from_wire(entry.value)

    def revoked(self) -> dict[bytes, Revocation]:
        """Members that shall not take part any more."""
        entry = self.ledger.entry(self._rules.creator, r.REVOKED)
        found = () if entry is None else revocations_from_wire(entry.value)
        return {each.writer: each for each in found}

    def convicted(self) -> dict[bytes, Evidence]:
        """Writers that contradicted themselves, with the proof."""
        return {p.writer: p.evidence for p in self.ledger.parts() if p.evidence is not None}

    def digest(self) -> bytes:
        """SHA-256 of the content: equal on two replicas exactly if they say the same."""
        return self.ledger.digest()

    def ranges(self, size: int, start: bytes = b"", end: bytes = b"") -> list[tuple[bytes, bytes]]:
        """Cut [start, end) into adjoining ranges of at most `size` known writers each."""
        return self.ledger.ranges(size, start, end)

    def range_digest(self, start: bytes, end: bytes) -> bytes:
        """SHA-256 of what is held of the writers in [start, end)."""
        return self.ledger.range_digest(start, end)

    # Edits by this node

    def set_member(self, member: MemberInfo) -> None:
        """State who this node is. Raises: StateTooLarge, and nothing changes."""
        self._set(r.MEMBER, member.to_wire(), r.LEASE_S)

    def leave(self, reason: str = "") -> None:
        """State that this node left (an unprintable or long reason is cut down, not refused)."""
        if r.MEMBER not in self._own:
            return
        printable = "".join(character if character.isprintable() else " " for character in reason)
        member = MemberInfo.from_wire(self._own[r.MEMBER][0])
        left = attrs.evolve(member, status="left", reason=printable[:MAX_REASON_CHARS])
        self._set(r.MEMBER, left.to_wire(), r.LEFT_LEASE_S)

    def set_progress(self, progress: Progress) -> None:
        """State how far this node has come."""
        self._set(r.PROGRESS, progress.to_wire(), r.LEASE_S)

    def set_metrics(self, metrics: Metrics) -> None:
        """State further figures."""
        self._set(r.METRICS, metrics.to_wire(), r.LEASE_S)

    def set_site(self, name: str) -> None:
        """State at which site this node is. Raises: CrdtError for a name that is none."""
        self._set(r.SITE, site_from_wire(name), r.LEASE_S)

    def set_links(self, links: Iterable[LinkTime]) -> None:
        """State what this node measured of the links from itself; beyond MAX_LINKS the slowest are kept."""
        slowest = sorted(links, key=lambda each: (-each.us_per_mib, each.destination))[:MAX_LINKS]
        rows = [each.to_wire() for each in sorted(slowest, key=lambda each: each.destination)]
        self._set(r.LINKS, rows, r.LEASE_S)

    def set_checkpoint(self, checkpoint: CheckpointInfo) -> None:
        """Announce a checkpoint that this node holds; of those announced the newest few are kept."""
        if checkpoint.holder != self.node:
            raise MalformedState("a checkpoint is announced by the node that holds it")
        held = self._own.get(r.CHECKPOINTS)
        known = () if held is None else checkpoints_from_wire(held[0], self.node)
        by_step = {each.step: each for each in known} | {checkpoint.step: checkpoint}
        newest = [by_step[step].to_wire() for step in sorted(by_step, reverse=True)]
        self._set(r.CHECKPOINTS, newest[:MAX_CHECKPOINTS], r.LEASE_S)

    def register_run(self, run: RunInfo) -> None:
        """Describe the run. Raises: NotTheAuthor, unless this node created it."""
        self._set(r.RUN, run.to_wire(), 0)

    def revoke(self, writer: bytes, reason: str = "") -> None:
        """Add to the revocation list, for good. Raises: NotTheAuthor, StateTooLarge."""
        listed = self.revoked()
        if writer not in listed:
            listed[writer] = Revocation(writer, self._clock.wall_ms(), reason)
        self._set(r.REVOKED, [listed[each].to_wire() for each in sorted(listed)], 0)

    def tend(self) -> None:
        """Renew this node's leases that are half over, and collect what has expired."""
        wall_ms = self._clock.wall_ms()
        for key, (value, lease_s, _) in list(self._own.items()):
            entry = self.ledger.entry(self.node, key)
            over_ms = wall_ms if entry is None else entry.stamp.physical_ms + lease_s * 500
            left = key == r.MEMBER and lease_s == r.LEFT_LEASE_S
            if lease_s and over_ms <= wall_ms and not left:
                self._write(key, value, lease_s)
        self.ledger.collect()

    # Exchange

    def own_names(self, above: int = 0) -> list[Name]:
        """Fields that this node has set with a sequence above this one."""
        return [(self.node, key) for key, (_, _, number) in self._own.items() if number > above]

    def row(self, writer: bytes) -> Wire:
        """What is known of a writer, for it to be compared."""
        part = self.ledger.part(writer)
        return [writer, bytes(MARK_BYTES)] if part is None else _row(part)

    def context(self, start: bytes = b"", end: bytes = b"") -> Wire:
        """What is known of the writers in [start, end); an empty `end` means no end."""
        rows = [_row(part) for part in self.ledger.parts(start, end)]
        return {"v": VERSION, "from": start, "to": end, "seen": rows}

    def want(self, writers: Iterable[bytes]) -> Wire:
        """Ask for what others know of these writers and we do not."""
        return {"v": VERSION, "seen": [self.row(writer) for writer in sorted(writers)]}

    def delta(
        self, names: Sequence[Name], *, max_bytes: int = 2 * MAX_BYTES
    ) -> tuple[Wire | None, int]:
        """Tell these fields as they are now.

        Args:
            names: in the order of telling.
            max_bytes: of the entries told; not below that of one piece of evidence.

        Returns:
            The delta, None if there is nothing to give; and how many names are dealt with.
        """
        entries: list[Wire] = []
        evidence: list[Wire] = []
        done = 0
        for writer, key in names:
            part = self.ledger.part(writer)
            if part is not None and part.evidence is not None and not key:
                pair = part.evidence.to_wire()
                max_bytes -= sum(map(len, pair)) + FRAMING_BYTES
                if max_bytes >= 0:
                    evidence.append(pair)
            elif part is not None and key in part.fields:
                max_bytes -= len(part.fields[key].raw) + FRAMING_BYTES
                if max_bytes >= 0:
                    entries.append(part.fields[key].raw)
            if max_bytes < 0:
                break
            done += 1
        if not entries and not evidence:
            return None, done
        return {"v": VERSION, "entries": entries, "evidence": evidence}, done

    def they_lack(self, untrusted_context: Wire) -> list[Name]:
        """What the sender of a context or a want lacks. Raises: CrdtError."""
        theirs = Seen.of(untrusted_context)
        if theirs.whole:
            parts: Iterable[Part] = self.ledger.parts(theirs.start, theirs.end)
        else:
            parts = filter(None, map(self.ledger.part, theirs.rows))
        wall_ms = self._clock.wall_ms()
        names: list[Name] = []
        for part in parts:
            mark, sequences = theirs.rows.get(part.writer, (b"", {}))
            if mark in {part.mark, convicted_mark(part.writer)}:
                continue
            if part.evidence is not None:
                names.append((part.writer, ""))
                continue
            fields = part.fields.items()
            newer = [k for k, e in fields if e.sequence > sequences.get(k, 0)]
            # Other content under the same numbers: somebody told two stories.
            same = {k: e.sequence for k, e in fields} == sequences
            lacks = newer or [k for k, _ in fields if same]
            names += [(part.writer, k) for k in lacks if not part.fields[k].expired(wall_ms)]
        return names

    def we_lack(self, untrusted_context: Wire) -> list[bytes]:
        """Writers of whom the sender of a context knows more. Raises: CrdtError."""
        theirs = Seen.of(untrusted_context)
        writers = []
        for writer, (mark, sequences) in theirs.rows.items():
            part = self.ledger.part(writer)
            if part is not None and (part.mark == mark or part.evidence is not None):
                continue
            mine = {} if part is None else {key: e.sequence for key, e in part.fields.items()}
            if (
                mark == convicted_mark(writer)
                or mine == sequences != {}
                or any(self.ledger.would_take(writer, *pair) for pair in sequences.items())
            ):
                writers.append(writer)
        return writers

    def merge(self, untrusted: Wire) -> bool:
        """Join a delta (or a whole document) into this replica; returns whether anything changed here.

        Raises: as `take`.
        """
        return self.take(untrusted).changed

    def take(self, untrusted: Wire) -> Merged:
        """Join a delta into this replica, and tell what of it was news.

        Raises:
            MalformedState, StateTooLarge, NotTheAuthor, Forged: refused whole; nothing changed.
            ClockSkew: nothing changed, since all it had to tell comes from the future.
        """
        entries, evidence = as_fields(untrusted, "delta", ("entries", "evidence"), version=VERSION)
        merged = self.ledger.merge(
            as_list(entries, "delta entries", most=MAX_WRITERS * MAX_FIELDS),
            as_list(evidence, "delta evidence", most=MAX_WRITERS),
        )
        self._meet_self([entry for entry in merged.news if entry.writer == self.node])
        return merged

    def hear(self, untrusted: Wire) -> list[Name]:
        """As `take`; the fields that were news."""
        return [(entry.writer, entry.key) for entry in self.take(untrusted).news]

    # Whole documents, for tests and storage

    def to_wire(self) -> Wire:
        """The whole document as one delta."""
        names = [
            (part.writer, key)
            for part in self.ledger.parts()
            for key in (sorted(part.fields) if part.evidence is None else [""])
        ]
        whole, _ = self.delta(names)
        return whole or {"v": VERSION, "entries": [], "evidence": []}

    # Inside

    def _set(self, key: str, value: Wire, lease_s: int) -> None:
        held = self._own.get(key)
        if held is None or held[:2] != (value, lease_s):
            self._write(key, value, lease_s)

    def _write(self, key: str, value: Wire, lease_s: int) -> None:
        part = self.ledger.part(self.node)
        if part is not None and part.evidence is not None:
            return  # nobody would take it; `convicted` says so
        last = self._last
        sequence = max(self._least, self._clock.wall_ms()) if last is None else last.sequence + 1
        if sequence >= self._reserved:
            self._reserved = sequence + RESERVED
            self._reserve(self._reserved)
        entry = write(
            self._author,
            self.ledger.document,
            sequence=sequence,
            previous=START if last is None else last.id,
            stamp=self._clock.now(),
            lease_s=lease_s,
            key=key,
            value=value,
        )
        self._rules.check(entry)
        self.ledger.put_own(entry)
        self._own[key] = (value, lease_s, sequence)
        self._last = entry
        self._edits += 1

    def _meet_self(self, former: list[Entry]) -> None:
        """Entries that a former process of this node has written came back."""
        highest = max((entry.sequence for entry in former), default=0)
        if highest > self.sequence:
            # What it wrote after these is not known here: start a chain well above.
            self._least, self._last = highest + MEETING_GAP, None
        for entry in former:
            held = self._own.get(entry.key)
            if held is None:
                # This process has said nothing about it: the former statement is kept up.
                self._own[entry.key] = (entry.value, entry.lease_s, entry.sequence)
            else:
                # The clock was set back: what this process says must hold.
                self._write(entry.key, held[0], held[1])


def _row(part: Part) -> Wire:
    row: list[Wire] = [part.writer, part.mark]
    for key in sorted(part.fields):
        row += [key, part.fields[key].sequence]
    return row
