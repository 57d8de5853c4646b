"""What the types of values that a collective takes have in common, and in which type they are added (sans-IO).

============================ ============ ==========================================================
values                       added as     remark
============================ ============ ==========================================================
float32, float64             themselves
float16, bfloat16            float32      rounded once, when everything is added: a sum of N rounded at
                                          every addition would be off by up to N half places
int8, int32, int64           themselves   modulo 2^bits, so that no order of additions matters
============================ ============ ==========================================================

Values that are not finite are refused where they enter and where they arrive, because one NaN in a mean is a
NaN in every member's model; so is a sum that has become infinite.
"""

from __future__ import annotations

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
_EXPONENT: Final = {"float16": 0x7C00, "bfloat16": 0x7F80}


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
        self.total: np.dtype[Any] = np.dtype(np.float32) if self.narrow else dtype
        """The type in which they are added."""

    def finite(self, values: Array) -> bool:
        """No NaN and no infinity, in values of this type or of `total`."""
        if not self.floating:
            return True
        exponent = _EXPONENT.get(values.dtype.name)
        if exponent is None:
            return bool(np.isfinite(values).all())
        return not ((values.view(np.uint16) & exponent) == exponent).any()

    def combine(self, reduce: Reduce, total: Array, values: Array, weight: float) -> None:
        """Take `values` (of this type or of `total`'s) into `total`, which has some already."""
        with np.errstate(over="ignore", invalid="ignore"):
            match reduce:
                case Reduce.MIN:
                    np.minimum(total, values, out=total)
                case Reduce.MAX:
                    np.maximum(total, values, out=total)
                case _ if weight == 1.0:
                    np.add(total, values, out=total)
                case _:
                    np.add(total, np.multiply(values, weight, dtype=total.dtype), out=total)

    def begin(self, reduce: Reduce, total: Array, values: Array, weight: float) -> None:
        """Let `total` be `values` as they count."""
        if weight == 1.0 or reduce in {Reduce.MIN, Reduce.MAX}:
            np.copyto(total, values)
        else:
            with np.errstate(over="ignore"):
                np.multiply(values, weight, out=total)

    def settle(self, reduce: Reduce, total: Array, weight: float, out: Array) -> None:
        """The end of a reduction: divide for a mean, and round into `out`, which may be `total`."""
        if reduce is Reduce.MEAN and weight > 0:
            np.divide(total, weight, out=total)
        if out is not total:
            with np.errstate(over="ignore"):
                np.copyto(out, total, casting="same_kind")
