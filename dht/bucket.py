"""A k-bucket: at most k contacts at one scale of distance, old live ones preferred.

Idea (Kademlia, sections 2.2 and 4.1): entries are ordered by when they were last heard from. A newcomer to a
full bucket waits in a replacement cache while the least recently seen entry is asked whether it lives; only
its silence makes room. Nodes that have been up long tend to stay up, and a flood of fresh identities cannot
push live nodes out.

Failing entries: after one unanswered query an entry is *failing*: not handed to others, retried by us after a
growing pause. After `EVICT_AFTER` failures it gives way to a waiting newcomer, if there is one. If there is
none it stays for `KEEP_FAILING_S`: in a small swarm its members are all there is to know, and a partition of
some minutes must heal without outside help.

Invariants: at most k entries and k replacements; no id in both; the first entry is the least recently seen.
"""

from __future__ import annotations

import enum

import attrs

from dht.contact import Contact

# One lost message must not cost a good node its place; a dead one should not hold it for long.
EVICT_AFTER = 2
# How long a silent contact is remembered when nobody wants its place.
KEEP_FAILING_S = 6 * 3600.0
# Pause before a failing contact is asked again: doubles from the first to the second value.
RETRY_FIRST_S = 2.0
RETRY_MOST_S = 300.0


class Seen(enum.Enum):
    """What hearing from a contact did to the bucket."""

    ADDED = "added"
    UPDATED = "updated"
    WAITING = "waiting"
    """The bucket is full: the contact is in the replacement cache."""


@attrs.define
class Entry:
    """A contact and how it has behaved; times are monotonic seconds."""

    contact: Contact
    last_seen: float
    failures: int = 0
    """Unanswered queries since it was last heard from."""
    retry_at: float = 0.0
    """When a failing entry is worth asking again."""
    retrying: bool = False
    """Whether it is being asked again, so that it is not due twice."""


class Bucket:
    """Contacts whose ids share the same number of leading bits with ours."""

    __slots__ = ("_k", "_replacements", "entries", "touched_at")

    def __init__(self, k: int, now: float) -> None:
        self._k = k
        self.entries: dict[bytes, Entry] = {}  # insertion order: least recently seen first
        self._replacements: dict[bytes, Entry] = {}
        self.touched_at = now
        """When a lookup last went through this bucket's range."""

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def full(self) -> bool:
        """Whether a newcomer has to wait."""
        return len(self.entries) >= self._k

    @property
    def waiting(self) -> tuple[Contact, ...]:
        """The replacement cache, least recently seen first."""
        return tuple(entry.contact for entry in self._replacements.values())

    def oldest(self) -> Entry | None:
        """Return the least recently seen entry."""
        return next(iter(self.entries.values()), None)

    def seen(self, contact: Contact, now: float) -> Seen:
        """Record that an authenticated message came from `contact`."""
        node_id = contact.node_id
        known = self.entries.pop(node_id, None)
        if known is not None:
            self.entries[node_id] = Entry(contact, now)
            return Seen.UPDATED
        if self.full:
            self._evict_one_dead()
        if not self.full:
            self._replacements.pop(node_id, None)
            self.entries[node_id] = Entry(contact, now)
            return Seen.ADDED
        self._replacements.pop(node_id, None)
        self._replacements[node_id] = Entry(contact, now)
        if len(self._replacements) > self._k:
            del self._replacements[next(iter(self._replacements))]
        return Seen.WAITING

    def failed(self, node_id: bytes, now: float) -> Entry | None:
        """Record an unanswered query; return the entry if it is still here (and failing)."""
        self._replacements.pop(node_id, None)
        entry = self.entries.get(node_id)
        if entry is None:
            return None
        if entry.failures and now < entry.retry_at:
            return entry  # queries that were under way together fail together: that is one failure
        entry.failures += 1
        entry.retrying = False
        pause_s = min(RETRY_MOST_S, RETRY_FIRST_S * 2.0 ** min(entry.failures - 1, 10))
        entry.retry_at = now + pause_s
        if entry.failures >= EVICT_AFTER and self._replacements:
            self._replace(node_id)
            return None
        if now - entry.last_seen > KEEP_FAILING_S:
            del self.entries[node_id]
            return None
        return entry

    def _evict_one_dead(self) -> None:
        for node_id, entry in self.entries.items():
            if entry.failures >= EVICT_AFTER:
                del self.entries[node_id]
                return

    def _replace(self, node_id: bytes) -> None:
        del self.entries[node_id]
        successor = next(reversed(self._replacements))  # heard from last: most likely alive
        entry = self._replacements.pop(successor)
        self.entries[successor] = entry
        # Its place in the order is by when it was seen, which may be before entries seen since.
        ordered = sorted(self.entries.items(), key=lambda item: item[1].last_seen)
        self.entries = dict(ordered)
