"""From the swarm's root key to a member: at most three certificates, each within what the one above it allows.

Problem: the root key should lie in a drawer, and members should still be able to invite others. Idea: a member whose certificate says so may
issue certificates; a chain of them, root first, proves its last subject to anybody who knows the swarm's id, which is a hash of
the root's public key (`root_swarm_id`). Nobody has to be asked, and nothing but the clock and the revocations decides afterwards.

    root ──signs──▶ certificate 1 (a member, may invite) ──signs──▶ certificate 2 (a member, may invite) ──▶ certificate 3 (a member)

    bytes:   count (1, 1 to 3) | count times: length (2) | certificate

Rules of a link: the issuer of a certificate is the subject of the one above (of the first: the root); the one above may invite; role and time
of the lower are within those of the upper; all are of one swarm; nobody certifies its own key.

To make members:

    chain = certify_by_root(root, subject=public_key, role="trainer", may_invite=True, serial=os.urandom(16), now_ms=..., lifetime_ms=YEAR_MS)
    chain = certify(issuer_identity, issuer_chain, subject=public_key, role="relay", serial=..., now_ms=..., lifetime_ms=..., invite=invite_id)

Both return the subject's whole `Chain`: hand out and store `chain.raw`; `parse_chain` and `verify_chain` take it back.

Invariants: `parse_chain` and `verify_chain` raise `CertificateRefused` and nothing else; a chain that `certify` made verifies.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from itertools import pairwise
from typing import Final, TypeAlias

import attrs

from transport.errors import UsageError
from transport.identity import Identity, NodeId
from transport.trust.certificate import (
    DIRECT,
    MAX_CERTIFICATE_BYTES,
    NO_INVITER,
    ROLES,
    Certificate,
    Role,
    parse_certificate,
    sign_certificate,
)
from transport.trust.raw import RawValue
from transport.trust.refusal import CertificateRefused, Refusal

MAX_CERTIFICATES: Final = 3
"""Root, issuer, member, and one issuer more so that an invited member can invite: a longer one would only hide who answers for whom."""
MAX_CHAIN_BYTES: Final = 1 + MAX_CERTIFICATES * (2 + MAX_CERTIFICATE_BYTES)
YEAR_MS: Final = 365 * 24 * 3600 * 1000
"""A certificate's usual time."""

IsSigned: TypeAlias = Callable[[Certificate], bool]

_ID_DOMAIN: Final = b"noded swarm id v2\x00"
_OPEN_ID_DOMAIN: Final = b"noded open swarm id v2\x00"
_LENGTH: Final = struct.Struct(">H")


def root_swarm_id(root_public_key: bytes, *, is_open: bool = False) -> bytes:
    """The id of the swarm of that root key, 32 bytes; an open one is another swarm than a closed one."""
    domain = _OPEN_ID_DOMAIN if is_open else _ID_DOMAIN
    return hashlib.sha256(domain + root_public_key).digest()


@attrs.frozen(eq=False)
class Chain(RawValue):
    """Certificates from the root's to a member's; parsed, not verified."""

    certificates: tuple[Certificate, ...]
    """1 to 3; the first is the root's, the last the member's."""
    raw: bytes = attrs.field(repr=False)

    @property
    def leaf(self) -> Certificate:
        """The member's certificate."""
        return self.certificates[-1]

    @property
    def node_id(self) -> NodeId:
        """The member."""
        return self.leaf.node_id

    @property
    def issuers(self) -> tuple[bytes, ...]:
        """Public keys up the chain: the root's, then those of the members that invited."""
        return tuple(certificate.issuer for certificate in self.certificates)

    @property
    def can_extend(self) -> bool:
        """Whether the member may issue certificates, and there is room for one."""
        return self.leaf.may_invite and len(self.certificates) < MAX_CERTIFICATES

    @property
    def above(self) -> Chain | None:
        """The issuer's own chain; None where that is the root."""
        return None if len(self.certificates) == 1 else chain_of(self.certificates[:-1])


def chain_of(certificates: tuple[Certificate, ...]) -> Chain:
    """Put certificates together; raises UsageError for none or too many."""
    if not 1 <= len(certificates) <= MAX_CERTIFICATES:
        raise UsageError(f"a chain has 1 to {MAX_CERTIFICATES} certificates")
    raw = bytes([len(certificates)]) + b"".join(
        _LENGTH.pack(len(each.raw)) + each.raw for each in certificates
    )
    return Chain(certificates, raw)


def parse_chain(data_untrusted: bytes) -> Chain:
    """Read a chain; says nothing about signatures, links or time.

    Raises:
        CertificateRefused: `MISSING` for no bytes, `TOO_LONG`, or as for one certificate.
    """
    if not data_untrusted:
        raise CertificateRefused(Refusal.MISSING)
    if len(data_untrusted) > MAX_CHAIN_BYTES or data_untrusted[0] > MAX_CERTIFICATES:
        raise CertificateRefused(Refusal.TOO_LONG)
    data = bytes(data_untrusted)
    if data[0] == 0:
        raise CertificateRefused(Refusal.MISSING)
    found = []
    place = 1
    for _ in range(data[0]):
        end = place + _LENGTH.size
        if end > len(data):
            raise CertificateRefused(Refusal.TRUNCATED)
        (length,) = _LENGTH.unpack_from(data, place)
        place = end + length
        if place > len(data):
            raise CertificateRefused(Refusal.TRUNCATED)
        found.append(parse_certificate(data[end:place]))
    if place != len(data):
        raise CertificateRefused(Refusal.MALFORMED, "bytes are left over")
    return Chain(tuple(found), data)


def signed(certificate: Certificate) -> bool:
    """Whether the issuer's key made the signature; see `Certificate.is_signed`."""
    return certificate.is_signed()


def verify_chain(
    chain: Chain, swarm_id: bytes, now_ms: int | None, is_signed: IsSigned = signed
) -> None:
    """Check that `chain` leads from the root of `swarm_id` to its member, cheap checks first, then one signature for each certificate.

    Args:
        chain: as parsed.
        swarm_id: closed or open; the root key is the one whose hash this is.
        now_ms: wall clock, ms since 1970; None leaves the time out (for what was issued once).
        is_signed: verifies one signature, or remembers that it did.

    Raises:
        CertificateRefused: with the first thing that is wrong.
    """
    check_links(chain, swarm_id)
    if now_ms is not None:
        check_times(chain, now_ms)
    for certificate in chain.certificates:
        if not is_signed(certificate):
            raise CertificateRefused(Refusal.FORGED)


def check_times(chain: Chain, now_ms: int) -> None:
    """Raises: CertificateRefused (`NOT_YET_VALID`, `EXPIRED`): of any certificate in it."""
    for certificate in chain.certificates:
        certificate.check_time(now_ms)


def check_links(chain: Chain, swarm_id: bytes) -> None:
    """Raises: CertificateRefused: one certificate does not follow from the one above it, whatever the signatures say."""
    first = chain.certificates[0]
    for certificate in chain.certificates:
        if certificate.swarm_id != swarm_id:
            raise CertificateRefused(Refusal.OTHER_SWARM)
        if certificate.subject == certificate.issuer:
            raise CertificateRefused(Refusal.SELF_SIGNED)
    if not is_root(first.issuer, swarm_id):
        raise CertificateRefused(Refusal.UNKNOWN_ROOT)
    for upper, lower in pairwise(chain.certificates):
        if lower.issuer != upper.subject:
            raise CertificateRefused(Refusal.BROKEN_CHAIN)
        if not upper.may_invite:
            raise CertificateRefused(Refusal.NOT_NARROWER, "its issuer may not invite")
        if ROLES.index(lower.role) > ROLES.index(upper.role):
            raise CertificateRefused(Refusal.NOT_NARROWER, "its role")
        if not (
            upper.issued_at_ms <= lower.issued_at_ms and lower.expires_at_ms <= upper.expires_at_ms
        ):
            raise CertificateRefused(Refusal.NOT_NARROWER, "its time")


def is_root(public_key: bytes, swarm_id: bytes) -> bool:
    """Whether that key is the root of the swarm of that id."""
    return swarm_id in {
        root_swarm_id(public_key),
        root_swarm_id(public_key, is_open=True),
    }


def certify_by_root(
    root: Identity,
    *,
    subject: bytes,
    role: Role,
    serial: bytes,
    now_ms: int,
    lifetime_ms: int = YEAR_MS,
    may_invite: bool = False,
    invite: bytes = DIRECT,
    inviter: NodeId = NO_INVITER,
    is_open: bool = False,
) -> Chain:
    """Make a member with the root key.

    Args:
        root: the swarm's root key.
        subject: the member's Ed25519 public key.
        role: what it may do.
        serial: 16 random bytes.
        now_ms: wall clock, ms since 1970.
        lifetime_ms: for how long.
        may_invite: whether it may make members itself.
        invite: the invite that was redeemed, if any.
        inviter: whose invite it was.
        is_open: whether the swarm is an open one.

    Raises:
        UsageError: the values make no certificate, or the root would certify itself.
    """
    if subject == root.public_key:
        raise UsageError("the root key is no node's key: make another one for the node")
    certificate = sign_certificate(
        root,
        swarm_id=root_swarm_id(root.public_key, is_open=is_open),
        subject=subject,
        role=role,
        may_invite=may_invite,
        serial=serial,
        issued_at_ms=now_ms,
        expires_at_ms=now_ms + lifetime_ms,
        invite=invite,
        inviter=inviter,
    )
    return chain_of((certificate,))


def certify(
    issuer: Identity,
    issuer_chain: Chain,
    *,
    subject: bytes,
    role: Role,
    serial: bytes,
    now_ms: int,
    lifetime_ms: int = YEAR_MS,
    may_invite: bool = False,
    invite: bytes = DIRECT,
    inviter: NodeId | None = None,
) -> Chain:
    """Make a member with the key of a member that may invite; it ends no later than the issuer's own time.

    Args:
        issuer: whose certificate is the last of `issuer_chain`.
        issuer_chain: its own chain.
        subject: the new member's Ed25519 public key.
        role: at most the issuer's.
        serial: 16 random bytes.
        now_ms: wall clock, ms since 1970.
        lifetime_ms: for how long, at most.
        may_invite: whether it may make members itself.
        invite: the invite that was redeemed, if any.
        inviter: whose invite it was; the issuer's by default.

    Raises:
        UsageError: the issuer may not give that; says why and what to do.
    """
    own = issuer_chain.leaf
    if issuer.public_key != own.subject:
        raise UsageError("the issuer's key is not the one that its certificate is for")
    if not own.may_invite:
        raise UsageError(
            "this node's certificate does not let it invite",
            hint="ask whoever invited it for an invite made with --may-invite",
        )
    if len(issuer_chain.certificates) == MAX_CERTIFICATES:
        raise UsageError(
            "this node is too far from the swarm's creator to invite",
            hint="let the member that invited this node make the invite",
        )
    if ROLES.index(role) > ROLES.index(own.role):
        raise UsageError(
            f"this node is {own.role} itself and cannot make anybody {role}",
            hint=f"make the invite with --role {own.role}, or let another member make it",
        )
    if may_invite and len(issuer_chain.certificates) == MAX_CERTIFICATES - 1:
        raise UsageError(
            "members that this node invites are too far from the swarm's creator to invite others",
            hint="leave out --may-invite",
        )
    if subject in (issuer.public_key, *issuer_chain.issuers):
        raise UsageError("a node cannot certify itself, or who stands above it")
    issued_at_ms = max(now_ms, own.issued_at_ms)
    if issued_at_ms >= own.expires_at_ms:
        raise UsageError(
            "this node's own certificate is over", hint="renew it first: noded join CODE"
        )
    certificate = sign_certificate(
        issuer,
        swarm_id=own.swarm_id,
        subject=subject,
        role=role,
        may_invite=may_invite,
        serial=serial,
        issued_at_ms=issued_at_ms,
        expires_at_ms=min(issued_at_ms + lifetime_ms, own.expires_at_ms),
        invite=invite,
        inviter=NodeId.of_public_key(issuer.public_key) if inviter is None else inviter,
    )
    return chain_of((*issuer_chain.certificates, certificate))
