"""What the issuer answers: a certificate and the swarm's secret, for one reader; or a refusal that names its author.

Problem: the answer goes back through members that must not read the secret, change the certificate, or invent a refusal that makes
the newcomer give up. Idea:

    granted     version (1) | 1 | fresh X25519 key (32) | AES-256-GCM of a msgpack map, with its tag
                key: HKDF-SHA256 of (X25519 of both fresh keys | invite's key), salted with the request's hash; the nonce is zero,
                since the key is used once
    refused     version (1) | 2 | reason (1) | issuer's Ed25519 key (32) | its signature (64) over
                "noded join refusal v1" 00 | request's hash | reason
    hearsay     version (1) | 3 | reason (1)

Only who holds the code and knows the request's private half can open a grant; only the issuer and holders of the code can make
one, and the certificate in it must verify up to the root key that the code names. A refusal counts if the node that the code
names has signed it, for this request. Hearsay is what a member says that could not pass the request on; it ends nothing.

Invariants: `read_answer` raises `MalformedAnswer` only; a change of any bit of a grant or a refusal is noticed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final

import attrs
import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from node.errors import NodedError
from node.joining.code import InviteCode
from node.joining.reasons import Reason
from node.joining.request import JoinRequest
from transport.codec import decode_untrusted, pack
from transport.errors import TransportError
from transport.identity import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Identity, NodeId, verify
from transport.trust.chain import MAX_CHAIN_BYTES

__all__ = [
    "MAX_ANSWER_BYTES",
    "Grant",
    "MalformedAnswer",
    "Refusal",
    "hearsay",
    "read_answer",
    "refuse",
    "seal_grant",
]

VERSION: Final = 1
MAX_ANSWER_BYTES: Final = 16384
"""A chain of three certificates and some addresses need a fifth of it."""
MAX_ADDRESSES: Final = 16
_GRANTED, _REFUSED, _HEARSAY = 1, 2, 3
_KEY_BYTES: Final = 32
_NONCE: Final = bytes(12)
_SEAL_INFO: Final = b"noded join answer v1"
_REFUSAL_DOMAIN: Final = b"noded join refusal v1\x00"


class MalformedAnswer(NodedError):
    """Bytes that are no answer to this request: cut, changed, or meant for somebody else."""


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """What a newcomer is given."""

    chain: Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_CHAIN_BYTES)]
    """Its certificate and those up to the root's, as `transport.trust.chain` reads them; not verified here."""
    swarm_secret: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    """What keeps strangers from costing the members anything."""
    root_key: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    """The swarm's root public key; the code holds its hash."""
    swarm_name: Annotated[str, msgspec.Meta(max_length=64)] = ""
    """What people call the swarm."""
    bootstrap: Annotated[
        tuple[Annotated[str, msgspec.Meta(max_length=400)], ...],
        msgspec.Meta(max_length=MAX_ADDRESSES),
    ] = ()
    """Members' addresses to ask first."""

    def __repr__(self) -> str:
        return f"<Grant to join {self.swarm_name!r}>"


@attrs.frozen
class Refusal:
    """A no, and whether the issuer itself said it."""

    reason: Reason
    signed: bool


def seal_grant(
    request: JoinRequest, key: bytes, grant: Grant, random_bytes: Callable[[int], bytes]
) -> bytes:
    """The answer that gives `grant` to whoever made `request`.

    Args:
        request: a checked one.
        key: of the invite.
        grant: what is given.
        random_bytes: source of the fresh key.

    Raises:
        MalformedAnswer: the request's X25519 key is one that agrees on nothing.
    """
    private = X25519PrivateKey.from_private_bytes(random_bytes(_KEY_BYTES))
    head = bytes([VERSION, _GRANTED]) + private.public_key().public_bytes_raw()
    cipher = AESGCM(_seal_key(private, request.exchange, key, request.hash))
    return head + cipher.encrypt(_NONCE, pack(grant, limit=MAX_ANSWER_BYTES), head)


def refuse(request: JoinRequest, reason: Reason, issuer: Identity) -> bytes:
    """The issuer's own no."""
    signature = issuer.sign(_refusal(request, reason))
    return bytes([VERSION, _REFUSED, reason]) + issuer.public_key + signature


def hearsay(reason: Reason) -> bytes:
    """A no by somebody who cannot decide."""
    return bytes([VERSION, _HEARSAY, reason])


def read_answer(
    data_untrusted: bytes, request: JoinRequest, code: InviteCode, exchange_private: bytes
) -> Grant | Refusal:
    """What an answer says to whoever made the request.

    Args:
        data_untrusted: the answer.
        request: what was asked.
        code: the invite's.
        exchange_private: the private half of the request's X25519 key.

    Raises:
        MalformedAnswer: whatever is wrong with it.
    """
    if not 3 <= len(data_untrusted) <= MAX_ANSWER_BYTES:
        raise MalformedAnswer("no answer at all")
    data = bytes(data_untrusted)
    if data[0] != VERSION:
        raise MalformedAnswer(f"an answer of version {data[0]}, this release reads {VERSION}")
    if data[1] == _GRANTED:
        return _open(data, request, code, exchange_private)
    if data[1] == _REFUSED:
        return _read_refusal(data, request, code)
    if data[1] == _HEARSAY and len(data) == 3:
        return Refusal(_reason(data[2]), signed=False)
    raise MalformedAnswer("an answer of an unknown kind")


def _open(data: bytes, request: JoinRequest, code: InviteCode, exchange_private: bytes) -> Grant:
    head, sealed = data[: 2 + _KEY_BYTES], data[2 + _KEY_BYTES :]
    try:
        private = X25519PrivateKey.from_private_bytes(exchange_private)
        cipher = AESGCM(_seal_key(private, head[2:], code.key, request.hash))
        return decode_untrusted(cipher.decrypt(_NONCE, sealed, head), Grant, limit=MAX_ANSWER_BYTES)
    except (InvalidTag, ValueError):
        raise MalformedAnswer("the answer was changed on its way, or is not for us") from None
    except TransportError as error:
        raise MalformedAnswer(f"the answer makes no sense: {error}") from None


def _read_refusal(data: bytes, request: JoinRequest, code: InviteCode) -> Refusal:
    key, signature = data[3 : 3 + PUBLIC_KEY_BYTES], data[3 + PUBLIC_KEY_BYTES :]
    reason = _reason(data[2])
    if len(signature) != SIGNATURE_BYTES:
        raise MalformedAnswer("the refusal was cut")
    try:
        by_issuer = code.is_issuer(NodeId.of_public_key(key))
    except TransportError:
        by_issuer = False
    if not by_issuer or not verify(key, signature, _refusal(request, reason)):
        raise MalformedAnswer("the refusal is not of the node that issued the invite")
    return Refusal(reason, signed=True)


def _reason(number: int) -> Reason:
    try:
        return Reason(number)
    except ValueError:
        raise MalformedAnswer(f"a refusal for an unknown reason ({number})") from None


def _refusal(request: JoinRequest, reason: Reason) -> bytes:
    return _REFUSAL_DOMAIN + request.hash + bytes([reason])


def _seal_key(private: X25519PrivateKey, public: bytes, key: bytes, salt: bytes) -> bytes:
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:  # a point of small order: everybody would know the secret
        raise MalformedAnswer("an unacceptable key in the exchange") from None
    return HKDF(SHA256(), _KEY_BYTES, salt, _SEAL_INFO).derive(shared + key)
