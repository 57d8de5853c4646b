"""One certificate: an issuer says, under its signature, what a key may do in a swarm and until when.

Problem: a member must prove that it is one to nodes that have never heard of it, with nobody to ask. Idea: a small signed value that names the
swarm, the member's key and the limits of what was granted; whoever knows the swarm's root key can check it alone (`transport.trust.chain`). The
signature covers the very bytes that travel, never a re-encoding, and those bytes are kept.

    offset  size  field
    0       1     version, 1
    1       1     role: 1 observer, 2 relay, 3 trainer; each may do what those below it may
    2       1     flags: bit 0 may invite; all others zero
    3       32    swarm id
    35      32    subject: the member's Ed25519 public key
    67      32    issuer's Ed25519 public key: the swarm's root, or a member that may invite
    99      32    inviter: node id of the member whose invite it was, zeros for none
    131     16    invite: the invite's id, zeros for a certificate that was given directly
    147     16    serial, random
    163     8     issued at, ms since 1970
    171     8     expires at, ms since 1970, later than issued
    179     1     number of extensions, at most 8
    180     ..    extensions, ascending by name, each once: critical (1, 0 or 1) | name length (1) | name | value length (2) | value
    end-64  64    signature over "noded certificate v1" padded with zeros to 24 bytes | everything before

An extension that is marked critical and not known refuses the certificate; another one is carried along unread. This release knows none.

To make certificates use `transport.trust.chain` (`certify_by_root`, `certify`): it sees to it that they are within what the issuer may give.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

import attrs

from transport.errors import UsageError
from transport.identity import (
    PUBLIC_KEY_BYTES,
    SIGNATURE_BYTES,
    Identity,
    NodeId,
    is_acceptable_public_key,
    verify,
)
from transport.trust.raw import RawValue
from transport.trust.refusal import CertificateRefused, Refusal

Role: TypeAlias = Literal["observer", "relay", "trainer"]
ROLES: Final[tuple[Role, ...]] = ("observer", "relay", "trainer")
"""From the least to the most; `ROLES.index` compares them."""

VERSION: Final = 1
MAX_CERTIFICATE_BYTES: Final = 512
"""245 without extensions; three of them leave room for the introduction in a handshake of 5 KiB."""
SWARM_ID_BYTES: Final = 32
SERIAL_BYTES: Final = 16
MARK_BYTES: Final = 16
INVITE_BYTES: Final = 16
DIRECT: Final = bytes(INVITE_BYTES)
"""In place of an invite's id: the certificate was given directly, by whoever holds the issuer's key."""
NO_INVITER: Final = NodeId(bytes(32))
MAX_TIME_MS: Final = 2**53 - 1
"""Exact in every language's numbers; the year 287396."""
MAX_EXTENSIONS: Final = 8
CLOCK_LEEWAY_MS: Final = 60_000
"""Clocks of ordinary machines differ; a certificate counts for a minute before and after its time."""

_MAY_INVITE: Final = 1
_DOMAIN: Final = b"noded certificate v1".ljust(24, b"\0")
_HEADER: Final = struct.Struct(">BBB32s32s32s32s16s16sQQB")
_NAME: Final = re.compile(r"[a-z0-9._-]{1,32}")
KNOWN_EXTENSIONS: Final[frozenset[str]] = frozenset()


@attrs.frozen
class Extension:
    """Something a later release says in a certificate."""

    name: str
    """1 to 32 characters of a-z 0-9 . _ -"""
    value: bytes = b""
    critical: bool = False
    """Whether who does not know it must refuse the certificate."""


@attrs.frozen(eq=False)
class Certificate(RawValue):
    """A parsed certificate; equal to another exactly if the bytes are. Says nothing about its signature: see `is_signed`."""

    role: Role
    may_invite: bool
    """Whether its subject may issue certificates itself, with at most its own role and time."""
    swarm_id: bytes = attrs.field(repr=False)
    subject: bytes = attrs.field(repr=False)
    """Ed25519 public key of the member."""
    issuer: bytes = attrs.field(repr=False)
    """Ed25519 public key of who signed."""
    inviter: NodeId
    invite: bytes
    serial: bytes
    issued_at_ms: int
    expires_at_ms: int
    extensions: tuple[Extension, ...]
    raw: bytes = attrs.field(repr=False)
    """As received, signature included."""

    @property
    def mark(self) -> bytes:
        """The first 16 bytes of `id`: names this certificate and no other, unlike the serial, which its issuer is free to use again."""
        return self.id[:MARK_BYTES]

    @property
    def node_id(self) -> NodeId:
        """The member's node id."""
        return NodeId.of_public_key(self.subject)

    @property
    def issuer_id(self) -> NodeId:
        """The issuer's node id (of the root key: nobody's node)."""
        return NodeId.of_public_key(self.issuer)

    def is_signed(self) -> bool:
        """Whether the issuer's key made the signature. Costs one Ed25519 verification, 0.05 ms."""
        body, signature = self.raw[:-SIGNATURE_BYTES], self.raw[-SIGNATURE_BYTES:]
        return verify(self.issuer, signature, _DOMAIN + body)

    def check_time(self, now_ms: int) -> None:
        """Raises: CertificateRefused (`NOT_YET_VALID`, `EXPIRED`), a minute of leeway included."""
        if now_ms + CLOCK_LEEWAY_MS < self.issued_at_ms:
            raise CertificateRefused(Refusal.NOT_YET_VALID)
        if now_ms - CLOCK_LEEWAY_MS > self.expires_at_ms:
            raise CertificateRefused(Refusal.EXPIRED)


def sign_certificate(
    issuer: Identity,
    *,
    swarm_id: bytes,
    subject: bytes,
    role: Role,
    may_invite: bool,
    serial: bytes,
    issued_at_ms: int,
    expires_at_ms: int,
    invite: bytes = DIRECT,
    inviter: NodeId = NO_INVITER,
    extensions: Sequence[Extension] = (),
) -> Certificate:
    """Make a certificate, whatever the issuer may give (`transport.trust.chain` knows that).

    Raises:
        UsageError: the values make no certificate that anybody could read.
    """
    if role not in ROLES:
        raise UsageError(f"not a role: {role!r}", hint=f"roles are {', '.join(ROLES)}")
    if not 0 <= issued_at_ms < expires_at_ms <= MAX_TIME_MS:
        raise UsageError("a certificate ends after it begins, in milliseconds since 1970")
    ordered = sorted(extensions, key=lambda extension: extension.name)
    try:
        body = _HEADER.pack(
            VERSION,
            ROLES.index(role) + 1,
            _MAY_INVITE if may_invite else 0,
            *(swarm_id, subject, issuer.public_key, inviter, invite, serial),
            *(issued_at_ms, expires_at_ms, len(ordered)),
        ) + b"".join(map(_encode_extension, ordered))
    except (struct.error, UnicodeEncodeError) as error:
        raise UsageError(f"not a certificate: {error}") from None
    fixed = ((swarm_id, 32), (subject, 32), (inviter, 32), (invite, 16), (serial, 16))
    if any(len(value) != size for value, size in fixed):
        raise UsageError("a field of the certificate has another length than it must")
    try:
        return parse_certificate(body + issuer.sign(_DOMAIN + body))
    except CertificateRefused as error:
        raise UsageError(f"not a certificate: {error}") from None


def parse_certificate(data_untrusted: bytes) -> Certificate:
    """Read a certificate; says nothing about its signature, its time or its issuer.

    Raises:
        CertificateRefused: `TRUNCATED`, `MALFORMED`, `UNKNOWN_VERSION` or `UNKNOWN_CRITICAL`, and nothing else, whatever the bytes are.
    """
    if len(data_untrusted) > MAX_CERTIFICATE_BYTES:
        raise CertificateRefused(
            Refusal.MALFORMED, f"it has more than {MAX_CERTIFICATE_BYTES} bytes"
        )
    if data_untrusted[:1] not in {b"", bytes([VERSION])}:
        raise CertificateRefused(Refusal.UNKNOWN_VERSION)
    if len(data_untrusted) < _HEADER.size + SIGNATURE_BYTES:
        raise CertificateRefused(Refusal.TRUNCATED)
    raw = bytes(data_untrusted)
    body = raw[:-SIGNATURE_BYTES]
    fields = _HEADER.unpack_from(body)
    _, role, flags, swarm_id, subject, issuer, inviter, invite, serial, issued, expires, count = (
        fields
    )
    if not 1 <= role <= len(ROLES):
        raise CertificateRefused(Refusal.UNKNOWN_CRITICAL, "its role")
    if flags & ~_MAY_INVITE:
        raise CertificateRefused(Refusal.UNKNOWN_CRITICAL, "one of its flags")
    if not issued < expires <= MAX_TIME_MS:
        raise CertificateRefused(Refusal.MALFORMED, "it ends before it begins")
    if not (is_acceptable_public_key(subject) and is_acceptable_public_key(issuer)):
        raise CertificateRefused(Refusal.MALFORMED, "it names a key that is not acceptable")
    return Certificate(
        role=ROLES[role - 1],
        may_invite=bool(flags & _MAY_INVITE),
        swarm_id=swarm_id,
        subject=subject,
        issuer=issuer,
        inviter=NodeId(inviter),
        invite=invite,
        serial=serial,
        issued_at_ms=issued,
        expires_at_ms=expires,
        extensions=_read_extensions(body, count),
        raw=raw,
    )


def _encode_extension(extension: Extension) -> bytes:
    name = extension.name.encode("ascii")
    return (
        struct.pack(">BB", extension.critical, len(name))
        + name
        + struct.pack(">H", len(extension.value))
        + extension.value
    )


def _read_extensions(body: bytes, count: int) -> tuple[Extension, ...]:
    if count > MAX_EXTENSIONS:
        raise CertificateRefused(Refusal.MALFORMED, f"more than {MAX_EXTENSIONS} extensions")
    found: list[Extension] = []
    place = _HEADER.size
    for _ in range(count):
        critical, name, value, place = _read_extension(body, place)
        if not _NAME.fullmatch(name) or critical > 1:
            raise CertificateRefused(Refusal.MALFORMED, "an extension makes no sense")
        if found and name <= found[-1].name:
            raise CertificateRefused(Refusal.MALFORMED, "its extensions are not in order")
        if critical and name not in KNOWN_EXTENSIONS:
            raise CertificateRefused(Refusal.UNKNOWN_CRITICAL, name)
        found.append(Extension(name, value, bool(critical)))
    if place != len(body):
        raise CertificateRefused(Refusal.MALFORMED, "bytes are left over")
    return tuple(found)


def _read_extension(body: bytes, place: int) -> tuple[int, str, bytes, int]:
    try:
        critical, name_length = struct.unpack_from(">BB", body, place)
        name = body[place + 2 : place + 2 + name_length]
        (value_length,) = struct.unpack_from(">H", body, place + 2 + name_length)
    except struct.error:
        raise CertificateRefused(Refusal.TRUNCATED) from None
    start = place + 4 + name_length
    value = body[start : start + value_length]
    if len(value) != value_length:
        raise CertificateRefused(Refusal.TRUNCATED)
    return critical, name.decode("latin-1"), value, start + value_length


assert _HEADER.size == 180
assert PUBLIC_KEY_BYTES == SWARM_ID_BYTES == 32
