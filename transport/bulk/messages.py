"""What the two ends of a bulk pool tell each other; sans-IO.

Each message is the header of one transfer on a bulk link (`transport.bulk.link`); only CHUNK has a
payload. All numbers are unsigned, big-endian.

    1 HELLO                             from who accepted the link, first: it may carry chunks now
    2 WANT   id 8, size 8, chunk 4, tag "send me `tag`, I expect `size` bytes, in chunks of `chunk`"
    3 CHUNK  id 8, offset 8, size 8     bytes of the region that WANT(id) asked for; size: the region's
    4 ACK    count 8                    so many chunks of this link have been taken, in all
    5 STOP   id 8                       the receiver does not want it any more
    6 GONE   id 8, reason 1             the sender will not send it, or no more of it
    7 BYE                               last message of a pool that closes

`id` is chosen by the receiver, rises, and is never used twice in a pool.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, TypeAlias

import attrs

from transport.bulk.chunks import MAX_REGION_BYTES, ChunkRefused, is_chunk_size

MAX_TAG_BYTES: Final = 64

_WANT = struct.Struct(">BQQI")
_CHUNK = struct.Struct(">BQQQ")
_NUMBER = struct.Struct(">BQ")
_GONE = struct.Struct(">BQB")


class Kind(IntEnum):
    """The first byte."""

    HELLO = 1
    WANT = 2
    CHUNK = 3
    ACK = 4
    STOP = 5
    GONE = 6
    BYE = 7


class Reason(IntEnum):
    """Why a sender gives up."""

    CANCELLED = 0
    OTHER_SIZE = 1


@attrs.frozen
class Hello:
    """The accepting side is there."""


@attrs.frozen
class Want:
    """The receiver expects a region."""

    id: int
    size: int
    chunk: int
    tag: bytes


@attrs.frozen
class ChunkHead:
    """A chunk follows as the payload."""

    id: int
    offset: int
    size: int
    """Of the whole region."""


@attrs.frozen
class Ack:
    """Chunks of this link taken so far."""

    count: int


@attrs.frozen
class Stop:
    """The receiver gave up."""

    id: int


@attrs.frozen
class Gone:
    """The sender gave up."""

    id: int
    reason: Reason


@attrs.frozen
class Bye:
    """The pool closes."""


Message: TypeAlias = Hello | Want | ChunkHead | Ack | Stop | Gone | Bye


def encode(message: Message) -> bytes:
    """The header of a message."""
    match message:
        case Hello():
            return bytes((Kind.HELLO,))
        case Want(id_, size, chunk, tag):
            return _WANT.pack(Kind.WANT, id_, size, chunk) + tag
        case ChunkHead(id_, offset, size):
            return _CHUNK.pack(Kind.CHUNK, id_, offset, size)
        case Ack(count):
            return _NUMBER.pack(Kind.ACK, count)
        case Stop(id_):
            return _NUMBER.pack(Kind.STOP, id_)
        case Gone(id_, reason):
            return _GONE.pack(Kind.GONE, id_, reason)
        case Bye():
            return bytes((Kind.BYE,))


def decode(header_untrusted: bytes, payload_size: int) -> Message:
    """The message of a header.

    Raises:
        ChunkRefused: not a message, a value out of range, or a payload where none belongs.
    """
    try:
        kind = Kind(header_untrusted[0])
        if payload_size and kind != Kind.CHUNK:
            raise ChunkRefused(f"a payload of {payload_size} bytes in a message of kind {kind}")
        match kind:
            case Kind.WANT:
                _, id_, size, chunk = _WANT.unpack_from(header_untrusted)
                tag = header_untrusted[_WANT.size :]
                if size > MAX_REGION_BYTES or not is_chunk_size(chunk) or len(tag) > MAX_TAG_BYTES:
                    raise ChunkRefused(f"{size} bytes wanted in chunks of {chunk}")
                return Want(id_, size, chunk, tag)
            case Kind.CHUNK:
                _, id_, offset, size = _CHUNK.unpack(header_untrusted)
                return ChunkHead(id_, offset, size)
            case Kind.ACK:
                return Ack(_NUMBER.unpack(header_untrusted)[1])
            case Kind.STOP:
                return Stop(_NUMBER.unpack(header_untrusted)[1])
            case Kind.GONE:
                _, id_, reason = _GONE.unpack(header_untrusted)
                return Gone(id_, Reason(reason))
            case Kind.HELLO | Kind.BYE:
                if len(header_untrusted) != 1:
                    raise ChunkRefused("bytes after the end of a message")
                return Hello() if kind == Kind.HELLO else Bye()
    except (struct.error, ValueError, IndexError):
        raise ChunkRefused("a bulk message does not parse") from None
