"""AEGIS-256X4 for long records, between two ends that both have it.

Problem: with AES-256-GCM a third of an all-reduce's CPU time was the cipher. Idea: AEGIS (draft-irtf-cfrg-aegis-aead) seals and checks in
one pass of AES rounds over a wide state: three times as fast where a CPU has them for whole vectors (VAES), and no slower where it has
them for single blocks. A call costs a microsecond more, so short records stay with AES-GCM. Key and tag are as long as there.

    key     HKDF-Expand(SHA-256, key of the direction, "noded aegis-256x4 v1", 32 bytes)
    nonce   24 zero bytes, then the record's number as 64-bit big-endian
    tag     16 bytes behind the ciphertext, as with AES-GCM

`aeg` is a part of the `train` extra and not of the plain installation: it has wheels for glibc on x86-64 only, and who holds no parameters
moves no tensors. An end that lacks it says nothing in its intro, and the connection is sealed by AES-GCM alone.
"""

from __future__ import annotations

import struct
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

try:
    from aeg import aegis256x4
except ImportError:
    aegis256x4 = None

from transport.buffer import Buffer
from transport.errors import UsageError

AVAILABLE: Final = aegis256x4 is not None
"""Whether this process can seal with it."""

LONG_BYTES: Final = 16384
"""The least payload that is sealed with it: here both ciphers take about the same time (2.3 us)."""

_INFO: Final = b"noded aegis-256x4 v1"
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 32
_COUNTER: Final = struct.Struct(">Q")


class WrongTag(Exception):
    """What was to be opened is not what was sealed."""


class Aegis:
    """The cipher of one direction's long records.

    Args:
        key: the direction's, 32 bytes.

    Raises:
        UsageError: this process lacks the library.
    """

    __slots__ = ("_key", "_nonce")

    def __init__(self, key: bytes) -> None:
        if not AVAILABLE:
            raise UsageError("AEGIS needs the package aeg: pip install 'noded[train]'")
        self._key = HKDFExpand(SHA256(), _KEY_BYTES, _INFO).derive(key)
        self._nonce = bytearray(_NONCE_BYTES)

    def encrypt_into(self, number: int, plain: Buffer, aad: Buffer, out: memoryview) -> None:
        """Write ciphertext and tag to `out`, which may begin where `plain` does."""
        _writable(out)
        _COUNTER.pack_into(self._nonce, _NONCE_BYTES - _COUNTER.size, number)
        aegis256x4.encrypt(self._key, self._nonce, plain, aad, into=out)

    def decrypt_into(self, number: int, sealed: Buffer, aad: Buffer, out: memoryview) -> None:
        """Write the plaintext of ciphertext and tag to `out`, which may begin where `sealed` does.

        Raises:
            WrongTag: another key, number, text or additional data. `out` may hold anything.
        """
        _writable(out)
        _COUNTER.pack_into(self._nonce, _NONCE_BYTES - _COUNTER.size, number)
        try:
            aegis256x4.decrypt(self._key, self._nonce, sealed, aad, into=out)
        except ValueError:
            raise WrongTag from None


def _writable(out: memoryview) -> None:
    """The library writes wherever it is pointed to."""
    if out.readonly:
        raise UsageError("the output buffer is read-only")
