"""Disjoint paths, regions and address groups of a search, by direct calls."""

import random

from hypothesis import given
from hypothesis import strategies as st

from dht.contact import Contact
from dht.key import distance
from dht.lookup import MAX_CANDIDATES, Lookup, LookupSettings

OWN = b"\xff" * 32
TARGET = bytes(32)


def contact(number: int, host: str = "10.0.0.1") -> Contact:
    return Contact(number.to_bytes(32, "big"), (f"{host}:7447",))


def start(
    seeds: list[Contact], *, paths: int = 1, region: int = 0, k: int = 4, alpha: int = 4
) -> Lookup:
    return Lookup(
        TARGET,
        seeds,
        own_id=OWN,
        now=0.0,
        settings=LookupSettings(k=k, alpha=alpha),
        paths=paths,
        region=region,
    )


def number(contact: Contact) -> int:
    return int.from_bytes(contact.node_id, "big")


def play(lookup: Lookup, hints: dict[int, list[Contact]]) -> list[int]:
    """Answer every query at once from `hints`, nobody being silent; return who was asked, in order."""
    asked: list[int] = []
    while batch := lookup.outgoing(0.0):
        for each in batch:
            asked.append(number(each))
            lookup.answered(each, hints.get(number(each), []), 0.0)
    assert lookup.finished
    return asked


LIARS = list(range(1, 9))


def captured(paths: int) -> list[int]:
    """Seed 100 is a liar, and nearest; the honest chain begins at 101. The true nearest are 10 to 13."""
    named = [contact(n) for n in LIARS]
    hints = {
        100: named,
        **{liar: [contact(n) for n in LIARS if n != liar] for liar in LIARS},
        101: [contact(50), contact(51)],
        50: [contact(n) for n in (10, 11, 12, 13)],
    }
    lookup = start([contact(100), contact(101)], paths=paths, alpha=1)
    return play(lookup, hints)


def test_one_path_is_captured_and_two_are_not() -> None:
    assert not {10, 11, 12, 13} & set(captured(1))
    assert {10, 11, 12, 13} <= set(captured(2))


@given(st.integers(0, 2**32), st.integers(1, 8), st.integers(1, 40))
def test_any_number_of_paths_finds_the_true_nearest_at_rest(
    seed: int, paths: int, count: int
) -> None:
    """Everybody knows the k nearest to anything: nobody is asked twice, and the result is exact."""
    rng = random.Random(seed)
    everybody = [contact(n) for n in sorted(rng.sample(range(1, 10000), 60))]
    answer = everybody[:4]
    lookup = start(rng.sample(everybody, count), paths=paths)
    asked = play(lookup, {number(each): answer for each in everybody})
    assert len(asked) == len(set(asked)) == lookup.queries
    assert lookup.closest() == answer
    assert 1 <= lookup.hops <= 3
    assert len(asked) <= 4 + 8 * max(2, paths) + 4


def test_region_is_asked_beyond_the_k_nearest_within_a_bound() -> None:
    known = [contact(n) for n in range(1, 30)]
    assert play(start(known), {}) == [1, 2, 3, 4]
    assert sorted(play(start(known, region=7), {})) == [1, 2, 3, 4, 5, 6, 7]
    lookup = start(known, region=1000)
    assert sorted(play(lookup, {})) == list(range(1, 13))  # 3 k
    assert [number(each) for each in lookup.responsible()] == list(range(1, 13))
    assert [number(each) for each in lookup.closest()] == [1, 2, 3, 4]


def test_one_network_gets_two_of_the_k_places_while_there_are_others() -> None:
    ground = [contact(n, "8.8.8.8") for n in range(1, 9)]
    others = [contact(100 + n, f"{20 + n}.1.1.1") for n in range(6)]
    lookup = start([*ground, *others])
    assert sorted(play(lookup, {})) == [1, 2, 100, 101]
    assert [number(each) for each in lookup.responsible()] == [1, 2, 100, 101]
    alone = start(ground)
    assert sorted(play(alone, {})) == [1, 2, 3, 4]


def test_silent_members_of_a_network_free_its_places() -> None:
    """Names in an honest network that nobody answers for do not keep its real nodes out."""
    invented = [contact(n, "8.8.8.8") for n in (1, 2)]
    real = [contact(n, "8.8.8.9") for n in (5, 6)]
    others = [contact(100 + n, f"{20 + n}.1.1.1") for n in range(6)]
    lookup = start([*invented, *real, *others])
    first = [number(each) for each in lookup.outgoing(0.0)]
    assert first == [1, 2, 100, 101]
    for each in invented:
        lookup.failed(each.node_id, 0.1)
    assert [number(each) for each in lookup.outgoing(0.1)] == [5, 6]


def test_second_address_works_on_other_paths() -> None:
    lookup = start([contact(8), contact(9)], paths=2, alpha=1)
    assert [number(each) for each in lookup.outgoing(0.0)] == [8, 9]
    lookup.answered(contact(8), [contact(1, "10.6.6.6")], 0.1)
    (false,) = lookup.outgoing(0.1)
    lookup.failed(false.node_id, 0.2)
    lookup.answered(contact(9), [contact(1)], 0.3)
    assert [each.addresses for each in lookup.outgoing(0.3)] == [("10.0.0.1:7447",)]
    lookup.answered(contact(1), [], 0.4)
    assert lookup.finished
    assert [number(each) for each in lookup.closest()] == [1, 8, 9]


@given(
    st.integers(0, 2**32),
    st.integers(1, 40),
    st.integers(1, 8),
    st.integers(0, 2**30),
    st.booleans(),
)
def test_terminates_within_bounds_whatever_peers_do(
    seed: int, count: int, paths: int, region: int, public: bool
) -> None:
    rng = random.Random(seed)

    def anybody(bits: int) -> Contact:
        host = f"{20 + rng.randrange(5)}.{rng.randrange(3)}.1.1" if public else "10.0.0.1"
        return contact(rng.getrandbits(bits), host)

    lookup = start([anybody(16) for _ in range(count)], paths=paths, region=region)
    now, flight, steps = 0.0, list(lookup.outgoing(0.0)), 0
    while not lookup.finished:
        steps += 1
        assert steps < 3000
        deadline = lookup.next_deadline()
        assert deadline is not None
        if flight and rng.random() < 0.8:
            query = flight.pop(rng.randrange(len(flight)))
            now += rng.random() * 0.2
            if rng.random() < 0.3:
                lookup.failed(query.node_id, now)
            else:
                lookup.answered(query, [anybody(40) for _ in range(rng.randrange(6))], now)
        else:
            now = max(now, deadline)
        lookup.tick(now)
        flight += lookup.outgoing(now)
        assert len(lookup._flight) <= max(4, 3 * paths) + 4
        for path in (*lookup._paths, lookup._all):
            order = [each.distance for each in path.order]
            assert order == sorted(set(order))
            assert len(order) <= MAX_CANDIDATES
            assert path.flight >= 0
    assert now <= 15.2
    assert lookup.queries <= 256
    found = [distance(each.node_id, TARGET) for each in lookup.closest()]
    assert found == sorted(found)
    assert len(found) <= 4
