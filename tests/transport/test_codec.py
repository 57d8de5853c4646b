"""Control messages: round trips, and hostile bytes that may only ever raise MalformedMessage."""

import tracemalloc
from contextlib import suppress
from typing import Literal

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transport.address import Address
from transport.codec import MAX_MESSAGE_BYTES, decode_untrusted, pack, unpack_untrusted
from transport.errors import MalformedMessage, MessageTooLarge
from transport.identity import NodeId


class Sample(msgspec.Struct, frozen=True):
    kind: Literal["a", "b"]
    node: NodeId
    data: bytes = b""
    items: tuple[int, ...] = ()
    where: Address | None = None


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5)
    ),
    max_leaves=25,
)


@given(values)
def test_builtins_round_trip(value):
    try:
        assert unpack_untrusted(pack(value)) == value
    except MalformedMessage:
        assert _depth(value) > 16


def _depth(value):
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    return 0


def test_structs_round_trip_and_bytes_stay_bytes():
    sample = Sample("a", NodeId(bytes(32)), b"\xff\x00", (1, 2), Address("h", 3))
    data = pack(sample)
    assert b"\xc4\x02\xff\x00" in data  # msgpack bin, not base64
    decoded = decode_untrusted(data, Sample)
    assert decoded == sample
    assert type(decoded.node) is NodeId


def test_unknown_fields_are_ignored():
    assert decode_untrusted(
        pack({"kind": "a", "node": bytes(32), "future": [1]}), Sample
    ) == Sample("a", NodeId(bytes(32)))


@pytest.mark.parametrize(
    "value",
    [
        {"kind": "a"},
        {"kind": "c", "node": bytes(32)},
        {"kind": "a", "node": bytes(31)},
        {"kind": "a", "node": "x" * 32},
        {"kind": "a", "node": bytes(32), "data": "AAAA"},
        {"kind": "a", "node": bytes(32), "items": [1.0]},
        {"kind": "a", "node": bytes(32), "items": [True]},
        {"kind": "a", "node": bytes(32), "where": {"host": "NOT CANONICAL", "port": 1}},
        [],
        None,
    ],
)
def test_wrong_types_are_refused_and_nothing_is_coerced(value):
    with pytest.raises(MalformedMessage):
        decode_untrusted(pack(value), Sample)


class Question(msgspec.Struct, frozen=True, tag_field="t", tag="question"):
    number: int


class Reply(msgspec.Struct, frozen=True, tag_field="t", tag="reply"):
    number: int
    text: str | None = None


class Untagged(msgspec.Struct, frozen=True):
    number: int


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "t": st.sampled_from(["question", "reply", "other", 1, None, ["question"], b"reply"]),
            "number": st.sampled_from([1, -5, "1", None]),
            "text": st.sampled_from(["x", None, 2]),
        },
    )
    | values,
    st.sampled_from([Question | Reply, Reply | None, Question, Untagged | None]),
)
def test_what_a_union_takes_is_what_the_library_makes_of_it(value, type_):
    data = pack(value)
    try:
        plain = unpack_untrusted(data)
        expected = msgspec.convert(plain, type_, strict=True, builtin_types=(bytes,))
    except (MalformedMessage, msgspec.ValidationError):
        with pytest.raises(MalformedMessage):
            decode_untrusted(data, type_)
    else:
        assert decode_untrusted(data, type_) == expected


def test_an_error_text_is_one_printable_line():
    with pytest.raises(MalformedMessage) as caught:
        decode_untrusted(pack({"kind": "x\n\x1b[31m" + "y" * 5000, "node": bytes(32)}), Sample)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@settings(max_examples=400)
@given(st.binary(max_size=300))
def test_random_bytes_give_a_value_or_the_typed_error(data):
    for call in (lambda: unpack_untrusted(data), lambda: decode_untrusted(data, Sample)):
        with suppress(MalformedMessage):
            call()


@settings(max_examples=300)
@given(values, st.data())
def test_damaged_messages_give_a_value_or_the_typed_error(value, data):
    raw = bytearray(pack(value))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(raw) - 1))
        raw[place] = data.draw(st.integers(0, 255))
    with suppress(MalformedMessage):
        unpack_untrusted(bytes(raw))


NESTED_EXTENSIONS = b"\xc0"
for _ in range(200):
    NESTED_EXTENSIONS = (
        b"\xc9" + len(NESTED_EXTENSIONS).to_bytes(4, "big") + b"\x05" + NESTED_EXTENSIONS
    )


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xc1", id="never-used byte"),
        pytest.param(b"\x01\x01", id="trailing byte"),
        pytest.param(b"\xc7\x00\x05", id="empty extension"),
        pytest.param(b"\xc7\x00\xff", id="empty timestamp"),
        pytest.param(b"\xd6\xff\x00\x00\x00\x00", id="timestamp"),
        pytest.param(NESTED_EXTENSIONS, id="nested extensions"),
        pytest.param(b"\x81\x01\x01", id="integer key"),
        pytest.param(b"\x81\xc4\x01a\x01", id="bytes key"),
        pytest.param(b"\x82\xa1a\x01\xa1a\x02", id="key twice"),
        pytest.param(b"\x81\x90\x01", id="list key"),
        pytest.param(b"\xa1\xff", id="not UTF-8"),
        pytest.param(b"\x91" * 17 + b"\xc0", id="17 levels"),
        pytest.param(b"\x91" * 5000, id="5000 levels"),
        pytest.param(b"\xdd\xff\xff\xff\xff", id="4 billion items announced"),
        pytest.param(b"\xdf\x7f\xff\xff\xff", id="2 billion pairs announced"),
        pytest.param(b"\xc6\xff\xff\xff\xff", id="4 GiB of bytes announced"),
        pytest.param(b"\xdb\xff\xff\xff\xff", id="4 GiB of text announced"),
        pytest.param(b"\xdc\x04\x01" + b"\x01" * 1025, id="1025 items"),
        pytest.param(msgpack.packb(bytes(MAX_MESSAGE_BYTES)), id="over the limit"),
    ],
)
def test_hostile_bytes_are_refused(data):
    with pytest.raises(MalformedMessage):
        unpack_untrusted(data)


def test_sixteen_levels_and_1024_items_pass():
    assert unpack_untrusted(b"\x91" * 15 + b"\x90") is not None
    assert unpack_untrusted(b"\xdc\x04\x00" + b"\x01" * 1024) == [1] * 1024


def test_the_worst_legal_amplification_stays_below_eight_mebibytes():
    # 1,024 lists of 62 empty maps fill the 64 KiB; each empty map costs 64 bytes of objects.
    bomb = b"\xdc\x03\xf0" + (b"\xdc\x00\x3e" + b"\x80" * 62) * 1008
    assert len(bomb) <= MAX_MESSAGE_BYTES
    tracemalloc.start()
    try:
        unpack_untrusted(bomb)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


def test_limits_work_both_ways():
    with pytest.raises(MessageTooLarge):
        pack(bytes(MAX_MESSAGE_BYTES))
    assert len(pack(bytes(MAX_MESSAGE_BYTES), limit=70000)) > MAX_MESSAGE_BYTES
    with pytest.raises(MalformedMessage):
        unpack_untrusted(b"\x93\x01\x02\x03", limit=3)
    assert unpack_untrusted(memoryview(bytearray(b"\x93\x01\x02\x03"))) == [1, 2, 3]


def test_what_has_no_encoding_is_the_callers_mistake():
    with pytest.raises((TypeError, NotImplementedError)):
        pack(object())
