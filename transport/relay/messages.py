"""What nodes and relays say to each other before a circuit carries bytes, and why a relay says no.

    call   "relay/reserve"    request RESERVE          answer GRANTED, RELEASED or REFUSED
    call   "relay/ended"      request ENDED            answer empty; from the relay to who holds a reservation
    stream "relay/connect"    first message CONNECT    then ACCEPTED or REFUSED, then the circuit's bytes
    stream "relay/incoming"   first message INCOMING   then ACCEPTED or REFUSED, then the circuit's bytes

    RESERVE   {"release": bool}
    GRANTED   {"type": "granted", "expires_s": float, "bytes_per_s": float, "circuit_bytes": int, "circuit_s": float}
    RELEASED  {"type": "released"}
    REFUSED   {"type": "refused", "reason": text, "retry_s": float}
    ENDED     {"reason": text}
    CONNECT   {"target": bytes 32}
    INCOMING  {"source": bytes 32}
    ACCEPTED  {"type": "accepted"}

All are msgpack maps as in `transport.codec`, at most MAX_BYTES long. A reason is a word of `Reason`; what a person reads is made
here from that word, never taken from the wire.
"""

from __future__ import annotations

import math
from enum import IntEnum, StrEnum
from typing import Annotated, Final, TypeAlias

import msgspec

from transport.codec import decode_untrusted
from transport.errors import ConnectFailed
from transport.identity import NodeId

RESERVE: Final = "relay/reserve"
ENDED: Final = "relay/ended"
CONNECT: Final = "relay/connect"
INCOMING: Final = "relay/incoming"

MAX_BYTES: Final = 1024
"""Bytes of one of these messages; the longest has about 120, and a later release may add fields."""
MAX_RETRY_S: Final = 86400.0
"""The longest pause a relay may ask for (seconds); it is untrusted, and a day is as good as never."""


class Reason(StrEnum):
    """Why a relay refused; also the last part of a counter's name."""

    NOT_SERVING = "not-serving"
    RELAYED = "relayed"
    FULL = "full"
    SOURCE = "source"
    RATE = "rate"
    BUDGET = "budget"
    CIRCUITS = "circuits"
    PEER_CIRCUITS = "peer-circuits"
    SOURCE_CIRCUITS = "source-circuits"
    NO_RESERVATION = "no-reservation"
    SILENT = "silent"
    TARGET_BUSY = "target-busy"
    SELF = "self"
    EVICTED = "evicted"
    MALFORMED = "malformed"
    OTHER = "other"
    """A word this release does not know."""


_SENTENCES: Final[dict[Reason, tuple[str, str]]] = {
    Reason.NOT_SERVING: ("the relay does not serve", "use another relay"),
    Reason.RELAYED: (
        "the relay is reached over a relay itself",
        "use a relay that can be dialed directly",
    ),
    Reason.FULL: (
        "the relay has no free reservation",
        "use another relay, or raise [relay] reservations there",
    ),
    Reason.SOURCE: (
        "the relay keeps no more reservations for this address",
        "use another relay, or raise [relay] reservations_per_source there",
    ),
    Reason.RATE: ("the relay was asked too often from this address", "wait a little"),
    Reason.BUDGET: (
        "the relay has spent its traffic",
        "use another relay, or raise [relay] budget_bytes there",
    ),
    Reason.CIRCUITS: (
        "the relay carries as many circuits as it may",
        "use another relay, or raise [relay] circuits there",
    ),
    Reason.PEER_CIRCUITS: (
        "one of the two nodes has as many circuits at the relay as it may, in all or from this address",
        "use another relay, or raise [relay] circuits_per_peer there",
    ),
    Reason.SOURCE_CIRCUITS: (
        "the relay carries no more circuits from this address",
        "use another relay, or raise [relay] circuits_per_source there",
    ),
    Reason.NO_RESERVATION: (
        "the node has no reservation at the relay",
        "its address is stale: look it up again",
    ),
    Reason.SILENT: ("the node did not answer the relay", "it may be gone; try again later"),
    Reason.TARGET_BUSY: (
        "the node refused the circuit",
        "it takes no more relayed connections now; try again later",
    ),
    Reason.SELF: ("a relay makes no circuit to itself", "dial it directly"),
    Reason.EVICTED: ("the relay gave the reservation to another network", "use another relay"),
    Reason.MALFORMED: (
        "the relay's answer or the request makes no sense",
        "run the same release on both nodes",
    ),
    Reason.OTHER: (
        "the relay refused for a reason unknown here",
        "run the same release on both nodes",
    ),
}


class CircuitEnd(IntEnum):
    """Reset codes with which a relay ends a circuit."""

    PEER_LOST = 64
    TOO_LONG = 65
    TOO_MUCH = 66
    BUDGET = 67
    IDLE = 68
    STOPPED = 69


ENDINGS: Final[dict[int, str]] = {
    CircuitEnd.PEER_LOST: "the relay lost the other node",
    CircuitEnd.TOO_LONG: "the relay ended the circuit: its time is over",
    CircuitEnd.TOO_MUCH: "the relay ended the circuit: it has carried its bytes",
    CircuitEnd.BUDGET: "the relay ended the circuit: its traffic is spent",
    CircuitEnd.IDLE: "the relay ended the circuit: it was idle",
    CircuitEnd.STOPPED: "the relay ended the circuit: it stops relaying",
}
"""What the codes mean to who used the circuit, for `StreamRaw`."""


class RelayRefused(ConnectFailed):
    """A relay refused a reservation or a circuit.

    Attributes:
        reason: why, as a word of `Reason`.
        retry_s: how long to wait before asking this relay the same again (seconds).
    """

    def __init__(self, reason: Reason, *, retry_s: float = 0.0) -> None:
        sentence, hint = _SENTENCES[reason]
        super().__init__(sentence, hint=hint)
        self.reason = reason
        self.retry_s = retry_s


def as_reason(word_untrusted: str) -> Reason:
    """The reason of a word from the wire; `Reason.OTHER` for words that a later release may use."""
    try:
        return Reason(word_untrusted)
    except ValueError:
        return Reason.OTHER


_Word = Annotated[str, msgspec.Meta(max_length=32)]
_Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=1e9)]


class Reserve(msgspec.Struct, frozen=True):
    """Keep a reservation for me, or longer than before; or forget it."""

    release: bool


class Granted(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="granted"):
    """You have a reservation, on these terms."""

    expires_s: _Seconds
    bytes_per_s: Annotated[float, msgspec.Meta(ge=0.0)]
    circuit_bytes: Annotated[int, msgspec.Meta(ge=0)]
    circuit_s: _Seconds

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.expires_s, self.bytes_per_s, self.circuit_s))):
            raise ValueError("a figure is not finite")


class Released(msgspec.Struct, frozen=True, tag_field="type", tag="released"):
    """You have no reservation any more."""


class Refused(msgspec.Struct, frozen=True, tag_field="type", tag="refused"):
    """No, and why."""

    reason: _Word
    retry_s: _Seconds = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.retry_s):
            raise ValueError("retry_s is not finite")

    def as_error(self) -> RelayRefused:
        """What the caller of the one who asked gets to see."""
        return RelayRefused(as_reason(self.reason), retry_s=min(self.retry_s, MAX_RETRY_S))


class Ended(msgspec.Struct, frozen=True):
    """Your reservation has ended before its time."""

    reason: _Word


class Connect(msgspec.Struct, frozen=True):
    """I want a circuit to this node."""

    target: NodeId


class Incoming(msgspec.Struct, frozen=True):
    """This node wants a circuit to you (it says so; the handshake through the circuit proves it)."""

    source: NodeId


class Accepted(msgspec.Struct, frozen=True, tag_field="type", tag="accepted"):
    """The circuit's bytes follow."""


ReserveAnswer: TypeAlias = Granted | Released | Refused
ConnectAnswer: TypeAlias = Accepted | Refused


def read_reserve_answer(data_untrusted: bytes) -> ReserveAnswer:
    """What a relay says to RESERVE.

    Raises:
        MalformedMessage: that is not it.
    """
    answer: ReserveAnswer = decode_untrusted(data_untrusted, ReserveAnswer, limit=MAX_BYTES)  # type: ignore[arg-type]
    return answer


def read_connect_answer(data_untrusted: bytes) -> ConnectAnswer:
    """What a relay says to CONNECT, and a target to INCOMING.

    Raises:
        MalformedMessage: that is not it.
    """
    answer: ConnectAnswer = decode_untrusted(data_untrusted, ConnectAnswer, limit=MAX_BYTES)  # type: ignore[arg-type]
    return answer
