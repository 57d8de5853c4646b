"""Where each parameter lies in the flat vector that nodes exchange.

Parameters are sorted by name and laid one after another, each starting at a multiple of 16 values
(64 bytes)::

    | a.weight ............ 0 0 | b.bias ... 0 0 0 | c.weight ....... |

The gaps hold zeros and take part in the arithmetic, which keeps them zero. They cost at most 60
bytes per parameter and buy that a view into the flat vector is aligned like memory of torch's own:
matrix kernels may pick another order of summation for unaligned data, and training on views would
not be bit-equal to training without a swarm.

The digest over names, shapes and this rule is what two nodes compare before they average anything.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import attrs
import numpy as np
import numpy.typing as npt

__all__ = ["Layout", "Slot"]

ALIGNMENT: Final = 16
"""Values; times 4 bytes is torch's own alignment."""

_DOMAIN: Final = b"noded flat layout 1\0"


@attrs.frozen
class Slot:
    """The place of one parameter."""

    name: str
    shape: tuple[int, ...]
    start: int
    """Index of the first value in the flat vector."""
    numel: int


@attrs.frozen
class Layout:
    """The places of all parameters of a model."""

    slots: tuple[Slot, ...]
    numel: int
    """Length of the flat vector, gaps included; at least 1."""

    @classmethod
    def of(cls, shapes: Mapping[str, Sequence[int]]) -> Layout:
        """The layout for parameters of these names and shapes."""
        slots: list[Slot] = []
        position = 0
        for name in sorted(shapes):
            shape = tuple(int(size) for size in shapes[name])
            slots.append(Slot(name, shape, position, math.prod(shape)))
            position += -(-math.prod(shape) // ALIGNMENT) * ALIGNMENT
        return cls(tuple(slots), max(position, 1))

    @property
    def model(self) -> bytes:
        """SHA-256 over names, shapes and the rule of layout: equal models have equal digests."""
        listing = [[slot.name, list(slot.shape), slot.start] for slot in self.slots]
        return hashlib.sha256(_DOMAIN + json.dumps(listing).encode()).digest()

    def split(self, flat: npt.NDArray[Any]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """Views of a flat vector, one per parameter in its own shape."""
        for slot in self.slots:
            yield slot.name, flat[slot.start : slot.start + slot.numel].reshape(slot.shape)

    def join(self, parts: Mapping[str, npt.NDArray[Any]], flat: npt.NDArray[np.float32]) -> None:
        """Copy one array per parameter into a flat vector; raises KeyError / ValueError."""
        for name, view in self.split(flat):
            if parts[name].shape != view.shape:
                raise ValueError(f"{name} has shape {parts[name].shape}, expected {view.shape}")
            np.copyto(view, parts[name], casting="same_kind")
