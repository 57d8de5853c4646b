"""One signed statement: a writer sets one field of its own, and links it to what it said before.

Problem: state passes through many hands before it arrives, and any of them may lie. Idea: every
statement is signed by its writer over the very bytes that travel (never over a re-encoding: two
encoders may differ), numbered, and linked by hash to the writer's statement before it. A node on
the way can withhold an entry; it can neither make, change nor move one, and a writer that tells
two stories has to sign two entries that contradict each other (see `evidence`).

Body, integers unsigned big-endian; on the wire the body is followed by the 64-byte signature:

    offset  size  field
    0       1     version, 1
    1       32    public key of the writer (Ed25519); the writer's id is its SHA-256
    33      8     sequence: 1 more than the entry before it, or any higher number where a chain starts
    41      32    id of the writer's entry before this one; zeros where a chain starts
    73      8     physical time in ms, of the writer's hybrid clock
    81      2     counter of the hybrid clock
    83      4     lease in seconds; 0: it holds until replaced
    87      1     key length, k
    88      k     key: which field; [a-z0-9._/-], 1 to 48 characters
    88+k    ..    value, msgpack

The signature covers "noded state entry v1" padded with zeros to 24 bytes, the document's id (32
bytes, hence an entry means nothing in another document), and the body. The entry's id is the SHA-256
of the same bytes: a second signature over one body makes no second entry.

A chain starts anew when a process has forgotten what it wrote. That is no contradiction as long as
the numbers go up, so a writer reserves numbers before it uses them (`RunState.reserve`).
"""

import hashlib
import re
import struct
from collections.abc import Callable
from typing import Final, TypeAlias

import attrs
import msgspec

from crdt.clock import MAX_COUNTER, MAX_PHYSICAL_MS, Timestamp
from crdt.errors import MalformedState, StateTooLarge
from crdt.wire import MAX_INT, Wire

MAX_ENTRY_BYTES: Final = 4096
"""Body and signature. Shared state describes things, it does not carry them."""
MAX_LEASE_S: Final = 24 * 3600
"""A longer promise would only keep what the departed have left behind."""
SIGNATURE_BYTES: Final = 64
ID_BYTES: Final = 32
DOCUMENT_BYTES: Final = 32
START: Final = bytes(ID_BYTES)
"""In the place of the entry before the first one."""

_VERSION: Final = 1
_DOMAIN: Final = b"noded state entry v1".ljust(24, b"\0")
_HEADER: Final = struct.Struct(">B32sQ32sQHIB")
_KEY: Final = re.compile(r"[a-z0-9._/-]{1,48}")
_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder()

Sign: TypeAlias = Callable[[bytes], bytes]
"""sign(data) -> 64-byte signature by this node's identity."""
Verify: TypeAlias = Callable[[bytes, bytes, bytes], bool]
"""verify(public_key, signature, data): whether the signature is good; never raises."""


@attrs.frozen
class Author:
    """Who writes at this node: a public key and the power to sign with it."""

    public_key: bytes
    sign: Sign = attrs.field(repr=False)

    @property
    def writer(self) -> bytes:
        """The id that others know the author by."""
        return hashlib.sha256(self.public_key).digest()


@attrs.frozen(eq=False)
class Entry:
    """A parsed entry; equal to another exactly if the signed bytes are. Not yet verified."""

    id: bytes
    writer: bytes
    public_key: bytes = attrs.field(repr=False)
    sequence: int
    previous: bytes = attrs.field(repr=False)
    stamp: Timestamp
    lease_s: int
    key: str
    value: Wire
    raw: bytes = attrs.field(repr=False)
    """Body and signature, as received."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Entry) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def expires_ms(self) -> int | None:
        """Wall clock in ms since the epoch; None: never."""
        return self.stamp.physical_ms + self.lease_s * 1000 if self.lease_s else None

    def expired(self, wall_ms: int) -> bool:
        """Whether its lease is over."""
        expires_ms = self.expires_ms
        return expires_ms is not None and expires_ms <= wall_ms

    def proved(self, document: bytes, verify: Verify) -> bool:
        """Whether its writer signed it. Costs one Ed25519 verification."""
        body, signature = self.raw[:-SIGNATURE_BYTES], self.raw[-SIGNATURE_BYTES:]
        return verify(self.public_key, signature, _DOMAIN + document + body)


def write(
    author: Author,
    document: bytes,
    *,
    sequence: int,
    previous: bytes,
    stamp: Timestamp,
    lease_s: int,
    key: str,
    value: Wire,
) -> Entry:
    """Make and sign an entry.

    Raises:
        StateTooLarge: the value does not fit into `MAX_ENTRY_BYTES`.
    """
    assert _KEY.fullmatch(key)
    assert 0 <= lease_s <= MAX_LEASE_S
    header = _HEADER.pack(
        _VERSION,
        author.public_key,
        sequence,
        previous,
        stamp.physical_ms,
        stamp.counter,
        lease_s,
        len(key),
    )
    body = header + key.encode() + _ENCODER.encode(value)
    if len(body) + SIGNATURE_BYTES > MAX_ENTRY_BYTES:
        raise StateTooLarge(
            f"{key}: the entry takes {len(body) + SIGNATURE_BYTES} bytes, at most {MAX_ENTRY_BYTES} fit",
            hint="say less, or shorter: fewer addresses, shorter texts",
        )
    return parse(body + author.sign(_DOMAIN + document + body), document)


def parse(untrusted: Wire, document: bytes) -> Entry:
    """Read an entry; says nothing about its signature.

    Raises:
        MalformedState, StateTooLarge: and nothing else, whatever the bytes are.
    """
    if not isinstance(untrusted, bytes):
        raise MalformedState(f"entry: expected bytes, got {type(untrusted).__name__}")
    if len(untrusted) > MAX_ENTRY_BYTES:
        raise StateTooLarge(f"entry: {len(untrusted)} bytes, at most {MAX_ENTRY_BYTES} are allowed")
    if len(untrusted) < _HEADER.size + 2 + SIGNATURE_BYTES:
        raise MalformedState("entry: cut short")
    body = untrusted[:-SIGNATURE_BYTES]
    version, public_key, sequence, previous, ms, counter, lease_s, length = _HEADER.unpack_from(
        body
    )
    if version != _VERSION:
        raise MalformedState(f"entry: version {version} is not known here")
    if not 1 <= sequence <= MAX_INT:
        raise MalformedState("entry: the sequence is out of range")
    if ms > MAX_PHYSICAL_MS or counter > MAX_COUNTER or lease_s > MAX_LEASE_S:
        raise MalformedState("entry: a time is out of range")
    key = body[_HEADER.size : _HEADER.size + length].decode("latin-1")
    if not _KEY.fullmatch(key):
        raise MalformedState("entry: the key is not one")
    encoded = body[_HEADER.size + length :]
    try:
        value = _DECODER.decode(encoded)
        if _ENCODER.encode(value) != encoded:  # one content, one encoding
            raise MalformedState("entry: the value is not in its shortest form")
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError, OverflowError):
        raise MalformedState("entry: the value is not msgpack") from None
    writer = hashlib.sha256(public_key).digest()
    return Entry(
        id=hashlib.sha256(_DOMAIN + document + body).digest(),
        writer=writer,
        public_key=public_key,
        sequence=sequence,
        previous=previous,
        stamp=Timestamp(ms, counter, writer),
        lease_s=lease_s,
        key=key,
        value=value,
        raw=bytes(untrusted),
    )
