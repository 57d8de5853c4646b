"""Who a node is: an Ed25519 key pair, and the node id that everybody else calls it by.

Problem: a node must be nameable before it is reachable, and nobody else may speak in its name. Idea: the id is SHA-256 of the
public key, so that a key proves an id and no registry is needed. Keys are RFC 8032 Ed25519.

Signatures are libsodium's: checking one takes half of OpenSSL's time, and every operation of a run checks one of each member.

Invariants: public keys of small order and non-canonical encodings are refused everywhere, because there are libraries whose
verify accepts forged signatures for them (for the identity point, any message); private bytes never appear in `repr`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Self, SupportsIndex

from nacl.bindings import crypto_sign, crypto_sign_open, crypto_sign_seed_keypair
from nacl.exceptions import CryptoError

from transport.errors import InvalidNodeId, InvalidPublicKey, UsageError
from transport.text import decode32, encode32

NODE_ID_BYTES = 32
PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64
SEED_BYTES = 32

_FIELD_PRIME = 2**255 - 19
# y coordinates of the eight points whose order divides 8 (edwards25519): identity, order 2, order 4 (two points) and order 8 (four
# points, two y values). With a free sign bit this also covers the encodings of x = 0 with the sign set.
_ORDER_8_Y = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_SMALL_ORDER_Y = frozenset({0, 1, _FIELD_PRIME - 1, _ORDER_8_Y, _FIELD_PRIME - _ORDER_8_Y})
_SIGN_BIT = 1 << 255


def is_acceptable_public_key(public_key_untrusted: bytes) -> bool:
    """False for a wrong length, a non-canonical encoding or a point of small order.

    A point off the curve passes here and fails in `verify`.
    """
    if len(public_key_untrusted) != PUBLIC_KEY_BYTES:
        return False
    y = int.from_bytes(public_key_untrusted, "little") & (_SIGN_BIT - 1)
    return y < _FIELD_PRIME and y not in _SMALL_ORDER_Y


class NodeId(bytes):
    """SHA-256 of an Ed25519 public key, 32 bytes; compares, sorts and hashes as those bytes.

    `str()` is the text for people and files: `nd-` + base32 in groups of four + a check character.
    """

    __slots__ = ()

    def __new__(cls, value: bytes) -> Self:
        """The id in 32 raw bytes; raises InvalidNodeId for anything else."""
        if not isinstance(value, bytes | bytearray | memoryview) or len(value) != NODE_ID_BYTES:
            raise InvalidNodeId(f"a node id is {NODE_ID_BYTES} bytes")
        return super().__new__(cls, value)

    @classmethod
    def of_public_key(cls, public_key: bytes) -> Self:
        """The id of a public key.

        Raises:
            InvalidPublicKey: wrong length, small order or non-canonical.
        """
        if not is_acceptable_public_key(public_key):
            raise InvalidPublicKey("not an acceptable Ed25519 public key")
        return cls(hashlib.sha256(public_key).digest())

    @classmethod
    def parse(cls, text: str) -> Self:
        """The id in a text; lenient in case, spaces and hyphens.

        Raises:
            InvalidNodeId: with what is wrong.
        """
        try:
            return cls(decode32("nd", text))
        except ValueError as error:
            raise InvalidNodeId(f"not a node id: {error}") from None

    @property
    def short(self) -> str:
        """First 40 bits, for people; not unique against somebody who searches for a twin."""
        return str(self)[:12]

    def __str__(self) -> str:
        return encode32("nd", bytes(self))

    def __repr__(self) -> str:
        return f"<NodeId {self.short}>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[type[NodeId], tuple[bytes]]:
        return (type(self), (bytes(self),))


class Identity:
    """An Ed25519 private key and what follows from it."""

    __slots__ = ("_key", "_seed", "node_id", "public_key")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise UsageError(f"an identity seed is {SEED_BYTES} bytes")
        self._seed = bytes(seed)
        self.public_key: bytes
        self.public_key, self._key = crypto_sign_seed_keypair(self._seed)
        self.node_id: NodeId = NodeId.of_public_key(self.public_key)

    @classmethod
    def generate(cls, random_bytes: Callable[[int], bytes]) -> Self:
        """A fresh identity; `random_bytes` is os.urandom outside simulations."""
        return cls(random_bytes(SEED_BYTES))

    @classmethod
    def from_seed(cls, seed: bytes) -> Self:
        """The identity of a stored 32-byte seed."""
        return cls(seed)

    @property
    def seed(self) -> bytes:
        """The secret 32 bytes, for the key file and nothing else."""
        return self._seed

    def sign(self, data: bytes) -> bytes:
        """64-byte Ed25519 signature. Callers put a domain string first."""
        return crypto_sign(bytes(data), self._key)[:SIGNATURE_BYTES]

    def __repr__(self) -> str:
        return f"<Identity {self.node_id.short}>"


def verify(public_key: bytes, signature: bytes, data: bytes) -> bool:
    """Whether `signature` over `data` was made with the private key of `public_key`; never raises.

    False for small-order and non-canonical keys, whatever the signature.
    """
    if len(signature) != SIGNATURE_BYTES or not is_acceptable_public_key(public_key):
        return False
    try:
        crypto_sign_open(bytes(signature) + data, bytes(public_key))
    except CryptoError:
        return False
    return True
