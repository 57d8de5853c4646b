"""The head of every transfer of a collective: which operation it is of, and which place in it (sans-IO).

====== ==== =================================================================
offset size field, big-endian
====== ==== =================================================================
0      8    number of the operation in its lane of the epoch
8      16   the first 16 bytes of the operation's descriptor
24     1    phase, of the algorithm
25     2    step in the phase
27     2    part of the vector
29     8    first value of the segment, counted in values
37     8    weight of what it carries, a double
45     0-32 a digest, where the algorithm sends one
====== ==== =================================================================

Bytes of an operation that was given up, or of another one, are never taken: everything but the weight and the digest
must be what the receiver expects next on that link.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from gossip.collective.agreement.messages import MAX_MEMBERS
from gossip.collective.call import LEAST_WEIGHT, MOST_WEIGHT
from gossip.errors import CollectiveAborted, DescriptorMismatch

HEAD: Final = struct.Struct(">Q16sBHHQd")
DIGEST_BYTES: Final = 32


class Place(NamedTuple):
    """Where in the operation a segment belongs."""

    phase: int
    step: int
    part: int
    start: int


def write_head(
    sequence: int, descriptor: bytes, place: Place, weight: float, digest: bytes = b""
) -> bytes:
    """The head of a transfer."""
    return HEAD.pack(sequence, descriptor[:16], *place, weight) + digest


def read_head(sequence: int, descriptor: bytes, header: bytes) -> tuple[Place, float, bytes]:
    """Place, weight and digest of a transfer of this operation.

    Raises:
        DescriptorMismatch: the sender runs an operation with another descriptor.
        CollectiveAborted: it is no head, of another operation, or its weight is none.
    """
    if not HEAD.size <= len(header) <= HEAD.size + DIGEST_BYTES:
        raise CollectiveAborted("a member sent a segment with a head of another length")
    number, begun, phase, step, part, start, weight = HEAD.unpack_from(header)
    if number == sequence and begun != descriptor[:16]:
        raise DescriptorMismatch("a member runs another operation")
    if number != sequence:
        raise CollectiveAborted("a member is at another operation")
    if not (weight == 0 or LEAST_WEIGHT <= weight <= MAX_MEMBERS * MOST_WEIGHT):
        raise CollectiveAborted(f"a member sent a weight of {weight}")
    return Place(phase, step, part, start), weight, header[HEAD.size :]
