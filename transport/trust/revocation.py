"""A revocation: a signed statement that a node shall not be a member any more, for good.

Problem: a certificate proves itself for a year, and a machine may be stolen tomorrow. Idea: whoever stands above a member in its chain
(or the root, or the node itself: that is leaving) signs that it is out; the statement proves itself wherever it travels, there
is no way to take it back, and the more of them a node knows the fewer it lets in (so their order does not matter).

    offset  size  field
    0       1     version, 1
    1       1     flags: bit 0 keeps all; all others zero
    2       32    swarm id
    34      32    subject: node id of who is out
    66      32    revoker's Ed25519 public key
    98      8     when, ms since 1970; for people
    106     1     length of the reason, at most 120
    107     1     number of kept certificates, at most 64
    108     2     length of the chain
    110     ..    reason, UTF-8 | marks of the kept certificates, 16 bytes each, ascending | chain
    end-64  64    signature over "noded revocation v1" padded with zeros to 24 bytes | everything before

What it does is decided where a chain is shown (`transport.trust.trust`), never here: the revoker must be the root, the node itself, or an issuer
in the chain *that the node shows*. Otherwise a member that may invite could issue a certificate for anybody's key and revoke it.
The chain in the statement (none where the root signed) only shows that subject and revoker belong to this swarm at all, so that strangers
cannot fill the list.

A certificate that the subject itself had issued is void too, unless its mark (the start of its hash) is kept: a date or a serial would not do,
since who holds the key can sign with any. `KEEPS_ALL` is for those who leave in good standing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from itertools import pairwise
from typing import Final

import attrs

from transport.errors import UsageError
from transport.identity import (
    SIGNATURE_BYTES,
    Identity,
    NodeId,
    is_acceptable_public_key,
    verify,
)
from transport.trust.certificate import MARK_BYTES, MAX_TIME_MS
from transport.trust.chain import (
    MAX_CHAIN_BYTES,
    Chain,
    IsSigned,
    is_root,
    parse_chain,
    signed,
    verify_chain,
)
from transport.trust.raw import RawValue
from transport.trust.refusal import CertificateRefused, Refusal

VERSION: Final = 1
MAX_REASON_BYTES: Final = 120
MAX_KEPT: Final = 64
MAX_REVOCATION_BYTES: Final = (
    110 + MAX_REASON_BYTES + MAX_KEPT * MARK_BYTES + MAX_CHAIN_BYTES + SIGNATURE_BYTES
)

_KEEPS_ALL: Final = 1
_DOMAIN: Final = b"noded revocation v1".ljust(24, b"\0")
_HEADER: Final = struct.Struct(">BB32s32s32sQBBH")


@attrs.frozen(eq=False)
class Revocation(RawValue):
    """A parsed revocation; equal to another exactly if the bytes are. Not yet verified."""

    subject: NodeId
    """Who is out."""
    revoker: bytes
    """Ed25519 public key of who says so."""
    at_ms: int
    """When it was said, ms since 1970, by the revoker's clock."""
    reason: str
    kept: frozenset[bytes]
    """Marks of certificates by the subject that stay good."""
    keeps_all: bool
    """Whether all of them do."""
    chain: Chain | None = attrs.field(repr=False)
    """A chain of the subject's, in which the revoker is an issuer or the subject; None where the root signed."""
    swarm_id: bytes = attrs.field(repr=False)
    raw: bytes = attrs.field(repr=False)

    @property
    def revoker_id(self) -> NodeId:
        """The revoker's node id (of the root key: nobody's node)."""
        return NodeId.of_public_key(self.revoker)

    @property
    def by_subject(self) -> bool:
        """Whether the node itself said so: it has left."""
        return self.revoker_id == self.subject


def revoke(
    revoker: Identity,
    *,
    swarm_id: bytes,
    subject: NodeId,
    at_ms: int,
    reason: str = "",
    kept: Iterable[bytes] = (),
    keeps_all: bool = False,
    chain: Chain | None = None,
) -> Revocation:
    """Sign a revocation.

    Args:
        revoker: the root key, the subject's own, or that of an issuer in `chain`.
        swarm_id: of which swarm.
        subject: who is out.
        at_ms: wall clock, ms since 1970.
        reason: for people; cut to 120 bytes, unprintable characters become spaces.
        kept: marks of certificates by the subject that stay good, at most 64.
        keeps_all: all of them do.
        chain: the chain that the subject shows; needed unless the root signs.

    Raises:
        UsageError: this key may not revoke that node.
    """
    if is_root(revoker.public_key, swarm_id):
        chain = None
    printable = "".join(c if c.isprintable() else " " for c in reason)
    text = printable.encode("utf-8", "replace")[:MAX_REASON_BYTES].decode("utf-8", "ignore")
    marks = sorted(set(kept))
    if len(marks) > MAX_KEPT or any(len(mark) != MARK_BYTES for mark in marks):
        raise UsageError(f"at most {MAX_KEPT} certificates can be kept by name")
    raw_chain = b"" if chain is None else chain.raw
    body = b"".join(
        (
            _HEADER.pack(
                VERSION,
                _KEEPS_ALL if keeps_all else 0,
                swarm_id,
                subject,
                revoker.public_key,
                at_ms,
                len(text.encode()),
                len(marks),
                len(raw_chain),
            ),
            text.encode(),
            *marks,
            raw_chain,
        )
    )
    try:
        revocation = parse_revocation(body + revoker.sign(_DOMAIN + body))
        verify_revocation(revocation, swarm_id)
    except CertificateRefused as error:
        raise UsageError(
            f"this key may not revoke {subject.short}: "
            + (
                "it does not stand above it"
                if error.refusal is Refusal.BROKEN_CHAIN
                else str(error)
            ),
            hint="the swarm's root key may, and who stands above the node in its chain of invites",
        ) from None
    return revocation


def parse_revocation(data_untrusted: bytes) -> Revocation:
    """Read a revocation; says nothing about its signature.

    Raises:
        CertificateRefused: and nothing else, whatever the bytes are.
    """
    data = bytes(data_untrusted)
    if data[:1] not in {b"", bytes([VERSION])}:
        raise CertificateRefused(Refusal.UNKNOWN_VERSION)
    if len(data) < _HEADER.size + SIGNATURE_BYTES:
        raise CertificateRefused(Refusal.TRUNCATED)
    _, flags, swarm_id, subject, revoker, at_ms, reason_size, count, chain_size = (
        _HEADER.unpack_from(data)
    )
    marks_at = _HEADER.size + reason_size
    chain_at = marks_at + count * MARK_BYTES
    if len(data) != chain_at + chain_size + SIGNATURE_BYTES:
        raise CertificateRefused(Refusal.TRUNCATED)
    if flags & ~_KEEPS_ALL:
        raise CertificateRefused(Refusal.UNKNOWN_CRITICAL, "one of its flags")
    if reason_size > MAX_REASON_BYTES or count > MAX_KEPT or at_ms > MAX_TIME_MS:
        raise CertificateRefused(Refusal.MALFORMED)
    marks = [data[start : start + MARK_BYTES] for start in range(marks_at, chain_at, MARK_BYTES)]
    try:
        reason = data[_HEADER.size : marks_at].decode("utf-8")
    except UnicodeDecodeError:
        raise CertificateRefused(Refusal.MALFORMED) from None
    ascending = all(one < next_ for one, next_ in pairwise(marks))
    if not (reason.isprintable() and ascending and is_acceptable_public_key(revoker)):
        raise CertificateRefused(Refusal.MALFORMED)
    return Revocation(
        subject=NodeId(subject),
        revoker=revoker,
        at_ms=at_ms,
        reason=reason,
        kept=frozenset(marks),
        keeps_all=bool(flags & _KEEPS_ALL),
        chain=parse_chain(data[chain_at : chain_at + chain_size]) if chain_size else None,
        swarm_id=swarm_id,
        raw=data,
    )


def verify_revocation(
    revocation: Revocation, swarm_id: bytes, is_signed: IsSigned = signed
) -> None:
    """Check that somebody of the swarm who may say something about the subject has said this.

    Raises:
        CertificateRefused: with the first thing that is wrong.
    """
    if revocation.swarm_id != swarm_id:
        raise CertificateRefused(Refusal.OTHER_SWARM)
    chain = revocation.chain
    if is_root(revocation.revoker, swarm_id):
        if chain is not None:  # one statement, one form
            raise CertificateRefused(Refusal.MALFORMED)
    elif chain is None or chain.node_id != revocation.subject:
        raise CertificateRefused(Refusal.MISSING)
    elif revocation.revoker not in (*chain.issuers, chain.leaf.subject):
        raise CertificateRefused(Refusal.BROKEN_CHAIN)
    body, signature = revocation.raw[:-SIGNATURE_BYTES], revocation.raw[-SIGNATURE_BYTES:]
    if not verify(revocation.revoker, signature, _DOMAIN + body):
        raise CertificateRefused(Refusal.FORGED)
    if chain is not None:
        verify_chain(chain, swarm_id, None, is_signed)


assert _HEADER.size == 110
