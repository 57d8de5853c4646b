"""Iterative search for the nodes closest to a target: asks, takes answers and failures, ends.

Idea (Kademlia, section 2.3): keep candidates sorted by distance; ask the nearest not yet asked, up to `alpha`
at a time; each answer brings nearer candidates; stop when the k nearest that respond have all been asked.

What is added, and why:
* *Disjoint paths* (Baumgart and Mies, "S/Kademlia", 2007, section 4.4). The seeds are dealt out to d paths; what a node answers is
  used by the path that asked it alone, and no node is asked twice. A path is done when the 2 k / d nearest nodes that no other
  path has taken have been asked, so the same liars cannot fill every path, and eight paths cost about three times as much as one, not
  eight times. Then the paths are closed: whatever is still unasked among the nearest of all that any path has heard of is asked.
* *Region.* With `region` not 0, all nodes that near the target are asked, not merely the k nearest (at most 3 k). An attacker who
  grinds k ids next to a key fills the k nearest places, but cannot empty the region (arXiv 2505.01139; see `density`).
* *Address groups* (see `diversity`). Of the k nearest, few may share a prefix, as long as there are others.
* *Patience.* A query without answer after `patience_s` is late: it no longer holds a slot nor the end of the
  search, so one black hole costs its patience, not its timeout. A late answer still counts. If nobody at all
  has answered by `alone_s`, the search ends with nothing: whoever asks can try again, its queries go on meanwhile.
* *Second address.* Candidates are hearsay. A liar can name a real node with a false address; when another
  answer gives an address not yet tried, the candidate is asked once more.
* *Bounds.* At most `max_queries` queries, `MAX_CANDIDATES` candidates per path and `limit_s` seconds, whatever peers
  answer. A search under a flood of invented neighbours ends with what it has.

Invariants: never more than `alpha` queries that are not late (`max(3, alpha // d)` on each of several paths); no candidate is asked
twice with the same addresses; never asks the searching node itself; order depends on ids alone, so a seed repeats a trace.
"""

from __future__ import annotations

import bisect
import enum
from collections.abc import Sequence

import attrs

from dht.contact import Contact, merge_addresses
from dht.diversity import SEARCH_QUOTA, Group, GroupCounter, groups_of

MAX_CANDIDATES = 256
MAX_PATHS = 8
# Nodes of the region that are asked, or made to hold a record, in multiples of k.
_REGION_MOST = 3
# Hearsay addresses kept for one candidate, from all sources.
_MAX_CANDIDATE_ADDRESSES = 8
_MAX_ATTEMPTS = 2
# Least queries in flight on each of several paths, and least nodes that each has to ask.
_LEAST_WIDTH = 3
_LEAST_SHARE = 8


class _Standing(enum.Enum):
    NEW = "new"
    ASKED = "asked"
    LATE = "late"
    ANSWERED = "answered"
    FAILED = "failed"


@attrs.define(eq=False)
class _Candidate:
    distance: int
    contact: Contact
    groups: tuple[Group, ...]
    standing: _Standing = _Standing.NEW
    asked_at: float = 0.0
    attempts: int = 0
    path: int = -1
    """Which path asked it."""
    depth: int = 1
    """Queries from the seeds to it, itself included."""
    heard: list[_Path] = attrs.field(factory=list)
    """The paths that know of it."""


@attrs.define(eq=False)
class _Path:
    number: int
    order: list[_Candidate] = attrs.field(factory=list)
    """Its candidates that are not late or failed, sorted by distance."""
    flight: int = 0


@attrs.frozen
class LookupSettings:
    """Width, patience and bounds of a search."""

    k: int = 20
    """How many closest nodes to find."""
    alpha: int = 10
    """Queries in flight; 10 halves the rounds of 3 for a third more queries."""
    paths: int = 4
    """Disjoint paths of searches that somebody waits for, 1 to 8; upkeep takes one."""
    patience_s: float = 1.0
    """After it a query is late, and waited for no longer."""
    alone_s: float = 0.9
    """After it a search that nobody has answered ends, so that whoever asked knows within a second."""
    limit_s: float = 15.0
    """The whole search."""
    max_queries: int = 256


class Lookup:
    """One search; times are monotonic seconds."""

    def __init__(
        self,
        target: bytes,
        seeds: Sequence[Contact],
        *,
        own_id: bytes,
        now: float,
        settings: LookupSettings | None = None,
        paths: int = 1,
        region: int = 0,
    ) -> None:
        self.target = target
        self.queries = 0
        """Queries emitted so far."""
        self.hops = 0
        """The longest chain of answers, each of which named the next node asked, and the last of which counted."""
        self.finished = False
        self._own_id = own_id
        self._goal = int.from_bytes(target, "big")
        self._settings = settings or LookupSettings()
        self._region = region
        self._started_at = now
        self._answers = 0
        self._grouped = False  # whether any candidate is in a group at all
        self._flight: dict[bytes, _Candidate] = {}  # asked and not late, earliest first
        self._by_id: dict[bytes, _Candidate] = {}
        count = max(1, min(paths, MAX_PATHS, len(seeds)))
        # The last path hears everything: it is the only one, or closes the others.
        self._all = _Path(count - 1 if count == 1 else count)
        self._paths = [_Path(number) for number in range(count)] if count > 1 else []
        self._width = max(_LEAST_WIDTH, self._settings.alpha // count)
        self._share = max(_LEAST_SHARE, -(-2 * self._settings.k // count))
        near = sorted(seeds, key=lambda contact: self._distance(contact.node_id))
        for place, contact in enumerate(near):
            self._hear(self._paths[place % count] if self._paths else self._all, contact, 1)
        self._settle(now)

    def outgoing(self, now: float) -> list[Contact]:
        """Return the candidates to ask now; each must be reported to `answered` or `failed`, or is late."""
        batch: list[Contact] = []
        if not self.finished:
            for path in self._paths:
                if path.flight < self._width:
                    self._ask(path, self._own(path), self._width, batch, now)
            if not any(path.flight for path in self._paths):
                self._ask(
                    self._all, self._choose(self._all.order), self._settings.alpha, batch, now
                )
        self._settle(now)
        return batch

    def answered(self, contact: Contact, hints: Sequence[Contact], now: float) -> None:
        """Take an answer from `contact` (authenticated), with the contacts it knows."""
        candidate = self._by_id.get(contact.node_id)
        if candidate is None or candidate.standing not in (_Standing.ASKED, _Standing.LATE):
            return
        self._leave_flight(candidate, _Standing.ANSWERED)
        candidate.contact = contact
        candidate.groups = groups_of(contact)
        self._grouped = self._grouped or bool(candidate.groups)
        self._answers += 1
        self.hops = max(self.hops, candidate.depth)
        path = self._path(candidate.path)
        for hint in hints:
            self._hear(path, hint, candidate.depth + 1)
        self._settle(now)

    def failed(self, node_id: bytes, now: float) -> None:
        """Take note that `node_id` could not be reached, or answered with lies."""
        candidate = self._by_id.get(node_id)
        if candidate is None or candidate.standing not in (_Standing.ASKED, _Standing.LATE):
            return
        self._leave_flight(candidate, _Standing.FAILED)
        self._settle(now)

    def tick(self, now: float) -> None:
        """Let patience run out where it is due."""
        for candidate in list(self._flight.values()):
            if now >= candidate.asked_at + self._settings.patience_s:
                self._leave_flight(candidate, _Standing.LATE)
        self._settle(now)

    def next_deadline(self) -> float | None:
        """Return when `tick` has something to do, or None when finished."""
        if self.finished:
            return None
        deadline = self._started_at + self._settings.limit_s
        if not self._answers:
            deadline = min(deadline, self._alone_until)
        for earliest in self._flight.values():
            return min(deadline, earliest.asked_at + self._settings.patience_s)
        return deadline

    @property
    def _alone_until(self) -> float:
        """When a search without any answer ends."""
        settings = self._settings
        return self._started_at + min(settings.alone_s, settings.patience_s)

    def closest(self, count: int | None = None) -> list[Contact]:
        """Return the nodes that answered, closest first, at most `count` (default k)."""
        answered = [candidate.contact for candidate in self._answered()]
        return answered[: self._settings.k if count is None else count]

    def responsible(self) -> list[Contact]:
        """Return the nodes that should hold a record: the k closest and the rest of the region, groups limited."""
        return [candidate.contact for candidate in self._choose(self._answered())]

    # Inside

    def _answered(self) -> list[_Candidate]:
        found = [c for c in self._by_id.values() if c.standing is _Standing.ANSWERED]
        return sorted(found, key=_by_distance)

    def _distance(self, node_id: bytes) -> int:
        return int.from_bytes(node_id, "big") ^ self._goal

    def _path(self, number: int) -> _Path:
        return self._paths[number] if number < len(self._paths) else self._all

    def _own(self, path: _Path) -> list[_Candidate]:
        """Return the nearest of one of several paths that no other has taken, few of any address group."""
        chosen: list[_Candidate] = []
        counter = GroupCounter()
        for candidate in path.order:
            if len(chosen) >= self._share:
                break
            if candidate.path not in (-1, path.number):
                continue
            if candidate.groups:
                if not counter.room(candidate.groups, SEARCH_QUOTA):
                    continue
                counter.add(candidate.groups)
            chosen.append(candidate)
        return chosen

    def _ask(
        self,
        path: _Path,
        nearest: list[_Candidate],
        width: int,
        batch: list[Contact],
        now: float,
    ) -> None:
        for candidate in nearest:
            if path.flight >= width or not self._budget():
                return
            if candidate.standing is not _Standing.NEW:
                continue
            candidate.standing = _Standing.ASKED
            candidate.asked_at = now
            candidate.attempts += 1
            candidate.path = path.number
            path.flight += 1
            self.queries += 1
            self._flight[candidate.contact.node_id] = candidate
            batch.append(candidate.contact)

    def _hear(self, path: _Path, contact: Contact, depth: int) -> None:
        """Take a hint into the path that got it, and into the one that hears everything."""
        node_id = contact.node_id
        if node_id == self._own_id:
            return
        known = self._by_id.get(node_id)
        if known is None:
            known = _Candidate(self._distance(node_id), contact, groups_of(contact), depth=depth)
            self._by_id[node_id] = known
            self._grouped = self._grouped or bool(known.groups)
        elif _learn(known, contact):
            for other in known.heard:
                _insert(other, known)
        self._enlist(path, known)
        if path is not self._all:
            self._enlist(self._all, known)
        if not known.heard:
            del self._by_id[node_id]  # no place anywhere

    def _enlist(self, path: _Path, candidate: _Candidate) -> None:
        if path in candidate.heard:
            return
        if candidate.standing in (_Standing.LATE, _Standing.FAILED):
            candidate.heard.append(path)  # enters the order should it come back
        elif self._has_place(path, candidate):
            candidate.heard.append(path)
            _insert(path, candidate)

    def _has_place(self, path: _Path, newcomer: _Candidate) -> bool:
        """Return whether `newcomer` may enter, after a farther candidate has gone if need be."""
        if len(path.order) < MAX_CANDIDATES:
            return True
        for index in range(len(path.order) - 1, -1, -1):
            last = path.order[index]
            if last.distance <= newcomer.distance:
                return False
            if last.standing is not _Standing.ASKED:
                del path.order[index]
                last.heard.remove(path)
                if not last.heard and last.standing is _Standing.NEW:
                    del self._by_id[last.contact.node_id]
                return True
        return False

    def _choose(self, order: list[_Candidate]) -> list[_Candidate]:
        """Return the k nearest and the rest of the region, with few of any address group while there are others."""
        k, most = self._settings.k, _REGION_MOST * self._settings.k
        if not self._grouped:
            end = min(k, len(order))
            while end < len(order) and end < most and order[end].distance <= self._region:
                end += 1
            return order[:end]
        chosen: list[_Candidate] = []
        spare: list[_Candidate] = []
        counter = GroupCounter()
        for candidate in order:
            if len(chosen) >= k and candidate.distance > self._region:
                break
            if len(chosen) >= most:
                break
            if counter.room(candidate.groups, SEARCH_QUOTA):
                counter.add(candidate.groups)
                chosen.append(candidate)
            else:
                spare.append(candidate)
        return chosen + spare[: max(0, k - len(chosen))]

    def _budget(self) -> bool:
        return self.queries < self._settings.max_queries

    def _leave_flight(self, candidate: _Candidate, standing: _Standing) -> None:
        if self._flight.pop(candidate.contact.node_id, None) is not None:
            self._path(candidate.path).flight -= 1
        was_listed = candidate.standing is not _Standing.LATE
        candidate.standing = standing
        if standing is _Standing.ANSWERED:
            if not was_listed:
                for path in candidate.heard:
                    _insert(path, candidate)
        elif was_listed:
            for path in candidate.heard:
                place = bisect.bisect_left(path.order, candidate.distance, key=_by_distance)
                del path.order[place]  # distances are unique: one id each

    def _settle(self, now: float) -> None:
        if self.finished:
            return
        # The same sums as in next_deadline: a difference would round differently and never be due.
        hopeless = not self._answers and now >= self._alone_until
        if hopeless or now >= self._started_at + self._settings.limit_s:
            self.finished = True
            return
        budget = self._budget()
        self.finished = not (
            any(_busy(self._own(path), budget=budget) for path in self._paths)
            or _busy(self._choose(self._all.order), budget=budget)
        )


def _busy(nearest: list[_Candidate], *, budget: bool) -> bool:
    """Return whether any of `nearest` is still to be asked, or to answer."""
    for candidate in nearest:
        if candidate.standing is _Standing.ASKED:
            return True
        if candidate.standing is _Standing.NEW and budget:
            return True
    return False


def _by_distance(candidate: _Candidate) -> int:
    return candidate.distance


def _insert(path: _Path, candidate: _Candidate) -> None:
    bisect.insort(path.order, candidate, key=_by_distance)


def _learn(known: _Candidate, heard: Contact) -> bool:
    """Add newly heard addresses to a candidate without answer; return whether it may be asked again."""
    if known.standing is _Standing.NEW:
        have = known.contact.addresses
        if heard.addresses == have or len(have) >= _MAX_CANDIDATE_ADDRESSES:
            return False
        if any(text not in have for text in heard.addresses):
            merged = merge_addresses(have, heard.addresses, limit=_MAX_CANDIDATE_ADDRESSES)
            known.contact = Contact(known.contact.node_id, merged)
            known.groups = groups_of(known.contact)
    elif known.standing is _Standing.FAILED and known.attempts < _MAX_ATTEMPTS:
        untried = tuple(text for text in heard.addresses if text not in known.contact.addresses)
        if untried:
            known.contact = Contact(known.contact.node_id, untried)
            known.groups = groups_of(known.contact)
            known.standing = _Standing.NEW
            return True
    return False
