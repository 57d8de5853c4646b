"""What goes into a collective, checked before anybody hears of it, and what comes out of a failed one."""

from __future__ import annotations

import hashlib
import math
import struct
from typing import Any

import numpy.typing as npt

from gossip.errors import DescriptorMismatch, InvalidOperation

Array = npt.NDArray[Any]


def check_operands(source: Array, out: Array, *, mean: bool, weight: float) -> None:
    """Refuse with InvalidOperation what the ring cannot reduce."""
    if source.ndim != 1 or source.shape != out.shape or source.dtype != out.dtype:
        raise InvalidOperation("source and out must be 1-D and of the same length and type")
    if not (source.flags.c_contiguous and out.flags.c_contiguous):
        raise InvalidOperation("source and out must be contiguous")
    if not (math.isfinite(weight) and weight >= 0):
        raise InvalidOperation(f"a weight must be finite and not negative, not {weight}")
    if source.dtype.kind not in "fiu":
        raise InvalidOperation(f"values of type {source.dtype} cannot be summed")
    if source.dtype.kind != "f" and (mean or weight not in {0.0, 1.0}):
        raise InvalidOperation(f"values of type {source.dtype} have a sum, but no weighted mean")


def bind_descriptor(descriptor: bytes, source: Array, *, mean: bool) -> bytes:
    """The caller's descriptor with what all members have to agree on besides: length, type, mean or sum."""
    digest = hashlib.sha256(b"noded all-reduce v1\0")
    digest.update(struct.pack(">QB", source.size, mean))
    digest.update(source.dtype.str.encode())
    digest.update(descriptor)
    return digest.digest()


def first_error(group: BaseExceptionGroup[Exception]) -> Exception:
    """The one error that says most: a mismatch if there is one, else the first."""
    leaves: list[Exception] = []

    def collect(part: BaseExceptionGroup[Exception]) -> None:
        for error in part.exceptions:
            if isinstance(error, BaseExceptionGroup):
                collect(error)
            else:
                leaves.append(error)

    collect(group)
    return next((leaf for leaf in leaves if isinstance(leaf, DescriptorMismatch)), leaves[0])
