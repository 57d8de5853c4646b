"""Wire formats: exact definitions, error bounds, and every kind of bytes that is no encoding."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from gossip.collective.formats.blocks import BLOCK, E3M0, TINY, BlockFormat, Int4, Int8
from gossip.collective.formats.packed import Packed
from gossip.collective.formats.registry import FORMATS, format_named
from gossip.collective.formats.wire_format import (
    PIECE,
    RefusedPayload,
    WireFormat,
    magnitudes,
)
from gossip.errors import NotFinite, UnknownFormat
from transport.identity import NodeId

SENDER = NodeId(b"S" * 32)
PLAIN = [one for one in FORMATS.values() if not isinstance(one, Packed)]
F32_MAX = float(np.finfo(np.float32).max)
EPS = 2.0**-22

every = pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
plain = pytest.mark.parametrize("form", PLAIN, ids=lambda form: form.name)
blocks = pytest.mark.parametrize("form", [Int8(), Int4(), E3M0()], ids=lambda form: form.name)


def encode(form: WireFormat, values: np.ndarray) -> np.ndarray:
    out = np.full(form.encoded_bytes(values.size) + 8, 0xAB, np.uint8)
    before = values.copy()
    size = form.encode_into(values, out)
    assert np.array_equal(values, before, equal_nan=True), "values are only read"
    assert (out[form.encoded_bytes(values.size) :] == 0xAB).all(), "not a byte too far"
    return out[:size]


def decode(form: WireFormat, data: np.ndarray, count: int) -> np.ndarray:
    out = np.full(count, np.nan, np.float32)
    form.decode_untrusted_into(data, out, sender=SENDER)
    return out


def through(form: WireFormat, values: np.ndarray) -> np.ndarray:
    return decode(form, encode(form, values), values.size)


def bound(form: WireFormat, values: np.ndarray) -> np.ndarray:
    """The largest error that the format's own page allows, value by value."""
    exact = np.abs(values.astype(np.float64))
    name = form.name.removesuffix("+zstd")
    if name == "fp32":
        return np.zeros(values.size)
    if name == "bf16":
        return np.maximum(exact * 2.0**-8, 2.0**-134)
    if name == "fp16":
        return np.maximum(exact * 2.0**-11, 2.0**-25)
    padded = np.zeros(-(-values.size // BLOCK) * BLOCK)
    padded[: values.size] = exact
    largest = np.repeat(padded.reshape(-1, BLOCK).max(axis=1), BLOCK)[: values.size]
    slack = largest * EPS + (largest < TINY) * largest
    if name == "int8":
        return largest / 254 + slack
    if name == "int4":
        return largest / 14 + slack
    return np.maximum(exact / 3, largest / 128) + slack


def normal(count: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(count) * scale).astype(np.float32)


# ---- values ------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize(
    "count", [0, 1, 2, 255, 256, 257, 511, PIECE - 1, PIECE, PIECE + 1, 40_003]
)
def test_any_length(form: WireFormat, count: int) -> None:
    values = normal(count, count)
    back = through(form, values)
    assert (np.abs(back.astype(np.float64) - values) <= bound(form, values)).all()


SCALES = st.sampled_from([0.0, 1e-40, 1e-31, 1e-20, 1e-3, 1.0, 3e4, 1e30, 3e38])


@every
@given(
    values=st.lists(st.floats(-1, 1, width=32), max_size=700),
    scale=SCALES,
)
def test_errors_stay_within_their_bounds(
    form: WireFormat, values: list[float], scale: float
) -> None:
    if form.name.startswith("fp16"):
        scale = min(scale, 3e4)
    array = (np.array(values, np.float64) * scale).astype(np.float32)
    back = through(form, array)
    assert np.isfinite(back).all()
    assert (np.abs(back.astype(np.float64) - array) <= bound(form, array)).all()


@every
@given(data=st.data())
def test_encoding_what_was_decoded_changes_nothing(form: WireFormat, data: st.DataObject) -> None:
    """So a value can be handed on without growing another error, and equal bits stay equal."""
    values = np.array(data.draw(st.lists(st.floats(-100, 100, width=32), max_size=600)), np.float32)
    once = through(form, values)
    twice = through(form, once)
    if form.name.startswith(("int8", "int4")):  # the largest may shift by fp32's last place
        np.testing.assert_allclose(twice, once, rtol=1e-6, atol=0)
    else:
        assert np.array_equal(once, twice)


@every
def test_the_same_values_give_the_same_bytes(form: WireFormat) -> None:
    values = normal(5000, 3)
    aligned = encode(form, values)
    shifted = np.empty(5001, np.float32)[1:]
    shifted[:] = values
    assert np.array_equal(aligned, encode(form, shifted))
    unaligned = np.empty(aligned.size + 1, np.uint8)[1:]
    unaligned[:] = aligned
    assert np.array_equal(decode(form, unaligned, 5000), decode(form, aligned, 5000))


@plain
def test_bytes_per_value(form: WireFormat) -> None:
    count = 256 * 4096
    assert form.encoded_bytes(count) / count == form.bytes_per_value
    assert encode(form, normal(count)).size == form.encoded_bytes(count)


@pytest.mark.parametrize(
    ("name", "expected"), [("bf16", 0.0017), ("int8", 0.0068), ("int4", 0.13), ("e3m0", 0.195)]
)
def test_the_error_of_normal_values_is_what_the_page_says(name: str, expected: float) -> None:
    values = normal(1 << 18)
    error = through(format_named(name), values) - values
    rms = float(np.sqrt(np.mean(np.square(error, dtype=np.float64))))
    assert rms == pytest.approx(expected, rel=0.1)
    bias = float(np.mean(error * np.sign(values), dtype=np.float64))
    if name != "e3m0":
        assert abs(bias) < expected / 15, "rounded, not truncated"


# ---- golden bytes ---------------------------------------------------------------------------------


def test_golden_floats() -> None:
    values = np.array([1.0, -2.0, 1.00390625, 1.01171875, 65504.0], np.float32)
    assert encode(format_named("fp32"), values).tobytes() == struct.pack("<5f", *values)
    assert encode(format_named("bf16"), values[:4]).tobytes().hex() == "803f00c0803f823f"
    assert encode(format_named("fp16"), values[[0, 1, 4]]).tobytes().hex() == "003c00c0ff7b"


def test_golden_blocks() -> None:
    values = np.array([0.0, 127.0, -127.0, 63.5, 62.5, -0.4, 1.0], np.float32)
    scale = struct.pack("<f", 127.0)
    assert encode(Int8(), values).tobytes() == scale + bytes([0, 127, 129, 64, 62, 0, 1])
    values = np.array([7.0, -7.0, 0.5, 1.5, -1.0], np.float32)
    scale = struct.pack("<f", 7.0)
    assert encode(Int4(), values).tobytes() == scale + bytes([0x97, 0x20, 0x0F])
    values = np.array([128.0, -64.0, 1.0, 0.99, -1.5, 2.0, 3.0, 2.99, 0.0], np.float32)
    scale = struct.pack("<f", 128.0)
    assert encode(E3M0(), values).tobytes() == scale + bytes([0xE7, 0x01, 0x19, 0x12, 0x00])
    assert decode(E3M0(), encode(E3M0(), values), 9).tolist() == [
        128.0, -64.0, 2.0, 0.0, -2.0, 2.0, 4.0, 2.0, 0.0,
    ]  # fmt: skip


@blocks
def test_a_blocks_scale_is_its_own(form: BlockFormat) -> None:
    values = np.concatenate([normal(256, 1, 1e-6), normal(256, 2, 1e6), normal(3, 3, 10)])
    scales = encode(form, values)[:12].view("<f4")
    expected = [np.abs(values[at : at + 256]).max() for at in (0, 256, 512)]
    assert scales.tolist() == pytest.approx(expected)


@blocks
@pytest.mark.parametrize("count", [256, 300, PIECE + 40])
def test_the_largest_magnitude_is_found_whatever_the_signs(form: BlockFormat, count: int) -> None:
    rng = np.random.default_rng(count)
    for values in (
        -np.abs(normal(count)),
        np.abs(normal(count)),
        np.zeros(count, np.float32),
        -np.zeros(count, np.float32),
        np.where(rng.random(count) < 0.5, np.float32(-3.0), np.float32(2.0)),
        np.where(rng.random(count) < 0.5, np.float32(-2.0), np.float32(3.0)),
    ):
        scales = encode(form, values)[: 4 * -(-count // BLOCK)].view("<f4")
        cut = range(0, count, BLOCK)
        assert scales.tolist() == [np.abs(values[at : at + BLOCK]).max() for at in cut]
        assert not np.signbit(scales).any()


@pytest.mark.parametrize(("form", "top"), [(Int8(), 127), (Int4(), 7)])
def test_integers_are_rounded_as_the_page_says(form: BlockFormat, top: int) -> None:
    """Against the definition in float64 wherever that is not within fp32's rounding of a tie; ties themselves by the golden bytes."""
    values = normal(1 << 15, 5)
    largest = np.repeat(np.abs(values).reshape(-1, BLOCK).max(axis=1), BLOCK).astype(np.float64)
    exact = values * top / largest
    sure = np.abs(exact - np.floor(exact) - 0.5) > 1e-4
    found = through(form, values) / (largest / top)
    assert sure.mean() > 0.99
    assert np.array_equal(np.rint(found[sure]), np.rint(exact[sure]))


# ---- refused ---------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 300, PIECE + 5, PIECE + 299])
def test_what_is_not_finite_is_refused_where_it_enters(
    form: WireFormat, bad: float, at: int
) -> None:
    values = normal(PIECE + 300)
    values[at] = bad
    with pytest.raises(NotFinite):
        encode(form, values)


@every
@pytest.mark.parametrize("bits", [0x7FFF_FFFF, 0xFFFF_FFFF, 0xFF80_0001, 0x7F80_0001])
def test_every_nan_is_refused_whatever_its_sign_and_payload(form: WireFormat, bits: int) -> None:
    """Adding to the first two carries into the sign."""
    for rest in (1.0, -1.0, 0.0):
        values = np.full(600, rest, np.float32)
        values.view(np.uint32)[300] = bits
        with pytest.raises(NotFinite):
            encode(form, values)


@pytest.mark.parametrize("sign", [1, -1])
def test_bf16_goes_as_far_as_what_rounds_to_its_largest(sign: int) -> None:
    values = np.full(5, 0x7F7F_7FFF, np.uint32).view(np.float32) * np.float32(sign)
    assert (
        through(format_named("bf16"), values).view(np.uint32) & 0x7FFF_FFFF == 0x7F7F_0000
    ).all()
    values.view(np.uint32)[2] += 1
    with pytest.raises(NotFinite):
        encode(format_named("bf16"), values)


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_what_would_become_infinite_is_refused(name: str) -> None:
    with pytest.raises(NotFinite):
        encode(format_named(name), np.array([1.0, F32_MAX], np.float32))


@blocks
def test_the_largest_values_stay_finite(form: BlockFormat) -> None:
    values = np.array([F32_MAX, -F32_MAX, 0.3 * F32_MAX], np.float32)
    assert np.isfinite(through(form, values)).all()


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_hostile_float_is_refused_and_names_its_sender(name: str, bad: float) -> None:
    form = format_named(name)
    data = encode(form, normal(PIECE + 10)).copy()
    if name == "bf16":
        data.view("<u2")[-1] = np.array([bad], np.float32).view(np.uint32)[0] >> 16
    else:
        data.view("<f4" if name == "fp32" else "<f2")[-1] = bad
    with pytest.raises(RefusedPayload, match=SENDER.short) as raised:
        decode(form, data, PIECE + 10)
    assert raised.value.sender == SENDER


@blocks
@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0, -0.0, 1e-35])
def test_a_hostile_scale_is_refused(form: BlockFormat, bad: float) -> None:
    data = encode(form, normal(600)).copy()
    data[8:12].view("<f4")[0] = bad
    with pytest.raises(RefusedPayload):
        decode(form, data, 600)


@pytest.mark.parametrize(
    ("name", "code"), [("int8", 0x80), ("int4", 0x08), ("int4", 0x80), ("e3m0", 0x08)]
)
def test_a_code_that_no_encoder_writes_is_refused(name: str, code: int) -> None:
    form = format_named(name)
    data = encode(form, normal(600)).copy()
    data[20] = code
    with pytest.raises(RefusedPayload):
        decode(form, data, 600)


@pytest.mark.parametrize("name", ["int4", "e3m0"])
def test_a_padding_half_that_is_not_zero_is_refused(name: str) -> None:
    form = format_named(name)
    data = encode(form, normal(5)).copy()
    data[-1] |= 0x10
    with pytest.raises(RefusedPayload):
        decode(form, data, 5)


@every
def test_any_other_length_is_refused(form: WireFormat) -> None:
    data = encode(form, normal(300))
    for wrong in (data[:-1], np.append(data, np.uint8(0)), data[:0], data[:1]):
        with pytest.raises(RefusedPayload):
            decode(form, wrong, 300)


@every
@given(data=st.binary(max_size=80), count=st.integers(0, 40))
def test_any_bytes_give_finite_values_or_are_refused(
    form: WireFormat, data: bytes, count: int
) -> None:
    try:
        values = decode(form, np.frombuffer(data, np.uint8), count)
    except RefusedPayload:
        return
    assert np.isfinite(values).all()


@every
@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_any_flipped_bit_gives_finite_values_or_is_refused(
    form: WireFormat, at: int, bit: int
) -> None:
    data = encode(form, normal(700)).copy()
    data[at % data.size] ^= 1 << bit
    try:
        values = decode(form, data, 700)
    except RefusedPayload:
        return
    assert np.isfinite(values).all()


# ---- compressed ------------------------------------------------------------------------------------


def test_compression_is_used_only_where_it_helps() -> None:
    noise = np.random.default_rng(0).integers(0, 2**23, 4096).astype(np.uint32)
    incompressible = (noise | 0x3F800000).view(np.float32)
    packed = format_named("int8+zstd")
    assert encode(packed, np.zeros(4096, np.float32)).size < 60
    assert encode(format_named("fp32+zstd"), incompressible).size <= 1 + 4 * 4096
    values = normal(1 << 16)
    assert encode(packed, values).size < 0.95 * Int8().encoded_bytes(1 << 16)


def test_a_bomb_is_refused_before_it_takes_memory() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    assert len(bomb) < 8192
    data = np.frombuffer(b"\x01" + bomb, np.uint8)
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 << 20))
    out = np.empty(20_000, np.float32)
    tracemalloc.start()
    for bad in (data, np.frombuffer(b"\x01" + unsized, np.uint8)):
        with pytest.raises(RefusedPayload):
            format_named("fp32+zstd").decode_untrusted_into(bad, out, sender=SENDER)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_what_follows_a_frame_is_refused() -> None:
    form = format_named("int8+zstd")
    data = encode(form, np.zeros(5000, np.float32))
    assert data[0] == 1
    for extra in (b"\0", bytes(data[1:])):
        with pytest.raises(RefusedPayload):
            decode(form, np.append(data, np.frombuffer(extra, np.uint8)), 5000)
    other = data.copy()
    other[0] = 2
    with pytest.raises(RefusedPayload, match="unknown kind"):
        decode(form, other, 5000)


# ---- the rest ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ints", "floats"), [(np.int16, np.float16), (np.int32, np.float32)])
def test_magnitudes(ints: type[np.signedinteger], floats: type[np.floating]) -> None:
    values = normal(1000, 9).astype(floats)
    values[100:200] = -np.abs(values[100:200])
    values[200:300] = np.abs(values[200:300])
    values[300:400] = -0.0
    values[450], values[451] = np.inf, -1
    values[550] = -np.inf
    values[650], values[651] = -np.nan, np.inf
    firsts = np.arange(0, 1000, 100)
    found = magnitudes(values.view(ints), firsts)
    expected = np.array([np.abs(values[at : at + 100]).max() for at in firsts])
    assert np.array_equal(found.view(floats), expected, equal_nan=True)
    assert magnitudes(values.view(ints), [0]) == found.max() > np.array(np.inf, floats).view(ints)


def test_formats_are_found_by_name() -> None:
    for name, form in FORMATS.items():
        assert format_named(name) is form
        assert form.name == name
    with pytest.raises(UnknownFormat, match="int8"):
        format_named("int9")
