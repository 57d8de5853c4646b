"""Messages between nodes and relays: strict, small, and as docs/wire.md says."""

import math
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.codec import decode_untrusted, pack
from transport.errors import ConnectFailed, MalformedMessage
from transport.identity import NodeId
from transport.relay.messages import (
    ENDINGS,
    MAX_BYTES,
    MAX_RETRY_S,
    Accepted,
    CircuitEnd,
    Connect,
    Ended,
    Granted,
    Incoming,
    Reason,
    Refused,
    RelayRefused,
    Released,
    Reserve,
    as_reason,
    read_connect_answer,
    read_reserve_answer,
)

DOCUMENT = (Path(__file__).parents[3] / "docs" / "wire.md").read_text()
SOMEBODY = NodeId(bytes(range(32)))
GRANTED = Granted(expires_s=3600.0, bytes_per_s=2e6, circuit_bytes=1 << 34, circuit_s=43200.0)


@pytest.mark.parametrize(
    "message",
    [
        Reserve(release=False),
        Connect(SOMEBODY),
        Incoming(SOMEBODY),
        Refused("full", 300.0),
        Accepted(),
    ],
)
def test_golden_messages_are_those_of_the_document(message: msgspec.Struct) -> None:
    data = pack(message, limit=MAX_BYTES)
    assert f"    {data.hex()}\n" in DOCUMENT
    assert decode_untrusted(data, type(message), limit=MAX_BYTES) == message


def test_every_reason_and_every_end_is_documented_and_has_words() -> None:
    for reason in Reason:
        error = RelayRefused(reason, retry_s=1.0)
        assert isinstance(error, ConnectFailed)
        assert str(error)
        assert error.hint
        assert reason is Reason.OTHER or f"`{reason.value}`" in DOCUMENT
    for code in CircuitEnd:
        assert ENDINGS[code]
        assert f"{code.value} " in DOCUMENT


def test_reasons_from_the_wire_become_our_own_words() -> None:
    error = Refused("\x1b[2Jtrust me", 1e8).as_error()
    assert error.reason is as_reason("unheard of") is Reason.OTHER
    assert error.retry_s == MAX_RETRY_S
    assert "trust" not in str(error)


@pytest.mark.parametrize("answer", [GRANTED, Released(), Refused("full", 1.0)])
def test_answers_to_a_reservation(answer: Granted | Released | Refused) -> None:
    assert read_reserve_answer(pack(answer)) == answer


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"type": "granted"},
        {"type": "accepted"},
        msgspec.to_builtins(GRANTED) | {"expires_s": -1.0},
        msgspec.to_builtins(GRANTED) | {"expires_s": math.nan},
        msgspec.to_builtins(GRANTED) | {"circuit_s": math.inf},
        msgspec.to_builtins(GRANTED) | {"bytes_per_s": math.inf},
        msgspec.to_builtins(GRANTED) | {"circuit_bytes": 1.5},
        {"type": "refused", "reason": "x" * 33},
        {"type": "refused", "reason": "full", "retry_s": math.nan},
        {"type": "refused", "reason": 7},
    ],
)
def test_wrong_answers_are_malformed(wrong: dict[str, object]) -> None:
    with pytest.raises(MalformedMessage):
        read_reserve_answer(pack(wrong))


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for read in (
        read_reserve_answer,
        read_connect_answer,
        *(lambda d, t=t: decode_untrusted(d, t) for t in (Reserve, Connect, Incoming, Ended)),
    ):
        try:
            read(data)
        except MalformedMessage:
            continue


@given(
    st.sampled_from([pack(GRANTED), pack(Refused("full", 300.0)), pack(Accepted())]),
    st.integers(0, 200),
    st.integers(0, 255),
)
def test_one_changed_byte_is_read_or_refused(data: bytes, place: int, byte: int) -> None:
    changed = bytearray(data)
    changed[place % len(changed)] = byte
    for read in (read_reserve_answer, read_connect_answer):
        try:
            read(bytes(changed))
        except MalformedMessage:
            continue
