"""What a newcomer asks: "certify this key; I hold the code of that invite". Any member may carry it; nobody can use it.

Problem: the request passes through members that must not be able to redeem the invite themselves, put another key into it, or gain
anything by sending it again. Idea: the secret stays at home. The request is signed by the key it asks for, and a MAC under the
invite's key covers all of it, signature included:

    version (1) | swarm id (32) | issuer (16) | invite id (16) | subject's Ed25519 key (32) | fresh X25519 key (32)
    signature (64)      of the subject, over "noded join request v1" 00 and what is before
    proof (32)          HMAC-SHA256 under the invite's key, over "noded join proof v1" 00 and what is before

The answer is sealed to the X25519 key and bound to the hash of the request (`node.joining.answer`). So a request that is sent
again, by whomever, gets the same certificate for the same key, in an answer that only its maker can open.

Invariants: `parse_request` raises `MalformedRequest` only, and proves nothing: `proven_by` and `signed` do. The cheap one comes first.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

import attrs

from node.errors import NodedError
from node.joining.code import INVITE_ID_BYTES, ISSUER_BYTES, InviteCode
from transport.identity import (
    PUBLIC_KEY_BYTES,
    SIGNATURE_BYTES,
    Identity,
    NodeId,
    is_acceptable_public_key,
    verify,
)

__all__ = ["REQUEST_BYTES", "JoinRequest", "MalformedRequest", "make_request", "parse_request"]

VERSION: Final = 1
_HASH_BYTES: Final = 32
_BODY_BYTES: Final = 1 + 32 + ISSUER_BYTES + INVITE_ID_BYTES + PUBLIC_KEY_BYTES + 32
REQUEST_BYTES: Final = _BODY_BYTES + SIGNATURE_BYTES + _HASH_BYTES

_SIGNED_DOMAIN: Final = b"noded join request v1\x00"
_PROOF_DOMAIN: Final = b"noded join proof v1\x00"
_HASH_DOMAIN: Final = b"noded join request hash v1\x00"


class MalformedRequest(NodedError):
    """Bytes that are no request to join."""


@attrs.frozen
class JoinRequest:
    """A request as it came; its fields are claims until they are checked."""

    data: bytes = attrs.field(repr=False)
    """All of it."""
    swarm_id: bytes = attrs.field(repr=False)
    issuer: bytes = attrs.field(repr=False)
    """The first half of the id of the node that is to decide."""
    invite: bytes
    """The invite's id."""
    subject: bytes
    """The Ed25519 key to be certified."""
    exchange: bytes = attrs.field(repr=False)
    """The X25519 key that the answer is sealed to."""

    @property
    def node_id(self) -> NodeId:
        """Of the subject."""
        return NodeId.of_public_key(self.subject)

    @property
    def hash(self) -> bytes:
        """What an answer is bound to."""
        return hashlib.sha256(_HASH_DOMAIN + self.data).digest()

    def is_for(self, node_id: bytes) -> bool:
        """Whether the node of this id is to decide."""
        return node_id[:ISSUER_BYTES] == self.issuer

    def proven_by(self, key: bytes) -> bool:
        """Whether whoever made it held the code, by the invite's key; in constant time."""
        return hmac.compare_digest(_proof(key, self.data[:-_HASH_BYTES]), self.data[-_HASH_BYTES:])

    @property
    def signed(self) -> bool:
        """Whether the subject itself asks."""
        signature = self.data[_BODY_BYTES:-_HASH_BYTES]
        return verify(self.subject, signature, _SIGNED_DOMAIN + self.data[:_BODY_BYTES])


def make_request(code: InviteCode, identity: Identity, exchange_public: bytes) -> JoinRequest:
    """The request of `identity` for the invite of `code`.

    Args:
        code: whose secret it proves.
        identity: the key to be certified.
        exchange_public: a fresh X25519 key, 32 bytes.
    """
    body = bytes([VERSION]) + code.swarm_id + code.issuer + code.id
    body += identity.public_key + exchange_public
    body += identity.sign(_SIGNED_DOMAIN + body)
    return parse_request(body + _proof(code.key, body))


def parse_request(data_untrusted: bytes) -> JoinRequest:
    """The request in these bytes, with nothing proven yet.

    Raises:
        MalformedRequest: another length, another version, or a key that is none.
    """
    if len(data_untrusted) != REQUEST_BYTES:
        raise MalformedRequest(f"a request to join has {REQUEST_BYTES} bytes")
    data = bytes(data_untrusted)
    if data[0] != VERSION:
        raise MalformedRequest(f"a request of version {data[0]}, this release reads {VERSION}")
    at, parts = 1, []
    for size in (32, ISSUER_BYTES, INVITE_ID_BYTES, PUBLIC_KEY_BYTES, 32):
        parts.append(data[at : at + size])
        at += size
    if not is_acceptable_public_key(parts[3]):
        raise MalformedRequest("the key to be certified is not acceptable")
    return JoinRequest(data, *parts)


def _proof(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, _PROOF_DOMAIN + data, "sha256")
