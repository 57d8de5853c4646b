"""Records of our own: signed anew before they expire, known by whom they are held.

Holders do not pass records on (only a record's signer may store it, see `node`), so the writer keeps it alive:
every `republish_s`, or a third of its lifetime if that is sooner, it signs a new one with a higher sequence
and stores it at the nodes that are closest then. Between two rounds, a node met for the first time gets the
record at once if it is nearer to the key than a present holder, or if there are fewer than k holders: in a small
swarm whoever joins holds everything within a round-trip.

The sequence is the wall clock in milliseconds, or one more than the last: it rises across restarts without a
file. Should the clock have gone back, the search that precedes a store finds the old record, and `renew`
goes above it.

Invariants: at most `limit` keys; a key's sequence never repeats; times called `now` are monotonic seconds.
"""

from __future__ import annotations

import random

import attrs

from dht.contact import Contact
from dht.errors import DhtError, TooManyRecords
from dht.key import distance
from dht.record import MAX_SEQUENCE, MAX_TTL_S, Sign, SignedRecord, make_record

# While nobody holds a record but us, how soon to look for holders again.
_ALONE_FIRST_S = 5.0
_ALONE_MOST_S = 300.0


@attrs.define
class _Own:
    record: SignedRecord
    ttl_s: float
    due_at: float
    holders: dict[bytes, int] = attrs.field(factory=dict)  # node id -> distance from the key
    alone: int = 0  # rounds in a row that found no holder


class Publisher:
    """The records this node wants the swarm to hold."""

    def __init__(
        self,
        *,
        swarm_id: bytes,
        public_key: bytes,
        sign: Sign,
        rng: random.Random,
        k: int,
        republish_s: float,
        limit: int,
    ) -> None:
        self._swarm_id = swarm_id
        self._public_key = public_key
        self._sign = sign
        self._rng = rng
        self._k = k
        self._republish_s = republish_s
        self._limit = limit
        self._own: dict[bytes, _Own] = {}

    def __len__(self) -> int:
        return len(self._own)

    def get(self, key: bytes) -> SignedRecord | None:
        """Return our current record under `key`."""
        own = self._own.get(key)
        return None if own is None else own.record

    def put(self, key: bytes, value: bytes, ttl_s: float, now: float, wall: float) -> SignedRecord:
        """Sign `value` and keep it published under `key` until withdrawn.

        Raises:
            InvalidRecord: the value is too large.
            TooManyRecords: `limit` other keys are published.
            DhtError: the lifetime is not between 1 second and a day.
        """
        if not 1.0 <= ttl_s <= MAX_TTL_S:
            raise DhtError(f"a record lives between 1 and {MAX_TTL_S:.0f} seconds")
        held = self._own.get(key)
        if held is None and len(self._own) >= self._limit:
            raise TooManyRecords(
                f"{self._limit} records are published already", hint="withdraw one, or join some"
            )
        above = -1 if held is None else held.record.sequence
        record = self._make(key, value, ttl_s, above, wall)
        holders = {} if held is None else held.holders
        self._own[key] = _Own(record, ttl_s, now + self._pause(ttl_s), holders)
        return record

    def withdraw(self, key: bytes) -> bool:
        """Stop publishing `key`; its holders drop the record when it expires."""
        return self._own.pop(key, None) is not None

    def renew(self, key: bytes, wall: float, *, above: int = -1) -> SignedRecord | None:
        """Sign the record under `key` anew, with a sequence higher than its own and `above`."""
        own = self._own.get(key)
        if own is None:
            return None
        above = max(above, own.record.sequence)
        own.record = self._make(key, own.record.value, own.ttl_s, above, wall)
        return own.record

    def due(self, now: float) -> bytes | None:
        """Return the key to publish again now, the most overdue first."""
        due = min(self._own.items(), key=lambda item: item[1].due_at, default=None)
        return None if due is None or due[1].due_at > now else due[0]

    def next_due(self) -> float | None:
        """Return when `due` will have something, or None."""
        return min((own.due_at for own in self._own.values()), default=None)

    def started(self, key: bytes, now: float) -> None:
        """Note that a round for `key` has begun; the next is due a full pause later."""
        own = self._own.get(key)
        if own is not None:
            own.due_at = now + self._pause(own.ttl_s)
            own.holders = {}

    def stored(self, key: bytes, node_id: bytes) -> None:
        """Note that `node_id` says it holds our record under `key`."""
        own = self._own.get(key)
        if own is None:
            return
        own.holders[node_id] = distance(node_id, key)
        if len(own.holders) > self._k:
            del own.holders[max(own.holders, key=lambda holder: own.holders[holder])]

    def ended(self, key: bytes, now: float) -> None:
        """Note that a round for `key` has ended; without holders the next comes soon."""
        own = self._own.get(key)
        if own is None:
            return
        if own.holders:
            own.alone = 0
            return
        pause_s = min(_ALONE_MOST_S, _ALONE_FIRST_S * 2.0 ** min(own.alone, 10))
        own.alone += 1
        own.due_at = min(own.due_at, now + pause_s * self._rng.uniform(0.8, 1.2))

    def holders(self, key: bytes) -> int:
        """Return how many other nodes said they hold our record under `key`."""
        own = self._own.get(key)
        return 0 if own is None else len(own.holders)

    def wanted_by(self, newcomer: Contact) -> list[SignedRecord]:
        """Return the records that a node met for the first time should hold."""
        wanted = []
        for key, own in self._own.items():
            farthest = max(own.holders.values(), default=0)
            if len(own.holders) < self._k or distance(newcomer.node_id, key) < farthest:
                wanted.append(own.record)
        return wanted

    def _pause(self, ttl_s: float) -> float:
        return min(self._republish_s, ttl_s / 3) * self._rng.uniform(0.8, 1.0)

    def _make(
        self, key: bytes, value: bytes, ttl_s: float, above: int, wall: float
    ) -> SignedRecord:
        return make_record(
            swarm_id=self._swarm_id,
            key=key,
            value=value,
            public_key=self._public_key,
            sequence=min(MAX_SEQUENCE, max(int(wall * 1000), above + 1)),
            expires_at=int(wall + ttl_s),
            sign=self._sign,
        )
