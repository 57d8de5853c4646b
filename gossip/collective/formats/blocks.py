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
zeros. What no encoder writes is refused: scales that are negative or not finite, codes -128 and -8,
negative zeros, a padding half that is not zero; so equal values have one encoding, and nothing decodes to
infinity.

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
)
from gossip.errors import NotFinite

BLOCK: Final = 256
"""Values per scale. Smaller ones cost more for scales than they win; the error grows slowly with size."""

TINY: Final = np.float32(2.0**-100)
"""Below this a quotient by the scale could leave fp32's range."""

Ints = npt.NDArray[np.int8]


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
        blocks = self._blocks(values.size)
        scales = out[: 4 * blocks].view("<f4")
        codes = out[4 * blocks : self.encoded_bytes(values.size)]
        padded = np.zeros(BLOCK, np.float32)
        for start in range(0, values.size, PIECE):
            piece = values[start : start + PIECE]
            whole = piece.size // BLOCK * BLOCK
            for begin, part in ((0, piece[:whole]), (whole, piece[whole:])):
                if part.size == 0:
                    continue
                if part.size < BLOCK:
                    padded[: part.size] = part
                rows = (part if part.size >= BLOCK else padded).reshape(-1, BLOCK)
                first = (start + begin) // BLOCK
                largest = self._scale(rows, scales[first : first + len(rows)])
                at = self._code_bytes(start + begin)
                self._quantise(rows, largest, codes[at : at + self._code_bytes(part.size)])
        return self.encoded_bytes(values.size)

    def _scale(self, rows: Values, scales: npt.NDArray[np.float32]) -> Values:
        """Each row's largest magnitude, also written to `scales`; one column."""
        largest = np.maximum(rows.max(axis=1), -rows.min(axis=1))  # both keep a NaN
        if not np.isfinite(largest).all():
            raise NotFinite("values are not finite")
        largest[largest < TINY] = 0
        scales[:] = largest
        column: Values = largest[:, None]
        return column

    @abstractmethod
    def _quantise(self, rows: Values, largest: Values, codes: Bytes) -> None:
        """Write the codes of whole rows, as many as `codes` has room for."""

    def _decode(self, data: Bytes, out: Values) -> None:
        expect_length(data, self.encoded_bytes(out.size))
        blocks = self._blocks(out.size)
        scales = data[: 4 * blocks].view("<f4").astype(np.float32)
        if not (np.isfinite(scales) & (scales >= 0)).all():
            raise InvalidBytes("scales that are negative or not finite")
        if (((scales > 0) & (scales < TINY)) | np.signbit(scales)).any():
            raise InvalidBytes("scales that no encoder writes")
        codes = data[4 * blocks :]
        for start in range(0, out.size, PIECE):
            target = out[start : start + PIECE]
            at = self._code_bytes(start)
            factors = scales[start // BLOCK : start // BLOCK + self._blocks(target.size)]
            self._restore(codes[at : at + self._code_bytes(target.size)], factors, target)

    @abstractmethod
    def _restore(self, codes: Bytes, scales: Values, target: Values) -> None:
        """Values of codes; raises InvalidBytes."""


class _Integers(BlockFormat):
    """Whole multiples of a step, rounded to nearest with ties to even."""

    top: int

    def _multiples(self, rows: Values, largest: Values) -> Values:
        inverse = np.divide(
            np.float32(self.top), largest, out=np.zeros_like(largest), where=largest > 0
        )
        codes = rows * inverse
        np.rint(codes, out=codes)
        return codes

    def _steps(self, scales: Values) -> Values:
        """The distance of two values; its multiples stay finite, as `scale / top` is rounded down."""
        steps = scales / np.float32(self.top)
        down = np.nextafter(steps, np.float32(0))
        with np.errstate(over="ignore"):
            too_far = ~np.isfinite(steps * np.float32(self.top))
        steps[too_far] = down[too_far]
        return steps

    def _multiply(self, codes: Ints, scales: Values, target: Values) -> None:
        steps = self._steps(scales)
        whole = target.size // BLOCK * BLOCK
        np.multiply(
            codes[:whole].reshape(-1, BLOCK),
            steps[: whole // BLOCK, None],
            out=target[:whole].reshape(-1, BLOCK),
        )
        if whole < target.size:
            np.multiply(codes[whole : target.size], steps[-1], out=target[whole:])


class Int8(_Integers):
    """One byte for each value."""

    name = "int8"
    bytes_per_value = 1.0 + 4.0 / BLOCK
    hops = True
    top = 127

    def _code_bytes(self, count: int) -> int:
        return count

    def _quantise(self, rows: Values, largest: Values, codes: Bytes) -> None:
        multiples = self._multiples(rows, largest).reshape(-1)
        codes.view(np.int8)[:] = multiples[: codes.size]

    def _restore(self, codes: Bytes, scales: Values, target: Values) -> None:
        numbers = codes.view(np.int8)
        if (codes == 0x80).any():
            raise InvalidBytes("a code that no encoder writes")
        self._multiply(numbers, scales, target)


class _Nibbles(BlockFormat):
    """Half a byte for each value."""

    bytes_per_value = 0.5 + 4.0 / BLOCK

    def _code_bytes(self, count: int) -> int:
        return (count + 1) // 2

    def _pack(self, halves: npt.NDArray[np.uint8], codes: Bytes) -> None:
        pairs = halves.reshape(-1, 2)
        np.left_shift(pairs[:, 1], 4, out=pairs[:, 1])
        np.bitwise_or(pairs[: codes.size, 0], pairs[: codes.size, 1], out=codes)

    def _unpack(self, codes: Bytes, count: int) -> npt.NDArray[np.uint8]:
        halves = np.empty((codes.size, 2), np.uint8)
        np.bitwise_and(codes, 0x0F, out=halves[:, 0])
        np.right_shift(codes, 4, out=halves[:, 1])
        flat = halves.reshape(-1)
        if (flat == 8).any() or flat[count:].any():
            raise InvalidBytes("a code that no encoder writes")
        return flat[:count]


class Int4(_Nibbles, _Integers):
    """Fifteen levels."""

    name = "int4"
    top = 7

    def _quantise(self, rows: Values, largest: Values, codes: Bytes) -> None:
        multiples = self._multiples(rows, largest).reshape(-1).astype(np.int8)
        halves = multiples.view(np.uint8)
        halves &= 0x0F
        self._pack(halves, codes)

    def _restore(self, codes: Bytes, scales: Values, target: Values) -> None:
        halves = self._unpack(codes, target.size)
        numbers = (halves << 4).view(
            np.int8
        ) >> 4  # the sign of the half byte becomes that of the byte
        self._multiply(numbers, scales, target)


class E3M0(_Nibbles):
    """A sign and a power of two."""

    name = "e3m0"

    def _quantise(self, rows: Values, largest: Values, codes: Bytes) -> None:
        ratio = np.divide(rows, largest, out=np.zeros_like(rows), where=largest > 0)
        bits = ratio.view(np.uint32)
        sign = (bits >> 28) & 8
        bits &= 0x7FFFFFFF
        # Half of a mantissa more carries into the exponent from 1.5 on: the nearest power of two.
        exponent = ((bits + 0x400000) >> 23).astype(np.int32) - 120
        np.maximum(exponent, bits >= 0x3C000000, out=exponent)  # 2^-7: the middle of 0 and 2^-6
        np.clip(exponent, 0, 7, out=exponent)
        halves = exponent.astype(np.uint8)
        halves |= np.where(exponent > 0, sign, 0).astype(np.uint8)
        self._pack(halves.reshape(-1), codes)

    def _restore(self, codes: Bytes, scales: Values, target: Values) -> None:
        powers = _E3M0_VALUES[self._unpack(codes, target.size)]
        whole = target.size // BLOCK * BLOCK
        np.multiply(
            powers[:whole].reshape(-1, BLOCK),
            scales[: whole // BLOCK, None],
            out=target[:whole].reshape(-1, BLOCK),
        )
        if whole < target.size:
            np.multiply(powers[whole:], scales[-1], out=target[whole:])


_E3M0_VALUES: Final = np.array(
    [0.0]
    + [2.0 ** (e - 7) for e in range(1, 8)]
    + [0.0]
    + [-(2.0 ** (e - 7)) for e in range(1, 8)],
    np.float32,
)
