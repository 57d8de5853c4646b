"""What the two sides of a punch say to each other, and why one of them ends it.

    CONNECT  {"type": "connect", "token": bytes 16, "addresses": up to 8 texts}    where its sender can be met
    SYNC     {"type": "sync", "token": bytes 16}                                   dial now
    END      {"type": "end", "reason": a word of `EndReason`}                      the session is over

All are msgpack maps as in `transport.codec`, at most `MAX_MESSAGE_BYTES` long. What a person reads is made here from the word, never
taken from the wire.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, TypeAlias

import msgspec

from transport.codec import decode_untrusted, pack
from transport.errors import MalformedMessage

PROTOCOL: Final = "reach/punch"
MAX_MESSAGE_BYTES: Final = 4096
MAX_ADDRESSES: Final = 8
TOKEN_BYTES: Final = 16


class EndReason(StrEnum):
    """Why a session ended."""

    DONE = "done"
    FAILED = "failed"
    CROSSED = "crossed"
    """The second of two sessions that crossed is refused with this."""
    BUSY = "busy"
    DIRECT = "direct"
    CANCELLED = "cancelled"
    OTHER = "other"
    """A word this release does not know."""

    @property
    def sentence(self) -> str:
        """For people; "" where it worked."""
        return _SENTENCES[self]


_SENTENCES: Final = {
    EndReason.DONE: "",
    EndReason.FAILED: "no dial of either side got through",
    EndReason.CROSSED: "the other side's punch counts",
    EndReason.BUSY: "busy with other punches",
    EndReason.DIRECT: "no relay is between the two nodes",
    EndReason.CANCELLED: "the punch was given up",
    EndReason.OTHER: "the other side gave up for a reason unknown here",
}


class Connect(msgspec.Struct, frozen=True, tag="connect"):
    """Where its sender can be met."""

    token: bytes
    addresses: tuple[str, ...] = ()


class Sync(msgspec.Struct, frozen=True, tag="sync"):
    """Dial now."""

    token: bytes


class End(msgspec.Struct, frozen=True, tag="end"):
    """The session is over."""

    reason: Annotated[str, msgspec.Meta(max_length=32)]

    @property
    def why(self) -> EndReason:
        """The reason; `EndReason.OTHER` for words that a later release may use."""
        try:
            return EndReason(self.reason)
        except ValueError:
            return EndReason.OTHER


Message: TypeAlias = Connect | Sync | End


def encode(message: Message) -> bytes:
    """The bytes of one message of the stream."""
    return pack(message, limit=MAX_MESSAGE_BYTES)


def decode(data_untrusted: bytes) -> Message:
    """One message of the stream.

    Raises:
        MalformedMessage: it is none.
    """
    message: Message = decode_untrusted(data_untrusted, Message, limit=MAX_MESSAGE_BYTES)  # type: ignore[arg-type]
    if not isinstance(message, End) and len(message.token) != TOKEN_BYTES:
        raise MalformedMessage(f"a punch's token has {TOKEN_BYTES} bytes")
    return message
