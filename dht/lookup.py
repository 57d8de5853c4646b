"""Iterative search for the nodes closest to a target: asks, takes answers and failures, ends.

Idea (Kademlia, section 2.3): keep candidates sorted by distance; ask the nearest not yet asked, up to `alpha`
at a time; each answer brings nearer candidates; stop when the k nearest that respond have all been asked.

What is added, and why:
* *Patience.* A query without answer after `patience_s` is late: it no longer holds a slot nor the end of the
  search, so one black hole costs its patience, not its timeout. A late answer still counts. If nobody at all
  has answered by then, the search ends with nothing: whoever asks can try again, its queries go on meanwhile.
* *Second address.* Candidates are hearsay. A liar can name a real node with a false address; when another
  answer gives an address not yet tried, the candidate is asked once more.
* *Bounds.* At most `max_queries` queries, `MAX_CANDIDATES` candidates and `limit_s` seconds, whatever peers
  answer. A search under a flood of invented neighbours ends with what it has.

Invariants: never more than `alpha` queries that are not late; no candidate is asked twice with the same
addresses; never asks the searching node itself; order depends on ids alone, so a seed repeats a trace.
"""

from __future__ import annotations

import bisect
import enum
from collections.abc import Sequence

import attrs

from dht.contact import Contact, merge_addresses
from dht.key import distance

MAX_CANDIDATES = 256
# Hearsay addresses kept for one candidate, from all sources.
_MAX_CANDIDATE_ADDRESSES = 8
_MAX_ATTEMPTS = 2


class _Standing(enum.Enum):
    NEW = "new"
    ASKED = "asked"
    LATE = "late"
    ANSWERED = "answered"
    FAILED = "failed"


@attrs.define
class _Candidate:
    distance: int
    contact: Contact
    standing: _Standing = _Standing.NEW
    asked_at: float = 0.0
    attempts: int = 0


@attrs.frozen
class LookupSettings:
    """Width, patience and bounds of a search."""

    k: int = 20
    """How many closest nodes to find."""
    alpha: int = 10
    """Queries in flight; 10 halves the rounds of 3 for a third more queries."""
    patience_s: float = 1.0
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
    ) -> None:
        self.target = target
        self.queries = 0
        """Queries emitted so far."""
        self.finished = False
        self._own_id = own_id
        self._settings = settings or LookupSettings()
        self._started_at = now
        self._answers = 0
        self._flight: dict[bytes, _Candidate] = {}  # asked and not late, earliest first
        self._order: list[_Candidate] = []  # those not late or failed, sorted by distance
        self._by_id: dict[bytes, _Candidate] = {}
        self._add(seeds)
        self._settle(now)

    def outgoing(self, now: float) -> list[Contact]:
        """Return the candidates to ask now; each must be reported to `answered` or `failed`, or is late."""
        batch: list[Contact] = []
        for candidate in self._frontier():
            if len(self._flight) >= self._settings.alpha or self.finished:
                break
            if candidate.standing is _Standing.NEW and self._budget():
                candidate.standing = _Standing.ASKED
                candidate.asked_at = now
                candidate.attempts += 1
                self.queries += 1
                self._flight[candidate.contact.node_id] = candidate
                batch.append(candidate.contact)
        self._settle(now)
        return batch

    def answered(self, contact: Contact, hints: Sequence[Contact], now: float) -> None:
        """Take an answer from `contact` (authenticated), with the contacts it knows."""
        candidate = self._by_id.get(contact.node_id)
        if candidate is None or candidate.standing not in (_Standing.ASKED, _Standing.LATE):
            return
        self._leave_flight(candidate, _Standing.ANSWERED)
        candidate.contact = contact
        self._answers += 1
        self._add(hints)
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
        waits = [self._started_at + self._settings.limit_s]
        if not self._answers:
            waits.append(self._started_at + self._settings.patience_s)
        waits += [item.asked_at + self._settings.patience_s for item in self._flight.values()]
        return min(waits)

    def closest(self, count: int | None = None) -> list[Contact]:
        """Return the nodes that answered, closest first, at most `count` (default k)."""
        answered = [c.contact for c in self._order if c.standing is _Standing.ANSWERED]
        return answered[: self._settings.k if count is None else count]

    def _add(self, contacts: Sequence[Contact]) -> None:
        for contact in contacts:
            if contact.node_id == self._own_id:
                continue
            known = self._by_id.get(contact.node_id)
            if known is not None:
                if _learn(known, contact):
                    self._enlist(known)
                continue
            candidate = _Candidate(distance(contact.node_id, self.target), contact)
            if len(self._order) >= MAX_CANDIDATES and not self._drop_for(candidate):
                continue
            self._by_id[contact.node_id] = candidate
            self._enlist(candidate)

    def _drop_for(self, newcomer: _Candidate) -> bool:
        for index in range(len(self._order) - 1, -1, -1):
            last = self._order[index]
            if last.distance <= newcomer.distance:
                return False
            if last.standing is not _Standing.ASKED:
                del self._order[index]
                del self._by_id[last.contact.node_id]
                return True
        return False

    def _frontier(self) -> list[_Candidate]:
        """Return the k nearest candidates that are not known to be silent."""
        return self._order[: self._settings.k]

    def _enlist(self, candidate: _Candidate) -> None:
        bisect.insort(self._order, candidate, key=_by_distance)

    def _budget(self) -> bool:
        return self.queries < self._settings.max_queries

    def _leave_flight(self, candidate: _Candidate, standing: _Standing) -> None:
        self._flight.pop(candidate.contact.node_id, None)
        was_listed = candidate.standing is not _Standing.LATE
        candidate.standing = standing
        if standing is _Standing.ANSWERED:
            if not was_listed:
                self._enlist(candidate)
        elif was_listed:
            place = bisect.bisect_left(self._order, candidate.distance, key=_by_distance)
            del self._order[place]  # distances are unique: one id each

    def _settle(self, now: float) -> None:
        if self.finished:
            return
        # The same sums as in next_deadline: a difference would round differently and never be due.
        hopeless = not self._answers and now >= self._started_at + self._settings.patience_s
        if hopeless or now >= self._started_at + self._settings.limit_s:
            self.finished = True
            return
        self.finished = not any(
            candidate.standing is _Standing.ASKED
            or (candidate.standing is _Standing.NEW and self._budget())
            for candidate in self._frontier()
        )


def _by_distance(candidate: _Candidate) -> int:
    return candidate.distance


def _learn(known: _Candidate, heard: Contact) -> bool:
    """Add newly heard addresses to a candidate without answer; return whether it may be asked again."""
    if known.standing is _Standing.NEW:
        if len(known.contact.addresses) < _MAX_CANDIDATE_ADDRESSES and any(
            text not in known.contact.addresses for text in heard.addresses
        ):
            merged = merge_addresses(
                known.contact.addresses, heard.addresses, limit=_MAX_CANDIDATE_ADDRESSES
            )
            known.contact = Contact(known.contact.node_id, merged)
    elif known.standing is _Standing.FAILED and known.attempts < _MAX_ATTEMPTS:
        untried = tuple(text for text in heard.addresses if text not in known.contact.addresses)
        if untried:
            known.contact = Contact(known.contact.node_id, untried)
            known.standing = _Standing.NEW
            return True
    return False
