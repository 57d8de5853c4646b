"""MoDeST's messages (one msgpack map each, <= 64 KiB; a model travels beside it).

=========== ============== ====================================================================================
Membership  no vector      the sender is there, or leaves; to some random peers
Behind      no vector      the receiver's counter is behind what the sender heard of it (it has started anew)
Ping, Pong  no vector      is it alive, for round k
Trained     one model      a trainer of round k - 1 to the aggregators of round k
Aggregated  one model      an aggregator of round k to the trainers of round k
Ack         no vector      an aggregator to a trainer: whether its model was used for round k
=========== ============== ====================================================================================

`decode` is the only way in.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from gossip.protocols.modest.view import ENTRY, MAX_COUNTER, MAX_ROUND, MAX_WIRE_ENTRIES
from transport.codec import decode_untrusted

Round = Annotated[int, msgspec.Meta(ge=0, le=MAX_ROUND)]
Counter = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNTER)]
Nonce = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
Members = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
WireView = Annotated[bytes, msgspec.Meta(max_length=ENTRY.size * MAX_WIRE_ENTRIES)]


class Message(msgspec.Struct, frozen=True, tag_field="t"):
    """Base of all messages."""

    round: Round
    """The round that the message is about; in `Membership`, `Behind` and `Pong` the newest that the sender knows of."""


class Membership(Message, frozen=True, tag="membership"):
    """The sender's own standing."""

    counter: Counter
    left: bool = False


class Behind(Message, frozen=True, tag="behind"):
    """The receiver has said something that an older `counter` of its own had overtaken."""

    counter: Counter


class Ping(Message, frozen=True, tag="ping"):
    """Asks for a `Pong` with the same nonce."""

    counter: Counter
    nonce: Nonce


class Pong(Message, frozen=True, tag="pong"):
    """The sender is there and would take part."""

    counter: Counter
    nonce: Nonce
    holds: Round
    """The round that starts from the newest model that the sender has."""


class Trained(Message, frozen=True, tag="trained"):
    """A model trained in round `round - 1`."""

    view: WireView
    sample: Members
    """How many trainers that round was given to."""


class Aggregated(Message, frozen=True, tag="aggregated"):
    """The mean that round `round` starts from."""

    view: WireView
    sample: Members
    """How many trainers it is sent to."""
    members: Members
    """Models in the mean."""


class Ack(Message, frozen=True, tag="ack"):
    """`ok`: the receiver's model is in the mean of this round; else it came too late."""

    ok: bool


AnyMessage = Membership | Behind | Ping | Pong | Trained | Aggregated | Ack


def decode(data_untrusted: bytes) -> AnyMessage:
    """Parse one message.

    Raises:
        MalformedMessage: whatever is wrong with it.
    """
    kinds: Any = AnyMessage
    said: AnyMessage = decode_untrusted(data_untrusted, kinds)
    return said
