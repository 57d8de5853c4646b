"""Frames: golden bytes of every type, round trips, and refusal of everything the table does not allow."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transport.errors import ProtocolViolation
from transport.streams.frames import (
    CLASS_WINDOW_BYTES,
    LARGEST_CONTROL_FRAME_BYTES,
    MAX_FRAME_PAYLOAD_BYTES,
    ClassCredit,
    Credit,
    Data,
    GoAway,
    Open,
    Ping,
    Pong,
    Priority,
    Reset,
    decode,
    encode,
    opened_by_responder,
    priority_of,
    stream_id,
)

GOLDEN = [
    (Open(6, "dht/1"), "0100000500000006" + "6468742f31"),
    (Data(6, memoryview(b"abc")), "0200000300000006" + "616263"),
    (Data(6, memoryview(b"abc"), fin=True), "0201000300000006" + "616263"),
    (Data(6, memoryview(b""), fin=True), "0201000000000006"),
    (Reset(7, 3), "0300000400000007" + "00000003"),
    (Credit(4, 131072), "0400000400000004" + "00020000"),
    (ClassCredit(Priority.NORMAL, 1048576), "0500000500000000" + "01" + "00100000"),
    (Ping(258), "0600000800000000" + "0000000000000102"),
    (Pong(2**64 - 1), "0700000800000000" + "ffffffffffffffff"),
    (GoAway(1, "é"), "0800000600000000" + "00000001" + "c3a9"),
]


@pytest.mark.parametrize(("frame", "text"), GOLDEN)
def test_golden_bytes(frame, text):
    assert encode(frame).hex() == text
    assert list(decode(bytes.fromhex(text))) == [frame]


ids = st.integers(4, 2**32 - 1)
u32 = st.integers(0, 2**32 - 1)
positive = st.integers(1, 2**32 - 1)
names = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=64)
frames_ = st.one_of(
    st.builds(Open, ids, names),
    st.builds(Data, ids, st.binary(min_size=1, max_size=300).map(memoryview), st.booleans()),
    st.builds(Reset, ids, u32),
    st.builds(Credit, ids, positive),
    st.builds(ClassCredit, st.sampled_from(Priority), positive),
    st.builds(Ping, st.integers(0, 2**64 - 1)),
    st.builds(Pong, st.integers(0, 2**64 - 1)),
    st.builds(GoAway, u32, st.text(max_size=60)),
)


@given(st.lists(frames_, max_size=8))
def test_round_trip_of_whole_records(frames):
    assert list(decode(b"".join(map(encode, frames)))) == frames


@given(st.lists(frames_, min_size=1, max_size=4), st.data())
def test_a_record_cut_anywhere_inside_a_frame_is_refused(frames, data):
    encoded = [encode(frame) for frame in frames]
    whole = b"".join(encoded)
    boundaries = {sum(map(len, encoded[:count])) for count in range(len(encoded) + 1)}
    cut = data.draw(st.integers(1, len(whole) - 1).filter(lambda size: size not in boundaries))
    with pytest.raises(ProtocolViolation):
        list(decode(whole[:cut]))


@settings(max_examples=400)
@given(st.binary(max_size=120))
def test_random_bytes_raise_only_protocol_violation(data):
    try:
        frames = list(decode(data))
    except ProtocolViolation:
        return
    assert all(frame is not None for frame in frames)


@settings(max_examples=300)
@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 9), st.binary(max_size=14))
def test_well_formed_headers_with_any_payload(type_, flags, id_, payload):
    data = (
        bytes([type_, flags]) + len(payload).to_bytes(2, "big") + id_.to_bytes(4, "big") + payload
    )
    try:
        frames = list(decode(data))
    except ProtocolViolation:
        return
    if type_ >= 128:
        assert frames == []
    else:
        # What is accepted means what it says: encoding it again gives the same bytes, unknown flags aside.
        assert encode(frames[0])[2:] == data[2:]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("0000000000000000", id="type 0"),
        pytest.param("0900000000000000", id="type 9"),
        pytest.param("7f00000000000006", id="type 127"),
        pytest.param("0200000000000006", id="empty data"),
        pytest.param("02000001" + "00000000" + "61", id="data on stream 0"),
        pytest.param("02000001" + "00000003" + "61", id="data on stream 3"),
        pytest.param("0100000000000006", id="empty name"),
        pytest.param("01000001" + "00000006" + "20", id="space in a name"),
        pytest.param("01000001" + "00000006" + "7f", id="control character in a name"),
        pytest.param("01000001" + "00000006" + "e9", id="name beyond ASCII"),
        pytest.param("01000041" + "00000006" + "61" * 65, id="name of 65"),
        pytest.param("03000003" + "00000006" + "000000", id="short reset"),
        pytest.param("03000005" + "00000006" + "0000000000", id="long reset"),
        pytest.param("03000004" + "00000000" + "00000001", id="reset of stream 0"),
        pytest.param("04000004" + "00000006" + "00000000", id="zero credit"),
        pytest.param("05000005" + "00000000" + "0000000000", id="zero class credit"),
        pytest.param("05000005" + "00000000" + "0200000001", id="class 2"),
        pytest.param("05000005" + "00000006" + "0100000001", id="class credit on a stream"),
        pytest.param("06000007" + "00000000" + "00" * 7, id="short ping"),
        pytest.param("06000008" + "00000004" + "00" * 8, id="ping on a stream"),
        pytest.param("08000003" + "00000000" + "000000", id="short goaway"),
        pytest.param("08000005" + "00000000" + "00000000ff", id="goaway not UTF-8"),
        pytest.param("08000105" + "00000000" + "00000000" + "61" * 257, id="goaway of 257"),
    ],
)
def test_refused_frames(text):
    with pytest.raises(ProtocolViolation):
        list(decode(bytes.fromhex(text)))


def test_extensions_are_skipped_and_what_follows_is_read():
    data = bytes.fromhex("80000002" + "00000000" + "abcd" + "ff000000" + "00000005") + encode(
        Ping(1)
    )
    assert list(decode(data)) == [Ping(1)]


def test_frames_before_the_wrong_one_are_given_out():
    frames = decode(encode(Ping(1)) + b"\x00" * 8)
    assert next(frames) == Ping(1)
    with pytest.raises(ProtocolViolation):
        next(frames)


def test_ids_say_who_opened_and_which_class():
    seen = set()
    for number in (1, 2, 2**30 - 1):
        for priority in Priority:
            for responder in (False, True):
                id_ = stream_id(number, priority, opened_by_responder=responder)
                assert 4 <= id_ < 2**32
                assert priority_of(id_) is priority
                assert opened_by_responder(id_) is responder
                seen.add(id_)
    assert len(seen) == 12


def test_a_long_goaway_text_is_cut_at_a_character():
    data = encode(GoAway(0, "é" * 200 + "x"))
    assert len(data) == LARGEST_CONTROL_FRAME_BYTES
    assert list(decode(data)) == [GoAway(0, "é" * 128)]
    assert list(decode(encode(GoAway(0, "x" + "é" * 200)))) == [GoAway(0, "x" + "é" * 127)]


def test_lone_surrogates_in_a_goaway_do_not_raise():
    assert list(decode(encode(GoAway(0, "\ud800")))) == [GoAway(0, "?")]


def test_the_largest_data_frame():
    data = encode(Data(4, memoryview(bytes(MAX_FRAME_PAYLOAD_BYTES))))
    assert len(next(decode(data)).data) == MAX_FRAME_PAYLOAD_BYTES
    assert len(CLASS_WINDOW_BYTES) == len(Priority)
