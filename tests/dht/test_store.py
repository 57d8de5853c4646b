import hashlib
from collections import Counter

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from dht.key import distance
from dht.record import CLOCK_TOLERANCE_S, SignedRecord, make_record
from dht.store import Kept, RecordStore

SWARM = bytes(32)
WALL = 1_800_000_000.0
OWN = bytes(32)


def signature(public_key: bytes, data: bytes) -> bytes:
    return hashlib.blake2b(data, key=public_key, digest_size=64).digest()


def verify(public_key: bytes, signed: bytes, data: bytes) -> bool:
    return signed == signature(public_key, data)


def record(
    signer: int, key: int, sequence: int = 1, *, ttl: float = 100, value: bytes = b"v"
) -> SignedRecord:
    public_key = signer.to_bytes(32, "big")
    return make_record(
        swarm_id=SWARM,
        key=key.to_bytes(32, "big"),
        value=value,
        public_key=public_key,
        sequence=sequence,
        expires_at=int(WALL + ttl),
        sign=lambda data: signature(public_key, data),
    )


def open_store(**caps: int) -> RecordStore:
    return RecordStore(OWN, SWARM, verify, **caps)


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def test_newest_wins_and_old_is_stale() -> None:
    store = open_store()
    assert store.offer(record(1, 7, 5), WALL) is Kept.STORED
    assert store.offer(record(1, 7, 5), WALL) is Kept.STORED
    assert store.offer(record(1, 7, 4), WALL) is Kept.STALE
    assert store.offer(record(1, 7, 5, value=b"other"), WALL) is Kept.STALE
    assert store.offer(record(1, 7, 6, value=b"new"), WALL) is Kept.STORED
    assert [r.value for r in store.get(key(7), WALL)] == [b"new"]
    assert len(store) == 1


def test_forged_record_is_refused_and_changes_nothing() -> None:
    store = open_store()
    store.offer(record(1, 7, 5), WALL)
    forged = msgspec.structs.replace(record(1, 7, 5), sequence=9)
    assert store.offer(forged, WALL) is Kept.INVALID
    assert store.offer(record(2, 7, ttl=10**6), WALL) is Kept.INVALID
    assert [r.sequence for r in store.get(key(7), WALL)] == [5]


def test_expired_records_are_neither_taken_nor_returned() -> None:
    store = open_store()
    assert store.offer(record(1, 7, ttl=-61), WALL) is Kept.EXPIRED
    store.offer(record(1, 7, ttl=100), WALL)
    later = WALL + 101 + CLOCK_TOLERANCE_S
    assert store.get(key(7), later) == []
    assert store.expire(later) == 1
    assert len(store) == store.signers() == 0
    assert store.expire(later) == 0


def test_signer_has_a_cap_and_keeps_what_it_has() -> None:
    store = open_store(per_signer=2)
    assert [store.offer(record(1, k), WALL) for k in (1, 2, 3)] == [
        Kept.STORED,
        Kept.STORED,
        Kept.SIGNER_FULL,
    ]
    assert store.offer(record(1, 2, 9), WALL) is Kept.STORED  # a refresh needs no room
    assert store.offer(record(2, 3), WALL) is Kept.STORED


def test_crowded_key_drops_the_signer_silent_longest() -> None:
    store = open_store(per_key=2)
    store.offer(record(1, 7), WALL)
    store.offer(record(2, 7), WALL)
    store.offer(record(1, 7, 2), WALL)
    store.offer(record(3, 7), WALL)
    assert [r.public_key[-1] for r in store.get(key(7), WALL)] == [3, 1]


def test_full_store_prefers_keys_near_to_it() -> None:
    store = open_store(total=2)
    store.offer(record(1, 10), WALL)
    store.offer(record(2, 20), WALL)
    assert store.offer(record(3, 30), WALL) is Kept.FULL
    assert store.offer(record(4, 5), WALL) is Kept.STORED
    assert store.get(key(20), WALL) == []
    assert len(store.get(key(10), WALL)) == 1


def test_full_store_makes_room_by_expiry_first() -> None:
    store = open_store(total=2)
    store.offer(record(1, 10, ttl=1), WALL)
    store.offer(record(2, 20, ttl=1000), WALL)
    assert store.offer(record(3, 30, ttl=1000), WALL + 62) is Kept.STORED
    assert len(store.get(key(20), WALL + 62)) == 1


@given(
    st.lists(
        st.tuples(st.integers(1, 5), st.integers(1, 8), st.integers(1, 4), st.integers(-100, 200)),
        max_size=80,
    )
)
def test_caps_and_counts_hold_after_any_script(script: list[tuple[int, int, int, int]]) -> None:
    store = open_store(per_signer=3, per_key=2, total=6)
    for now, (signer, number, sequence, ttl) in enumerate(script):
        before = {r.public_key: r.sequence for r in store.get(key(number), WALL)}
        kept = store.offer(record(signer, number, sequence, ttl=ttl), WALL + now)
        if kept is Kept.STORED:
            assert sequence >= before.get(signer.to_bytes(32, "big"), 0)
        every = [r for signers in store._keys.values() for r in signers.values()]
        assert len(every) == len(store) <= 6
        assert all(len(signers) <= 2 for signers in store._keys.values())
        assert all(store._keys.values())
        assert store._by_distance == sorted((distance(k, OWN), k) for k in store._keys)
        counts = Counter(r.public_key for r in every)
        assert counts == store._of_signer
        assert all(count <= 3 for count in counts.values())
        assert all(store._first_expiry <= r.expires_at for r in every)
