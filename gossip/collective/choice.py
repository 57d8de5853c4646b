"""Which algorithm carries out a call: the one that should be done first (sans-IO).

A pure function of what all members agree on (the call's descriptor binds it), so all choose the same. The
time of each algorithm is estimated as messages times their cost plus bytes over the path (the alpha-beta model of Hockney
1994, as used by Thakur, Rabenseifner and Gropp 2005): with N members, payload S, message cost a, byte cost b:

============ ===================== ================ =======================================
algorithm    messages in a row     bytes in a row   for
============ ===================== ================ =======================================
ring         2 (N-1) a             2 S (N-1)/N b    large vectors: two links each
butterfly    2 hops, N-1 each      2 S (N-1)/N b    middle sizes; every wire format
star         2 hops, N-1 at hub    2 S (N-1) b      few bytes on few processors
double star  the same at each hub  S (N-1) b        more bytes on few processors
doubling     log2(N) a             S log2(N) b      small ones of two, or over long paths
============ ===================== ================ =======================================

A hop costs half a round trip and each message, beside that, what it takes to make and read it, one after the
other at a member. On one machine there is no path, but members share its processors: there the processor time of
all messages and bytes counts, and that of the busiest member's bytes once more.
"""

from __future__ import annotations

import enum
import math
from functools import lru_cache
from typing import Any, Final

import numpy as np

from gossip.collective.call import AUTO, EXACT, Call, Kind, Path, Reduce
from gossip.collective.elements import elements_of
from gossip.collective.formats.registry import format_named
from gossip.errors import InvalidOperation

MESSAGE_S: Final = 125e-6
"""To seal, send, receive and open a small transfer, both sides, in an operation after a rest (measured with four and eight members: 100 to 130 us of
processor time; one after the other, in the cache, 56 to 66)."""
DOUBLING_BYTES: Final = 1 << 20
"""Largest vector, as it is added, of recursive doubling: it travels as one transfer."""
DOUBLE_STAR_HUBS: Final = 2
"""Members in the middle of a double star; among no more than that it is a butterfly."""
DOUBLE_STAR_BYTES: Final = 8 << 20
"""Largest vector of a double star: it is for few processors, which others do not leave idle with more than that."""
HUBS_WAIT: Final = 5 / 6
"""Of the bytes of a double star's hub, those that nobody works beside within one machine, if parts pass in one transfer. Measured with four
members: through shared memory as fast as a ring at 4 to 6 MiB, over sockets, which the choice does not know of, at 2."""
PART_BYTES: Final = 2 << 20
"""Largest part of a vector that passes through shared memory in one transfer: each link keeps four of them there."""
OWNER_BYTES: Final = 16 << 20
"""The same for all that a member sends at once: with many members each part is smaller."""
LOCAL_BYTE_S: Final = 0.75 / 2**30
"""Processor time for a byte that moves within one machine, from values to values and into a digest (measured: 0.7 to 0.9 s/GiB)."""
OWNERS_WORD_BYTE_S: Final = 0.5 / 2**30
"""The same where only the owner of a part hashes it (0.5 to 0.6 in a ring)."""


class Algorithm(enum.StrEnum):
    """How values travel and where they are added."""

    RING = "ring"
    BUTTERFLY = "butterfly"
    STAR = "star"
    DOUBLE_STAR = "double-star"
    DOUBLING = "doubling"
    CHAIN = "chain"
    HIERARCHICAL = "hierarchical"


_OWNERS_WORD: Final = {Algorithm.RING, Algorithm.DOUBLE_STAR}

CAN: Final = {
    Kind.ALL_REDUCE: (
        Algorithm.RING,
        Algorithm.BUTTERFLY,
        Algorithm.STAR,
        Algorithm.DOUBLE_STAR,
        Algorithm.DOUBLING,
        Algorithm.HIERARCHICAL,
    ),
    Kind.REDUCE_SCATTER: (Algorithm.BUTTERFLY,),
    Kind.ALL_GATHER: (Algorithm.BUTTERFLY,),
    Kind.BROADCAST: (Algorithm.STAR, Algorithm.CHAIN),
}


def passes_whole(part: int, world: int) -> bool:
    """Whether a part of so many bytes goes through shared memory in one transfer, in a butterfly, star or double star."""
    return part <= min(PART_BYTES, OWNER_BYTES // max(1, world - 1))


def choose(call: Call, dtype: np.dtype[Any], size: int, world: int) -> Algorithm:
    """The algorithm of a call that is no barrier.

    Args:
        call: what is asked for; an `algorithm` that it names is taken if it can do this.
        dtype: type of the values.
        size: bytes of the vector.
        world: members.

    Raises:
        InvalidOperation: the named algorithm cannot do this, or there is none of that name; or the wire format
            does not carry such values.
        UnknownFormat: there is no wire format of that name.
    """
    # Of the same length and kind again and again, as in training, it is thought about once.
    what = (call.kind, call.reduce, call.wire, call.algorithm, call.sites, call.path)
    return _choose(what, dtype, size, world)


_What = tuple[Kind, Reduce, str, str, tuple[int, ...], Path | None]
"""Of a call, what the choice depends on."""


@lru_cache(maxsize=256)
def _choose(what: _What, dtype: np.dtype[Any], size: int, world: int) -> Algorithm:
    kind, reduce, wire, algorithm, sites, path = what
    call = Call(kind, reduce, wire=wire, algorithm=algorithm, sites=sites, path=path)
    if call.wire != EXACT:
        format_named(call.wire)  # or it is an error by itself
        if dtype != np.float32:
            raise InvalidOperation(f"{call.wire} carries float32 values, not {dtype.name}")
    able = [one for one in CAN[call.kind] if _is_able(one, call, dtype, size, world)]
    if call.algorithm != AUTO:
        if call.algorithm not in able:
            known = ", ".join(able) or "none"
            raise InvalidOperation(
                f"{call.algorithm!r} does not do a {call.kind} of these values in {call.wire}; there are {known}"
            )
        return Algorithm(call.algorithm)
    if call.sites and Algorithm.HIERARCHICAL in able:
        return Algorithm.HIERARCHICAL
    bytes_ = size if call.wire == EXACT else int(size / 4 * format_named(call.wire).bytes_per_value)
    if (
        world <= DOUBLE_STAR_HUBS
    ):  # of two members each owns a half of whatever it is; the ring does it best
        able = [one for one in able if one is not Algorithm.DOUBLE_STAR]
    return min(able, key=lambda one: (estimate(one, call, bytes_, world), one))


def _is_able(algorithm: Algorithm, call: Call, dtype: np.dtype[Any], size: int, world: int) -> bool:
    narrow = elements_of(dtype).narrow
    match algorithm:
        case Algorithm.RING:
            return call.wire == EXACT and not narrow
        case Algorithm.DOUBLING:
            wide = 2 * size if narrow else size
            return call.wire == EXACT and wide <= DOUBLING_BYTES
        case Algorithm.DOUBLE_STAR:
            return call.wire == EXACT and size <= DOUBLE_STAR_BYTES
        case Algorithm.HIERARCHICAL:
            integers = (
                call.reduce is Reduce.SUM and dtype.kind in "iu"
            )  # they have no mean to pass up
            return len(call.sites) == world and not integers
        case _:
            return True


def estimate(algorithm: Algorithm, call: Call, size: int, world: int) -> float:
    """Seconds that an algorithm should take for `size` bytes on the wire; without a path, of processor time."""
    others, rounds = world - 1, math.ceil(math.log2(max(world, 1)))
    hops, in_a_row, bytes_in_a_row, messages, vectors = {
        Algorithm.RING: (
            2 * others,
            2 * others,
            2 * others / world,
            2 * others * world,
            2 * others,
        ),
        Algorithm.BUTTERFLY: (2, 2 * others, 2 * others / world, 2 * others * world, 2 * others),
        Algorithm.STAR: (2, 2 * others, 2 * others, 2 * others, 2 * others),
        Algorithm.DOUBLE_STAR: (2, 2 * others, others, 4 * others, 2 * others),
        Algorithm.DOUBLING: (rounds, rounds, rounds, rounds * world, rounds * world),
        Algorithm.CHAIN: (others, others, 1, others, others),
        Algorithm.HIERARCHICAL: (math.inf,) * 5,  # only where sites are known, and then always
    }[algorithm]
    if call.kind is Kind.BROADCAST and algorithm is Algorithm.STAR:
        hops, in_a_row, bytes_in_a_row, messages, vectors = 1, others, others, others, others
    path = call.path
    if path is None:
        byte = OWNERS_WORD_BYTE_S if algorithm in _OWNERS_WORD else LOCAL_BYTE_S
        if algorithm is Algorithm.DOUBLE_STAR and passes_whole(size // DOUBLE_STAR_HUBS, world):
            bytes_in_a_row *= HUBS_WAIT
        return messages * MESSAGE_S + (vectors + bytes_in_a_row) * size * byte
    moved = bytes_in_a_row * size / path.bytes_per_s
    return hops * path.rtt_s / 2 + in_a_row * MESSAGE_S + moved
