"""Noise XX with X25519, AES-256-GCM and SHA-256: the key agreement of every connection.

Problem: two nodes that know at most each other's id need a mutually authenticated, forward-secret channel. Idea: the Noise Protocol
Framework, revision 34 (noiseprotocol.org), pattern XX, one suite. Only what XX needs is here; names follow the specification
so that the two can be read side by side.

    XX:   -> e      <- e, ee, s, es      -> s, se

Rejected: TLS from the standard library (cannot accept unknown client certificates, 16 KiB records); IK (its fallback doubles the
states for half a round trip); cipher negotiation (a new suite means a new protocol version).

Invariants: a state object takes messages in the one legal order and is dead after any failure; X25519 results of zero (small-order
points) are refused; private keys and chaining keys appear in no `repr`.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Literal, Self, TypeAlias

import attrs
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from transport.errors import HandshakeFailed, UsageError

PROTOCOL_NAME = b"Noise_XX_25519_AESGCM_SHA256"
DH_BYTES = 32
TAG_BYTES = 16
MAX_MESSAGE_BYTES = 65535

Role: TypeAlias = Literal["initiator", "responder"]

# Who sends message i, and its tokens.
_PATTERN: tuple[tuple[Role, tuple[str, ...]], ...] = (
    ("initiator", ("e",)),
    ("responder", ("e", "ee", "s", "es")),
    ("initiator", ("s", "se")),
)


def _hkdf2(chaining_key: bytes, input_key: bytes) -> tuple[bytes, bytes]:
    """HKDF of section 4.3 with two outputs."""
    temporary = hmac.digest(chaining_key, input_key, "sha256")
    first = hmac.digest(temporary, b"\x01", "sha256")
    return first, hmac.digest(temporary, first + b"\x02", "sha256")


@attrs.frozen
class KeyPair:
    """An X25519 key pair."""

    private: X25519PrivateKey = attrs.field(repr=False)
    public: bytes
    """32 bytes, as sent."""

    @classmethod
    def from_private(cls, private: bytes) -> Self:
        """The pair of 32 secret bytes."""
        key = X25519PrivateKey.from_private_bytes(private)
        return cls(key, key.public_key().public_bytes_raw())

    def exchange(self, remote_public: bytes) -> bytes:
        """The shared secret; HandshakeFailed for a point of small order."""
        try:
            return self.private.exchange(X25519PublicKey.from_public_bytes(remote_public))
        except ValueError:
            raise HandshakeFailed("the key exchange met a point of small order") from None


class CipherState:
    """Key and nonce counter (section 5.1). Without a key, data passes unchanged."""

    __slots__ = ("_cipher", "_nonce")

    def __init__(self, key: bytes | None = None) -> None:
        self._cipher = None if key is None else AESGCM(key)
        self._nonce = 0

    @property
    def has_key(self) -> bool:
        """Whether anything is encrypted yet."""
        return self._cipher is not None

    def _next_nonce(self) -> bytes:
        nonce = bytes(4) + self._nonce.to_bytes(8, "big")
        self._nonce += 1
        return nonce

    def encrypt_with_ad(self, ad: bytes, plaintext: bytes) -> bytes:
        """Ciphertext and tag."""
        if self._cipher is None:
            return plaintext
        return self._cipher.encrypt(self._next_nonce(), plaintext, ad)

    def decrypt_with_ad(self, ad: bytes, ciphertext: bytes) -> bytes:
        """Plaintext; HandshakeFailed for a wrong tag."""
        if self._cipher is None:
            return ciphertext
        try:
            return self._cipher.decrypt(self._next_nonce(), ciphertext, ad)
        except InvalidTag:
            raise HandshakeFailed("a handshake message failed authentication") from None


class SymmetricState:
    """Chaining key and transcript hash (section 5.2)."""

    __slots__ = ("_chaining_key", "_cipher", "hash")

    def __init__(self) -> None:
        self.hash = PROTOCOL_NAME.ljust(32, b"\x00")  # a name of at most 32 bytes is its own hash
        self._chaining_key = self.hash
        self._cipher = CipherState()

    @property
    def has_key(self) -> bool:
        """Whether payloads are encrypted yet."""
        return self._cipher.has_key

    def mix_key(self, input_key: bytes) -> None:
        """Take a DH result into the chaining key."""
        self._chaining_key, key = _hkdf2(self._chaining_key, input_key)
        self._cipher = CipherState(key)

    def mix_hash(self, data: bytes) -> None:
        """Take data into the transcript."""
        self.hash = hashlib.sha256(self.hash + data).digest()

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        """Encrypt under the transcript so far, then extend it."""
        ciphertext = self._cipher.encrypt_with_ad(self.hash, plaintext)
        self.mix_hash(ciphertext)
        return ciphertext

    def decrypt_and_hash(self, ciphertext: bytes) -> bytes:
        """Decrypt under the transcript so far, then extend it."""
        plaintext = self._cipher.decrypt_with_ad(self.hash, ciphertext)
        self.mix_hash(ciphertext)
        return plaintext

    def split(self) -> tuple[bytes, bytes]:
        """The two transport keys: initiator to responder, responder to initiator."""
        return _hkdf2(self._chaining_key, b"")


class NoiseXX:
    """One side of one XX handshake (section 5.3).

    Args:
        role: who speaks first.
        static, ephemeral: this side's pairs; `ephemeral` must be fresh for every handshake.
        prologue: bytes both sides must have equal.
    """

    __slots__ = (
        "_alive",
        "_ephemeral",
        "_next",
        "_remote_ephemeral",
        "_role",
        "_static",
        "_symmetric",
        "remote_static",
    )

    def __init__(self, role: Role, *, static: KeyPair, ephemeral: KeyPair, prologue: bytes) -> None:
        self._role: Role = role
        self._static = static
        self._ephemeral = ephemeral
        self._remote_ephemeral = b""
        self.remote_static: bytes = b""
        """32 bytes once the message carrying it was read, b"" before."""
        self._symmetric = SymmetricState()
        self._symmetric.mix_hash(prologue)
        self._next = 0
        self._alive = True

    @property
    def finished(self) -> bool:
        """Whether all three messages have passed."""
        return self._alive and self._next == len(_PATTERN)

    @property
    def handshake_hash(self) -> bytes:
        """The transcript hash; after the last message the same on both sides and unique to this handshake."""
        return self._symmetric.hash

    def _begin(self, *, writing: bool) -> tuple[str, ...]:
        if not self._alive or self._next >= len(_PATTERN):
            raise UsageError("the handshake is over")
        sender, tokens = _PATTERN[self._next]
        if (sender == self._role) is not writing:
            raise UsageError("it is the other side's turn")
        self._next += 1
        self._alive = False  # until the message is through
        return tokens

    def _mix_dh(self, step: str) -> None:
        # First letter: the initiator's key, second letter: the responder's.
        first, second = step[0], step[1]
        mine, theirs = (first, second) if self._role == "initiator" else (second, first)
        pair = self._ephemeral if mine == "e" else self._static
        self._symmetric.mix_key(
            pair.exchange(self._remote_ephemeral if theirs == "e" else self.remote_static)
        )

    def write_message(self, payload: bytes) -> bytes:
        """The next message, carrying `payload` (encrypted from message 2 on)."""
        symmetric = self._symmetric
        message = b""
        for step in self._begin(writing=True):
            if step == "e":
                symmetric.mix_hash(self._ephemeral.public)
                message += self._ephemeral.public
            elif step == "s":
                message += symmetric.encrypt_and_hash(self._static.public)
            else:
                self._mix_dh(step)
        message += symmetric.encrypt_and_hash(payload)
        if len(message) > MAX_MESSAGE_BYTES:
            raise UsageError(f"a Noise message has at most {MAX_MESSAGE_BYTES} bytes")
        self._alive = True
        return message

    def read_message(self, message_untrusted: bytes) -> bytes:
        """The payload of the other side's next message.

        Raises:
            HandshakeFailed: too short, wrong tag, or a small-order point; this object is then dead.
        """
        symmetric = self._symmetric
        rest = message_untrusted
        for step in self._begin(writing=False):
            if step == "e":
                self._remote_ephemeral, rest = _take(rest, DH_BYTES)
                symmetric.mix_hash(self._remote_ephemeral)
            elif step == "s":
                encrypted, rest = _take(rest, DH_BYTES + (TAG_BYTES if symmetric.has_key else 0))
                self.remote_static = symmetric.decrypt_and_hash(encrypted)
            else:
                self._mix_dh(step)
        payload = symmetric.decrypt_and_hash(rest)
        self._alive = True
        return payload

    def split(self) -> tuple[bytes, bytes]:
        """The transport keys (initiator to responder, responder to initiator), once finished."""
        if not self.finished:
            raise UsageError("the handshake is not finished")
        return self._symmetric.split()


def _take(data: bytes, size: int) -> tuple[bytes, bytes]:
    if len(data) < size:
        raise HandshakeFailed("a handshake message is too short")
    return data[:size], data[size:]
