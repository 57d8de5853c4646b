"""Sealed records: the encrypted data phase of every connection.

Problem: after the handshake, tensors must flow at memory speed while every byte is authenticated, and neither a flipped bit nor a
replayed, reordered or cut record may ever be taken for data. Idea: AES-256-GCM over records of up to 1 MiB, straight from the
caller's buffer into the send buffer (and back in place), with one key per direction from the Noise split. This is Noise's
CipherState with a bigger message limit and its own header, not stock Noise transport messages (those end at 65535 bytes).

    offset  size  field
    0       4     length of the plaintext, unsigned big-endian   } these five bytes
    4       1     kind (RecordKind)                              } are the AAD
    5       n     ciphertext
    5+n     16    tag

Records of 16 KiB and more are sealed with AEGIS-256X4 instead, where both ends said in the handshake that they can
(`transport.secure.aegis`): the length is authenticated, so both know which cipher a record has.

Nonce: 32 zero bits, then the record's number in its direction as a 64-bit big-endian counter. It is never sent, so a record out of
its place fails its tag. Rekey: after the record with which a key has sealed 2^36 plaintext bytes or 2^24 records, both sides set
k = REKEY(k) (Noise specification, section 4.2); the counter keeps running. At 2^36 bytes the GCM bound is about 2^-65 per key.
The two clocks do not agree, so the age of a key is the sealer's business alone: when `rekey_due` says so it seals an empty record
of kind REKEY, and both sides change the key after that record. A key that is stolen from memory thus opens an hour at most of
what was recorded before it (REKEY is one-way), and none of it once the connection has gone on to the next.

Invariants: no (key, nonce) pair is used twice; the counter moves before the cipher runs, so that a failure can only desynchronise
(and kill) the connection; after one failed tag an Opener refuses everything, and the unauthenticated plaintext is wiped.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from transport.buffer import Buffer
from transport.errors import (
    AuthenticationFailed,
    MalformedRecord,
    RecordError,
    RecordTooLarge,
    UsageError,
)
from transport.secure.aegis import LONG_BYTES, Aegis

HEADER_BYTES = 5
TAG_BYTES = 16
OVERHEAD_BYTES = HEADER_BYTES + TAG_BYTES
RECORD_BYTES = 262144
"""Usual payload: where AES-GCM and the socket calls are both near their best (16 KiB costs half the speed)."""
BULK_RECORD_BYTES = 2 * RECORD_BYTES
"""Largest one of a bulk link over a connection."""
SHARED_RECORD_BYTES = 2 * BULK_RECORD_BYTES
"""The same through shared memory, which needs no buffer for it: what it costs beside its bytes counts more than the caches do."""
MAX_RECORD_BYTES = 1048576
"""Largest payload accepted; bounds what a peer makes us buffer before a tag is checked."""
REKEY_BYTES = 2**36
REKEY_RECORDS = 2**24
REKEY_AGE_S = 3600.0
"""Seconds a key seals before its successor takes over, if there is anything to seal."""
KEY_BYTES = 32

_MAX_COUNTER = 2**64 - 1  # reserved for REKEY by Noise
_HEADER = struct.Struct(">IB")
_COUNTER = struct.Struct(">Q")


class RecordKind(IntEnum):
    """What a record's plaintext is."""

    DATA = 0
    """Whole frames of the multiplexed connection."""
    CLOSE = 1
    """The sender ends the connection on purpose; tells an end from a cut."""
    BULK_HEAD = 2
    """Header of one bulk transfer."""
    BULK_DATA = 3
    """Bytes of a bulk transfer."""
    SWITCH = 4
    """The connection goes on over another link (`transport.connect.migration`)."""
    REKEY = 5
    """Empty; the sender's next record is under the successor of its key."""
    JOIN = 6
    """A request to join the swarm, or its answer (`transport.connect.door`); never on any other connection."""


_LAST_KIND = int(max(RecordKind))
_REKEY = int(
    RecordKind.REKEY
)  # to look a member of an enumeration up costs more than to compare it


def rekey(key: bytes) -> bytes:
    """Noise REKEY for AESGCM: the first 32 bytes of ENCRYPT(k, 2^64 - 1, "", 32 zero bytes)."""
    return AESGCM(key).encrypt(bytes(4) + b"\xff" * 8, bytes(KEY_BYTES), b"")[:KEY_BYTES]


def _told(out: memoryview) -> str:
    kind = "read-only" if out.readonly else f"of format {out.format}"
    return f"an output buffer of {out.nbytes} bytes, {kind}"


class _Direction:
    """Key, counter and rekey rule of one direction."""

    __slots__ = (
        "_aegis",
        "_cipher",
        "_counter",
        "_header",
        "_key",
        "_nonce",
        "_rekey_at_bytes",
        "_rekey_at_records",
        "_rekey_bytes",
        "_rekey_records",
        "_total_bytes",
    )

    def __init__(
        self,
        key: bytes,
        *,
        aegis: bool = False,
        rekey_bytes: int = REKEY_BYTES,
        rekey_records: int = REKEY_RECORDS,
    ) -> None:
        if len(key) != KEY_BYTES:
            raise UsageError(f"a record key is {KEY_BYTES} bytes")
        self._key = bytes(key)
        self._cipher = AESGCM(self._key)
        self._aegis = Aegis(self._key) if aegis else None
        self._counter = 0
        self._total_bytes = 0
        self._nonce = bytearray(12)
        self._header = bytearray(HEADER_BYTES)
        self._rekey_bytes = rekey_bytes
        self._rekey_records = rekey_records
        self._rekey_at_bytes = rekey_bytes
        self._rekey_at_records = rekey_records

    @property
    def records(self) -> int:
        """Records handled so far in this direction, over all keys."""
        return self._counter

    def _rekey(self) -> None:
        self._key = rekey(self._key)
        self._cipher = AESGCM(self._key)
        if self._aegis is not None:
            self._aegis = Aegis(self._key)
        self._rekey_at_bytes = self._total_bytes + self._rekey_bytes
        self._rekey_at_records = self._counter + self._rekey_records


class Sealer(_Direction):
    """Seals the records of one direction.

    Args:
        key: 32 bytes from the handshake.
        aegis: long records have AEGIS-256X4; both sides must agree.
        rekey_bytes, rekey_records: thresholds; both sides must agree, so only tests change them.
    """

    __slots__ = ("_key_since",)

    def __init__(
        self,
        key: bytes,
        *,
        aegis: bool = False,
        rekey_bytes: int = REKEY_BYTES,
        rekey_records: int = REKEY_RECORDS,
    ) -> None:
        super().__init__(key, aegis=aegis, rekey_bytes=rekey_bytes, rekey_records=rekey_records)
        self._key_since: float | None = None

    def rekey_due(self, now: float) -> bool:
        """Whether to seal an empty record of kind REKEY before the next one.

        Args:
            now: monotonic seconds; a key's age counts from the first call after it came into use.
        """
        if self._key_since is None:
            self._key_since = now
        return now - self._key_since >= REKEY_AGE_S

    def _rekey(self) -> None:
        super()._rekey()
        self._key_since = None

    def seal_into(self, kind: int, payload: Buffer, out: memoryview) -> int:
        """Write one whole record at the start of `out`; return its size, len(payload) + 21.

        `payload` may lie at `out[5:]` exactly (in place); any other overlap gives garbage that the other side refuses.

        Raises:
            RecordTooLarge: payload over MAX_RECORD_BYTES; nothing was used up.
            UsageError: `out` is too small or no writable bytes, or a REKEY is not empty; nothing was used up.
            RecordError: the counter is used up (2^64 - 1 records).
        """
        view = memoryview(payload)
        length = view.nbytes
        if view.format != "B" or view.ndim != 1:
            view = view.cast("B")
        end = length + OVERHEAD_BYTES
        if length > MAX_RECORD_BYTES:
            raise RecordTooLarge(f"record of {length} bytes, limit {MAX_RECORD_BYTES}")
        if len(out) < end or out.readonly or out.format != "B":
            raise UsageError(f"a record of {end} bytes does not fit into {_told(out)}")
        if kind == _REKEY and length:
            raise UsageError("a rekey record is empty")
        counter = self._counter
        if counter >= _MAX_COUNTER:
            raise RecordError("the record counter is used up")
        header = self._header
        _HEADER.pack_into(header, 0, length, kind)
        self._counter = counter + 1
        out[:HEADER_BYTES] = header
        if self._aegis is not None and length >= LONG_BYTES:
            self._aegis.encrypt_into(counter, view, header, out[HEADER_BYTES:end])
        else:
            _COUNTER.pack_into(self._nonce, 4, counter)
            self._cipher.encrypt_into(self._nonce, view, header, out[HEADER_BYTES:end])
        self._total_bytes += length
        if (
            self._total_bytes >= self._rekey_at_bytes
            or self._counter >= self._rekey_at_records
            or kind == _REKEY
        ):
            self._rekey()
        return end


class Opener(_Direction):
    """Opens the records of one direction, in order; dead after the first failure.

    Args:
        key: 32 bytes from the handshake.
        aegis: long records have AEGIS-256X4; both sides must agree.
        rekey_bytes, rekey_records: thresholds; both sides must agree, so only tests change them.
    """

    __slots__ = ("_failed",)

    def __init__(
        self,
        key: bytes,
        *,
        aegis: bool = False,
        rekey_bytes: int = REKEY_BYTES,
        rekey_records: int = REKEY_RECORDS,
    ) -> None:
        super().__init__(key, aegis=aegis, rekey_bytes=rekey_bytes, rekey_records=rekey_records)
        self._failed = False

    def parse_header(self, buffer: Buffer) -> tuple[int, int]:
        """(kind, plaintext length) from the first five bytes. Not authenticated yet: only good for sizing the read.

        The bytes still to be read after the header are length + TAG_BYTES.

        Raises:
            RecordTooLarge: announces more than MAX_RECORD_BYTES.
            MalformedRecord: unknown kind, or fewer than five bytes.
        """
        try:
            length, kind = _HEADER.unpack_from(buffer)
        except struct.error:
            raise MalformedRecord("a record header is five bytes") from None
        if length > MAX_RECORD_BYTES:
            raise RecordTooLarge(f"record of {length} bytes announced, limit {MAX_RECORD_BYTES}")
        if kind > _LAST_KIND:
            raise MalformedRecord(f"unknown record kind {kind}")
        return kind, length

    def open_into(self, header: Buffer, body: Buffer, out: memoryview) -> int:
        """Check and decrypt one record into the start of `out`; return the plaintext length.

        `body` is ciphertext + tag exactly. `out` may be the start of `body` (in place).

        Raises:
            AuthenticationFailed: wrong tag, or an earlier record already failed. Fatal: close the connection. What was
                decrypted has been wiped from `out`.
            MalformedRecord: `header` and `body` do not belong together. Fatal.
            UsageError: `out` is too small or no writable bytes; nothing was used up.
        """
        if self._failed:
            raise AuthenticationFailed("an earlier record of this connection failed")
        aad = self._header
        view = memoryview(body)
        length = view.nbytes - TAG_BYTES
        if len(out) < length or out.readonly or out.format != "B":
            raise UsageError(f"a plaintext of {length} bytes does not fit into {_told(out)}")
        self._failed = True  # until the tag is verified
        aad[:] = memoryview(header)[:HEADER_BYTES]
        if len(aad) != HEADER_BYTES or length != _HEADER.unpack(aad)[0]:
            raise MalformedRecord("the record's body does not have the announced length")
        if length > MAX_RECORD_BYTES:
            raise RecordTooLarge(f"record of {length} bytes, limit {MAX_RECORD_BYTES}")
        if aad[4] == _REKEY and length:
            raise MalformedRecord("a rekey record is empty")
        counter = self._counter
        if counter >= _MAX_COUNTER:
            raise RecordError("the record counter is used up")
        self._counter = counter + 1
        plain = out[:length]
        try:
            if self._aegis is not None and length >= LONG_BYTES:
                self._aegis.decrypt_into(counter, view, aad, plain)
            else:
                _COUNTER.pack_into(self._nonce, 4, counter)
                self._cipher.decrypt_into(self._nonce, view, aad, plain)
        except InvalidTag:
            plain[:] = bytes(length)
            raise AuthenticationFailed(f"record {counter} failed authentication") from None
        self._failed = False
        self._total_bytes += length
        if (
            self._total_bytes >= self._rekey_at_bytes
            or self._counter >= self._rekey_at_records
            or aad[4] == _REKEY
        ):
            self._rekey()
        return length
