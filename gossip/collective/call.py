"""What members ask for in one collective operation, and what they have to agree on for it (sans-IO).

Every kind works on one flat vector per member, of one type. With N members:

============== ======================= ======================================== =====================
kind           source                  out                                      same on all
============== ======================= ======================================== =====================
all_reduce     L values                L values: the reduction                  the whole
reduce_scatter L values                this member's part of the reduction      (each has its part)
all_gather     n values                N n values: everybody's, in member order the whole
broadcast      L values, at the root   L values: the root's                     the whole
barrier        nothing                 nothing                                  that all came
============== ======================= ======================================== =====================

`out` may be longer than that where its length depends on the number of members, which may be another one in
every epoch: `result_length` says how much of it is the result. Parts are those of `chunk_bounds`.
"""

from __future__ import annotations

import enum
import hashlib
import struct
from functools import lru_cache
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from gossip.errors import InvalidOperation
from transport.identity import NodeId

Array = npt.NDArray[Any]
_What = tuple["Kind", "Reduce", str, str, NodeId | None, tuple[int, ...], tuple[int, ...]]


class Kind(enum.StrEnum):
    """What becomes of the members' vectors."""

    ALL_REDUCE = "all_reduce"
    REDUCE_SCATTER = "reduce_scatter"
    ALL_GATHER = "all_gather"
    BROADCAST = "broadcast"
    BARRIER = "barrier"


class Reduce(enum.StrEnum):
    """How values of several members become one."""

    SUM = "sum"
    MEAN = "mean"
    MIN = "min"
    MAX = "max"


REDUCING = frozenset({Kind.ALL_REDUCE, Kind.REDUCE_SCATTER})
EXACT = "exact"
"""The wire format of values as they are, of any type."""
AUTO = "auto"
LEAST_WEIGHT, MOST_WEIGHT = 2.0**-30, 2.0**50
"""Between which a weight lies that is not 0: sums of products with it stay far from the ends of what float32 can tell apart."""


@attrs.frozen
class Path:
    """What the slowest path between members is like."""

    rtt_s: float
    """Round trip, seconds."""
    bytes_per_s: float
    """What it carries in one direction."""


@attrs.frozen
class Call:
    """One operation, as one member asks for it.

    Attributes:
        kind: see the module.
        reduce: of the kinds that reduce; a mean is the weighted sum over the sum of weights.
        weight: factor of this member's values in a sum or mean, 0 or from LEAST_WEIGHT to MOST_WEIGHT; with 0 they are not
            looked at. With min and max: 1.0, or 0.0 for a member that has nothing to say.
        root: whose values are broadcast.
        wire: how values travel: `exact`, or the name of a format for float32 values (`formats.registry`).
        algorithm: `auto`, or the name of one (`gossip.collective.choice`).
        sites: for the hierarchical algorithm, at which site each member is, by index; else empty.
        order: for the ring, in which order the members stand in it, by index; ascending when empty
            (`gossip.collective.placing.ring_order` finds the best).
        path: what the slowest path between members is like, as far as all agree on it.
        careful: look at every value where it enters and arrives, and not only at what comes out: an attempt before this
            one has failed, and if values that are not finite were why, it is to be known whose.
        sequence: number of the operation in its lane of the epoch.
        descriptor: 32 bytes that all members must agree on; `bind` makes them.
    """

    kind: Kind = Kind.ALL_REDUCE
    reduce: Reduce = Reduce.SUM
    weight: float = 1.0
    root: NodeId | None = None
    wire: str = EXACT
    algorithm: str = AUTO
    sites: tuple[int, ...] = ()
    order: tuple[int, ...] = ()
    path: Path | None = None
    careful: bool = False
    sequence: int = 0
    descriptor: bytes = bytes(32)

    def bind(self, descriptor: bytes, source: Array) -> Call:
        """This call with a descriptor of all that members have to agree on: the caller's, and what is asked for.

        Everything but the weight, the number of the operation, and the values. For a broadcast
        `source` is any vector of the length and type that is broadcast.
        """
        digest = _terms(
            (self.kind, self.reduce, self.wire, self.algorithm, self.root, self.sites, self.order),
            self.path,
            source.dtype,
            source.size,
        ).copy()
        digest.update(descriptor)
        return attrs.evolve(self, descriptor=digest.digest())


@lru_cache(maxsize=256)
def _terms(what: _What, path: Path | None, dtype: np.dtype[Any], length: int) -> hashlib._Hash:
    """The digest of what is asked for, to which the caller's descriptor is still to come: mostly the same as in the call before."""
    kind, reduce, wire, algorithm, root, sites, order = what
    digest = hashlib.sha256(b"noded collective v6\0")
    for word in (kind, reduce, wire, algorithm, dtype.name):
        digest.update(struct.pack(">B", len(word)) + word.encode())
    digest.update(struct.pack(">QB", length, len(root or b"")) + (root or b""))
    for numbers in (sites, order):
        digest.update(struct.pack(f">H{len(numbers)}I", len(numbers), *numbers))
    if path is not None:
        digest.update(struct.pack(">dd", path.rtt_s, path.bytes_per_s))
    return digest


def chunk_bounds(length: int, world: int) -> list[int]:
    """`world` + 1 boundaries of chunks whose lengths differ by at most one value."""
    return [length * index // world for index in range(world + 1)]


def result_length(kind: Kind, source_length: int, rank: int, world: int) -> int:
    """How many values at the start of `out` are the result at this member."""
    match kind:
        case Kind.REDUCE_SCATTER:
            bounds = chunk_bounds(source_length, world)
            return bounds[rank + 1] - bounds[rank]
        case Kind.ALL_GATHER:
            return source_length * world
        case Kind.BARRIER:
            return 0
        case _:
            return source_length


def check_call(call: Call, source: Array, out: Array) -> None:
    """Refuse what no epoch could carry out, before anybody hears of it.

    Raises:
        InvalidOperation: says what is wrong.
    """
    if source.ndim != 1 or out.ndim != 1 or source.dtype != out.dtype:
        raise InvalidOperation("source and out must be 1-D and of the same type")
    if call.kind in {Kind.ALL_REDUCE, Kind.BROADCAST} and source.shape != out.shape:
        raise InvalidOperation("source and out must be 1-D and of the same length and type")
    if not (source.flags.c_contiguous and out.flags.c_contiguous):
        raise InvalidOperation("source and out must be contiguous")
    if np.may_share_memory(source, out):
        raise InvalidOperation("out must not be the memory of source, which a retry needs")
    if not (call.weight == 0 or LEAST_WEIGHT <= call.weight <= MOST_WEIGHT):
        raise InvalidOperation(
            f"a weight is 0 or from {LEAST_WEIGHT:.0e} to {MOST_WEIGHT:.0e}, not {call.weight}"
        )
    if (call.kind is Kind.BROADCAST) != (call.root is not None):
        raise InvalidOperation("a broadcast has a root, and nothing else has one")
    if call.kind not in REDUCING:
        return
    plain = call.weight in {0.0, 1.0}
    if source.dtype.kind in "iu" and (call.reduce is Reduce.MEAN or not plain):
        raise InvalidOperation(f"values of type {source.dtype} have a sum, but no weighted mean")
    if call.reduce in {Reduce.MIN, Reduce.MAX} and not plain:
        raise InvalidOperation("a minimum or maximum has no weights but 0 and 1")
