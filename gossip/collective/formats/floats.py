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

from typing import Any

import numpy as np
import numpy.typing as npt

from gossip.collective.formats.wire_format import (
    PIECE,
    Bytes,
    InvalidBytes,
    Values,
    WireFormat,
    all_finite,
    expect_length,
)
from gossip.errors import NotFinite

_NOT_FINITE = "values that are not finite"


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
        if not all_finite(values):
            raise NotFinite(f"{_count_bad(values)} of {values.size} values are not finite")
        size = 4 * values.size
        np.copyto(out[:size].view("<f4"), values)
        return size

    def _decode(self, data: Bytes, out: Values) -> None:
        expect_length(data, 4 * out.size)
        np.copyto(out, data.view("<f4"))
        if not all_finite(out):
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
            rounded = scratch[: piece.size]
            np.right_shift(piece, 16, out=rounded)
            rounded &= 1  # ties to even: half of the last place less one, plus its lowest bit
            rounded += 0x7FFF
            rounded += piece  # a NaN's payload may carry into the sign; it is refused either way
            rounded >>= 16
            codes[start : start + PIECE] = rounded
            # The exponent of the rounded value tells what became infinite, the piece what was.
            if ((rounded & 0x7F80) == 0x7F80).any() or not all_finite(
                values[start : start + PIECE]
            ):
                raise NotFinite("values are not finite, or round to infinity as bf16")
        return 2 * values.size

    def _decode(self, data: Bytes, out: Values) -> None:
        expect_length(data, 2 * out.size)
        codes = data.view("<u2")
        bits = out.view(np.uint32)
        for start in range(0, out.size, PIECE):
            piece = codes[start : start + PIECE]
            if ((piece & 0x7F80) == 0x7F80).any():
                raise InvalidBytes(_NOT_FINITE)
            np.left_shift(piece, 16, out=bits[start : start + PIECE], dtype=np.uint32)


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


def _count_bad(values: npt.NDArray[Any]) -> int:
    return int(np.count_nonzero(~np.isfinite(values)))
