import random

import pytest

from dht.contact import Contact
from dht.errors import DhtError, InvalidRecord, TooManyRecords
from dht.publish import Publisher

WALL = 1_800_000_000.0


def open_publisher(*, k: int = 2, limit: int = 3) -> Publisher:
    return Publisher(
        swarm_id=bytes(32),
        public_key=b"p" * 32,
        sign=lambda _: bytes(64),
        rng=random.Random(1),
        k=k,
        republish_s=2400.0,
        limit=limit,
    )


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def test_sequence_rises_even_if_the_clock_does_not() -> None:
    publisher = open_publisher()
    first = publisher.put(key(1), b"a", 7200, 0.0, WALL)
    second = publisher.put(key(1), b"b", 7200, 0.0, WALL)
    third = publisher.put(key(1), b"c", 7200, 0.0, WALL - 1000)
    fourth = publisher.renew(key(1), WALL, above=third.sequence + 50)
    assert fourth is not None
    sequences = [first.sequence, second.sequence, third.sequence, fourth.sequence]
    assert sequences == [int(WALL * 1000) + n for n in (0, 1, 2, 53)]
    assert fourth.value == b"c"
    fifth = publisher.renew(key(1), WALL - 1000)
    assert fifth is not None
    assert fifth.sequence == fourth.sequence + 1
    fourth = fifth
    assert publisher.get(key(1)) == fourth


def test_limits() -> None:
    publisher = open_publisher()
    for number in (1, 2, 3):
        publisher.put(key(number), b"", 60, 0.0, WALL)
    publisher.put(key(3), b"again", 60, 0.0, WALL)
    with pytest.raises(TooManyRecords):
        publisher.put(key(4), b"", 60, 0.0, WALL)
    with pytest.raises(InvalidRecord):
        publisher.put(key(1), b"x" * 1001, 60, 0.0, WALL)
    for ttl_s in (0.5, -1.0, 86401.0, float("nan")):
        with pytest.raises(DhtError):
            publisher.put(key(1), b"", ttl_s, 0.0, WALL)
    assert publisher.withdraw(key(4)) is False
    assert publisher.withdraw(key(3)) is True
    assert len(publisher) == 2
    assert publisher.renew(key(3), WALL) is None


def test_republished_before_a_third_of_its_life_is_over() -> None:
    publisher = open_publisher()
    publisher.put(key(1), b"", 600, 0.0, WALL)
    publisher.started(key(1), 0.0)
    publisher.stored(key(1), b"h" * 32)
    publisher.ended(key(1), 1.0)
    due = publisher.next_due()
    assert due is not None
    assert 160 <= due <= 200
    assert publisher.due(due - 1) is None
    assert publisher.due(due) == key(1)


def test_alone_it_looks_again_soon_and_then_less_often() -> None:
    publisher = open_publisher()
    publisher.put(key(1), b"", 7200, 0.0, WALL)
    pauses, now = [], 0.0
    for _ in range(9):
        publisher.started(key(1), now)
        publisher.ended(key(1), now)
        due = publisher.next_due()
        assert due is not None
        pauses.append(due - now)
        now = due
    assert 4 <= pauses[0] <= 6
    assert 240 <= pauses[-1] <= 360
    publisher.started(key(1), now)
    publisher.stored(key(1), b"h" * 32)
    publisher.ended(key(1), now)
    due = publisher.next_due()
    assert due is not None
    assert due - now > 1800


def test_newcomer_gets_what_it_is_near_to() -> None:
    publisher = open_publisher(k=2)
    record = publisher.put(key(0), b"", 7200, 0.0, WALL)
    assert publisher.wanted_by(Contact(key(2**200))) == [record]  # fewer than k holders
    publisher.stored(key(0), key(5))
    publisher.stored(key(0), key(9))
    assert publisher.wanted_by(Contact(key(10))) == []
    assert publisher.wanted_by(Contact(key(8))) == [record]
    publisher.stored(key(0), key(8))
    assert publisher.holders(key(0)) == 2  # the farthest no longer counts
    assert publisher.wanted_by(Contact(key(9))) == []
    publisher.stored(key(77), key(8))
    assert publisher.holders(key(77)) == 0
