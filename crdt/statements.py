"""A grow-only set of statements that prove themselves: the swarm's document.

Problem: who was made a member and who was revoked must be known to every member, whoever of them said it first, and must never be
unsaid. Idea: the simplest CRDT there is, a set that only grows (Shapiro et al. 2011, "A comprehensive study", G-Set), of byte
strings that each carry their own proof; `judge` tells a proved one from any other bytes. No writer, no sequence, no lease: a
statement may come from anybody and means the same.

    join     union; of one author the `MAX_PER_AUTHOR` statements of the highest rank, of all the `MAX_STATEMENTS` and then
             `MAX_BYTES` of the highest rank. Taking the greatest n of a union commutes with taking it on the parts, so
             replicas agree on what they dropped.
    rank     what `judge` says (revocations before certificates, then the later one), then the id

It is told to others as the run's document is (`crdt.exchange`), so that the same conversation (`gossip.antientropy`) keeps both equal. What was
learnt a moment ago counts as an edit of this node, so that it is passed on at once to everybody, not at the next comparison.

    delta    {"v", "entries": [statement, ...], "evidence": []}
    context  {"v", "from", "to", "seen": [[id, 8 zero bytes], ...] ascending}
    want     {"v", "seen": [[id, 8 zero bytes], ...] ascending}
"""

import hashlib
from bisect import bisect_left, insort
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Final, TypeAlias

import attrs

from crdt.errors import MalformedState, StateTooLarge
from crdt.exchange import FRAMING_BYTES, VERSION, Name, Seen
from crdt.part import MARK_BYTES
from crdt.wire import Wire, as_fields, as_list

MAX_STATEMENT_BYTES: Final = 4096
MAX_STATEMENTS: Final = 16_384
MAX_PER_AUTHOR: Final = 2048
"""Whoever may invite can make any number of members; this many of what it says are kept."""
MAX_BYTES: Final = 16 << 20
NEWS: Final = 64
"""Statements learnt lately that are pushed; what comes in greater numbers is found by comparing."""
_MARK: Final = bytes(MARK_BYTES)
_DOMAIN: Final = b"noded statements 1"

Rank: TypeAlias = tuple[int, int]


@attrs.frozen
class Judged:
    """What a proved statement comes to."""

    author: bytes
    """Who answers for it."""
    rank: Rank
    """Which is kept where there is no room for all: the greater one."""


Judge: TypeAlias = Callable[[bytes], Judged]
"""judge(statement); raises CrdtError for bytes that prove nothing."""


@attrs.frozen
class _Held:
    raw: bytes
    author: bytes
    order: tuple[Rank, bytes]


class Statements:
    """One replica.

    Args:
        judge: whether a statement proves itself, and whose it is.
        taken: told of each new statement, after it is in.
    """

    convictions = 0
    """Nobody is convicted here: statements do not contradict each other."""

    def __init__(self, judge: Judge, taken: Callable[[bytes], None] = lambda _raw: None) -> None:
        self.counters: Counter[str] = Counter()
        """"taken", "obsolete", "dropped"."""
        self._judge = judge
        self._on_taken = taken
        self._held: dict[bytes, _Held] = {}
        self._ids: list[bytes] = []  # the keys of _held, ascending
        self._by_author: dict[bytes, list[tuple[Rank, bytes]]] = {}  # ascending
        self._ranks: list[tuple[Rank, bytes]] = []  # of all, ascending
        self._bytes = 0
        # From 1 on: whoever has been told all there was at the start is owed what is above that.
        self._version = 1
        self._digest: bytes | None = None
        self._news: deque[tuple[int, bytes]] = deque(maxlen=NEWS)

    # What it says

    @property
    def statements(self) -> Mapping[bytes, bytes]:
        """All statements by their ids, as they are now."""
        return MappingProxyType({name: held.raw for name, held in self._held.items()})

    @property
    def version(self) -> int:
        """Grows with every change of this replica; has no meaning on another one."""
        return self._version

    @property
    def edits(self) -> int:
        """Grows with everything this node says or learns: all of it is to be passed on."""
        return self._version

    @property
    def sequence(self) -> int:
        """Number of the latest statement learnt."""
        return self._version

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, name: bytes) -> bool:
        return name in self._held

    def digest(self) -> bytes:
        """SHA-256 of the content: equal on two replicas exactly if they hold the same."""
        if self._digest is None:
            self._digest = self.range_digest(b"", b"")
        return self._digest

    def range_digest(self, start: bytes, end: bytes) -> bytes:
        """SHA-256 of the ids in [start, end); an empty `end` means no end."""
        return hashlib.sha256(_DOMAIN + b"".join(self._between(start, end))).digest()

    def ranges(self, size: int, start: bytes = b"", end: bytes = b"") -> list[tuple[bytes, bytes]]:
        """Cut [start, end) into adjoining ranges of at most `size` known ids each."""
        return list(pairwise([start, *self._between(start, end)[size::size], end]))

    # Changes

    def add(self, statement: bytes) -> bool:
        """Take one statement; returns whether it was new and there was room. Raises: CrdtError: it proves nothing."""
        return bool(self._take([statement]))

    def hear(self, untrusted: Wire) -> list[Name]:
        """As `merge`; nothing is left to be passed on, since what is taken counts as an edit."""
        self.merge(untrusted)
        return []

    def merge(self, untrusted: Wire) -> bool:
        """Join what another replica tells.

        Raises:
            CrdtError: something in it proves nothing; nothing changed.
        """
        entries, _ = as_fields(untrusted, "delta", ("entries", "evidence"), version=VERSION)
        return bool(self._take(as_list(entries, "delta entries", most=MAX_STATEMENTS)))

    def _take(self, untrusted: Sequence[Wire]) -> list[bytes]:
        news: dict[bytes, _Held] = {}
        for raw in untrusted:
            if not isinstance(raw, bytes):
                raise MalformedState("statement: expected bytes")
            if len(raw) > MAX_STATEMENT_BYTES:
                raise StateTooLarge(f"statement: at most {MAX_STATEMENT_BYTES} bytes are allowed")
            name = hashlib.sha256(raw).digest()
            if name in self._held or name in news:
                self.counters["obsolete"] += 1
                continue
            judged = self._judge(raw)
            news[name] = _Held(raw, judged.author, (judged.rank, name))
        for name, held in news.items():
            self._put(name, held)
        dropped = self._trim()
        taken = [name for name in news if name not in dropped]
        for name in taken:
            self._version += 1
            self._news.append((self._version, name))
        if taken:
            self.counters["taken"] += len(taken)
            self._digest = None
        for name in taken:
            self._on_taken(news[name].raw)
        return taken

    def _put(self, name: bytes, held: _Held) -> None:
        self._held[name] = held
        insort(self._ids, name)
        insort(self._by_author.setdefault(held.author, []), held.order)
        insort(self._ranks, held.order)
        self._bytes += len(held.raw)

    def _trim(self) -> set[bytes]:
        dropped: set[bytes] = set()
        crowded = [own for own in self._by_author.values() if len(own) > MAX_PER_AUTHOR]
        for own in crowded:
            for _, name in own[: len(own) - MAX_PER_AUTHOR]:
                self._remove(name, dropped)
        while len(self._held) > MAX_STATEMENTS or self._bytes > MAX_BYTES:
            self._remove(self._ranks[0][1], dropped)
        self.counters["dropped"] += len(dropped)
        return dropped

    def _remove(self, name: bytes, dropped: set[bytes]) -> None:
        held = self._held.pop(name)
        dropped.add(name)
        del self._ids[bisect_left(self._ids, name)]
        del self._ranks[bisect_left(self._ranks, held.order)]
        own = self._by_author[held.author]
        del own[bisect_left(own, held.order)]
        if not own:
            del self._by_author[held.author]
        self._bytes -= len(held.raw)

    # Exchange, as `RunState`

    def own_names(self, above: int = -1) -> list[Name]:
        """Statements learnt lately with a number above this one; above 0 none: a new conversation begins by comparing."""
        return [(name, "") for number, name in self._news if above and number > above]

    def convicted(self) -> dict[bytes, object]:
        """Nobody."""
        return {}

    def context(self, start: bytes = b"", end: bytes = b"") -> Wire:
        """Which statements with ids in [start, end) are known."""
        rows = [[name, _MARK] for name in self._between(start, end)]
        return {"v": VERSION, "from": start, "to": end, "seen": rows}

    def want(self, names: Iterable[bytes]) -> Wire:
        """Ask for these statements."""
        return {"v": VERSION, "seen": [[name, _MARK] for name in sorted(names)]}

    def delta(
        self, names: Sequence[Name], *, max_bytes: int = 2 * MAX_BYTES
    ) -> tuple[Wire | None, int]:
        """Tell these statements; the delta, None if there is nothing to give, and how many names are dealt with."""
        entries: list[Wire] = []
        done = 0
        for name, _ in names:
            held = self._held.get(name)
            if held is not None:
                max_bytes -= len(held.raw) + FRAMING_BYTES
                if max_bytes < 0:
                    break
                entries.append(held.raw)
            done += 1
        return ({"v": VERSION, "entries": entries, "evidence": []} if entries else None), done

    def they_lack(self, untrusted_context: Wire) -> list[Name]:
        """What the sender of a context lacks, or of a want asks for. Raises: CrdtError."""
        theirs = Seen.of(untrusted_context)
        if not theirs.whole:
            return [(name, "") for name in theirs.rows if name in self._held]
        here = self._between(theirs.start, theirs.end)
        return [(name, "") for name in here if name not in theirs.rows]

    def we_lack(self, untrusted_context: Wire) -> list[bytes]:
        """Statements that the sender of a context knows and we do not. Raises: CrdtError."""
        return [name for name in Seen.of(untrusted_context).rows if name not in self._held]

    def to_wire(self) -> Wire:
        """The whole document as one delta."""
        entries = [self._held[name].raw for name in self._ids]
        return {"v": VERSION, "entries": entries, "evidence": []}

    def _between(self, start: bytes, end: bytes) -> list[bytes]:
        low = bisect_left(self._ids, start)
        high = bisect_left(self._ids, end) if end else len(self._ids)
        return self._ids[low:high]
