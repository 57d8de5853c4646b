"""The routing table as a file: what a node that starts again asks first.

Problem: a node that was away for an hour, or whose bootstrap address is gone, must find the swarm again from what it knew. Idea: keep
the contacts, not the table. Each is asked when the node starts, over an authenticated connection like any other, and
enters the table when it has answered; a file can thus be old or tampered with and cost a few failed dials at worst.

    line      "noded dht contacts 1" and a newline
    32 bytes  SHA-256 of the rest: tells a torn or altered file from a whole one
    msgpack   {"swarm_id", "node_id", "contacts": [{"node_id", "addresses", "seen_at"}, ...]}

Verified on load: size, checksum, types and their bounds, that the file belongs to this swarm and node, and every address; contacts
unheard of for 30 days are left out. Anything wrong makes the file worthless as a whole: `InvalidSaved`, in one sentence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Annotated

import msgspec

from dht.bucket import Entry
from dht.contact import MAX_ADDRESS_CHARS, MAX_ADDRESSES, Contact, sane_address
from dht.errors import DhtError
from dht.key import KEY_BYTES

# A table of a swarm of 10,000 nodes has about 250 contacts.
MAX_SAVED = 512
MAX_SAVED_BYTES = 512 * 1024
MAX_AGE_S = 30 * 86400.0
_MAGIC = b"noded dht contacts 1\n"
_HEAD = len(_MAGIC) + 32

_Id = Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]


class InvalidSaved(DhtError):
    """A saved table cannot be used."""


class Saved(msgspec.Struct, frozen=True):
    """A contact and when it was last heard from (seconds since 1970)."""

    node_id: _Id
    addresses: Annotated[
        tuple[Annotated[str, msgspec.Meta(max_length=MAX_ADDRESS_CHARS)], ...],
        msgspec.Meta(max_length=MAX_ADDRESSES),
    ]
    seen_at: float

    @property
    def contact(self) -> Contact:
        """As somebody to ask."""
        return Contact(self.node_id, self.addresses)


class _File(msgspec.Struct, frozen=True):
    swarm_id: _Id
    node_id: _Id
    contacts: Annotated[list[Saved], msgspec.Meta(max_length=MAX_SAVED)]


_DECODER = msgspec.msgpack.Decoder(_File)


def to_save(
    entries: Iterable[Entry], before: Iterable[Saved], *, now: float, wall: float
) -> list[Saved]:
    """Return what to keep: the table's entries, and those of an earlier file that have not been met again.

    At most `MAX_SAVED`, the last heard from first; the nearest first among equals.
    """
    kept = {
        entry.contact.node_id: Saved(
            entry.contact.node_id,
            entry.contact.addresses[:MAX_ADDRESSES],
            wall - max(0.0, now - entry.last_seen),
        )
        for entry in entries
    }
    for saved in before:
        if wall - saved.seen_at <= MAX_AGE_S:
            kept.setdefault(saved.node_id, saved)
    return sorted(kept.values(), key=lambda saved: -saved.seen_at)[:MAX_SAVED]


def encode(contacts: list[Saved], *, swarm_id: bytes, node_id: bytes) -> bytes:
    """Return the file's bytes."""
    body = msgspec.msgpack.encode(_File(swarm_id, node_id, contacts))
    return _MAGIC + hashlib.sha256(body).digest() + body


def decode(data_untrusted: bytes, *, swarm_id: bytes, node_id: bytes, wall: float) -> list[Saved]:
    """Return the contacts of a file, the last heard from first.

    Raises:
        InvalidSaved: it is not a whole table of this node in this swarm.
    """
    if len(data_untrusted) > MAX_SAVED_BYTES:
        raise InvalidSaved(f"it is larger than {MAX_SAVED_BYTES} bytes")
    if not data_untrusted.startswith(_MAGIC):
        raise InvalidSaved("it is not a saved routing table, or one of another version")
    body = data_untrusted[_HEAD:]
    if hashlib.sha256(body).digest() != data_untrusted[len(_MAGIC) : _HEAD]:
        raise InvalidSaved("its checksum is wrong: it was cut off or altered")
    try:
        file = _DECODER.decode(body)
    except (msgspec.DecodeError, RecursionError):
        raise InvalidSaved("it does not hold what a saved routing table holds") from None
    if (file.swarm_id, file.node_id) != (swarm_id, node_id):
        raise InvalidSaved("it belongs to another node or swarm")
    usable: dict[bytes, Saved] = {}
    for saved in file.contacts:
        good = tuple(text for text in saved.addresses if sane_address(text, loopback=True))
        young = -3600.0 <= wall - saved.seen_at <= MAX_AGE_S  # false for NaN, too
        if good and young and saved.node_id != node_id:
            usable.setdefault(saved.node_id, Saved(saved.node_id, good, saved.seen_at))
    return sorted(usable.values(), key=lambda saved: -saved.seen_at)
