"""Signed entries of many writers: joined, compared piece by piece, bounded, and forgotten in time.

The document is, for each writer, the newest entry of each of its fields (see `part`), or the
evidence that convicts it. Joining takes the newer entry of every field, so joins commute, associate
and may repeat, and whatever path carries the entries makes replicas equal. A version vector with one
number per (writer, field) tells two replicas what the other lacks; since a field is replaced, never
added to, nothing has to remember what was removed.

Merging, all or nothing: parse every entry, check who may write what, find those that would change
something, verify those. What fails any of it refuses the whole message, as no honest node passes on
what it could not take itself. What merely cannot be taken now (a clock ahead of ours, no budget for
its signature) is left out and comes again.

Leases. An entry is hidden and refused once its lease is over by the local clock, and `collect`
drops it. Its number stays behind as a floor for `MAX_LEASE_S`: by then every older entry of the
field has expired too, hence none of them can come back in its place.

Entries that were replaced are kept for a while, the latest `RECENT_BYTES` of all writers, only to notice
contradictions with them: they are no part of the value, neither compared nor sent.

Bounds: `MAX_FIELDS` fields of `MAX_ENTRY_BYTES` per writer; `MAX_WRITERS` writers and `MAX_BYTES` in
all, those silent for longest dropped first. Taking the greatest n of a union commutes with taking
it on the parts, so replicas agree on whom they dropped.
"""

import hashlib
from bisect import bisect_left, insort
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import pairwise
from types import MappingProxyType
from typing import Final

import attrs

from crdt.clock import MAX_SKEW_MS, HybridClock
from crdt.entry import DOCUMENT_BYTES, MAX_LEASE_S, Entry, parse
from crdt.errors import ClockSkew, Forged
from crdt.evidence import Evidence, contradict
from crdt.part import Part
from crdt.verifier import Verifier
from crdt.wire import Wire, as_bytes

MAX_WRITERS: Final = 4096
MAX_BYTES: Final = 16 << 20
MAX_AHEAD: Final = 64
"""Writers with a clock ahead that are remembered for display."""
MAX_FLOORS: Final = 65_536
RECENT_BYTES: Final = 256 << 10
"""Some 1,000 entries, 1.3 MiB as objects."""
_DOMAIN: Final = b"noded state ledger 1"

Check = Callable[[Entry], None]
"""Raises CrdtError for an entry whose writer may not say that, or whose value makes no sense."""


@attrs.frozen
class Merged:
    """What a merge came to."""

    changed: bool
    news: tuple[Entry, ...]
    """Entries that were taken."""
    convicted: tuple[bytes, ...]
    """Writers convicted by it."""


class Ledger:
    """One replica of a document.

    Args:
        document: its id, 32 bytes: entries of other documents mean nothing here.
        clock: the node's hybrid clock; its wall clock decides about leases.
        verifier: verdicts on signatures.
        check: the author rules and the form of values.
    """

    def __init__(
        self, document: bytes, clock: HybridClock, verifier: Verifier, check: Check
    ) -> None:
        self.document = as_bytes(document, "document", least=DOCUMENT_BYTES, most=DOCUMENT_BYTES)
        self.verifier = verifier
        self.counters: Counter[str] = Counter()
        """"taken", "obsolete", "expired", "ahead", "convicted", "collected", "dropped"."""
        self._clock = clock
        self._check = check
        self._parts: dict[bytes, Part] = {}
        self._writers: list[bytes] = []  # the keys of _parts, ascending
        self._recent: OrderedDict[tuple[bytes, int], Entry] = OrderedDict()
        self._recent_bytes = 0
        self._floors: dict[tuple[bytes, str], tuple[int, int]] = {}  # sequence, until_ms
        self._ahead: dict[bytes, int] = {}
        self._bytes = 0
        self._version = 0
        self._digest: bytes | None = None

    # What it says

    @property
    def version(self) -> int:
        """Grows with every change; has no meaning on another replica."""
        return self._version

    @property
    def size_bytes(self) -> int:
        """What the entries take."""
        return self._bytes

    @property
    def ahead(self) -> Mapping[bytes, int]:
        """Writers whose latest entry is left out, with its lead in ms (at most 64 of them)."""
        return MappingProxyType(self._ahead)

    def __len__(self) -> int:
        return len(self._parts)

    def part(self, writer: bytes) -> Part | None:
        """What is held of a writer."""
        return self._parts.get(writer)

    def parts(self, start: bytes = b"", end: bytes = b"") -> Iterator[Part]:
        """Parts of the writers in [start, end), ascending; an empty `end` means no end."""
        for writer in self._between(start, end):
            yield self._parts[writer]

    def entry(self, writer: bytes, key: str) -> Entry | None:
        """What a writer says about a field now."""
        part = self._parts.get(writer)
        entry = None if part is None else part.fields.get(key)
        return None if entry is None or entry.expired(self._clock.wall_ms()) else entry

    def entries(self, key: str) -> dict[bytes, Entry]:
        """What each writer says about a field, in the order of their ids."""
        found = ((writer, self.entry(writer, key)) for writer in self._writers)
        return {writer: entry for writer, entry in found if entry is not None}

    def digest(self) -> bytes:
        """SHA-256 of the content: equal on two replicas exactly if they hold the same."""
        if self._digest is None:
            self._digest = self.range_digest(b"", b"")
        return self._digest

    def range_digest(self, start: bytes, end: bytes) -> bytes:
        """SHA-256 of what is held of the writers in [start, end)."""
        digest = hashlib.sha256(_DOMAIN)
        for part in self.parts(start, end):
            digest.update(part.digest)
        return digest.digest()

    def ranges(self, size: int, start: bytes = b"", end: bytes = b"") -> list[tuple[bytes, bytes]]:
        """Cut [start, end) into adjoining ranges of at most `size` known writers each."""
        writers = self._between(start, end)
        return list(pairwise([start, *writers[size::size], end]))

    def would_take(self, writer: bytes, key: str, sequence: int) -> bool:
        """Whether an entry of that number could be news (worth asking for)."""
        if sequence > self._clock.wall_ms() + MAX_SKEW_MS:
            return False  # it would be left out
        part = self._parts.get(writer)
        if part is not None and part.evidence is not None:
            return False
        held = None if part is None else part.fields.get(key)
        return sequence > max(self._floor(writer, key), 0 if held is None else held.sequence)

    # Changes

    def merge(self, untrusted_entries: Iterable[Wire], evidence: Iterable[Wire] = ()) -> Merged:
        """Join what another replica holds.

        Raises:
            MalformedState, StateTooLarge, NotTheAuthor, Forged: refused whole; nothing changed.
            ClockSkew: nothing changed, since all it had to tell comes from the future.
        """
        wall_ms = self._clock.wall_ms()
        entries = [parse(raw, self.document) for raw in untrusted_entries]
        proofs = [Evidence.from_wire(pair, self.document) for pair in evidence]
        for entry in entries:
            self._check(entry)
        news, against, worst_ms = self._sift(entries, wall_ms)
        verdicts = {
            entry.id: self.verifier.check(entry, self.document, wall_ms)
            for entry in [*news, *(entry for entry, _ in against)]
        }
        for proof in proofs:
            part = self._parts.get(proof.writer)
            if part is None or part.evidence is None:
                for entry in (proof.first, proof.second):
                    verdicts[entry.id] = self.verifier.check(entry, self.document, wall_ms)
        if False in verdicts.values():
            raise Forged("an entry's signature is not its writer's")
        return self._apply(news, against, proofs, verdicts, worst_ms)

    def _sift(
        self, entries: list[Entry], wall_ms: int
    ) -> tuple[list[Entry], list[tuple[Entry, Entry]], int]:
        """Entries that may change something, those that contradict another, and the worst lead."""
        news: list[Entry] = []
        against: list[tuple[Entry, Entry]] = []
        worst_ms = 0
        seen: dict[tuple[bytes, int], Entry] = {}
        for entry in entries:
            part = self._parts.get(entry.writer)
            twin = seen.setdefault((entry.writer, entry.sequence), entry)
            other = self._contradiction(entry)
            if twin.id != entry.id and other is None:
                news.append(twin)  # so that both get verified
                other = twin
            # A stamp may lead by what its writer observed from others, on top of its own lead.
            ahead_ms = max(entry.sequence, entry.stamp.physical_ms - MAX_SKEW_MS) - wall_ms
            if other is not None:
                against.append((entry, other))
            elif part is not None and (part.holds(entry) or not part.is_news(entry)):
                self.counters["obsolete"] += 1
            elif entry.expired(wall_ms) or entry.sequence <= self._floor(entry.writer, entry.key):
                self.counters["expired"] += 1
            elif ahead_ms > MAX_SKEW_MS:
                self.counters["ahead"] += 1
                worst_ms = max(worst_ms, ahead_ms)
                if entry.writer in self._ahead or len(self._ahead) < MAX_AHEAD:
                    self._ahead[entry.writer] = ahead_ms
            else:
                news.append(entry)
        return news, against, worst_ms

    def _apply(
        self,
        news: list[Entry],
        against: list[tuple[Entry, Entry]],
        proofs: list[Evidence],
        verdicts: dict[bytes, bool | None],
        worst_ms: int,
    ) -> Merged:
        taken: list[Entry] = []
        convicted: list[bytes] = []
        for entry in sorted(news, key=lambda entry: entry.sequence):
            # One message may bring two entries of one field, or two that are no twins but disagree.
            part = self._parts.get(entry.writer)
            if not verdicts[entry.id] or (part is not None and not part.is_news(entry)):
                continue
            other = self._contradiction(entry)
            if other is not None:
                against.append((entry, other))
                continue
            self._ahead.pop(entry.writer, None)
            self._put(entry)
            taken.append(entry)
        proofs = [
            *(p for p in proofs if verdicts.get(p.first.id) and verdicts.get(p.second.id)),
            *(
                Evidence.of(one, two)
                for one, two in against
                if verdicts[one.id] and verdicts.get(two.id, True)  # what is held is good
            ),
        ]
        for proof in proofs:
            part = self._parts.get(proof.writer)
            if part is None or part.evidence is None:
                self._convict(proof)
                convicted.append(proof.writer)
        dropped = self._trim()
        taken = [entry for entry in taken if entry.writer not in dropped]
        for entry in taken:
            with suppress(ClockSkew):  # taken all the same, only not followed
                self._clock.observe(entry.stamp)
        changed = bool(taken or any(writer not in dropped for writer in convicted))
        if changed:
            self._changed()
        elif worst_ms:
            raise ClockSkew(worst_ms)
        return Merged(changed, tuple(taken), tuple(convicted))

    def put_own(self, entry: Entry) -> None:
        """Take an entry that this node has just written. It is trusted as it is."""
        self._put(entry)
        self._trim()
        self._changed()

    def collect(self) -> int:
        """Drop what has expired; returns how many entries. Call it now and then."""
        wall_ms = self._clock.wall_ms()
        count = 0
        for writer in list(self._writers):
            part = self._parts[writer]
            for entry in list(part.fields.values()):
                if entry.expired(wall_ms):
                    self._bytes -= len(entry.raw)
                    part.drop(entry.key)
                    until_ms = (entry.expires_ms or 0) + MAX_LEASE_S * 1000
                    self._floors[writer, entry.key] = (entry.sequence, until_ms)
                    count += 1
            if not part:
                self._remove(writer)
        over = [name for name, (_, until_ms) in self._floors.items() if until_ms <= wall_ms]
        for name in over:
            del self._floors[name]
        for name in list(self._floors)[: max(0, len(self._floors) - MAX_FLOORS)]:
            del self._floors[name]
        if count:
            self.counters["collected"] += count
            self._changed()
        return count

    # Inside

    def _floor(self, writer: bytes, key: str) -> int:
        return self._floors.get((writer, key), (0, 0))[0]

    def _part(self, writer: bytes) -> Part:
        part = self._parts.get(writer)
        if part is None:
            part = self._parts[writer] = Part(writer)
            insort(self._writers, writer)
        return part

    def _contradiction(self, entry: Entry) -> Entry | None:
        """One of the latest entries that this one contradicts."""
        part = self._parts.get(entry.writer)
        if part is None or part.evidence is not None:
            return None
        for sequence in range(entry.sequence - 1, entry.sequence + 2):
            other = self._recent.get((entry.writer, sequence))
            if other is not None and contradict(entry, other):
                return other
        return part.contradiction(entry)

    def _remember(self, entry: Entry) -> None:
        known = self._recent.pop((entry.writer, entry.sequence), None)
        self._recent_bytes += len(entry.raw) - (0 if known is None else len(known.raw))
        self._recent[entry.writer, entry.sequence] = entry
        while self._recent_bytes > RECENT_BYTES:
            _, oldest = self._recent.popitem(last=False)
            self._recent_bytes -= len(oldest.raw)

    def _put(self, entry: Entry) -> None:
        self._remember(entry)
        part = self._part(entry.writer)
        self._bytes -= part.size_bytes
        part.put(entry)
        self._bytes += part.size_bytes
        self.counters["taken"] += 1

    def _convict(self, evidence: Evidence) -> None:
        part = self._part(evidence.writer)
        self._bytes -= part.size_bytes
        part.convict(evidence)
        self._bytes += part.size_bytes
        self.counters["convicted"] += 1

    def _remove(self, writer: bytes) -> None:
        self._bytes -= self._parts.pop(writer).size_bytes
        del self._writers[bisect_left(self._writers, writer)]

    def _trim(self) -> set[bytes]:
        """Drop those silent for longest; returns who they were."""
        if len(self._parts) <= MAX_WRITERS and self._bytes <= MAX_BYTES:
            return set()
        dropped = set()
        by_age = sorted(self._parts.values(), key=lambda part: (part.head, part.writer))
        for part in by_age:
            if len(self._parts) <= MAX_WRITERS and self._bytes <= MAX_BYTES:
                break
            self._remove(part.writer)
            dropped.add(part.writer)
        self.counters["dropped"] += len(dropped)
        return dropped

    def _changed(self) -> None:
        self._version += 1
        self._digest = None

    def _between(self, start: bytes, end: bytes) -> list[bytes]:
        low = bisect_left(self._writers, start)
        high = bisect_left(self._writers, end) if end else len(self._writers)
        return self._writers[low:high]
