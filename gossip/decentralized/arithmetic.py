"""Sums of models in one fixed order, so that equal inputs give equal bits on every node; and what tells that bits are equal.

Contributions are added in the order in which they are given (callers sort by node id), in float64, piece by piece so
that no more than a piece is ever wide, and rounded to float32 once at the end.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from gossip.collective.links.buffers import as_bytes
from gossip.decentralized.protocol import AnyVector, Vector

PIECE: Final = 1 << 16
"""Values worked on at a time; a float64 accumulator of this size stays in a core's cache."""


def combine(vectors: Sequence[AnyVector], weights: Sequence[float]) -> Vector:
    """`sum_j weights[j] * vectors[j]` as a new float32 vector."""
    assert vectors, "nothing to combine"
    assert len(vectors) == len(weights), "one weight for each vector"
    size = vectors[0].size
    out = np.empty(size, np.float32)
    for start in range(0, size, PIECE):
        stop = min(start + PIECE, size)
        total = np.zeros(stop - start)
        for vector, weight in zip(vectors, weights, strict=True):
            total += np.multiply(vector[start:stop], weight, dtype=np.float64)
        with np.errstate(over="ignore"):  # what does not fit is infinite, and callers look for that
            out[start:stop] = total
    return out


def mean(vectors: Sequence[AnyVector]) -> Vector:
    """Their plain mean: equal vectors give that vector, bit for bit."""
    return combine(vectors, [1.0 / len(vectors)] * len(vectors))


def is_finite(vector: AnyVector) -> bool:
    """Whether there is no NaN and no infinity in it.

    A dot product over pieces is many times faster than looking at each value; only where it overflows is that done.
    """
    for start in range(0, vector.size, PIECE):
        piece = vector[start : start + PIECE]
        with np.errstate(over="ignore", invalid="ignore"):
            if math.isfinite(float(np.dot(piece, piece))):
                continue
        if not bool(np.isfinite(piece).all()):
            return False
    return True


def model_digest(model: Vector) -> bytes:
    """SHA-256 of a model's little-endian float32 bytes, padding included: equal models have equal digests."""
    return hashlib.sha256(as_bytes(model.astype("<f4", copy=False))).digest()
