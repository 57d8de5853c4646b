"""Signed records: small values that prove who wrote them, for which key, in which swarm, until when.

Problem: whoever stores a record may be a liar. Idea (BitTorrent BEP 44, with the key inside the signed bytes):
a record is signed by its writer over everything that gives it meaning, so a holder can withhold or replay it
within its lifetime, and nothing else. Readers verify every record they receive, whoever sent it.

Signed bytes, all integers unsigned big-endian:

    offset  size  field
    0       24    domain "noded dht record v1" padded with zero bytes
    24      32    swarm id      (a record of one swarm means nothing in another)
    56      32    key           (a record cannot be moved to another key)
    88      32    public key    (of the signer, Ed25519)
    120     8     sequence      (rises with every record of this signer for this key)
    128     8     expires_at    (wall clock, seconds since 1970)
    136     2     value length
    138     ..    value         (at most 1000 bytes)

Several signers may have records under one key: under a run's name each member says where it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec

from dht.errors import InvalidRecord
from dht.key import KEY_BYTES

# BEP 44's limit: with its frame a record stays within one packet, and 32 of them within one message.
MAX_VALUE_BYTES = 1000
# A record outlives its writer by at most this; a longer promise would only fill stores.
MAX_TTL_S = 24 * 3600.0
# Clocks of ordinary machines differ; beyond this they are broken.
CLOCK_TOLERANCE_S = 60.0
MAX_SEQUENCE = 2**63 - 1

_DOMAIN = b"noded dht record v1".ljust(24, b"\0")

Verify = Callable[[bytes, bytes, bytes], bool]
"""verify(public_key, signature, data): whether the signature is good; never raises."""
Sign = Callable[[bytes], bytes]
"""sign(data) -> 64-byte signature by this node's identity."""


class SignedRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A value under a key, with its proof; valid only after `check`."""

    key: Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
    value: Annotated[bytes, msgspec.Meta(max_length=MAX_VALUE_BYTES)]
    public_key: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    sequence: Annotated[int, msgspec.Meta(ge=0, le=MAX_SEQUENCE)]
    expires_at: Annotated[int, msgspec.Meta(ge=0, le=MAX_SEQUENCE)]
    """Wall clock, seconds since 1970."""
    signature: Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]

    def expired(self, wall: float) -> bool:
        """Return whether its time is over at `wall` (seconds since 1970), clock tolerance included."""
        return wall > self.expires_at + CLOCK_TOLERANCE_S


def signed_bytes(
    *, swarm_id: bytes, key: bytes, public_key: bytes, sequence: int, expires_at: int, value: bytes
) -> bytes:
    """Return the bytes a record's signature covers (layout: module docstring)."""
    return b"".join(
        (
            _DOMAIN,
            swarm_id,
            key,
            public_key,
            sequence.to_bytes(8, "big"),
            expires_at.to_bytes(8, "big"),
            len(value).to_bytes(2, "big"),
            value,
        )
    )


def make_record(
    *,
    swarm_id: bytes,
    key: bytes,
    value: bytes,
    public_key: bytes,
    sequence: int,
    expires_at: int,
    sign: Sign,
) -> SignedRecord:
    """Sign a record.

    Raises:
        InvalidRecord: the value is larger than `MAX_VALUE_BYTES`.
    """
    if len(value) > MAX_VALUE_BYTES:
        raise InvalidRecord("size", f"a record holds at most {MAX_VALUE_BYTES} bytes")
    data = signed_bytes(
        swarm_id=swarm_id,
        key=key,
        public_key=public_key,
        sequence=sequence,
        expires_at=expires_at,
        value=value,
    )
    return SignedRecord(
        key=key,
        value=value,
        public_key=public_key,
        sequence=sequence,
        expires_at=expires_at,
        signature=sign(data),
    )


def check(
    record: SignedRecord, *, swarm_id: bytes, key: bytes, wall: float, verify: Verify
) -> None:
    """Verify a record received from anybody.

    Args:
        record: structurally valid (field lengths are checked by decoding).
        swarm_id: the swarm we are in.
        key: the key it was asked, or offered, for.
        wall: seconds since 1970 now.
        verify: the signature check.

    Raises:
        InvalidRecord: with reason "key", "size", "expired", "lifetime" or "signature". Cheap checks come
            first; "expired" is innocent (clocks and delays), the others are not.
    """
    if record.key != key:
        raise InvalidRecord("key", "the record is for another key")
    if len(record.value) > MAX_VALUE_BYTES:
        raise InvalidRecord("size", "the record's value is too large")
    if record.expired(wall):
        raise InvalidRecord("expired", "the record's time is over")
    if record.expires_at > wall + MAX_TTL_S + CLOCK_TOLERANCE_S:
        raise InvalidRecord("lifetime", "the record claims to live too long")
    data = signed_bytes(
        swarm_id=swarm_id,
        key=record.key,
        public_key=record.public_key,
        sequence=record.sequence,
        expires_at=record.expires_at,
        value=record.value,
    )
    if not verify(record.public_key, record.signature, data):
        raise InvalidRecord("signature", "the record's signature does not verify")


def newest(records: list[SignedRecord]) -> list[SignedRecord]:
    """Return the newest record of each signer, sorted by signer."""
    best: dict[bytes, SignedRecord] = {}
    for record in records:
        held = best.get(record.public_key)
        if held is None or record.sequence > held.sequence:
            best[record.public_key] = record
    return [best[signer] for signer in sorted(best)]
