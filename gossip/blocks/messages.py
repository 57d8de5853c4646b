"""What fetcher and holder say to each other besides the blocks themselves; sans-IO.

Calls of one protocol, msgpack maps with the field `type`; every answer is below 64 KiB. The blocks travel in a bulk pool that `open` announces.

    manifest {id}          -> {data}              the manifest, or nothing if it is not known
    page     {id, page}    -> {data}              up to 1024 leaf hashes
    have     {id}          -> {data}              bitmap of the blocks that can be asked for now
    open     {id, nonce}   -> {window}            a pool with the label "blocks/" + nonce is open now; at most `window` blocks may be asked for at once

    refused  {reason}      instead of any of these: a word and a sentence, see `Refusal`

In the pool the fetcher asks for a block by expecting a tag (number of the block 4 bytes, number of the attempt 8, big-endian) in a region of the block's size. The holder sends it when it is the
fetcher's turn, or refuses it.
"""

from __future__ import annotations

import struct
from enum import StrEnum
from typing import Annotated, Final

import msgspec

from gossip.blocks.merkle import HASH_BYTES

__all__ = [
    "Answer",
    "Data",
    "GetManifest",
    "GetPage",
    "Have",
    "Open",
    "Opened",
    "Refusal",
    "Refused",
    "Request",
    "block_tag",
    "pool_label",
    "read_tag",
]

NONCE_BYTES: Final = 16
MAX_WINDOW: Final = 256
"""Blocks asked for at once; a bulk pool expects no more."""

_TAG = struct.Struct(">IQ")

Id = Annotated[bytes, msgspec.Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]


class Refusal(StrEnum):
    """Why a holder does not give what was asked."""

    UNKNOWN = "unknown"
    """It does not hold that artefact (any more)."""
    BUSY = "busy"
    """Too many are served already: ask somebody else, or later."""
    MALFORMED = "malformed"
    """The request makes no sense."""
    FAILED = "failed"
    """Its disk failed."""


class GetManifest(msgspec.Struct, frozen=True, tag="manifest"):
    """Ask for the manifest."""

    id: Id


class GetPage(msgspec.Struct, frozen=True, tag="page"):
    """Ask for a page of leaf hashes."""

    id: Id
    page: Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]


class Have(msgspec.Struct, frozen=True, tag="have"):
    """Ask which blocks there are."""

    id: Id


class Open(msgspec.Struct, frozen=True, tag="open"):
    """Ask for a pool to fetch blocks through."""

    id: Id
    nonce: Annotated[bytes, msgspec.Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]


class Data(msgspec.Struct, frozen=True, tag="data"):
    """The bytes that were asked for."""

    data: bytes


class Opened(msgspec.Struct, frozen=True, tag="opened"):
    """The pool is open."""

    window: Annotated[int, msgspec.Meta(ge=1, le=MAX_WINDOW)]


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """It is not given."""

    reason: Refusal


Request = GetManifest | GetPage | Have | Open
Answer = Data | Opened | Refused


def pool_label(nonce: bytes) -> bytes:
    """The label of the bulk pool that `Open` with this nonce announces."""
    return b"blocks/" + nonce


def block_tag(block: int, attempt: int) -> bytes:
    """The tag under which a block travels; `attempt` makes it another one each time it is asked for."""
    return _TAG.pack(block, attempt)


def read_tag(tag: bytes) -> int | None:
    """The block that a tag means; None if it is no such tag."""
    return int(_TAG.unpack(tag)[0]) if len(tag) == _TAG.size else None
