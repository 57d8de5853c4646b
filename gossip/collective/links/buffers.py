"""Arrays as raw bytes, without a copy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def as_bytes(array: npt.NDArray[Any]) -> memoryview:
    """The memory of a contiguous array as bytes; an empty array gives an empty view."""
    if array.size == 0:
        return memoryview(bytearray())
    return array.view(np.uint8).data
