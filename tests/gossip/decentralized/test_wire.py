import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.decentralized.arithmetic import PIECE, is_finite
from gossip.decentralized.network.wire import Decoder, encode_head, parts, wire_bytes
from transport.errors import MalformedMessage

NUMEL = 40

GOLDEN = bytes.fromhex(
    "010200000002"  # version 1, two vectors, a message of two bytes
    "040000000000000003"  # three float32
    "080000000000000001"  # one float64
    "81a0"
    "0000803f000000c000000000"  # 1, -2, 0
    "000000000000e03f"  # 0.5
)
GOLDEN_MESSAGE = b"\x81\xa0"
GOLDEN_VECTORS = (np.array([1, -2, 0], np.float32), np.array([0.5], np.float64))


def decoded(data, numel=NUMEL, pieces=1):
    decoder = Decoder(numel)
    for start in range(0, len(data), pieces):
        decoder.feed(data[start : start + pieces])
        if decoder.size is not None and not decoder._admitted:
            decoder.admit()
    return decoder.take()


def test_the_golden_message():
    assert b"".join(parts(GOLDEN_MESSAGE, GOLDEN_VECTORS)) == GOLDEN
    assert wire_bytes(GOLDEN_MESSAGE, GOLDEN_VECTORS) == len(GOLDEN)
    arrived = decoded(GOLDEN)
    assert arrived.message == GOLDEN_MESSAGE
    for got, sent in zip(arrived.vectors, GOLDEN_VECTORS, strict=True):
        assert got.dtype == sent.dtype
        assert np.array_equal(got, sent)


def test_the_document_has_the_golden_message():
    document = (Path(__file__).parents[3] / "docs" / "wire.md").read_text()
    assert GOLDEN.hex() in "".join(document.split())


vectors = st.lists(
    st.tuples(st.sampled_from([np.float32, np.float64]), st.integers(1, NUMEL)), max_size=8
)


@given(st.binary(max_size=200), vectors, st.integers(1, 500), st.randoms())
def test_whatever_is_sent_arrives_in_any_pieces(message, kinds, pieces, rng):
    sent = [
        np.array([rng.uniform(-9, 9) for _ in range(size)]).astype(kind) for kind, size in kinds
    ]
    data = b"".join(parts(message, sent))
    assert len(data) == wire_bytes(message, sent)
    arrived = decoded(data, pieces=pieces)
    assert arrived.message == message
    assert all(np.array_equal(a, b) for a, b in zip(arrived.vectors, sent, strict=True))


@given(st.binary(max_size=120), st.integers(1, 130))
@settings(max_examples=300)
def test_any_bytes_are_a_message_or_malformed(data, pieces):
    try:
        arrived = decoded(b"\x01" + data, pieces=pieces)
    except MalformedMessage:
        return
    assert len(b"".join(parts(arrived.message, arrived.vectors))) == len(data) + 1


@given(st.integers(0, len(GOLDEN) - 1), st.integers(0, 255))
def test_one_wrong_byte_of_a_good_message(place, value):
    data = bytearray(GOLDEN)
    data[place] = value
    try:
        arrived = decoded(bytes(data))
    except MalformedMessage:
        return
    assert all(is_finite(vector) for vector in arrived.vectors)


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (struct.pack(">BBI", 2, 0, 0), "version 2"),
        (struct.pack(">BBI", 1, 9, 0), "9 vectors"),
        (struct.pack(">BBI", 1, 0, 65537), "65537 bytes"),
        (struct.pack(">BBIBQ", 1, 1, 0, 2, 1), "type 2"),
        (struct.pack(">BBIBQ", 1, 1, 0, 4, NUMEL + 1), "41 values"),
        (struct.pack(">BBIBQ", 1, 1, 0, 4, 2**64 - 1), "values"),
        (struct.pack(">BBIBQ", 1, 1, 0, 4, 0), "0 values"),
    ],
)
def test_sizes_are_refused_before_anything_is_allocated(head, says):
    decoder = Decoder(NUMEL)
    with pytest.raises(MalformedMessage, match=says):
        decoder.feed(head)
    assert decoder.size is None


@pytest.mark.parametrize("cut", [0, 3, 10, 24, len(GOLDEN) - 1])
def test_a_message_that_is_cut_off(cut):
    with pytest.raises(MalformedMessage, match="cut off"):
        decoded(GOLDEN[:cut])


@pytest.mark.parametrize("pieces", [1, len(GOLDEN) + 1])
def test_a_byte_too_many(pieces):
    with pytest.raises(MalformedMessage, match="more bytes"):
        decoded(GOLDEN + b"\0", pieces=pieces)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_values_that_are_not_finite(bad, kind):
    vector = np.zeros(NUMEL, kind)
    vector[-1] = bad
    with pytest.raises(MalformedMessage, match="not finite"):
        decoded(b"".join(parts(b"", [vector])))


@pytest.mark.parametrize("place", [0, PIECE - 1, PIECE, 2 * PIECE + 6])
def test_one_bad_value_is_found_anywhere(place):
    vector = np.full(2 * PIECE + 7, 3e38, np.float32)  # whose squares overflow
    assert is_finite(vector)
    vector[place] = np.nan
    assert not is_finite(vector)


def test_a_read_only_vector_is_sent_as_it_is():
    vector = np.arange(4, dtype=np.float32)
    vector.flags.writeable = False
    head, body = parts(b"m", [vector])
    assert head == encode_head(b"m", [vector]) + b"m"
    assert np.shares_memory(np.frombuffer(body, np.uint8), vector)
