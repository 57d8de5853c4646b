"""Sets of block numbers, as boolean vectors here and as bits on the wire; sans-IO.

wire   one bit per block, the first block in the highest bit of the first byte; the bits after the last block are zero
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gossip.blocks.errors import InvalidArtefact

__all__ = ["Bitmap", "full", "none", "pack_bits", "unpack_bits"]

Bitmap = npt.NDArray[np.bool_]


def none(blocks: int) -> Bitmap:
    """No block of so many."""
    return np.zeros(blocks, np.bool_)


def full(blocks: int) -> Bitmap:
    """Every block."""
    return np.ones(blocks, np.bool_)


def pack_bits(bitmap: Bitmap) -> bytes:
    """The wire form."""
    return np.packbits(bitmap).tobytes()


def unpack_bits(data: bytes, blocks: int) -> Bitmap:
    """Read an untrusted bitmap over `blocks` blocks.

    Raises:
        InvalidArtefact: another length, or bits beyond the last block.
    """
    if len(data) != -(-blocks // 8):
        raise InvalidArtefact(f"a bitmap of {len(data)} bytes for {blocks} blocks")
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    if bits[blocks:].any():
        raise InvalidArtefact("a bitmap has bits beyond the last block")
    return bits[:blocks].astype(np.bool_)
