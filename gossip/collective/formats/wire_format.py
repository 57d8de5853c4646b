"""What every wire format offers, and the two ways in which bytes or values are refused.

A format is a pure function between float32 values and bytes: the same values give the same bytes on
every machine, and decoding gives the same values everywhere. It keeps nothing between calls, so an encoder
with memory (error feedback, say) is built around it, not into it.

Values that are not finite are refused where they enter: by `encode_into` at the node that made them, and by
`decode_untrusted_into` at the first honest node that sees them, which names the sender. One NaN in a mean
is a NaN in every member's model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gossip.errors import GossipError
from transport.identity import NodeId

Values = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

PIECE: Final = 1 << 16
"""Values worked on at a time: what they need (256 KiB, and as much for scratch) stays in a core's second-level cache, and is so much
that numpy's calls count little. A multiple of every block."""


class RefusedPayload(GossipError):
    """What a member sent does not decode: it names the member, which is to be left out."""

    hint = "the operation is tried again without that member"

    def __init__(self, sender: NodeId, reason: str) -> None:
        super().__init__(f"{sender.short} sent {reason}")
        self.sender = sender
        self.reason = reason


class InvalidBytes(Exception):
    """Inside this package: why bytes are no encoding; becomes a `RefusedPayload`."""


class WireFormat(ABC):
    """One way of writing float32 values as bytes."""

    name: str
    """As in the configuration."""
    bytes_per_value: float
    """For long vectors."""
    hops: bool = False
    """True when sums may be encoded again at every hop of a ring; else only a format in which each
    value is encoded once by who contributes it and once by who sums it keeps its error bound."""

    @abstractmethod
    def encoded_bytes(self, count: int) -> int:
        """The most bytes that `count` values can take; exactly, unless the format is compressed."""

    @abstractmethod
    def encode_into(self, values: Values, out: Bytes) -> int:
        """Encode 1-D contiguous `values` into `out`; returns how many bytes were written.

        `values` are only read. After an error `out` is undefined.

        Raises:
            NotFinite: a value cannot be carried.
        """

    @abstractmethod
    def _decode(self, data: Bytes, out: Values) -> None:
        """Decode all of `data` into all of `out`; raises InvalidBytes."""

    def decode_untrusted_into(self, data: Bytes, out: Values, *, sender: NodeId) -> None:
        """Decode what `sender` sent into all of `out` (1-D, contiguous), which is undefined after an error.

        Every accepted encoding gives finite values only. Memory beyond `out` is bounded by its size.

        Raises:
            RefusedPayload: not an encoding of so many values.
        """
        try:
            self._decode(data, out)
        except InvalidBytes as error:
            raise RefusedPayload(sender, str(error)) from None


def expect_length(data: Bytes, expected: int) -> None:
    """Refuse bytes of any other length."""
    if data.size != expected:
        raise InvalidBytes(f"{data.size} bytes where {expected} were expected")


def magnitudes(
    bits: npt.NDArray[np.signedinteger[Any]], firsts: Sequence[int] | npt.NDArray[np.intp]
) -> npt.NDArray[np.signedinteger[Any]]:
    """Bits of the greatest magnitude in each block of floats that are given as their bits (sign, exponent, mantissa).

    Magnitudes are in the order of their bits, NaNs above infinity. Among signed integers the greatest is the greatest positive value, among
    unsigned ones the negative value of the greatest magnitude. That is two looks, and a fifth of the time that numpy takes for floats.

    Args:
        bits: 1-D, at least one in each block.
        firsts: where each block begins.
    """
    positive = np.maximum.reduceat(bits, firsts)
    negative = np.maximum.reduceat(bits.view(bits.dtype.str.replace("i", "u")), firsts)
    negative &= np.iinfo(bits.dtype).max
    return np.maximum(positive, negative.view(bits.dtype), out=positive)
