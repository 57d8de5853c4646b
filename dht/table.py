"""The routing table: k-buckets by length of the prefix shared with our own id.

Idea (Kademlia, section 2.4): bucket i holds contacts that share exactly i leading bits with us. Half of all
ids fall in bucket 0, a quarter in bucket 1 and so on, so with 256 possible buckets about log2(N) are in use
and we know our neighbourhood densely and the far side sparsely. Splitting buckets dynamically gives the same
sets with more code: rejected.

Finding the closest contacts does not look at the whole table. With p the prefix shared by target and own id:
ids in bucket p share more than p bits with the target and are closest; ids in all buckets above p differ
from the target at bit p, so they come next, together; buckets p-1, p-2, ... 0 follow one by one.

Invariants: own id never inside; bucket rules as in `bucket`; buckets are visited in index order, never by hash.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from dht.bucket import Bucket, Census, Entry, Seen
from dht.contact import Contact
from dht.key import KEY_BITS, distance, random_id_in_bucket, shared_prefix_bits


class Table:
    """The contacts a node knows and has authenticated."""

    def __init__(self, own_id: bytes, *, k: int = 20) -> None:
        self._own_id = own_id
        self._k = k
        self._buckets: dict[int, Bucket] = {}
        self._census = Census(k)
        self._own = int.from_bytes(own_id, "big")
        self._next_retry: float | None = None  # never later than the earliest retry due

    def __len__(self) -> int:
        return self._census.entries

    def __contains__(self, node_id: bytes) -> bool:
        return self._entry(node_id) is not None

    def contacts(self) -> list[Contact]:
        """Return every contact, sorted by distance from our own id, failing ones included."""
        return [entry.contact for entry in self.entries()]

    def entries(self) -> list[Entry]:
        """Return every entry, sorted by distance from our own id, failing ones included."""
        entries = (entry for bucket in self._buckets.values() for entry in _all(bucket))
        return sorted(entries, key=lambda entry: entry.number ^ self._own)

    def radius(self) -> int:
        """Return the distance of the k-th nearest contact from our own id, 0 when fewer are known."""
        nearest = self.closest(self._own_id, self._k)
        return distance(nearest[-1].node_id, self._own_id) if len(nearest) == self._k else 0

    def get(self, node_id: bytes) -> Contact | None:
        """Return what is known of `node_id`."""
        entry = self._entry(node_id)
        return None if entry is None else entry.contact

    def failing(self) -> int:
        """Return how many contacts did not answer when last asked."""
        return sum(
            entry.failures > 0 for bucket in self._buckets.values() for entry in _all(bucket)
        )

    def buckets(self) -> dict[int, int]:
        """Return how many contacts each bucket in use holds."""
        return {index: len(bucket) for index, bucket in sorted(self._buckets.items())}

    def seen(self, contact: Contact, now: float) -> tuple[Seen, Contact | None]:
        """Record an authenticated message from `contact`.

        Returns:
            What it did, and the least recently seen contact of a full bucket: ask whether it lives, since
            only its silence makes room.

        Raises:
            ValueError: the contact is ourselves.
        """
        if contact.node_id == self._own_id:
            raise ValueError("a node is not in its own table")
        bucket = self._bucket(contact.node_id, now)
        result = bucket.seen(contact, now)
        if self._census.surplus and self._census.binding:
            for other in self._buckets.values():
                other.drop_surplus()
        oldest = bucket.oldest() if result is Seen.WAITING else None
        return result, None if oldest is None else oldest.contact

    def last_seen(self, node_id: bytes) -> float | None:
        """Return when a message last came from `node_id` (monotonic seconds)."""
        entry = self._entry(node_id)
        return None if entry is None else entry.last_seen

    def failed(self, node_id: bytes, now: float) -> None:
        """Record that `node_id` did not answer, or answered with lies."""
        bucket = self._buckets.get(shared_prefix_bits(node_id, self._own_id))
        entry = None if bucket is None else bucket.failed(node_id, now)
        if entry is not None and (self._next_retry is None or entry.retry_at < self._next_retry):
            self._next_retry = entry.retry_at

    def remove(self, node_id: bytes) -> bool:
        """Forget `node_id` at once, since it no longer serves; return whether it held a place."""
        bucket = self._buckets.get(shared_prefix_bits(node_id, self._own_id))
        return bucket is not None and bucket.remove(node_id)

    def closest(self, target: bytes, count: int, *, retry_at: float | None = None) -> list[Contact]:
        """Return up to `count` contacts closest to `target`, closest first.

        Args:
            target: any 32-byte id.
            count: how many at most.
            retry_at: also return failing contacts whose pause is over at this time (monotonic seconds).
                Leave it out for answers to others: what does not answer us is not recommended.
        """
        found: list[Entry] = []
        goal = int.from_bytes(target, "big")
        for group in self._by_nearness(target):
            usable = [
                entry
                for bucket in group
                for entry in bucket.entries.values()
                if not entry.failures or (retry_at is not None and entry.retry_at <= retry_at)
            ]
            usable.sort(key=lambda entry: entry.number ^ goal)
            found += usable[: count - len(found)]
            if len(found) >= count:
                break
        return [entry.contact for entry in found]

    def due_retries(self, now: float, limit: int) -> list[Contact]:
        """Return up to `limit` failing contacts whose pause is over, each once until it fails again."""
        if self._next_retry is None or now < self._next_retry:
            return []
        due: list[Contact] = []
        upcoming: float | None = None
        for _, bucket in sorted(self._buckets.items()):
            for entry in _all(bucket):
                if not entry.failures or entry.retrying:
                    continue
                if entry.retry_at <= now and len(due) < limit:
                    due.append(entry.contact)
                    entry.retrying = True
                    continue
                if upcoming is None or entry.retry_at < upcoming:
                    upcoming = entry.retry_at
        self._next_retry = upcoming
        return due

    def next_retry(self) -> float | None:
        """Return when `due_retries` may have something (monotonic seconds), or None."""
        return self._next_retry

    def touch(self, target: bytes, now: float) -> None:
        """Note that a lookup of `target` refreshes the bucket it falls into."""
        bucket = self._buckets.get(shared_prefix_bits(target, self._own_id))
        if bucket is not None:
            bucket.touched_at = now

    def stale_targets(self, before: float, rng: random.Random) -> list[bytes]:
        """Return one random id in each bucket range that no lookup has touched since `before`.

        Ranges deeper than our nearest contact are covered by looking up our own id.
        """
        if not self._buckets:
            return []
        deepest = max((index for index, bucket in self._buckets.items() if len(bucket)), default=-1)
        stale = []
        for index in range(min(deepest + 1, KEY_BITS)):
            bucket = self._buckets.get(index)
            if bucket is None or bucket.touched_at <= before:
                stale.append(random_id_in_bucket(self._own_id, index, rng))
        return stale

    def _by_nearness(self, target: bytes) -> Iterator[list[Bucket]]:
        shared = shared_prefix_bits(target, self._own_id)
        indices = sorted(self._buckets)
        if shared in self._buckets:
            yield [self._buckets[shared]]
        yield [self._buckets[index] for index in indices if index > shared]
        for index in reversed(indices):
            if index < shared:
                yield [self._buckets[index]]

    def _bucket(self, node_id: bytes, now: float) -> Bucket:
        index = shared_prefix_bits(node_id, self._own_id)
        bucket = self._buckets.get(index)
        if bucket is None:
            bucket = self._buckets[index] = Bucket(self._k, now, self._census)
        return bucket

    def _entry(self, node_id: bytes) -> Entry | None:
        bucket = self._buckets.get(shared_prefix_bits(node_id, self._own_id))
        return None if bucket is None else bucket.entries.get(node_id)


def _all(bucket: Bucket) -> list[Entry]:
    return list(bucket.entries.values())
