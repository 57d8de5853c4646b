"""What peers that lie send, and how much a core holds: the tools of the conformance kit against them."""

from __future__ import annotations

import gc
import random
import sys
from collections import deque
from typing import Final

import msgspec
import numpy as np

from gossip.decentralized.protocol import AnyVector, Send

EXTREMES: Final = (-1, 0, 1, 7, 2**31, 2**53, 2**63 - 1, 2**64 - 1)
"""Whole numbers at which ranges, types and arithmetic end."""


def mutations(send: Send, rng: random.Random) -> list[tuple[bytes, list[AnyVector]]]:
    """A real message with something wrong with it."""
    message, vectors = send.message, [vector.copy() for vector in send.vectors]
    short = [vector[:-1].copy() for vector in vectors]
    flipped = bytearray(message)
    if flipped:
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    out: list[tuple[bytes, list[AnyVector]]] = [
        (b"", vectors),
        (rng.randbytes(rng.randrange(1, 60)), vectors),
        (message[: rng.randrange(len(message) + 1)], vectors),
        (bytes(flipped), vectors),
        (message, []),
        (message, short),
        (message, [*vectors, np.ones(3, np.float32)]),
        (message, [vector.astype(np.float64) for vector in vectors]),
        (message, [vector.astype(np.float32) for vector in vectors]),
        (message, [np.full_like(vector, np.finfo(vector.dtype).max) for vector in vectors]),
        (message, [np.full(vector.size, np.finfo(np.float64).max) for vector in vectors]),
    ]
    decoded = msgspec.msgpack.decode(message)
    if isinstance(decoded, dict):
        for key in sorted(decoded):
            out += [
                (msgspec.msgpack.encode({**decoded, key: value}), vectors)
                for value in _wrong_values(decoded[key])
            ]
            out.append(
                (msgspec.msgpack.encode({k: v for k, v in decoded.items() if k != key}), vectors)
            )
    return out


def _wrong_values(value: object) -> list[object]:
    common: list[object] = [None, [], {}, "x", b"x", 1.5, float("nan"), float("inf"), -1e300]
    return [*common, *EXTREMES, *([value[:-1]] if isinstance(value, bytes | list) else [])]


def footprint(root: object) -> int:
    """Bytes of the arrays, containers and values that a core holds on to (classes, functions and modules apart)."""
    seen: set[int] = set()
    left: deque[object] = deque([root])
    total = 0
    while left:
        item = left.popleft()
        if id(item) in seen or isinstance(item, type) or callable(item) or item is sys:
            continue
        seen.add(id(item))
        if isinstance(item, np.ndarray):
            total += item.nbytes if item.base is None else 0
            left.append(item.base)
            continue
        total += sys.getsizeof(item)
        left.extend(found for found in gc.get_referents(item) if not isinstance(found, type(sys)))
    return total
