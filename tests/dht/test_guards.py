"""Tokens, allowances, a reader's memory and the size of the region: each by direct calls."""

import hashlib

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from dht.allowance import Allowance
from dht.density import Density
from dht.reading import MAX_SIGNERS, Findings, Memory
from dht.record import SignedRecord
from dht.tokens import PERIOD_S, TOKEN_BYTES, WriteTokens
from tests.dht.test_store import SWARM, WALL, key, record, verify


def sign(data: bytes) -> bytes:
    return hashlib.blake2b(data, key=b"mine", digest_size=64).digest()


@given(st.integers(-(10**6), 10**9))
def test_token_is_good_for_five_to_ten_minutes(now: int) -> None:
    tokens = WriteTokens(sign)
    token = tokens.give(key(1), key(2), now)
    assert len(token) == TOKEN_BYTES
    assert tokens.good(token, key(1), key(2), now)
    assert tokens.good(token, key(1), key(2), now + PERIOD_S)
    assert not tokens.good(token, key(1), key(2), now + 2 * PERIOD_S + 1)


def test_token_is_bound_to_asker_key_and_holder() -> None:
    tokens = WriteTokens(sign)
    token = tokens.give(key(1), key(2), 0.0)
    assert not tokens.good(token, key(3), key(2), 0.0)
    assert not tokens.good(token, key(1), key(3), 0.0)
    assert not WriteTokens(lambda data: sign(data + b"other")).good(token, key(1), key(2), 0.0)
    for bad in (b"", bytes(TOKEN_BYTES), token[:-1], token + b"x"):
        assert not tokens.good(bad, key(1), key(2), 0.0)


def test_few_secrets_are_kept_and_each_is_signed_once() -> None:
    signed: list[bytes] = []

    def counting(data: bytes) -> bytes:
        signed.append(data)
        return sign(data)

    tokens = WriteTokens(counting)
    for second in range(0, 36000, 10):
        assert not tokens.good(b"", key(1), key(2), second)
        assert len(tokens._secrets) <= 3
    assert len(signed) == len(set(signed)) == 36000 // PERIOD_S + 1  # the one before the first, too


def test_allowance_is_a_burst_and_a_rate_for_each() -> None:
    allowance = Allowance(per_s=1.0, burst=3.0)
    assert [allowance.take(b"a", 0.0) for _ in range(4)] == [True, True, True, False]
    assert allowance.take(b"b", 0.0)
    assert not allowance.take(b"a", 0.9)
    assert allowance.take(b"a", 1.9)
    assert [allowance.take(b"a", 1000.0) for _ in range(4)] == [True, True, True, False]
    assert not allowance.take(b"a", 500.0)  # a clock that goes back gives nothing


def test_allowances_are_bounded() -> None:
    allowance = Allowance(burst=1.0, most=10)
    for number in range(1000):
        assert allowance.take(key(number), 0.0)
        assert len(allowance) <= 10
    assert not allowance.take(key(999), 0.0)


def findings(memory: Memory | None = None) -> Findings:
    return Findings(
        key(7), swarm_id=SWARM, verify=verify, memory=Memory() if memory is None else memory
    )


def test_reader_keeps_the_newest_of_each_signer() -> None:
    found = findings()
    assert found.take([record(1, 7, 5), record(2, 7, 1)], WALL)
    assert found.take([record(1, 7, 4), record(2, 7, 3)], WALL)
    assert [each.sequence for each in found.newest()] == [5, 3]
    assert found.of((1).to_bytes(32, "big")) == record(1, 7, 5)


def test_one_forged_record_spoils_the_answer_and_leaves_no_trace() -> None:
    memory = Memory()
    found = findings(memory)
    forged = msgspec.structs.replace(record(2, 7), value=b"other")
    assert not found.take([record(1, 7), forged], WALL)
    assert found.newest() == ()
    assert len(memory) == 0


def test_replayed_record_is_not_taken_back() -> None:
    """A holder that serves yesterday's record, still within its time, cannot undo what has been read."""
    memory = Memory()
    first = findings(memory)
    assert first.take([record(1, 7, 9)], WALL)
    second = findings(memory)
    assert second.take([record(1, 7, 8)], WALL)
    assert second.newest() == ()
    assert second.take([record(1, 7, 9)], WALL)
    assert [each.sequence for each in second.newest()] == [9]


def test_forged_sequence_does_not_enter_the_memory() -> None:
    memory = Memory()
    high = msgspec.structs.replace(record(1, 7), sequence=2**62)
    assert not findings(memory).take([high], WALL)
    fresh = findings(memory)
    assert fresh.take([record(1, 7, 1)], WALL)
    assert len(fresh.newest()) == 1


def test_memories_are_bounded() -> None:
    memory = Memory(10)
    for number in range(100):
        memory.note(record(number, 7))
        assert len(memory) <= 10
    found = findings()
    many: list[SignedRecord] = [record(number, 7) for number in range(MAX_SIGNERS + 50)]
    assert found.take(many, WALL)
    assert len(found.newest()) == MAX_SIGNERS


def test_region_is_a_median_that_some_liars_cannot_move() -> None:
    density = Density()
    assert density.region(0) == density.nodes(20, 0) == 0
    assert density.region(1 << 250) == 1 << 250
    for _ in range(5):
        density.saw(20 << 244)  # 20 of 4096
    for _ in range(4):
        density.saw(1)
    assert density.region(0) == 20 << 244
    assert density.nodes(20, 0) == 4096
