"""Keep two replicas of a document equal, by talking about differences only.

One `AntiEntropy` object is one node's side of the conversation with one peer. It reads and merges
the node's replica (`gossip.document`: a run's, or the swarm's), knows no socket and no clock, and every message stands on its own: any of
them may be lost, repeated or overtaken, and the next comparison repairs what is missing
(anti-entropy: Demers et al. 1987; comparing by ranges: Meyer 2022, "Range-Based Set
Reconciliation", with one level instead of many, since a document has at most 4,096 records).

    an edit by this node   -> delta, at once (at most every `PUSH_GAP_S`, the newest word only)
    a delta with news      -> the same on the conversations that `pass_on` is called for
    every interval         -> digest
    digest, equal          -> nothing
    digest, other          -> context of all writers, if there are at most `PAGE_WRITERS` of them,
                              else ranges: a digest per page of writers
    ranges                 -> context of each page that differs (at least one, for the checkpoint)
    context                -> delta with the fields that the sender lacks; want, for what we lack
    want                   -> delta
    evidence, newly found  -> delta, at once, to everybody

Messages are maps with string keys; "t" tells the kind, "v" the version (contexts, wants and deltas
are those of `crdt.state`, with "t" added):

    {"t": "digest", "v": 2, "digest": 32 bytes}
    {"t": "ranges", "v": 2, "ranges": [[start, 16 bytes], ...]}     ascending; starts at the empty
                                            key; a range ends where the next starts, the last never

What waits to be sent is kept as sets of names (fields owed, writers wanted, ranges to describe), never
as messages: a slow peer costs kilobytes, and gets the newest state when its turn comes.

Passing on. Where not everybody is connected to everybody, an edit is pushed to its writer's peers only, and the comparisons would
carry it one hop in two seconds. So whoever learns something from a delta passes it on to `FANOUT` others, drawn anew each time
("infect and die" rumour mongering: Demers et al. 1987; Eugster et al. 2004). An entry is news to a node once, so it is passed
on once by each: at most `FANOUT` deltas for each node and edit, however many connections there are, and no storm. Those that a
rumour misses are found by comparison. What comes in bulk is a catching up and no news to anybody else: it is not passed on.

Bounds: a message weighs at most 49 KiB, within the 64 KiB of the transport, and holds no list of
more than 512 items.
"""

import random
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final, TypeVar

from crdt.entry import MAX_ENTRY_BYTES
from crdt.errors import ClockSkew, CrdtError
from crdt.exchange import VERSION, Name, Seen
from crdt.ledger import MAX_WRITERS
from crdt.part import MAX_FIELDS
from crdt.wire import as_bytes, as_fields, as_list, as_row, check_ascending
from gossip.document import Document
from gossip.errors import GossipError

PAGE_WRITERS: Final = 32
"""Writers per context. About 3 KiB, 33 KiB at worst; a full document then has 128 pages."""

DELTA_BYTES: Final = 48 << 10
"""Bytes of one delta, leaving the transport's 64 KiB room for its own envelope."""

BATCH: Final = 512
"""Entries per delta, ranges per message: half of what the codec lets pass."""

MAX_PAGES: Final = 2 * (MAX_WRITERS // PAGE_WRITERS) + BATCH
"""Contexts that can be asked for at once: pages of both documents, cut at each other's bounds."""

MAX_OWED: Final = MAX_WRITERS * MAX_FIELDS
"""Fields that may wait to be sent; what is beyond is found by a later comparison."""

PUSH_GAP_S: Final = 0.05
"""Least time between two pushes of our own edits to one peer. Not visible to people, and keeps a
loop of edits from becoming a loop of messages."""

FANOUT: Final = 3
"""Partners that hear from us what we have just heard. In a ring or a line that is everybody; where everybody is connected to
everybody the writer's own push has been faster, and this is what it costs on top."""

RUMOUR_ENTRIES: Final = 32
"""A delta that brought more than this was a catching up."""

JITTER: Final = 0.25
"""Intervals vary by this share, so that nodes started together do not compare in step."""

_DIGEST_BYTES = 16

T = TypeVar("T")

assert DELTA_BYTES > 4 * MAX_ENTRY_BYTES  # at least two pieces of evidence


class RefusedUpdate(GossipError):
    """A peer sent an update that is malformed or too large; nothing of it was taken over."""

    hint = "the peer may run another release; if not, look at its log"


class AntiEntropy:
    """The conversation with one peer about one document.

    Args:
        state: the node's replica; other conversations share it.
        interval_s: mean time between two comparisons that this side starts.
        rng: jitter of the interval.
        now: monotonic seconds; the first comparison is due at once.
    """

    def __init__(
        self, state: Document, *, interval_s: float, rng: random.Random, now: float
    ) -> None:
        self.counters: Counter[str] = Counter()
        """Messages by "sent <kind>" and "received <kind>"; "clock_skew"."""
        self._state = state
        self._interval_s = interval_s
        self._rng = rng
        self._compare_at = now
        self._push_at = now
        self._pushed_edits = -1
        self._pushed_sequence = 0
        self._convictions = state.convictions
        # What waits to be said. Dicts serve as ordered sets: the order must not depend on hashes.
        self._say_digest = False
        self._say_ranges = False
        self._pages: dict[tuple[bytes, bytes], None] = {}
        self._wanted: dict[bytes, None] = {}
        self._owed: dict[Name, None] = {}
        self._rumours: dict[Name, None] = {}  # owed once the next push is due

    @property
    def pushed(self) -> bool:
        """Whether all edits of this node have been handed out by `outgoing`."""
        return self._pushed_edits == self._state.edits and not any(
            name in self._owed for name in self._state.own_names()
        )

    # Time

    def next_deadline(self) -> float:
        """When `tick` has something to do."""
        if self._pushed_edits != self._state.edits or self._rumours:
            return min(self._compare_at, self._push_at)
        return self._compare_at

    def tick(self, now: float) -> None:
        """Do what is due. Call it after local edits too: that is how they are noticed."""
        if now >= self._push_at and (self._rumours or self._pushed_edits != self._state.edits):
            self._push_at = now + PUSH_GAP_S
            self._owe(self._rumours)
            self._rumours.clear()
            self._pushed_edits = self._state.edits
            self._owe(self._state.own_names(above=self._pushed_sequence))
            self._pushed_sequence = self._state.sequence
        if self._convictions != self._state.convictions:
            self._convictions = self._state.convictions
            self._owe((writer, "") for writer in self._state.convicted())
        if now >= self._compare_at:
            self._say_digest = True
            self._postpone(now)

    def _postpone(self, now: float) -> None:
        self._compare_at = now + self._interval_s * self._rng.uniform(1 - JITTER, 1 + JITTER)

    # In

    def receive(self, untrusted: object, now: float) -> list[Name]:
        """Take one message.

        Returns:
            What others may not have heard of yet, to be passed on.

        Raises:
            RefusedUpdate: it is malformed or too large; the state is unchanged.
        """
        kind = untrusted.get("t") if isinstance(untrusted, dict) else None
        news: list[Name] = []
        try:
            if kind == "delta":
                news = self._receive_delta(untrusted)
            elif kind == "digest":
                self._receive_digest(untrusted)
                self._postpone(now)  # they have just compared; no need for us to
            elif kind == "context":
                self._receive_context(untrusted)
            elif kind == "ranges":
                self._receive_ranges(untrusted)
            elif kind == "want":
                self._receive_want(untrusted)
            else:
                raise RefusedUpdate("an update of unknown kind")
        except CrdtError as error:
            raise RefusedUpdate(f"{kind}: {error}", hint=error.hint) from error
        self.counters[f"received {kind}"] += 1
        return news

    def pass_on(self, names: Iterable[Name], now: float) -> None:
        """Say what was heard from another partner, as soon as `PUSH_GAP_S` allows."""
        self._rumours |= dict.fromkeys(names)
        while len(self._rumours) > BATCH:  # a slow partner compares anyway
            del self._rumours[next(iter(self._rumours))]
        self._push_at = max(self._push_at, now)

    def _receive_delta(self, untrusted: object) -> list[Name]:
        try:
            names = self._state.hear(untrusted)
        except ClockSkew:
            # Nobody's fault that can be told from here: one of two clocks is wrong.
            self.counters["clock_skew"] += 1
            return []
        for name in names:  # the partner has just said it
            self._rumours.pop(name, None)
        return names if len(names) <= RUMOUR_ENTRIES else []

    def _receive_digest(self, untrusted: object) -> None:
        (digest,) = as_fields(untrusted, "digest", ("digest",), version=VERSION)
        if as_bytes(digest, "digest", least=32, most=32) == self._state.digest():
            return
        if len(self._state) <= PAGE_WRITERS:
            self._pages[(b"", b"")] = None
        else:
            self._say_ranges = True

    def _receive_ranges(self, untrusted: object) -> None:
        (untrusted_ranges,) = as_fields(untrusted, "ranges", ("ranges",), version=VERSION)
        rows = [
            as_row(row, "range", length=2)
            for row in as_list(untrusted_ranges, "ranges", most=BATCH)
        ]
        starts = [as_bytes(row[0], "range start", most=32) for row in rows]
        digests = [
            as_bytes(row[1], "range digest", least=_DIGEST_BYTES, most=_DIGEST_BYTES)
            for row in rows
        ]
        check_ascending(starts, "ranges")
        ends = [*starts[1:], b""]
        pages: list[tuple[bytes, bytes]] = []
        for start, end, digest in zip(starts, ends, digests, strict=True):
            if self._range_digest(start, end) != digest:
                pages += self._state.ranges(PAGE_WRITERS, start, end)
        for page in pages:
            if len(self._pages) < MAX_PAGES:
                self._pages[page] = None

    def _receive_context(self, untrusted: object) -> None:
        theirs = Seen.of(untrusted)
        self._owe(self._state.they_lack(theirs))
        if len(self._wanted) < MAX_WRITERS:
            self._wanted |= dict.fromkeys(self._state.we_lack(theirs))

    def _receive_want(self, untrusted: object) -> None:
        self._owe(self._state.they_lack(untrusted))

    def _owe(self, names: Iterable[Name]) -> None:
        if len(self._owed) < MAX_OWED:
            self._owed |= dict.fromkeys(names)

    # Out

    def outgoing(self) -> list[dict[str, Any]]:
        """Take the next message to send: one or none.

        One at a time, so that what has to wait behind a slow peer is made from the newest state.
        Ask again until there is none.
        """
        message = self._next()
        if message is None:
            return []
        self.counters[f"sent {message['t']}"] += 1
        return [message]

    def _next(self) -> dict[str, Any] | None:
        while self._owed:
            if (message := self._next_delta()) is not None:
                return message
        if self._wanted:
            batch = _first(self._wanted, PAGE_WRITERS)
            for writer in batch:
                del self._wanted[writer]
            return {"t": "want", **self._state.want(batch)}
        if self._pages:
            page = next(iter(self._pages))
            del self._pages[page]
            return {"t": "context", **self._state.context(*page)}
        if self._say_ranges:
            self._say_ranges = False
            ranges = [
                [start, self._range_digest(start, end)]
                for start, end in self._state.ranges(PAGE_WRITERS)
            ]
            return {"t": "ranges", "v": VERSION, "ranges": ranges}
        if self._say_digest:
            self._say_digest = False
            return {"t": "digest", "v": VERSION, "digest": self._state.digest()}
        return None

    def _next_delta(self) -> dict[str, Any] | None:
        batch = _first(self._owed, BATCH)
        delta, told = self._state.delta(batch, max_bytes=DELTA_BYTES)
        for name in batch[:told]:
            del self._owed[name]
        # None: what was owed has been dropped meanwhile.
        return None if delta is None else {"t": "delta", **delta}

    def _range_digest(self, start: bytes, end: bytes) -> bytes:
        return self._state.range_digest(start, end)[:_DIGEST_BYTES]


def _first(names: dict[T, None], count: int) -> list[T]:
    return [name for name, _ in zip(names, range(count), strict=False)]
