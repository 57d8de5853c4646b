"""The DHT's wire messages: one query and one answer per call, as msgpack maps.

Each call travels on an authenticated, encrypted connection, so a message does not name its sender: the
handshake did. The transport's codec bounds a message (64 KiB, string keys, no ext types, shallow); this file
bounds what is inside. Unknown fields are ignored, so fields can be added; an unknown "type" is refused.

    query   {"version": 1, "server": bool, "body": BODY}
    BODY    {"type": "ping"}
            {"type": "find_node",    "target": bytes 32}
            {"type": "find_records", "key": bytes 32}
            {"type": "store",        "record": RECORD, "token": bytes <= 32}
    answer  {"version": 1, "server": bool, "body": BODY}
    BODY    {"type": "pong"}
            {"type": "nodes",   "contacts": [HINT, ...]}                           answers find_node
            {"type": "records", "contacts": [HINT, ...], "records": [RECORD, ...],
             "token": bytes <= 32}                                                 answers find_records
            {"type": "stored"}                                                     answers store
            {"type": "refused", "reason": text <= 64 characters}                    answers anything
    HINT    {"node_id": bytes 32, "addresses": ["host:port", ...]}    at most 20 hints, 4 addresses each, relayed ones too
    RECORD  {"key", "value" <= 1000 bytes, "public_key", "sequence", "expires_at", "signature"}    at most 32

"token" is what a store has to bring back (see `tokens`); it means something to its maker only.
"server" says whether the sender answers queries and may be handed to others; clients ask only.
Largest answer: 20 hints (at most 12 KiB, four relayed IPv6 addresses each) and 32 records (about 40 KiB) stay below 64 KiB.
"""

from __future__ import annotations

import functools
from typing import Annotated

import msgspec

from dht.contact import MAX_ADDRESS_CHARS, MAX_ADDRESSES, Contact, sane_address
from dht.key import KEY_BYTES
from dht.record import SignedRecord

PROTOCOL = "dht"
VERSION = 1
MAX_HINTS = 20
MAX_RECORDS = 32

_Id = Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
_Token = Annotated[bytes, msgspec.Meta(max_length=32)]
_AddressText = Annotated[str, msgspec.Meta(max_length=MAX_ADDRESS_CHARS)]


class Hint(msgspec.Struct, frozen=True):
    """Hearsay: somebody says that this node may be reached there."""

    node_id: _Id
    addresses: Annotated[tuple[_AddressText, ...], msgspec.Meta(max_length=MAX_ADDRESSES)]


class Ping(msgspec.Struct, frozen=True, tag_field="type", tag="ping"):
    """Do you live?"""


class FindNode(msgspec.Struct, frozen=True, tag_field="type", tag="find_node"):
    """Whom do you know closest to `target`?"""

    target: _Id


class FindRecords(msgspec.Struct, frozen=True, tag_field="type", tag="find_records"):
    """What do you hold under `key`, and whom do you know closest to it?"""

    key: _Id


class Store(msgspec.Struct, frozen=True, tag_field="type", tag="store"):
    """Please hold this record of mine."""

    record: SignedRecord
    token: _Token = b""
    """From the same node's answer to `FindRecords` for the same key."""


class Pong(msgspec.Struct, frozen=True, tag_field="type", tag="pong"):
    """I live."""


class Nodes(msgspec.Struct, frozen=True, tag_field="type", tag="nodes"):
    """The closest contacts I know."""

    contacts: Annotated[list[Hint], msgspec.Meta(max_length=MAX_HINTS)]


class Records(msgspec.Struct, frozen=True, tag_field="type", tag="records"):
    """What I hold, and the closest contacts I know."""

    contacts: Annotated[list[Hint], msgspec.Meta(max_length=MAX_HINTS)]
    records: Annotated[list[SignedRecord], msgspec.Meta(max_length=MAX_RECORDS)]
    token: _Token = b""


class Stored(msgspec.Struct, frozen=True, tag_field="type", tag="stored"):
    """I hold it (a statement nobody can check; more holders are asked for that reason)."""


class Refused(msgspec.Struct, frozen=True, tag_field="type", tag="refused"):
    """I will not do that."""

    reason: Annotated[str, msgspec.Meta(max_length=64)]


QueryBody = Ping | FindNode | FindRecords | Store
AnswerBody = Pong | Nodes | Records | Stored | Refused


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """A question to one node."""

    version: Annotated[int, msgspec.Meta(ge=0, le=255)] = VERSION
    server: bool
    body: QueryBody


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Its answer."""

    version: Annotated[int, msgspec.Meta(ge=0, le=255)] = VERSION
    server: bool
    body: AnswerBody


def fits(query: QueryBody, answer: AnswerBody) -> bool:
    """Return whether `answer` is of the kind that `query` asks for; a refusal is not."""
    match query:
        case Ping():
            return isinstance(answer, Pong)
        case FindNode():
            return isinstance(answer, Nodes)
        case FindRecords():
            return isinstance(answer, Records)
        case Store():
            return isinstance(answer, Stored)


def to_hint(contact: Contact) -> Hint:
    """Return `contact` as it is told to others."""
    return Hint(contact.node_id, contact.addresses[:MAX_ADDRESSES])


def from_hints(hints: list[Hint], *, own_id: bytes, loopback: bool) -> list[Contact]:
    """Return what is usable of a peer's hints: sane addresses, no duplicates, not ourselves.

    Args:
        hints: from a decoded answer.
        own_id: this node.
        loopback: whether the peer is on this machine, so that loopback addresses mean something.
    """
    usable: dict[bytes, Contact] = {}
    for hint in hints:
        addresses = _sane(hint.addresses, loopback)
        if addresses and hint.node_id != own_id and hint.node_id not in usable:
            usable[hint.node_id] = Contact(hint.node_id, addresses)
    return list(usable.values())


# Answers name the same few nodes over and over.
@functools.lru_cache(maxsize=16384)
def _sane(addresses: tuple[str, ...], loopback: bool) -> tuple[str, ...]:
    distinct = dict.fromkeys(addresses)
    return tuple(text for text in distinct if sane_address(text, loopback=loopback))
