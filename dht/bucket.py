"""A k-bucket: at most k contacts at one scale of distance, old live ones preferred.

Idea (Kademlia, sections 2.2 and 4.1): entries are ordered by when they were last heard from. A newcomer to a
full bucket waits in a replacement cache while the least recently seen entry is asked whether it lives; only
its silence makes room. Nodes that have been up long tend to stay up, and a flood of fresh identities cannot
push live nodes out.

Failing entries: after one unanswered query an entry is *failing*: not handed to others, retried by us after a
growing pause. After `EVICT_AFTER` failures it gives way to a waiting newcomer, if there is one. If there is
none it stays for `KEEP_FAILING_S`: in a small swarm its members are all there is to know, and a partition of
some minutes must heal without outside help.

Address groups (see `diversity`): a contact beyond the quota of its bucket or of the table is *surplus*. While the table knows fewer
than `enough` others, a surplus contact is better than an empty place: it is let in where there is room, and gives its place to the
first contact within the quotas. From then on it is refused, and never waits.

Invariants: at most k entries and k replacements; no id in both; the first entry is the least recently seen; once the table knows
`enough` contacts within the quotas, it holds none beyond them.
"""

from __future__ import annotations

import enum

import attrs

from dht.contact import Contact
from dht.diversity import BUCKET_QUOTA, TABLE_QUOTA, Group, GroupCounter, groups_of

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
    REFUSED = "refused"
    """Its address group has enough places."""


@attrs.define(eq=False)
class Entry:
    """A contact and how it has behaved; times are monotonic seconds."""

    contact: Contact
    last_seen: float
    groups: tuple[Group, ...] = ()
    surplus: bool = False
    """Beyond the quota of its groups."""
    failures: int = 0
    """Unanswered queries since it was last heard from."""
    retry_at: float = 0.0
    """When a failing entry is worth asking again."""
    retrying: bool = False
    """Whether it is being asked again, so that it is not due twice."""
    number: int = attrs.field(init=False)
    """The node id as a number: distances are taken all the time."""

    def __attrs_post_init__(self) -> None:
        self.number = int.from_bytes(self.contact.node_id, "big")


class Census:
    """What the buckets of one table have in common: sizes and groups."""

    __slots__ = ("enough", "entries", "groups", "surplus")

    def __init__(self, enough: int) -> None:
        self.enough = enough
        self.groups = GroupCounter()  # entries and replacements
        self.entries = 0
        self.surplus = 0

    @property
    def binding(self) -> bool:
        """Whether so many are known within the quotas that nobody beyond them is needed."""
        return self.entries - self.surplus >= self.enough


class Bucket:
    """Contacts whose ids share the same number of leading bits with ours."""

    __slots__ = ("_census", "_groups", "_k", "_replacements", "entries", "touched_at")

    def __init__(self, k: int, now: float, census: Census | None = None) -> None:
        self._k = k
        self._census = census or Census(k)
        self._groups = GroupCounter()  # entries and replacements
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
        known = self._leave(node_id) is not None
        self._forget(node_id)
        groups = groups_of(contact)
        entry = Entry(contact, now, groups, surplus=not self._within(groups))
        if entry.surplus and (self._census.binding or self.full):
            return Seen.REFUSED
        if self.full:
            self._make_room()
        if not self.full:
            self._enter(entry)
            return Seen.UPDATED if known else Seen.ADDED
        self._replacements[node_id] = entry
        self._count(groups)
        if len(self._replacements) > self._k:
            self._forget(next(iter(self._replacements)))
        return Seen.WAITING

    def failed(self, node_id: bytes, now: float) -> Entry | None:
        """Record an unanswered query; return the entry if it is still here (and failing)."""
        self._forget(node_id)
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
            self._leave(node_id)
            return None
        return entry

    def remove(self, node_id: bytes) -> bool:
        """Forget `node_id` at once; return whether it held a place."""
        self._forget(node_id)
        held = self._leave(node_id) is not None
        if held and self._replacements:
            self._promote()
        return held

    def drop_surplus(self) -> None:
        """Forget every entry beyond the quotas."""
        for node_id in [node_id for node_id, entry in self.entries.items() if entry.surplus]:
            self._leave(node_id)

    def _within(self, groups: tuple[Group, ...]) -> bool:
        if not groups:
            return True
        within = self._groups.room(groups, BUCKET_QUOTA)
        return within and self._census.groups.room(groups, TABLE_QUOTA)

    def _make_room(self) -> None:
        """Let the newest surplus entry go, or one that does not answer."""
        census = self._census
        surplus = [node_id for node_id, entry in self.entries.items() if entry.surplus]
        if census.surplus and surplus:
            self._leave(surplus[-1])
            return
        for node_id, entry in self.entries.items():
            if entry.failures >= EVICT_AFTER:
                self._leave(node_id)
                return

    def _replace(self, node_id: bytes) -> None:
        self._leave(node_id)
        self._promote()

    def _promote(self) -> None:
        successor = next(reversed(self._replacements))  # heard from last: most likely alive
        entry = self._replacements[successor]
        self._forget(successor)
        self._enter(entry)
        # Its place in the order is by when it was seen, which may be before entries seen since.
        ordered = sorted(self.entries.items(), key=lambda item: item[1].last_seen)
        self.entries = dict(ordered)

    # The only places where entries and replacements come and go: the counts follow.

    def _enter(self, entry: Entry) -> None:
        self.entries[entry.contact.node_id] = entry
        self._census.entries += 1
        self._census.surplus += entry.surplus
        self._count(entry.groups)

    def _leave(self, node_id: bytes) -> Entry | None:
        entry = self.entries.pop(node_id, None)
        if entry is not None:
            self._census.entries -= 1
            self._census.surplus -= entry.surplus
            self._uncount(entry.groups)
        return entry

    def _forget(self, node_id: bytes) -> None:
        entry = self._replacements.pop(node_id, None)
        if entry is not None:
            self._uncount(entry.groups)

    def _count(self, groups: tuple[Group, ...]) -> None:
        if groups:
            self._groups.add(groups)
            self._census.groups.add(groups)

    def _uncount(self, groups: tuple[Group, ...]) -> None:
        if groups:
            self._groups.remove(groups)
            self._census.groups.remove(groups)
