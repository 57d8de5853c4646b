"""int8, int4 and E3M0: blocks of 256 values that share one scale, taken from the block itself.

An encoding of `count` values is the blocks' scales (fp32, little-endian), then the codes in the order of
the values; the last block is as short as what is left::

    scale = the block's largest magnitude m, as fp32
    int8  : code = rint(v * 127 / m), one byte; value = code * (m / 127)
    int4  : code = rint(v * 7 / m), two's complement, two to a byte, the first in the low half;
            value = code * (m / 7)
    E3M0  : code = sign * 8 + e, halves as with int4; value = 0 if e is 0, else +-m * 2^(e-7);
            the nearest, of two equally near the larger

====== ============== =====================================================
format bytes per value error of a value, m the largest magnitude of its block
====== ============== =====================================================
int8   1.0156         <= m / 254 (about 0.7 % of normal values' RMS)
int4   0.5156         <= m / 14
E3M0   0.5156         <= a third of the value, or m / 128 if that is more
====== ============== =====================================================

All bounds are meant up to fp32's own rounding (a few 2^-24 of m). A block whose m is below 2^-100 is all
zeros. Of what no encoder writes, this is refused: scales that are negative, tiny or not finite, codes -128 and -8,
negative zeros, a padding half that is not zero. So nothing decodes to infinity.

int4 suits values like a normal distribution (rms error 0.13 of the signal against 0.20), E3M0 those
with heavy tails. Neither may be encoded again at every hop of a ring: 32 members would leave only noise.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Final

import numpy as np
import numpy.typing as npt

from gossip.collective.formats.wire_format import (
    PIECE,
    Bytes,
    InvalidBytes,
    Values,
    WireFormat,
    expect_length,
    magnitudes,
)
from gossip.errors import NotFinite

BLOCK: Final = 256
"""Values per scale. Smaller ones cost more for scales than they win; the error grows slowly with size."""

TINY: Final = np.float32(2.0**-100)
"""Below this a quotient by the scale could leave fp32's range."""

_TINY_BITS: Final = int(TINY.view(np.int32))
_INFINITY: Final = 0x7F80_0000
"""Bits of fp32's infinity; those of a NaN are greater."""
_MAGNITUDE: Final = 0x7FFF_FFFF
"""All bits but the sign's."""
_TO_INTEGER: Final = np.float32(1.5 * 2**23)
"""Numbers of its size have no places behind the point: added to it, one is rounded to nearest with ties to even, and its two's complement
is in the lowest bits of the sum. Twice as fast as rounding and converting."""
_FIRSTS: Final = np.arange(0, PIECE, BLOCK)
"""Where the blocks of a piece begin."""


class BlockFormat(WireFormat):
    """What the three have in common: scales first, then codes."""

    def _blocks(self, count: int) -> int:
        return -(-count // BLOCK)

    @abstractmethod
    def _code_bytes(self, count: int) -> int:
        """Bytes of the codes of `count` values."""

    def encoded_bytes(self, count: int) -> int:
        """Scales and codes."""
        return 4 * self._blocks(count) + self._code_bytes(count)

    def encode_into(self, values: Values, out: Bytes) -> int:
        """See `WireFormat`."""
        blocks, whole = self._blocks(values.size), values.size // BLOCK * BLOCK
        scales = out[: 4 * blocks].view("<f4")
        codes = out[4 * blocks : self.encoded_bytes(values.size)]
        scratch = np.empty(min(PIECE, blocks * BLOCK), np.float32)
        for start in range(0, whole, PIECE):
            piece = values[start : min(start + PIECE, whole)]
            at, end = self._code_bytes(start), self._code_bytes(start + piece.size)
            self._encode_rows(piece, scales[start // BLOCK :], codes[at:end], scratch)
        if whole < values.size:
            rest = np.zeros(BLOCK, np.float32)
            rest[: values.size - whole] = values[whole:]
            last = np.empty(self._code_bytes(BLOCK), np.uint8)
            self._encode_rows(rest, scales[whole // BLOCK :], last, scratch)
            codes[self._code_bytes(whole) :] = last[: self._code_bytes(values.size - whole)]
        return self.encoded_bytes(values.size)

    def _encode_rows(
        self, values: Values, scales: npt.NDArray[np.float32], codes: Bytes, scratch: Values
    ) -> None:
        """Encode whole blocks; `scratch` has room for their values."""
        firsts = _FIRSTS[: values.size // BLOCK]
        bits = magnitudes(values.view(np.int32), firsts)
        if bits.max() >= _INFINITY:
            raise NotFinite("values are not finite")
        bits[bits < _TINY_BITS] = 0
        largest = bits.view(np.float32)
        scales[: largest.size] = largest
        rows, room = values.reshape(-1, BLOCK), scratch[: values.size].reshape(-1, BLOCK)
        self._quantise(rows, largest[:, None], codes, room)

    @abstractmethod
    def _quantise(self, rows: Values, largest: Values, codes: Bytes, room: Values) -> None:
        """Write the codes of rows with these largest magnitudes; `room` is of the shape of `rows`, for any use."""

    def _decode(self, data: Bytes, out: Values) -> None:
        expect_length(data, self.encoded_bytes(out.size))
        blocks = self._blocks(out.size)
        scales = data[: 4 * blocks].view("<f4").astype(np.float32)
        bits = scales.view(np.int32)  # negative where there is a sign
        if not ((bits == 0) | ((bits >= _TINY_BITS) & (bits < _INFINITY))).all():
            raise InvalidBytes("scales that no encoder writes")
        codes, factors = data[4 * blocks :], self._factors(scales)
        for start in range(0, out.size, PIECE):
            target = out[start : start + PIECE]
            at, end = self._code_bytes(start), self._code_bytes(start + target.size)
            self._restore(codes[at:end], target)
            _multiply(target, factors[start // BLOCK : self._blocks(start + target.size)])

    def _factors(self, scales: Values) -> Values:
        """By what each block's codes are multiplied."""
        return scales

    @abstractmethod
    def _restore(self, codes: Bytes, target: Values) -> None:
        """The values of codes, of blocks with a factor of 1; raises InvalidBytes."""


def _multiply(values: Values, factors: Values) -> None:
    """Each block with its factor; the last one may be short."""
    whole = values.size // BLOCK
    rows = values[: whole * BLOCK].reshape(-1, BLOCK)
    np.multiply(rows, factors[:whole, None], out=rows)
    if whole < factors.size:
        values[whole * BLOCK :] *= factors[whole]


class _Integers(BlockFormat):
    """Whole multiples of a step, rounded to nearest with ties to even."""

    top: int

    def _multiples(self, rows: Values, largest: Values, room: Values) -> npt.NDArray[np.int32]:
        """Numbers that have the codes in their lowest bits."""
        # Where the largest is zero, all are less than TINY, and so zero with `top` times as much, too.
        inverse = np.float32(self.top) / np.where(largest > 0, largest, np.float32(1))
        np.multiply(rows, inverse, out=room)
        np.add(room, _TO_INTEGER, out=room)
        return room.reshape(-1).view(np.int32)

    def _factors(self, scales: Values) -> Values:
        """The distance of two values; its multiples stay finite, as `scale / top` is rounded down."""
        steps: Values = scales / np.float32(self.top)
        down = np.nextafter(steps, np.float32(0))
        with np.errstate(over="ignore"):
            too_far = ~np.isfinite(steps * np.float32(self.top))
        steps[too_far] = down[too_far]
        return steps


class Int8(_Integers):
    """One byte for each value."""

    name = "int8"
    bytes_per_value = 1.0 + 4.0 / BLOCK
    hops = True
    top = 127

    def _code_bytes(self, count: int) -> int:
        return count

    def _quantise(self, rows: Values, largest: Values, codes: Bytes, room: Values) -> None:
        codes.view(np.int8)[:] = self._multiples(rows, largest, room)

    def _restore(self, codes: Bytes, target: Values) -> None:
        numbers = codes.view(np.int8)
        if numbers.min() == -128:
            raise InvalidBytes("a code that no encoder writes")
        np.copyto(target, numbers)


class _Nibbles(BlockFormat):
    """Half a byte for each value."""

    bytes_per_value = 0.5 + 4.0 / BLOCK

    def _code_bytes(self, count: int) -> int:
        return (count + 1) // 2

    def _pack(self, halves: npt.NDArray[np.uint8], codes: Bytes) -> None:
        """Two bytes with a half each to one; what is above the halves is ignored, and `halves` is not kept."""
        pairs = halves.view("<u2")
        upper = pairs >> 4
        upper &= 0xF0
        pairs &= 0x0F
        pairs |= upper
        codes[:] = pairs

    def _unpack(self, codes: Bytes, count: int) -> npt.NDArray[np.int8]:
        """Halves as numbers from -7 to 7; -8 is no code of either format."""
        pairs = codes.astype("<u2")
        pairs |= pairs << 4
        pairs &= 0x0F0F
        numbers = pairs.view(np.int8)
        numbers ^= 8  # the sign of the half becomes that of the byte
        numbers -= 8
        if numbers.min() == -8 or numbers[count:].any():
            raise InvalidBytes("a code that no encoder writes")
        return numbers[:count]


class Int4(_Nibbles, _Integers):
    """Fifteen levels."""

    name = "int4"
    top = 7

    def _quantise(self, rows: Values, largest: Values, codes: Bytes, room: Values) -> None:
        self._pack(self._multiples(rows, largest, room).astype(np.uint8), codes)

    def _restore(self, codes: Bytes, target: Values) -> None:
        np.copyto(target, self._unpack(codes, target.size))


class E3M0(_Nibbles):
    """A sign and a power of two."""

    name = "e3m0"

    def _quantise(self, rows: Values, largest: Values, codes: Bytes, room: Values) -> None:
        # Where the largest is zero, all are less than TINY, and one will do.
        np.divide(rows, np.where(largest > 0, largest, np.float32(1)), out=room)
        bits = room.reshape(-1).view(np.int32)
        sign = bits >> 28
        bits &= _MAGNITUDE
        least = bits >= _E3M0_LEAST
        # Half of a mantissa more carries into the exponent from 1.5 on: the nearest power of two.
        bits += 0x40_0000
        bits >>= 23
        bits -= 120
        np.maximum(bits, least, out=bits)
        np.maximum(bits, 0, out=bits)
        sign &= 8
        sign *= bits > 0
        bits |= sign
        self._pack(bits.astype(np.uint8), codes)

    def _restore(self, codes: Bytes, target: Values) -> None:
        self._unpack(codes, target.size)  # refuses what no encoder writes
        pairs = target[: target.size // 2 * 2].view(np.complex64)
        # There is an entry for every byte; without a mode numpy would look, in a buffer of its own.
        np.take(_E3M0_PAIRS, codes[: pairs.size], out=pairs, mode="clip")
        if target.size % 2:
            target[-1] = _E3M0_VALUES[codes[-1]]


_E3M0_LEAST: Final = 0x3C00_0000
"""Bits of 2^-7, the middle of 0 and 2^-6."""
_E3M0_VALUES: Final = np.array(
    [0.0]
    + [2.0 ** (e - 7) for e in range(1, 8)]
    + [0.0]
    + [-(2.0 ** (e - 7)) for e in range(1, 8)],
    np.float32,
)
_E3M0_PAIRS: Final = (
    np.array([_E3M0_VALUES[[code & 15, code >> 4]] for code in range(256)])
    .view(np.complex64)
    .reshape(-1)
)
"""Both values of a byte, first and second in memory."""
