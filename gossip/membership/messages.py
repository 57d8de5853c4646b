"""What members tell each other about who is there: the wire of membership, and what is signed.

Problem: news about a member travels through others, who may lie. Idea: what a member says about itself (it lives, it leaves)
is signed by it and carries its own key, so anybody may pass it on and nobody can make it up. What is said about somebody
else is a claim: it names and is signed by its author, so that one liar cannot pass for many.

Each message is one call ("membership") on an authenticated, encrypted connection; the answer is empty. Messages are msgpack
maps; unknown fields are ignored, an unknown "type" is refused.

    message  {"version": 1, "body": BODY, "news": [NEWS, ...]}         at most 48 news, below 32 KiB
    BODY     {"type": "gossip"}
             {"type": "probe", "asker": id, "target": id, "nonce": bytes 8, "hops": 1 to 3}
             {"type": "ack",   "asker": id, "target": id, "nonce": bytes 8, "signature": bytes 64}
             {"type": "nack",  "asker": id, "target": id, "nonce": bytes 8, "tried": bool}
             {"type": "sync",  "digest": bytes 32, "answer": bool}
    NEWS     {"type": "alive", "public_key": bytes 32, "incarnation": int, "name": text, "signature": bytes 64}
             {"type": "left",  "public_key": bytes 32, "incarnation": int, "reason": text, "signature": bytes 64}
             {"type": "doubt", "member": id, "incarnation": int, "author": id, "lost": bool, "signature": bytes 64}

Signed are: a domain of its own for each kind, the swarm's id, and all fields in fixed widths, texts last. Acks are signed by
the target over the asker and its fresh nonce, so that no helper can keep a dead member alive, and no ack is good twice.

An incarnation begins as the member's wall clock in milliseconds when it started, and only rises: a restarted member outbids
what is said of its former life. It stays below 2**53, which every msgpack reader can hold.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Iterable
from typing import Annotated, Final

import msgspec

from transport.codec import decode_untrusted, pack
from transport.errors import InvalidPublicKey, MalformedMessage
from transport.identity import NodeId

PROTOCOL: Final = "membership"
VERSION: Final = 1
MAX_NEWS: Final = 48
"""News in one message: about 200 bytes each, 400 with the longest names, which keeps a message below 32 KiB."""
MAX_MESSAGE_BYTES: Final = 32768
MAX_NAME_CHARS: Final = 64
MAX_REASON_CHARS: Final = 64
MAX_HOPS: Final = 3
MAX_INCARNATION: Final = 2**53 - 1
NONCE_BYTES: Final = 8

_Key = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Signature = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
_Nonce = Annotated[bytes, msgspec.Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
_Incarnation = Annotated[int, msgspec.Meta(ge=0, le=MAX_INCARNATION)]

_FIXED: Final = struct.Struct(">32sQ")


class Alive(msgspec.Struct, frozen=True, tag_field="type", tag="alive"):
    """A member's own word that it takes part; a higher incarnation refutes every doubt at lower ones."""

    public_key: _Key
    incarnation: _Incarnation
    name: Annotated[str, msgspec.Meta(max_length=MAX_NAME_CHARS)]
    signature: _Signature

    @property
    def member(self) -> NodeId:
        """Whose word it is."""
        return _id_of(self.public_key)


class Left(msgspec.Struct, frozen=True, tag_field="type", tag="left"):
    """A member's own word that it goes."""

    public_key: _Key
    incarnation: _Incarnation
    reason: Annotated[str, msgspec.Meta(max_length=MAX_REASON_CHARS)]
    signature: _Signature

    @property
    def member(self) -> NodeId:
        """Whose word it is."""
        return _id_of(self.public_key)


class Doubt(msgspec.Struct, frozen=True, tag_field="type", tag="doubt"):
    """Somebody's claim that it cannot reach a member; with `lost`, that its patience has ended too."""

    member: NodeId
    incarnation: _Incarnation
    author: NodeId
    lost: bool
    signature: _Signature


Statement = Alive | Left
News = Alive | Left | Doubt


class Gossip(msgspec.Struct, frozen=True, tag_field="type", tag="gossip"):
    """Nothing but the news."""


class Probe(msgspec.Struct, frozen=True, tag_field="type", tag="probe"):
    """Does `target` live? Pass it on, or answer if it is you."""

    asker: NodeId
    target: NodeId
    nonce: _Nonce
    hops: Annotated[int, msgspec.Meta(ge=1, le=MAX_HOPS)]


class Ack(msgspec.Struct, frozen=True, tag_field="type", tag="ack"):
    """The target's own word, on its way back to the asker."""

    asker: NodeId
    target: NodeId
    nonce: _Nonce
    signature: _Signature


class Nack(msgspec.Struct, frozen=True, tag_field="type", tag="nack"):
    """I heard you, but not the target (Lifeguard: silence of the helper would mean that *we* are slow).

    With `tried`, somebody on the way is connected to the target and asked it; without, no way to it was found.
    """

    asker: NodeId
    target: NodeId
    nonce: _Nonce
    tried: bool


class Sync(msgspec.Struct, frozen=True, tag_field="type", tag="sync"):
    """A digest of what I hold: if yours differs, tell me all you have, and with `answer` also your digest."""

    digest: _Key
    answer: bool


Body = Gossip | Probe | Ack | Nack | Sync


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One message to a connected member."""

    version: Annotated[int, msgspec.Meta(ge=0, le=255)] = VERSION
    body: Body
    news: Annotated[list[News], msgspec.Meta(max_length=MAX_NEWS)] = []


def encode(message: Message) -> bytes:
    """Return the bytes of a message of ours; `MessageTooLarge` would be a defect."""
    return pack(message, limit=MAX_MESSAGE_BYTES)


def decode(data: bytes) -> Message:
    """Parse a peer's message.

    Raises:
        MalformedMessage: bytes, shape or values are wrong, or a key is not an acceptable one.
    """
    message = decode_untrusted(data, Message, limit=MAX_MESSAGE_BYTES)
    for news in message.news:
        if not isinstance(news, Doubt):
            try:
                _id_of(news.public_key)
            except InvalidPublicKey:
                raise MalformedMessage("a statement carries an unacceptable public key") from None
    return message


def size_of(news: News) -> int:
    """Upper bound of the bytes that one item adds to a message."""
    text = news.name if isinstance(news, Alive) else news.reason if isinstance(news, Left) else ""
    return 224 + 4 * len(text)


# What is signed


def alive_bytes(swarm_id: bytes, member: bytes, incarnation: int, name: str) -> bytes:
    """What a member signs to say that it takes part."""
    return (
        b"noded membership alive v1\x00" + swarm_id + _FIXED.pack(member, incarnation) + _text(name)
    )


def left_bytes(swarm_id: bytes, member: bytes, incarnation: int, reason: str) -> bytes:
    """What a member signs to say that it goes."""
    return (
        b"noded membership left v1\x00"
        + swarm_id
        + _FIXED.pack(member, incarnation)
        + _text(reason)
    )


def doubt_bytes(
    swarm_id: bytes, member: bytes, incarnation: int, author: bytes, *, lost: bool
) -> bytes:
    """What an author signs to say that it cannot reach a member."""
    fixed = _FIXED.pack(member, incarnation)
    return b"noded membership doubt v1\x00" + swarm_id + fixed + author + bytes([lost])


def ack_bytes(swarm_id: bytes, target: bytes, asker: bytes, nonce: bytes) -> bytes:
    """What a probed member signs."""
    return b"noded membership ack v1\x00" + swarm_id + target + asker + nonce


def statement_bytes(swarm_id: bytes, said: Statement) -> bytes:
    """What the signature of a statement is over."""
    if isinstance(said, Alive):
        return alive_bytes(swarm_id, said.member, said.incarnation, said.name)
    return left_bytes(swarm_id, said.member, said.incarnation, said.reason)


def digest_of(held: Iterable[tuple[bytes, int]]) -> bytes:
    """Digest of a table: (member, incarnation) of all that take part, in any order; 32 bytes."""
    digest = hashlib.sha256()
    for member, incarnation in sorted(held):
        digest.update(_FIXED.pack(member, incarnation))
    return digest.digest()


def _text(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


# The same few keys come again and again; the bound is what makes a cache of strangers' keys harmless.
@functools.lru_cache(maxsize=8192)
def _id_of(public_key: bytes) -> NodeId:
    return NodeId.of_public_key(public_key)
