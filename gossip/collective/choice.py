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
doubling     log2(N) a             S log2(N) b      small vectors over long paths
============ ===================== ================ =======================================

A hop costs half a round trip and each message, beside that, what it takes to make and read it, one after the
other at a member. On one machine there is no path, but members share its processors: there the number of all messages
counts.
"""

from __future__ import annotations

import enum
import math
from typing import Any, Final

import numpy as np

from gossip.collective.call import AUTO, EXACT, Call, Kind
from gossip.collective.elements import Elements
from gossip.collective.formats.registry import format_named
from gossip.errors import InvalidOperation

MESSAGE_S: Final = 60e-6
"""To seal, send, receive and open a small transfer, both sides (measured with messages of 160 bytes: 56 to 66 us of CPU)."""
DOUBLING_BYTES: Final = 1 << 20
"""Largest vector, as it is added, of recursive doubling: it travels as one transfer."""
LOCAL_BYTES_PER_S: Final = 2e9
"""One direction of a link within one machine."""


class Algorithm(enum.StrEnum):
    """How values travel and where they are added."""

    RING = "ring"
    BUTTERFLY = "butterfly"
    STAR = "star"
    DOUBLING = "doubling"
    CHAIN = "chain"
    HIERARCHICAL = "hierarchical"


CAN: Final = {
    Kind.ALL_REDUCE: (
        Algorithm.RING,
        Algorithm.BUTTERFLY,
        Algorithm.STAR,
        Algorithm.DOUBLING,
        Algorithm.HIERARCHICAL,
    ),
    Kind.REDUCE_SCATTER: (Algorithm.BUTTERFLY,),
    Kind.ALL_GATHER: (Algorithm.BUTTERFLY,),
    Kind.BROADCAST: (Algorithm.STAR, Algorithm.CHAIN),
}


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
    return min(able, key=lambda one: (estimate(one, call, bytes_, world), one))


def _is_able(algorithm: Algorithm, call: Call, dtype: np.dtype[Any], size: int, world: int) -> bool:
    narrow = Elements(dtype).narrow
    match algorithm:
        case Algorithm.RING:
            return call.wire == EXACT and not narrow
        case Algorithm.DOUBLING:
            wide = 2 * size if narrow else size
            return call.wire == EXACT and wide <= DOUBLING_BYTES
        case Algorithm.HIERARCHICAL:
            return len(call.sites) == world
        case _:
            return True


def estimate(algorithm: Algorithm, call: Call, size: int, world: int) -> float:
    """Seconds that an algorithm should take for `size` bytes on the wire."""
    others = world - 1
    path = call.path
    hop = path.rtt_s / 2 if path else 0.0
    byte = 1 / (path.bytes_per_s if path else LOCAL_BYTES_PER_S)
    rounds = math.ceil(math.log2(max(world, 1)))
    reducing = call.kind is Kind.ALL_REDUCE
    match algorithm:
        case Algorithm.RING:
            messages, hops, moved = 2 * others, 2 * others, 2 * others / world
        case Algorithm.BUTTERFLY:
            messages, hops, moved = 2 * others, 2, 2 * others / world
        case Algorithm.DOUBLING:
            messages, hops, moved = rounds, rounds, rounds
        case Algorithm.CHAIN:
            messages, hops, moved = others, others, 1
        case _:
            messages, hops, moved = others * (1 + reducing), 1 + reducing, others * (1 + reducing)
    if path is None:
        # Processors are shared: what all members do counts, not what one does after the other.
        total = {
            Algorithm.RING: 2 * others * world,
            Algorithm.BUTTERFLY: 2 * others * world,
            Algorithm.DOUBLING: rounds * world,
        }
        messages = total.get(algorithm, messages) // 2
    return messages * MESSAGE_S + hops * hop + moved * size * byte
