import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.errors import InvalidKey
from dht.key import (
    KEY_BITS,
    check_key,
    distance,
    random_id_in_bucket,
    record_key,
    shared_prefix_bits,
)

ids = st.binary(min_size=32, max_size=32)


@given(ids, ids, ids)
def test_distance_is_a_metric(a: bytes, b: bytes, c: bytes) -> None:
    assert distance(a, a) == 0
    assert (distance(a, b) == 0) == (a == b)
    assert distance(a, b) == distance(b, a)
    assert distance(a, c) <= distance(a, b) + distance(b, c)


@given(ids, ids)
def test_for_each_distance_there_is_one_id(a: bytes, b: bytes) -> None:
    there = (int.from_bytes(a, "big") ^ distance(a, b)).to_bytes(32, "big")
    assert there == b


@given(ids, ids)
def test_shared_prefix_agrees_with_the_bits(a: bytes, b: bytes) -> None:
    bits = [f"{int.from_bytes(x, 'big'):0256b}" for x in (a, b)]
    expected = next((i for i in range(KEY_BITS) if bits[0][i] != bits[1][i]), KEY_BITS)
    assert shared_prefix_bits(a, b) == expected


@given(ids, st.integers(0, KEY_BITS - 1), st.integers(0, 2**32))
def test_random_id_falls_into_its_bucket(own: bytes, index: int, seed: int) -> None:
    assert shared_prefix_bits(own, random_id_in_bucket(own, index, random.Random(seed))) == index


def test_record_key_is_frozen() -> None:
    key = record_key(bytes(32), "run", "tiny")
    assert key.hex() == "e5e41c41948ea08e69c556dba8de8132defa2e69a15862ed910e80150da67c90"


def test_record_keys_are_framed() -> None:
    swarm = bytes(32)
    keys = {
        record_key(swarm, "ab", "c"),
        record_key(swarm, "a", "bc"),
        record_key(swarm, "abc"),
        record_key(swarm, b"abc"),
        record_key(swarm, "abc", ""),
        record_key(b"\1" + bytes(31), "abc"),
    }
    assert len(keys) == 6


@pytest.mark.parametrize("bad", [b"", bytes(31), bytes(33), "x" * 32, None])
def test_bad_keys_are_refused(bad: object) -> None:
    with pytest.raises(InvalidKey):
        check_key(bad)  # type: ignore[arg-type]
