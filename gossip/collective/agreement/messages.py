"""Messages between the members of a run (one msgpack map each, <= 64 KiB).

They travel on one URGENT stream per direction and pair, so they arrive in order or not at all.
`decode_untrusted` is the only way in: wrong types, sizes and unknown tags are one typed error.

=========== ======================================================================================
Status      readiness of the sender, and where it stood then; on connect, and when readiness changes
Prepare     a proposer asks for promises under its ballot
Wait        an operation is running here; the promise follows when it has ended
Promise     the sender has left its epoch for this ballot, and says where it stands
Nack        a higher ballot was promised already, or the sender cannot take part
Propose     the epoch that the proposer made of the promises
Accept      signed entry into an epoch
Begin       the sender has started operation `sequence` of a lane of `epoch`
Vote        signed result of an operation
Certified   everybody's signatures on the result of an operation, from the member that collects them
Abort       the operation cannot complete at the sender
Ask         how an operation of an earlier epoch ended, which the sender has signed
Answer      its certificate, if the sender holds it; whoever answers has left that epoch for good
=========== ======================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

import msgspec

from gossip.collective.agreement.certificate import (
    LANES,
    Ballot,
    Bytes16,
    Bytes32,
    Certificate,
    LaneNumber,
    Signature,
)
from gossip.collective.agreement.layout import Layout
from gossip.collective.agreement.lineage import Farewells, Links
from transport.codec import decode_untrusted, pack
from transport.identity import NodeId

MAX_MEMBERS = 256

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Reason = Annotated[str, msgspec.Meta(max_length=200)]
Bits = Annotated[bytes, msgspec.Meta(max_length=MAX_MEMBERS // 8)]
Members = Annotated[tuple[Bytes32, ...], msgspec.Meta(max_length=MAX_MEMBERS)]


class Message(msgspec.Struct, frozen=True, tag_field="t"):
    """Base of all messages."""


class Status(Message, frozen=True, tag="status"):
    """Readiness and position; `base` is the last epoch that the sender voted in (zeros: none).

    `farewell` is signed by one that leaves in good order: the others need not count it any more.
    """

    ready: bool
    leaving: bool
    model: Bytes32
    number: Count
    round: Count
    state: Bytes32
    base: Bytes32
    farewell: Signature | None = None


class Prepare(Message, frozen=True, tag="prepare"):
    """Request for a promise."""

    ballot: Ballot


class Wait(Message, frozen=True, tag="wait"):
    """The promise will come later."""

    ballot: Ballot


class Promise(Message, frozen=True, tag="promise"):
    """The sender takes part in nothing below this ballot any more.

    `links` are the sender's last epochs with everybody's signature (none: it has been in none, or does
    not remember), `certificate` that of the last operation in them; `left` those of the last epoch that
    left it in good order; `reaches` whom it is connected to.
    """

    ballot: Ballot
    round: Count
    state: Bytes32
    links: Links
    certificate: Certificate | None
    left: Farewells
    reaches: Members


class Nack(Message, frozen=True, tag="nack"):
    """Refusal; `highest` is what the sender has promised."""

    ballot: Ballot
    highest: Ballot
    reason: Reason


class Propose(Message, frozen=True, tag="propose"):
    """An epoch to accept.

    `links` and `certificate` prove the start position. `holders` and `fresh` are sets of members, bit
    by bit in their order: those that hold the start state, and those that have no epoch behind them.
    `left` are the farewells of those that left the epoch before. `layout` is how the proposer arranges the members.
    """

    ballot: Ballot
    members: Members
    round: Count
    state: Bytes32
    salt: Bytes16
    links: Links
    certificate: Certificate | None
    holders: Bits
    fresh: Bits
    left: Farewells
    layout: Layout


class Accept(Message, frozen=True, tag="accept"):
    """Signed entry."""

    epoch: Bytes32
    signature: Signature


class Begin(Message, frozen=True, omit_defaults=True, tag="begin"):
    """An operation has been started by the sender.

    `called` comes from one that calls nothing more, in lanes other than 0, before this has ended: how many operations of
    each lane it has called in this epoch.
    """

    epoch: Bytes32
    sequence: Count
    descriptor: Bytes32
    lane: LaneNumber = 0
    called: Annotated[tuple[Count, ...], msgspec.Meta(max_length=LANES)] = ()


class Vote(Message, frozen=True, omit_defaults=True, tag="vote"):
    """A signed result."""

    epoch: Bytes32
    sequence: Count
    descriptor: Bytes32
    root: Bytes32
    signature: Signature
    lane: LaneNumber = 0


class Certified(Message, frozen=True, tag="certified"):
    """The certificate of an operation of the present epoch."""

    certificate: Certificate


class Abort(Message, frozen=True, omit_defaults=True, tag="abort"):
    """The sender gave up on an operation; `late` names members that it waited for in vain."""

    epoch: Bytes32
    sequence: Count
    reason: Reason
    mismatch: bool = False
    late: Members = ()
    lane: LaneNumber = 0


class Ask(Message, frozen=True, tag="ask"):
    """A question about an operation of an earlier epoch."""

    epoch: Bytes32
    lane: LaneNumber
    sequence: Count


class Answer(Message, frozen=True, tag="answer"):
    """What the sender knows of it."""

    epoch: Bytes32
    lane: LaneNumber
    sequence: Count
    certificate: Certificate | None


def to_bits(members: Sequence[bytes], chosen: Iterable[bytes]) -> bytes:
    """A set of members, one bit each in their order, the lowest bit of a byte first."""
    wanted = set(chosen)
    bits = sum(1 << index for index, member in enumerate(members) if member in wanted)
    return bits.to_bytes((len(members) + 7) // 8, "little")


def from_bits(members: Sequence[NodeId], bits: bytes) -> tuple[NodeId, ...]:
    """The members whose bits are set; bits beyond the last member mean nothing."""
    number = int.from_bytes(bits, "little")
    return tuple(member for index, member in enumerate(members) if number >> index & 1)


AnyMessage = (
    Status
    | Prepare
    | Wait
    | Promise
    | Nack
    | Propose
    | Accept
    | Begin
    | Vote
    | Certified
    | Abort
    | Ask
    | Answer
)


def encode(message: Message) -> bytes:
    """Bytes for the wire."""
    return pack(message)


def decode_message_untrusted(data: bytes) -> AnyMessage:
    """A peer's bytes as a message (transport.errors.MalformedMessage, nothing else)."""
    return decode_untrusted(data, AnyMessage)  # type: ignore[arg-type]
