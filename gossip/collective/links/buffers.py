"""Arrays as raw bytes without a copy, and memory that operations use again."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def as_bytes(array: npt.NDArray[Any]) -> memoryview:
    """The memory of a contiguous array as bytes; an empty array gives an empty view."""
    if array.size == 0:
        return memoryview(bytearray())
    return array.view(np.uint8).data


class Workspace:
    """Memory of one lane, whose operations follow each other, for what each of them needs only while it runs.

    Taken anew for every operation, it is given back to the system in between: the pages that the kernel then had to clear again cost
    an owner of half a MiB a third of its processor time. It keeps what the largest operation needed.
    """

    def __init__(self) -> None:
        self._held: dict[str, npt.NDArray[np.uint8]] = {}

    def array(self, use: str, size: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """`size` values of any content; the ones of the same `use` that were given before are no longer the caller's."""
        wanted = size * dtype.itemsize
        held = self._held.get(use)
        if held is None or held.size < wanted:
            held = self._held[use] = np.empty(wanted, np.uint8)
        return held[:wanted].view(dtype)
