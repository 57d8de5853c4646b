import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.errors import InvalidRecord
from dht.key import record_key
from dht.record import (
    CLOCK_TOLERANCE_S,
    MAX_TTL_S,
    MAX_VALUE_BYTES,
    SignedRecord,
    check,
    make_record,
    newest,
    signed_bytes,
)
from transport.identity import Identity, verify

SWARM = bytes(range(32))
KEY = record_key(SWARM, "run", "tiny")
WRITER = Identity.from_seed(b"\7" * 32)
WALL = 1_800_000_000.0


def record(value: bytes = b"hello", sequence: int = 5, swarm: bytes = SWARM) -> SignedRecord:
    return make_record(
        swarm_id=swarm,
        key=KEY,
        value=value,
        public_key=WRITER.public_key,
        sequence=sequence,
        expires_at=int(WALL + 7200),
        sign=WRITER.sign,
    )


def reason(candidate: SignedRecord, wall: float = WALL, key: bytes = KEY) -> str:
    try:
        check(candidate, swarm_id=SWARM, key=key, wall=wall, verify=verify)
    except InvalidRecord as error:
        return error.reason
    return "good"


def test_signed_bytes_are_frozen() -> None:
    data = signed_bytes(
        swarm_id=SWARM, key=b"k" * 32, public_key=b"p" * 32, sequence=1, expires_at=2, value=b"v"
    )
    assert data == (
        b"noded dht record v1\0\0\0\0\0"
        + SWARM
        + b"k" * 32
        + b"p" * 32
        + bytes.fromhex("0000000000000001")
        + bytes.fromhex("0000000000000002")
        + bytes.fromhex("0001")
        + b"v"
    )
    assert len(data) == 139


def test_good_record_verifies() -> None:
    assert reason(record()) == "good"
    assert reason(record(b"")) == "good"
    assert reason(record(b"x" * MAX_VALUE_BYTES)) == "good"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("value", b"hellO"),
        ("sequence", 6),
        ("expires_at", int(WALL + 7201)),
        ("public_key", Identity.from_seed(b"\x08" * 32).public_key),
        ("signature", bytes(64)),
    ],
)
def test_any_change_breaks_the_signature(field: str, value: object) -> None:
    assert reason(msgspec.structs.replace(record(), **{field: value})) == "signature"


def test_another_swarm_key_or_time() -> None:
    assert reason(record(swarm=bytes(32))) == "signature"
    other = record_key(SWARM, "run", "other")
    assert reason(record(), key=other) == "key"
    assert reason(msgspec.structs.replace(record(), key=other), key=other) == "signature"
    assert reason(record(), wall=WALL + 7200 + CLOCK_TOLERANCE_S) == "good"
    assert reason(record(), wall=WALL + 7201 + CLOCK_TOLERANCE_S) == "expired"
    assert reason(record(), wall=WALL + 7200 - MAX_TTL_S - CLOCK_TOLERANCE_S - 1) == "lifetime"


def test_value_too_large() -> None:
    with pytest.raises(InvalidRecord) as caught:
        record(b"x" * (MAX_VALUE_BYTES + 1))
    assert caught.value.reason == "size"
    large = msgspec.structs.replace(record(), value=b"x" * (MAX_VALUE_BYTES + 1))
    assert reason(large) == "size"


@given(st.binary(max_size=1000), st.integers(0, 2**63 - 1), st.integers(0, 511))
def test_flipping_a_signature_bit_is_seen(value: bytes, sequence: int, bit: int) -> None:
    good = record(value, sequence)
    flipped = bytearray(good.signature)
    flipped[bit // 8] ^= 1 << bit % 8
    assert reason(msgspec.structs.replace(good, signature=bytes(flipped))) == "signature"


def test_newest_of_each_signer() -> None:
    assert newest([record(sequence=1), record(sequence=3), record(sequence=2)]) == [
        record(sequence=3)
    ]
    assert newest([]) == []
