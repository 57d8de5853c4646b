"""What the types of values that a collective takes have in common, and in which type they are added (sans-IO).

============================ ============ ==========================================================
values                       added as     remark
============================ ============ ==========================================================
float32, float64             themselves
float16, bfloat16            float32      rounded once, when everything is added: a sum of N rounded at
                                          every addition would be off by up to N half places
int8, int32, int64           themselves   modulo 2^bits, so that no order of additions matters
============================ ============ ==========================================================

Values that are not finite are refused, because one NaN in a mean is a NaN in every member's model; so is a sum that has
become infinite. Where they are looked for is the algorithm's affair. Numpy's warnings of them are of no use then, and
silenced once for an operation (`gossip.collective.dataplane.execute`), as that takes longer than adding a small vector.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from gossip.collective.call import Reduce
from gossip.errors import InvalidOperation

Array = npt.NDArray[Any]

BFLOAT16: Final = np.dtype(ml_dtypes.bfloat16)
FLOATS: Final = frozenset({"float16", "bfloat16", "float32", "float64"})
INTEGERS: Final = frozenset({"int8", "int32", "int64"})
MOST: Final = {
    "float16": 65504.0,
    "bfloat16": float.fromhex("0x1.fep127"),
    "float32": float.fromhex("0x1.fffffep127"),
    "float64": sys.float_info.max,
}
"""The largest finite value of each type."""
_EXPONENT: Final = {"float16": 0x7C00, "bfloat16": 0x7F80}


Weighed = tuple[Array, float]
"""Values of a type or of its `total`, and their weight."""

COMBINE: Final[dict[Reduce, np.ufunc]] = {
    Reduce.SUM: np.add,
    Reduce.MEAN: np.add,
    Reduce.MIN: np.minimum,
    Reduce.MAX: np.maximum,
}
"""How two vectors become one, before a mean is divided."""

_PIECE: Final = 8192
"""Values looked at at once: fewer than those from which on BLAS would wake its threads."""


class Elements:
    """Values of one type.

    Args:
        dtype: of the vectors.

    Raises:
        InvalidOperation: values of this type cannot be reduced.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        if dtype.name not in FLOATS | INTEGERS or not dtype.isnative:
            known = ", ".join(sorted(FLOATS | INTEGERS))
            raise InvalidOperation(f"values of type {dtype} cannot be reduced; there are {known}")
        self.dtype = dtype
        self.floating = dtype.name in FLOATS
        self.narrow = dtype.name in _EXPONENT
        """Added in a wider type than they have."""
        self._exponent = _EXPONENT.get(dtype.name, 0)
        self.total: np.dtype[Any] = np.dtype(np.float32) if self.narrow else dtype
        """The type in which they are added."""

    def finite(self, values: Array) -> bool:
        """No NaN and no infinity, in values of this type or of `total`."""
        if not self.floating:
            return True
        if not self.narrow or values.dtype == self.total:
            whole = values.size - values.size % _PIECE
            if whole:
                # A sum of squares is finite only if all values are; BLAS reads them once and allocates nothing.
                pieces = values[:whole].reshape(-1, _PIECE)
                squares = np.vecdot(pieces, pieces)
                if not (np.isfinite(squares).all() or np.isfinite(values[:whole]).all()):
                    return False
            return bool(np.isfinite(values[whole:]).all())
        exponent = self._exponent
        return not ((values.view(np.uint16) & exponent) == exponent).any()

    def largest(self, values: Array) -> float:
        """The largest magnitude among floating-point values of this type or of `total`; NaN if one of them is."""
        return float(np.abs(values).max(initial=0))

    def combine(
        self, reduce: Reduce, total: Array, first: Weighed, second: Weighed | None = None
    ) -> None:
        """Let `total` be `first` and `second`; either may be what is in `total` already, with a weight of 1."""
        one = self._weighed(reduce, first, total.dtype)
        if second is None:
            np.copyto(total, one)
            return
        two = self._weighed(reduce, second, total.dtype)
        if self.narrow:
            COMBINE[reduce](one, two, out=total, dtype=total.dtype)
        else:  # the same, but naming a type takes a way that is a third slower
            COMBINE[reduce](one, two, out=total)

    @staticmethod
    def _weighed(reduce: Reduce, part: Weighed, dtype: np.dtype[Any]) -> Array:
        values, weight = part
        if weight == 1.0 or reduce in {Reduce.MIN, Reduce.MAX}:
            return values
        product: Array = np.multiply(values, weight, dtype=dtype)
        return product

    def settle(self, reduce: Reduce, total: Array, weight: float, out: Array) -> None:
        """The end of a reduction: divide for a mean, and round into `out`, which may be `total`."""
        if reduce is Reduce.MEAN and weight > 0:
            np.divide(total, weight, out=total)
        if out is not total:
            np.copyto(out, total, casting="same_kind")


@lru_cache(maxsize=64)
def elements_of(dtype: np.dtype[Any]) -> Elements:
    """The one `Elements` of that type: a type's name alone takes as long as a small message."""
    return Elements(dtype)
