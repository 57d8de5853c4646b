"""What a process and its daemon say to each other about collectives: round trips, bounds, and any bytes."""

from __future__ import annotations

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.collective_messages import (
    MAX_TENSORS,
    VERSION,
    Borrow,
    Cancel,
    Done,
    Failed,
    Hello,
    Lent,
    Operate,
    Refused,
    Return,
    Synchronise,
    Tensor,
    Welcome,
    decode_answer,
    decode_request,
    encode,
)
from node.trainer_messages import HEADER_BYTES, TrainerProtocolError

D = b"d" * 32
OPERATE = Operate(
    id=3,
    arena=1,
    kind="all_reduce",
    dtype="bfloat16",
    count=10,
    reduce="mean",
    weight=2.5,
    wire="int8+zstd",
    algorithm="auto",
    tag=15,
    label="bucket 1",
    timeout_s=3.0,
)
REQUESTS = [
    Hello(VERSION, "demo", True, D, 1),
    Borrow(1, 1 << 14),
    Return(1),
    OPERATE,
    Synchronise(4, 1, (Tensor("a", "float32", (3, 4), 0), Tensor("b", "bool", (), 64)), 7, "s"),
    Cancel(3),
]
ANSWERS = [
    Welcome(D),
    Refused("no"),
    Lent(1, 1 << 14),
    Done(3, D, (D, D), 2.0, 10, "ring", 0.5),
    Failed(3, "EpochChanged", "so", "do that"),
]


@pytest.mark.parametrize("message", REQUESTS, ids=lambda message: type(message).__name__)
def test_requests_come_through(message: msgspec.Struct) -> None:
    assert decode_request(encode(message)[HEADER_BYTES:]) == message
    with pytest.raises(TrainerProtocolError):
        decode_answer(encode(message)[HEADER_BYTES:])


@pytest.mark.parametrize("message", ANSWERS, ids=lambda message: type(message).__name__)
def test_answers_come_through(message: msgspec.Struct) -> None:
    assert decode_answer(encode(message)[HEADER_BYTES:]) == message
    with pytest.raises(TrainerProtocolError):
        decode_request(encode(message)[HEADER_BYTES:])


@pytest.mark.parametrize(
    "changed",
    [
        {"tag": 0},
        {"tag": 16},
        {"count": -1},
        {"label": "x" * 257},
        {"root": b"short"},
        {"within": b"x" * 33},
        {"timeout_s": 0.0},
        {"timeout_s": float("nan")},
        {"kind": ""},
        {"id": 2**53 + 1},
    ],
)
def test_what_is_out_of_bounds_is_refused(changed: dict[str, object]) -> None:
    fields = msgpack.unpackb(encode(OPERATE)[HEADER_BYTES:])
    with pytest.raises(TrainerProtocolError):
        decode_request(msgpack.packb({**fields, **changed}))


def test_a_state_of_too_many_tensors_is_refused_before_it_is_sent() -> None:
    many = tuple(
        Tensor(f"layers.{number}.attention.projection.weight", "float32", (64, 64), 0)
        for number in range(MAX_TENSORS)
    )
    with pytest.raises(TrainerProtocolError, match="too long"):
        encode(Synchronise(1, 1, many, 0, "state"))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_one_error(data: bytes) -> None:
    for decode in (decode_request, decode_answer):
        try:
            decode(data)
        except TrainerProtocolError:
            continue
