"""AEGIS-256X4 for long records, between two ends that both have it.

Problem: with AES-256-GCM a third of an all-reduce's CPU time was the cipher. Idea: AEGIS (draft-irtf-cfrg-aegis-aead) seals and checks in
one pass of AES rounds over a wide state: three times as fast where a processor has them for whole vectors. A call costs a microsecond more, so
short records stay with AES-GCM. Key and tag are as long as there.

    key     HKDF-Expand(SHA-256, key of the direction, "noded aegis-256x4 v1", 32 bytes)
    nonce   24 zero bytes, then the record's number as 64-bit big-endian
    tag     16 bytes behind the ciphertext, as with AES-GCM

The library, `aeg`, comes with the `train` extra and not with the plain installation: who holds no parameters moves no tensors, and there are
wheels for few systems. Which processes use it: `transport.secure.processor`. An end that does not says nothing of it in its intro, and the
connection is sealed by AES-GCM alone.
"""

from __future__ import annotations

import struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from transport.buffer import Buffer

LONG_BYTES: Final = 16384
"""The least payload that is sealed with it: here both ciphers take about the same time (2.3 us)."""

_INFO: Final = b"noded aegis-256x4 v1"
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 32
_COUNTER: Final = struct.Struct(">Q")


class Aegis:
    """The cipher of one direction's long records; only where `transport.secure.processor.can_use_aegis`.

    What is given as `out` is written to unasked: it has to be writable bytes with room for the result.

    Args:
        key: the direction's, 32 bytes.
    """

    __slots__ = ("_key", "_library", "_nonce")

    def __init__(self, key: bytes) -> None:
        from aeg import aegis256x4  # loading it can end the process: not before somebody asks

        self._library = aegis256x4
        self._key = HKDFExpand(SHA256(), _KEY_BYTES, _INFO).derive(key)
        self._nonce = bytearray(_NONCE_BYTES)

    def encrypt_into(self, number: int, plain: Buffer, aad: Buffer, out: memoryview) -> None:
        """Write ciphertext and tag to `out`, which may begin where `plain` does."""
        _COUNTER.pack_into(self._nonce, _NONCE_BYTES - _COUNTER.size, number)
        self._library.encrypt(self._key, self._nonce, plain, aad, into=out)

    def decrypt_into(self, number: int, sealed: Buffer, aad: Buffer, out: memoryview) -> None:
        """Write the plaintext of ciphertext and tag to `out`, which may begin where `sealed` does.

        Raises:
            InvalidTag: another key, number, text or additional data. `out` may hold anything.
        """
        _COUNTER.pack_into(self._nonce, _NONCE_BYTES - _COUNTER.size, number)
        try:
            self._library.decrypt(self._key, self._nonce, sealed, aad, into=out)
        except ValueError:
            raise InvalidTag from None
