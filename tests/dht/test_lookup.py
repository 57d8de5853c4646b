"""The search as a state machine: laws under arbitrary answers, rules by direct calls."""

import random

from hypothesis import given
from hypothesis import strategies as st

from dht.contact import Contact
from dht.key import distance
from dht.lookup import MAX_CANDIDATES, Lookup, LookupSettings

OWN = b"\xff" * 32
TARGET = bytes(32)


def contact(number: int, address: str = "10.0.0.1:7447") -> Contact:
    return Contact(number.to_bytes(32, "big"), (address,))


def start(seeds: list[Contact], **settings: float) -> Lookup:
    merged = {"k": 3, "alpha": 2, **settings}
    return Lookup(TARGET, seeds, own_id=OWN, now=0.0, settings=LookupSettings(**merged))  # type: ignore[arg-type]


def test_without_contacts_it_is_over_at_once() -> None:
    lookup = start([])
    assert lookup.finished
    assert lookup.outgoing(0.0) == []
    assert lookup.closest() == []
    assert lookup.next_deadline() is None


def test_asks_nearest_first_alpha_at_a_time_and_ends_when_k_nearest_have_answered() -> None:
    lookup = start([contact(n) for n in (9, 5, 7, 8)])
    assert lookup.outgoing(0.0) == [contact(5), contact(7)]
    assert lookup.outgoing(0.0) == []
    lookup.answered(contact(5), [contact(2), contact(30)], 0.1)
    assert lookup.outgoing(0.1) == [contact(2)]
    lookup.answered(contact(7), [], 0.2)
    assert not lookup.finished
    lookup.answered(contact(2), [contact(5), contact(7)], 0.3)
    assert lookup.finished
    assert lookup.closest() == [contact(2), contact(5), contact(7)]
    assert lookup.queries == 3  # 8, 9 and 30 are too far to matter


def test_failure_brings_in_the_next() -> None:
    lookup = start([contact(n) for n in (1, 2, 3, 4)], alpha=3)
    assert len(lookup.outgoing(0.0)) == 3
    lookup.failed(contact(2).node_id, 0.1)
    assert lookup.outgoing(0.1) == [contact(4)]
    for number in (1, 3, 4):
        lookup.answered(contact(number), [], 0.2)
    assert lookup.finished
    assert lookup.closest() == [contact(1), contact(3), contact(4)]


def test_unlucky_floats_do_not_keep_it_from_ending() -> None:
    started, patience_s = 0.7, 0.1  # (0.7 + 0.1) - 0.7 < 0.1
    settings = LookupSettings(patience_s=patience_s, alpha=1)
    seeds = [contact(1), contact(2)]
    lookup = Lookup(TARGET, seeds, own_id=OWN, now=started, settings=settings)
    lookup.outgoing(started)
    deadline = lookup.next_deadline()
    assert deadline is not None
    assert deadline - started < patience_s
    lookup.tick(deadline)
    assert lookup.finished


def test_when_nobody_answers_it_ends_within_a_second() -> None:
    lookup = start([contact(n) for n in range(1, 60)])
    lookup.outgoing(0.0)
    assert lookup.next_deadline() == 0.9
    lookup.tick(0.89)
    assert not lookup.finished
    lookup.tick(0.9)
    assert lookup.finished


def test_black_hole_costs_its_patience_not_its_timeout() -> None:
    lookup = start([contact(1), contact(2)], patience_s=1.0)
    lookup.outgoing(0.0)
    lookup.answered(contact(2), [], 0.1)
    assert not lookup.finished
    assert lookup.next_deadline() == 1.0
    lookup.tick(1.0)
    assert lookup.finished
    assert lookup.closest() == [contact(2)]


def test_late_answer_still_counts() -> None:
    lookup = start([contact(n) for n in (1, 2, 3)], alpha=2, patience_s=1.0)
    assert lookup.outgoing(0.0) == [contact(1), contact(2)]
    lookup.answered(contact(2), [], 0.9)
    assert lookup.outgoing(0.9) == [contact(3)]
    lookup.tick(1.0)  # 1 is late, 3 is not
    assert not lookup.finished
    lookup.answered(contact(1), [], 1.2)
    assert not lookup.finished
    lookup.answered(contact(3), [], 1.3)
    assert lookup.closest() == [contact(1), contact(2), contact(3)]


def test_never_asks_itself_and_ignores_strangers() -> None:
    lookup = start([contact(1), Contact(OWN, ("10.0.0.9:1",))])
    assert lookup.outgoing(0.0) == [contact(1)]
    lookup.answered(contact(77), [contact(5)], 0.1)
    lookup.failed(contact(77).node_id, 0.1)
    lookup.answered(contact(1), [Contact(OWN, ("10.0.0.9:1",))], 0.1)
    assert lookup.finished
    assert lookup.closest() == [contact(1)]


def test_false_address_is_corrected_by_another_answer_once() -> None:
    lookup = start([contact(8), contact(9)])
    lookup.outgoing(0.0)
    lookup.answered(contact(8), [contact(1, "10.6.6.6:1")], 0.1)
    assert lookup.outgoing(0.1) == [contact(1, "10.6.6.6:1")]
    lookup.failed(contact(1).node_id, 0.2)
    lookup.answered(contact(9), [contact(1, "10.6.6.6:1")], 0.3)
    assert lookup.outgoing(0.3) == []  # nothing new
    lookup = start([contact(8), contact(9)])
    lookup.outgoing(0.0)
    lookup.answered(contact(8), [contact(1, "10.6.6.6:1")], 0.1)
    lookup.outgoing(0.1)
    lookup.failed(contact(1).node_id, 0.2)
    lookup.answered(contact(9), [contact(1)], 0.3)
    assert lookup.outgoing(0.3) == [contact(1)]
    lookup.failed(contact(1).node_id, 0.4)
    assert lookup.finished


def test_unasked_candidate_collects_addresses() -> None:
    lookup = start([contact(8), contact(9)], alpha=1)
    lookup.outgoing(0.0)
    lookup.answered(contact(8), [contact(9, "10.0.0.2:1"), contact(9)], 0.1)
    (asked,) = lookup.outgoing(0.1)
    assert asked.addresses == ("10.0.0.1:7447", "10.0.0.2:1")


def test_flood_of_invented_neighbours_is_bounded() -> None:
    lookup = start([contact(2**40)], k=20, alpha=10, max_queries=64)
    rng, now, asked = random.Random(1), 0.0, 0
    pending = lookup.outgoing(now)
    while pending:
        asked += len(pending)
        now += 0.01
        for query in pending:
            if query == contact(2**40):
                lookup.answered(query, [contact(rng.getrandbits(32)) for _ in range(5000)], now)
            else:
                lookup.failed(query.node_id, now)
        assert len(lookup._all.order) <= MAX_CANDIDATES
        assert len(lookup._by_id) <= MAX_CANDIDATES + lookup.queries
        pending = lookup.outgoing(now)
    assert lookup.finished
    assert asked == lookup.queries <= 64


def test_limit_ends_it_whatever_happens() -> None:
    lookup = start([contact(1000)], limit_s=15.0)
    now, number = 0.0, 1000
    while not lookup.finished:
        for query in lookup.outgoing(now):
            number -= 1
            lookup.answered(query, [contact(number)], now)
        now += 1.0
        lookup.tick(now)
    assert now == 15.0


@given(st.floats(0, 1e9), st.floats(0.01, 5.0))
def test_a_tick_at_the_deadline_always_gets_on(now: float, patience_s: float) -> None:
    """Sums and differences of floats round differently; a deadline that is never due would spin for ever."""
    settings = LookupSettings(k=3, alpha=2, patience_s=patience_s, limit_s=7 * patience_s)
    seeds = [contact(n) for n in (1, 2, 3, 4)]
    lookup = Lookup(TARGET, seeds, own_id=OWN, now=now, settings=settings)
    lookup.outgoing(now)
    lookup.answered(contact(1), [], now)
    for _ in range(20):
        deadline = lookup.next_deadline()
        if deadline is None:
            break
        lookup.tick(deadline)
        lookup.outgoing(deadline)
    assert lookup.finished


@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(1, 8), st.integers(1, 4))
def test_terminates_within_bounds_whatever_peers_do(
    seed: int, count: int, k: int, alpha: int
) -> None:
    rng = random.Random(seed)
    lookup = start([contact(n) for n in range(1, count)], k=k, alpha=alpha, max_queries=50)
    now, flight = 0.0, [(c.node_id, c) for c in lookup.outgoing(0.0)]
    steps = 0
    while not lookup.finished:
        steps += 1
        assert steps < 2000
        deadline = lookup.next_deadline()
        assert deadline is not None
        if flight and rng.random() < 0.8:
            _, query = flight.pop(rng.randrange(len(flight)))
            now += rng.random() * 0.2
            if rng.random() < 0.3:
                lookup.failed(query.node_id, now)
            else:
                hints = [contact(rng.getrandbits(40)) for _ in range(rng.randrange(6))]
                lookup.answered(query, hints, now)
        else:
            now = max(now, deadline)
        lookup.tick(now)
        batch = lookup.outgoing(now)
        flight += [(c.node_id, c) for c in batch]
        assert len(lookup._flight) <= alpha
    assert now <= 15.0 + 0.2
    assert lookup.queries <= 50
    assert lookup.outgoing(now) == []
    found = [distance(c.node_id, TARGET) for c in lookup.closest()]
    assert found == sorted(found)
    assert len(found) <= k
