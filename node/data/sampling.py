"""Counter-based randomness: batch number i of a stream without having drawn those before it.

A data cursor should be one number, and a simulator wants the batches of a hundred nodes in one call. Both follow
when a draw is a hash of (stream, seed, batch, place). The hash is SplitMix64 (Steele, Lea and Flood 2014), which
passes BigCrush as a counter-based generator and is a dozen numpy operations on whole arrays; unlike numpy's own
generators, whose streams may change between versions, it gives the same on every machine for good.

Draws modulo a size below 2^32 favour small values by less than 2^-32, which is nothing here.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["batch_draws", "stream_of", "uniform"]

Words = npt.NDArray[np.uint64]

_STEP: Final = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd
_FIRST: Final = np.uint64(0xBF58476D1CE4E5B9)
_SECOND: Final = np.uint64(0x94D049BB133111EB)


def stream_of(*parts: str | int) -> int:
    """A 64-bit number for a name such as ("initial", seed, node)."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def batch_draws(
    streams: npt.NDArray[np.uint64] | int, seed: int, index: npt.NDArray[Any] | int, count: int
) -> Words:
    """`count` 64-bit draws for batch `index` of each stream: shape (*streams and index broadcast*, count)."""
    stream = np.atleast_1d(np.asarray(streams, np.uint64))
    batch = np.asarray(index, np.uint64)
    with np.errstate(over="ignore"):
        key = _mixed(stream + _STEP * np.uint64(seed & (2**64 - 1)))
        base = _mixed(key + _STEP * batch)
        places = _STEP * np.arange(1, count + 1, dtype=np.uint64)
        return _mixed(base[..., None] + places)


def uniform(stream: int, count: int) -> npt.NDArray[np.float64]:
    """`count` values in [0, 1), multiples of 2^-53."""
    words = batch_draws(stream, 0, 0, count)[0] >> np.uint64(11)
    found: npt.NDArray[np.float64] = words.astype(np.float64) * 2.0**-53
    return found


def _mixed(z: Words) -> Words:
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    return z ^ (z >> np.uint64(31))
