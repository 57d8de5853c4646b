"""Whose declared state counts when members hold different ones (sans-IO).

Each member declares the hash of its state, a revision that grows with its work, and whether it has been in parity with the others
before. The declarations are gathered by a certified operation, so all members decide from the same ones, which each of
them has signed; what one declares can only be its own.

Votes are those of the **veterans**: members of the epoch before, as everybody's signatures prove, that were in parity when they
last declared. So any number of newcomers that come with fresh states change nothing. Where there are none, at the start of
a run, everybody votes. The state that most of them declare counts; of as many, the one of the higher revision;
then the smaller hash.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import attrs
import numpy as np
import numpy.typing as npt

from transport.identity import NodeId

Array = npt.NDArray[Any]

_RECORD = struct.Struct(">QB32s")
RECORD_BYTES: Final = _RECORD.size
MAX_REVISION: Final = 2**63 - 1


@attrs.frozen
class Declaration:
    """What one member says of its state."""

    revision: int
    """Grows with the work in it; breaks ties."""
    continued: bool
    """It was in parity with the others at an earlier time."""
    artefact: bytes
    """Id of the state as an artefact: 32 bytes over every byte of every tensor."""

    def encode(self) -> Array:
        """As RECORD_BYTES values of type int8, for gathering."""
        data = _RECORD.pack(self.revision, self.continued, self.artefact)
        return np.frombuffer(data, np.int8)

    @classmethod
    def decode(cls, record: Array) -> Declaration:
        """Any record is a declaration."""
        revision, continued, artefact = _RECORD.unpack(record.tobytes())
        return cls(revision, bool(continued), artefact)


def decode_all(gathered: Array, members: Sequence[NodeId]) -> dict[NodeId, Declaration]:
    """The declarations of all members from what was gathered in their order."""
    records = gathered[: len(members) * RECORD_BYTES].reshape(len(members), RECORD_BYTES)
    return {
        member: Declaration.decode(record) for member, record in zip(members, records, strict=True)
    }


def elect(
    declared: Mapping[NodeId, Declaration], veterans: Collection[NodeId]
) -> tuple[bytes, tuple[NodeId, ...]]:
    """The state that counts, and the members that hold it, ascending.

    Args:
        declared: by member; at least one.
        veterans: members of the epoch before this one.
    """
    voters = [member for member in declared if member in veterans and declared[member].continued]
    votes: dict[bytes, tuple[int, int]] = {}
    for member in voters or declared:
        one = declared[member]
        count, revision = votes.get(one.artefact, (0, 0))
        votes[one.artefact] = count + 1, max(revision, one.revision)
    chosen = min(votes, key=lambda artefact: (-votes[artefact][0], -votes[artefact][1], artefact))
    holders = sorted(member for member, one in declared.items() if one.artefact == chosen)
    return chosen, tuple(holders)


def shape_digest(tensors: Mapping[str, Array]) -> bytes:
    """Names, types and shapes: what members have to agree on before they compare values."""
    digest = hashlib.sha256(b"noded declared state v1\0")
    for name in sorted(tensors):
        tensor = tensors[name]
        for word in (name, tensor.dtype.name, ",".join(map(str, tensor.shape))):
            encoded = word.encode()
            digest.update(struct.pack(">I", len(encoded)) + encoded)
    return digest.digest()
