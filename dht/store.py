"""Records held for others: bounded in every direction, newest per signer.

Rules, in the order they are applied:
1. the record is cheap to refuse first: older than what is held, expired, too long-lived;
2. its signature verifies (the only expensive step);
3. a higher sequence of the same (key, signer) replaces the held one; an equal sequence is the same record
   again, or a lie that changes nothing;
4. a signer has at most `per_signer` records here: one more is refused, its old ones stay;
5. a key has at most `per_key` signers: one more replaces the signer that has been silent longest, out of the address group that has
   most of them (see `diversity`). Writers refresh their records, so live ones are recent; a run's dead members make room for its
   live ones; and a flood of identities from one network replaces itself;
6. once the store is half full, one address group has at most an eighth of it;
7. in total there are at most `total` records: one more replaces the record whose key is farthest from our own
   id, if the newcomer is nearer. Nearness is what makes a node responsible for a key.

Invariants: the caps hold after every call; every record held has been verified; expired ones are never
returned and leave at the next `expire`.
"""

from __future__ import annotations

import bisect
import enum
import math

from dht.diversity import Group
from dht.errors import InvalidRecord
from dht.key import distance
from dht.record import SignedRecord, Verify, check


class Kept(enum.Enum):
    """What became of an offered record; the value is the word sent to the writer."""

    STORED = "stored"
    STALE = "stale"
    EXPIRED = "expired"
    INVALID = "invalid"
    SIGNER_FULL = "signer full"
    GROUP_FULL = "network full"
    FULL = "full"


class RecordStore:
    """The records this node holds for the swarm; `wall` is always seconds since 1970."""

    def __init__(
        self,
        own_id: bytes,
        swarm_id: bytes,
        verify: Verify,
        *,
        per_signer: int = 64,
        per_key: int = 32,
        total: int = 4096,
    ) -> None:
        self._own_id = own_id
        self._swarm_id = swarm_id
        self._verify = verify
        self._per_signer = per_signer
        self._per_key = per_key
        self._total = total
        self._keys: dict[bytes, dict[bytes, SignedRecord]] = {}  # key -> signer -> oldest first
        self._groups: dict[tuple[bytes, bytes], tuple[Group, ...]] = {}  # (key, signer) in a group
        self._of_group: dict[Group, int] = {}
        self._by_distance: list[tuple[int, bytes]] = []  # every key once, nearest first
        self._of_signer: dict[bytes, int] = {}
        self._count = 0
        self._first_expiry = math.inf  # never later than the first record's end

    def __len__(self) -> int:
        return self._count

    def signers(self) -> int:
        """Return how many signers have records here."""
        return len(self._of_signer)

    def get(self, key: bytes, wall: float) -> list[SignedRecord]:
        """Return the live records under `key`, most recently stored first."""
        held = self._keys.get(key, {})
        return [record for record in reversed(held.values()) if not record.expired(wall)]

    def offer(self, record: SignedRecord, wall: float, groups: tuple[Group, ...] = ()) -> Kept:
        """Hold `record`, from a signer whose address is in `groups`, if the rules allow."""
        held = self._keys.get(record.key, {}).get(record.public_key)
        if held is not None and record.sequence <= held.sequence:
            return Kept.STORED if record == held else Kept.STALE
        try:
            check(record, swarm_id=self._swarm_id, key=record.key, wall=wall, verify=self._verify)
        except InvalidRecord as error:
            return Kept.EXPIRED if error.reason == "expired" else Kept.INVALID
        if held is not None:
            self._remove(record.key, record.public_key)
        else:
            refusal = self._make_room(record, wall, groups)
            if refusal is not None:
                return refusal
        self._add(record, groups)
        return Kept.STORED

    def expire(self, wall: float) -> int:
        """Drop records whose time is over; return how many."""
        if wall <= self._first_expiry:
            return 0
        over = [
            (key, signer)
            for key, signers in self._keys.items()
            for signer, record in signers.items()
            if record.expired(wall)
        ]
        for key, signer in over:
            self._remove(key, signer)
        self._first_expiry = min(
            (record.expires_at for signers in self._keys.values() for record in signers.values()),
            default=math.inf,
        )
        return len(over)

    def _make_room(
        self, record: SignedRecord, wall: float, groups: tuple[Group, ...]
    ) -> Kept | None:
        """Make room for one record under the caps; return the reason when there is none."""
        self.expire(wall)
        if self._of_signer.get(record.public_key, 0) >= self._per_signer:
            return Kept.SIGNER_FULL
        if self._count >= self._total // 2 and any(
            self._of_group.get(group, 0) >= max(1, self._total // 8) for group in groups
        ):
            return Kept.GROUP_FULL
        if len(self._keys.get(record.key, {})) >= self._per_key:
            self._remove(record.key, self._most_dispensable(record.key, groups))
        if self._count >= self._total:
            far, farthest = self._by_distance[-1]
            if far <= distance(record.key, self._own_id):
                return Kept.FULL
            self._remove(farthest, next(iter(self._keys[farthest])))
        return None

    def _most_dispensable(self, key: bytes, newcomer: tuple[Group, ...]) -> bytes:
        """Return the signer that gives way: the longest silent one of the most frequent group."""
        signers = self._keys[key]
        counts = dict.fromkeys(newcomer, 1)
        for signer in signers:
            for group in self._groups.get((key, signer), ()):
                counts[group] = counts.get(group, 0) + 1
        crowd = [
            max((counts[group] for group in self._groups.get((key, signer), ())), default=1)
            for signer in signers
        ]
        return list(signers)[crowd.index(max(crowd))]

    def _add(self, record: SignedRecord, groups: tuple[Group, ...]) -> None:
        key, signer = record.key, record.public_key
        if groups:
            self._groups[key, signer] = groups
            for group in groups:
                self._of_group[group] = self._of_group.get(group, 0) + 1
        if key not in self._keys:
            self._keys[key] = {}
            bisect.insort(self._by_distance, (distance(key, self._own_id), key))
        self._keys[key][signer] = record
        self._of_signer[signer] = self._of_signer.get(signer, 0) + 1
        self._count += 1
        self._first_expiry = min(self._first_expiry, record.expires_at)

    def _remove(self, key: bytes, signer: bytes) -> None:
        signers = self._keys[key]
        del signers[signer]
        for group in self._groups.pop((key, signer), ()):
            self._of_group[group] -= 1
            if not self._of_group[group]:
                del self._of_group[group]
        if not signers:
            del self._keys[key]
            place = (distance(key, self._own_id), key)
            del self._by_distance[bisect.bisect_left(self._by_distance, place)]
        left = self._of_signer[signer] - 1
        if left:
            self._of_signer[signer] = left
        else:
            del self._of_signer[signer]
        self._count -= 1
