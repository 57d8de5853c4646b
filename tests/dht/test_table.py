"""Buckets and table: laws by Hypothesis against brute force, rules by direct calls."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.bucket import EVICT_AFTER, KEEP_FAILING_S, RETRY_FIRST_S, RETRY_MOST_S, Bucket, Seen
from dht.contact import Contact
from dht.key import distance, shared_prefix_bits
from dht.table import Table

OWN = bytes(32)
K = 4


def contact(node_id: bytes, port: int = 7447) -> Contact:
    return Contact(node_id, (f"10.0.0.1:{port}",))


def far(number: int) -> bytes:
    """An id in bucket 0 of OWN."""
    return b"\x80" + number.to_bytes(31, "big")


# few distinct ids, most of them in the first buckets and some very near: collisions and full buckets are the rule
ids = st.one_of(
    st.integers(0, 255).map(lambda n: bytes([n]) + bytes(31)),
    st.integers(0, 40).map(far),
    st.integers(1, 200).map(lambda n: n.to_bytes(32, "big")),
)
steps = st.lists(st.tuples(st.sampled_from(["seen", "failed", "retry"]), ids), max_size=120)


def play(script: list[tuple[str, bytes]]) -> tuple[Table, float]:
    table, now = Table(OWN, k=K), 0.0
    for verb, node_id in script:
        now += 1.0
        if verb == "seen" and node_id != OWN:
            table.seen(contact(node_id), now)
        elif verb == "failed":
            table.failed(node_id, now)
        else:
            table.due_retries(now, 3)
    return table, now


@given(steps)
def test_invariants_after_any_script(script: list[tuple[str, bytes]]) -> None:
    table, _ = play(script)
    known = [c.node_id for c in table.contacts()]
    assert OWN not in known
    assert OWN not in table
    assert len(known) == len(set(known)) == len(table)
    assert all(0 < size <= K for size in table.buckets().values() if size)
    for index, bucket in table._buckets.items():
        held = list(bucket.entries)
        waiting = [c.node_id for c in bucket.waiting]
        assert all(shared_prefix_bits(OWN, node_id) == index for node_id in held + waiting)
        assert len(waiting) <= K
        assert not set(held) & set(waiting)
        times = [entry.last_seen for entry in bucket.entries.values()]
        assert times == sorted(times)


@given(steps, st.binary(min_size=32, max_size=32) | ids, st.integers(1, 30))
def test_closest_equals_brute_force(
    script: list[tuple[str, bytes]], target: bytes, count: int
) -> None:
    table, now = play(script)
    entries = [entry for bucket in table._buckets.values() for entry in bucket.entries.values()]
    good = [e.contact for e in entries if not e.failures]
    due = [e.contact for e in entries if not e.failures or e.retry_at <= now]

    def brute(contacts: list[Contact]) -> list[Contact]:
        return sorted(contacts, key=lambda c: distance(c.node_id, target))[:count]

    assert table.closest(target, count) == brute(good)
    assert table.closest(target, count, retry_at=now) == brute(due)


@given(st.lists(st.integers(0, 60), min_size=1, max_size=200))
def test_live_old_contacts_are_never_pushed_out(numbers: list[int]) -> None:
    table = Table(OWN, k=K)
    first: list[bytes] = []
    for now, number in enumerate(numbers):
        node_id = far(number)
        table.seen(contact(node_id), float(now))
        if node_id not in first and len(first) < K:
            first.append(node_id)
    assert all(node_id in table for node_id in first)


def test_own_id_is_refused() -> None:
    table = Table(OWN, k=K)
    with pytest.raises(ValueError, match="own table"):
        table.seen(contact(OWN), 0.0)
    assert len(table) == 0


def test_full_bucket_names_its_oldest_and_silence_makes_room() -> None:
    table = Table(OWN, k=K)
    for number in range(K):
        assert table.seen(contact(far(number)), number) == (Seen.ADDED, None)
    table.seen(contact(far(0)), 10.0)  # heard from again: now the youngest
    seen, oldest = table.seen(contact(far(99)), 11.0)
    assert seen is Seen.WAITING
    assert oldest == contact(far(1))
    assert far(99) not in table
    table.failed(far(1), 12.0)
    assert far(1) in table  # one lost message is not death
    table.failed(far(1), 12.0 + RETRY_FIRST_S)
    assert far(1) not in table
    assert far(99) in table


def test_failures_under_way_together_count_once() -> None:
    bucket = Bucket(K, 0.0)
    bucket.seen(contact(far(1)), 0.0)
    for _ in range(5):
        bucket.failed(far(1), 1.0)
    entry = bucket.oldest()
    assert entry is not None
    assert entry.failures == 1


def test_newcomer_takes_the_place_of_the_dead() -> None:
    bucket = Bucket(K, 0.0)
    for number in range(K):
        bucket.seen(contact(far(number)), 0.0)
    now = 0.0
    for _ in range(EVICT_AFTER):
        bucket.failed(far(2), now)
        now += RETRY_MOST_S
    assert far(2) in bucket.entries  # nobody wants its place yet
    assert bucket.seen(contact(far(50)), now) is Seen.ADDED
    assert far(2) not in bucket.entries


def test_silent_contact_is_kept_hidden_retried_and_comes_back() -> None:
    table = Table(OWN, k=K)
    table.seen(contact(far(1)), 0.0)
    table.failed(far(1), 1.0)
    assert table.closest(OWN, 9) == []
    assert table.closest(OWN, 9, retry_at=1.5) == []
    assert table.next_retry() == 1.0 + RETRY_FIRST_S
    assert table.due_retries(1.5, 9) == []
    assert table.due_retries(3.0, 9) == [contact(far(1))]
    assert table.due_retries(3.0, 9) == []  # once, until it fails again
    table.failed(far(1), 4.0)
    assert table.next_retry() == 4.0 + 2 * RETRY_FIRST_S
    assert table.failing() == 1
    table.seen(contact(far(1), port=9), 5.0)
    assert table.failing() == 0
    assert table.closest(OWN, 9) == [contact(far(1), port=9)]


def test_silent_contact_is_forgotten_in_the_end() -> None:
    table = Table(OWN, k=K)
    table.seen(contact(far(1)), 0.0)
    now, failures = 0.0, 0
    while far(1) in table:
        now += RETRY_MOST_S
        table.failed(far(1), now)
        failures += 1
    assert KEEP_FAILING_S < now < KEEP_FAILING_S + 2 * RETRY_MOST_S
    assert failures > 10


def test_retries_are_bounded_per_call() -> None:
    table = Table(OWN, k=K)
    for number in range(K):
        table.seen(contact(far(number)), 0.0)
        table.failed(far(number), 0.0)
    assert len(table.due_retries(100.0, 3)) == 3
    assert table.next_retry() is not None
    assert len(table.due_retries(100.0, 9)) == K - 3  # the others are being asked
    assert table.next_retry() is None


def test_unknown_failure_changes_nothing() -> None:
    table = Table(OWN, k=K)
    table.failed(far(1), 0.0)
    assert len(table) == 0
    assert table.next_retry() is None
    assert table.get(far(1)) is None


def test_stale_targets_cover_untouched_ranges() -> None:
    table, rng = Table(OWN, k=K), random.Random(1)
    assert table.stale_targets(100.0, rng) == []
    table.seen(contact(b"\x10" + bytes(31)), 0.0)  # bucket 3
    targets = table.stale_targets(100.0, rng)
    assert [shared_prefix_bits(OWN, target) for target in targets] == [0, 1, 2, 3]
    table.touch(targets[3], 200.0)
    again = [shared_prefix_bits(OWN, t) for t in table.stale_targets(100.0, rng)]
    assert again == [0, 1, 2]
