"""fp32, bf16 and fp16: each value by itself, little-endian, rounded to nearest with ties to even.

====== ============================================================= ===========================
format value                                                         error
====== ============================================================= ===========================
fp32   IEEE 754 binary32                                             none
bf16   the upper 16 bits of fp32, rounded                            <= 2^-8 of the value
fp16   IEEE 754 binary16, up to 65,504 (what is below 65,520)        <= 2^-11, or 2^-25 if tiny
====== ============================================================= ===========================

The bound of bf16 holds for normal numbers; below 2^-126 it is 2^-134. What would round to infinity is
refused like infinity itself.
"""

from __future__ import annotations

from typing import Final

import numpy as np

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

_NOT_FINITE: Final = "values that are not finite"
_ROUNDS_TO_INFINITY: Final = 0x7F7F_8000
"""The bits of the least fp32 magnitude that has no finite bf16."""
_BF16_INFINITY: Final = 0x7F80


class Fp32(WireFormat):
    """The values as they are."""

    name = "fp32"
    bytes_per_value = 4.0
    hops = True

    def encoded_bytes(self, count: int) -> int:
        """Four for each."""
        return 4 * count

    def encode_into(self, values: Values, out: Bytes) -> int:
        """See `WireFormat`."""
        target = out[: 4 * values.size].view("<f4")
        for start in range(0, values.size, PIECE):
            piece = values[start : start + PIECE]
            if not np.isfinite(piece).all():
                raise NotFinite("values are not finite")
            target[start : start + PIECE] = piece
        return 4 * values.size

    def _decode(self, data: Bytes, out: Values) -> None:
        expect_length(data, 4 * out.size)
        values = data.view("<f4")
        for start in range(0, out.size, PIECE):
            target = out[start : start + PIECE]
            target[:] = values[start : start + PIECE]
            if not np.isfinite(target).all():
                raise InvalidBytes(_NOT_FINITE)


class Bf16(WireFormat):
    """The range of fp32 with 8 bits of precision."""

    name = "bf16"
    bytes_per_value = 2.0
    hops = True

    def encoded_bytes(self, count: int) -> int:
        """Two for each."""
        return 2 * count

    def encode_into(self, values: Values, out: Bytes) -> int:
        """See `WireFormat`."""
        codes = out[: 2 * values.size].view("<u2")
        bits = values.view(np.uint32)
        scratch = np.empty(min(PIECE, values.size), np.uint32)
        for start in range(0, values.size, PIECE):
            piece = bits[start : start + PIECE]
            if magnitudes(piece.view(np.int32), [0]) >= _ROUNDS_TO_INFINITY:
                raise NotFinite("values are not finite, or round to infinity as bf16")
            rounded = scratch[: piece.size]
            np.right_shift(piece, 16, out=rounded)
            rounded &= 1  # ties to even: half of the last place less one, plus its lowest bit
            rounded += 0x7FFF
            rounded += piece
            rounded >>= 16
            codes[start : start + PIECE] = rounded
        return 2 * values.size

    def _decode(self, data: Bytes, out: Values) -> None:
        expect_length(data, 2 * out.size)
        codes = data.view("<i2")
        bits = out.view(np.int32)
        for start in range(0, out.size, PIECE):
            piece = codes[start : start + PIECE]
            if magnitudes(piece, [0]) >= _BF16_INFINITY:
                raise InvalidBytes(_NOT_FINITE)
            wide = bits[start : start + PIECE]
            np.copyto(wide, piece)
            wide <<= 16


class Fp16(WireFormat):
    """11 bits of precision in a narrow range."""

    name = "fp16"
    bytes_per_value = 2.0
    hops = True

    def encoded_bytes(self, count: int) -> int:
        """Two for each."""
        return 2 * count

    def encode_into(self, values: Values, out: Bytes) -> int:
        """See `WireFormat`."""
        codes = out[: 2 * values.size].view("<f2")
        bits = codes.view("<u2")
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            for start in range(0, values.size, PIECE):
                codes[start : start + PIECE] = values[start : start + PIECE]
                if ((bits[start : start + PIECE] & 0x7C00) == 0x7C00).any():
                    raise NotFinite("values are not finite, or beyond fp16's 65,504")
        return 2 * values.size

    def _decode(self, data: Bytes, out: Values) -> None:
        expect_length(data, 2 * out.size)
        bits = data.view("<u2")
        for start in range(0, out.size, PIECE):
            if ((bits[start : start + PIECE] & 0x7C00) == 0x7C00).any():
                raise InvalidBytes(_NOT_FINITE)
        np.copyto(out, data.view("<f2"))
