"""What members of a run sign: acceptance of an epoch, and the result of an operation.

An **epoch** is an ordered member set with a position to start from; its id is the hash of all of
that and of the epoch before, so nobody can show two member sets under one id. An operation's
**certificate** is the full set of the members' equal signatures over (epoch, lane, sequence,
descriptor, result). Only a certificate means success; with at most one signature per member and
operation, two different results can never both be certified.

Signatures travel with their public keys: a node id is the key's hash, so a certificate can be
checked by somebody who never met its signers.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from functools import cached_property
from typing import Annotated, Final

import attrs
import msgspec

from gossip.collective.agreement.layout import PLAIN, Layout
from transport.errors import InvalidPublicKey
from transport.identity import NodeId, verify

Bytes16 = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Bytes32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]

_EPOCH_DOMAIN = b"noded epoch v2\0"
_ACCEPT_DOMAIN = b"noded accept v1\0"
_VOTE_DOMAIN = b"noded vote v1\0"
_LANE_VOTE_DOMAIN = b"noded vote in lane v1\0"
_LEAVE_DOMAIN = b"noded leave v1\0"
_ROOT_DOMAIN = b"noded result v1\0"

LANES: Final = 16
"""Operations of one epoch at once. Each has a lane, a line of operations with a sequence of its own."""

LaneNumber = Annotated[int, msgspec.Meta(ge=0, lt=LANES)]

GENESIS = bytes(32)
"""Stands for "no epoch before this one"."""


class Ballot(msgspec.Struct, frozen=True, array_like=True, order=True):
    """Orders attempts to form an epoch; the proposer's id breaks ties."""

    number: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    attempt: Annotated[int, msgspec.Meta(ge=0, le=2**31)]
    proposer: Bytes32


@attrs.frozen
class Epoch:
    """An agreed member set, and the position in the run it starts from."""

    run: bytes
    ballot: Ballot
    members: tuple[NodeId, ...]
    """Ascending by id; the index is the member's rank."""
    previous: bytes
    """Id of the epoch that the holders of the start position were in before."""
    round: int
    """Rounds completed at the start."""
    state: bytes
    """SHA-256 of the consensus state at the start."""
    salt: bytes = bytes(16)
    """Random, of the proposer: nodes that all forgot may found the same run anew, but not the same epoch."""
    layout: Layout = PLAIN
    """How the members are arranged for operations."""

    @property
    def number(self) -> int:
        """Height of this epoch in the run."""
        return self.ballot.number

    @cached_property
    def id(self) -> bytes:
        """32 bytes that bind everything above."""
        digest = hashlib.sha256(_EPOCH_DOMAIN)
        digest.update(self.run)
        digest.update(struct.pack(">QI", self.ballot.number, self.ballot.attempt))
        digest.update(self.ballot.proposer)
        digest.update(self.previous)
        digest.update(struct.pack(">Q", self.round))
        digest.update(self.state)
        digest.update(self.salt)
        digest.update(struct.pack(">I", len(self.members)))
        for member in self.members:
            digest.update(member)
        if self.layout != PLAIN:
            digest.update(self.layout.packed)
        return digest.digest()


class SignedBy(msgspec.Struct, frozen=True, array_like=True):
    """One member's signature with the key to check it."""

    public_key: Bytes32
    signature: Signature


class Certificate(msgspec.Struct, frozen=True, omit_defaults=True):
    """Every member of `epoch` signed this result of its operation `sequence` in `lane`."""

    epoch: Bytes32
    sequence: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    descriptor: Bytes32
    root: Bytes32
    signatures: Annotated[tuple[SignedBy, ...], msgspec.Meta(max_length=256)]
    lane: LaneNumber = 0

    def verify(self, members: Iterable[NodeId]) -> bool:
        """True when exactly `members` signed, in their order, each validly."""
        statement = vote_statement(self.epoch, self.sequence, self.descriptor, self.root, self.lane)
        signers = [_signer(signed.public_key) for signed in self.signatures]
        return signers == list(members) and all(
            verify(signed.public_key, signed.signature, statement) for signed in self.signatures
        )


def _signer(public_key: bytes) -> NodeId | None:
    try:
        return NodeId.of_public_key(public_key)
    except InvalidPublicKey:
        return None


def accept_statement(epoch: bytes) -> bytes:
    """What a member signs to enter an epoch."""
    return _ACCEPT_DOMAIN + epoch


def leave_statement(epoch: bytes) -> bytes:
    """What a member signs that leaves in good order, `epoch` being the last it voted in."""
    return _LEAVE_DOMAIN + epoch


def vote_statement(
    epoch: bytes, sequence: int, descriptor: bytes, root: bytes, lane: int = 0
) -> bytes:
    """What a member signs when it holds an operation's result."""
    content = epoch + struct.pack(">Q", sequence) + descriptor + root
    if lane:
        return _LANE_VOTE_DOMAIN + struct.pack(">B", lane) + content
    return _VOTE_DOMAIN + content


def result_root(chunk_digests: Iterable[bytes]) -> bytes:
    """Digest of a result from its chunks' digests, each computed by the chunk's owner alone."""
    digest = hashlib.sha256(_ROOT_DOMAIN)
    for chunk in chunk_digests:
        digest.update(chunk)
    return digest.digest()
