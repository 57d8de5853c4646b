"""NAT-PMP (RFC 6886): the bytes, the retry schedule and the epoch rule; sans-IO.

    request, external address    00 00
    answer                       00 80 result:2 epoch:4 address:4
    request, map TCP             00 02 0000 internal:2 external:2 lifetime:4
    answer                       00 82 result:2 epoch:4 internal:2 external:2 lifetime:4

Numbers are big-endian. Lifetimes and epochs are in seconds. An answer of a later version may be longer; a shorter one with a
result other than 0 is accepted down to the epoch, because that is all an error needs to say (section 3.5).

Answers are bytes from a stranger: anything that does not fit raises `MalformedMessage`, to be treated as if it had not come.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Final

import attrs

from transport.errors import MalformedMessage, TransportError

PORT: Final = 5351
"""Where the gateway listens, NAT-PMP and PCP alike."""
ANNOUNCE_GROUP: Final = "224.0.0.1"
ANNOUNCE_PORT: Final = 5350
"""Where gateways announce a new external address, or that they have restarted (section 3.2.1)."""

VERSION: Final = 0
_ANSWER: Final = 0x80
_OP_ADDRESS: Final = 0
_OP_MAP_TCP: Final = 2
_HEAD = struct.Struct("!BBHI")
_MAP = struct.Struct("!BBHHHI")
_MAPPED = struct.Struct("!BBHIHHI")

FIRST_RETRY_S: Final = 0.25
MAX_TRIES: Final = 9
"""Section 3.1: nine requests, the wait doubling from 250 ms; then the gateway does not speak it."""
EPOCH_SLACK_S: Final = 2.0


class Result(IntEnum):
    """Section 3.5."""

    SUCCESS = 0
    UNSUPPORTED_VERSION = 1
    NOT_AUTHORIZED = 2
    NETWORK_FAILURE = 3
    OUT_OF_RESOURCES = 4
    UNSUPPORTED_OPCODE = 5


_WORDS: Final = {
    Result.UNSUPPORTED_VERSION: "the gateway does not speak NAT-PMP of this version",
    Result.NOT_AUTHORIZED: "the gateway refuses port mapping (often a setting of the router)",
    Result.NETWORK_FAILURE: "the gateway has no external address itself",
    Result.OUT_OF_RESOURCES: "the gateway has no room for another mapping",
    Result.UNSUPPORTED_OPCODE: "the gateway does not know this request",
}


class NatPmpRefused(TransportError):
    """The gateway answered by NAT-PMP that it will not.

    Attributes:
        result: its code.
        epoch: seconds since its table was last empty.
    """

    def __init__(self, result: int, epoch: int) -> None:
        words = _WORDS.get(Result(result)) if result in Result.__members__.values() else None
        hint = ""
        if result == Result.NOT_AUTHORIZED:
            hint = "switch on NAT-PMP (or automatic port mapping) in the router's settings"
        super().__init__(words or f"the gateway refused with code {result}", hint=hint)
        self.result = result
        self.epoch = epoch


@attrs.frozen
class ExternalAddress:
    """Answer to `address_request`, or an announcement."""

    epoch: int
    """Seconds since the gateway's table was last empty."""
    host: str
    """The gateway's external IPv4 address, as it says."""


@attrs.frozen
class Mapped:
    """Answer to `map_request`."""

    epoch: int
    external_port: int
    lifetime_s: int
    """0 confirms a removal."""


def address_request() -> bytes:
    """Ask for the external address, and so for the epoch."""
    return bytes((VERSION, _OP_ADDRESS))


def map_request(internal_port: int, external_port: int, lifetime_s: int) -> bytes:
    """Map a TCP port to us; a lifetime and an external port of 0 remove the mapping (section 3.4)."""
    return _MAP.pack(VERSION, _OP_MAP_TCP, 0, internal_port, external_port, lifetime_s)


def parse_address(data_untrusted: bytes) -> ExternalAddress:
    """The external address from an answer or announcement.

    Raises:
        MalformedMessage: not such an answer; to be ignored.
        NatPmpRefused: the gateway said no.
    """
    epoch = _head(data_untrusted, _OP_ADDRESS)
    if len(data_untrusted) < 12:
        raise MalformedMessage("a NAT-PMP answer is too short")
    return ExternalAddress(epoch, str(ipaddress.IPv4Address(data_untrusted[8:12])))


def parse_map(data_untrusted: bytes, internal_port: int) -> Mapped:
    """What the gateway mapped.

    Raises:
        MalformedMessage: not an answer to this request; to be ignored.
        NatPmpRefused: the gateway said no.
    """
    epoch = _head(data_untrusted, _OP_MAP_TCP)
    if len(data_untrusted) < _MAPPED.size:
        raise MalformedMessage("a NAT-PMP answer is too short")
    _, _, _, _, internal, external, lifetime = _MAPPED.unpack_from(data_untrusted)
    if internal != internal_port:
        raise MalformedMessage("a NAT-PMP answer is for another port")
    if external == 0 and lifetime != 0:
        raise MalformedMessage("a NAT-PMP answer maps no port")
    return Mapped(epoch, external, lifetime)


def _head(data: bytes, opcode: int) -> int:
    if len(data) < _HEAD.size:
        raise MalformedMessage("a NAT-PMP answer is too short")
    version, op, result, epoch = _HEAD.unpack_from(data)
    if version != VERSION or op != (opcode | _ANSWER):
        raise MalformedMessage("not an answer to this NAT-PMP request")
    if result != Result.SUCCESS:
        raise NatPmpRefused(result, epoch)
    return int(epoch)


def is_answer(data_untrusted: bytes) -> bool:
    """Whether these bytes are any answer of NAT-PMP, for example to a request of PCP (RFC 6887, appendix A)."""
    return (
        len(data_untrusted) >= _HEAD.size
        and data_untrusted[0] == VERSION
        and data_untrusted[1] & _ANSWER != 0
    )


def retry_delays(tries: int = MAX_TRIES) -> Iterator[float]:
    """Seconds to wait after each request: 0.25, 0.5, 1, ... (section 3.1)."""
    return (FIRST_RETRY_S * 2**attempt for attempt in range(tries))


class Epoch:
    """Notice that the gateway lost its table (section 3.6). Times are monotonic seconds of one clock."""

    def __init__(self) -> None:
        self._last: tuple[int, float] | None = None

    def observe(self, epoch: int, now: float) -> bool:
        """Take in an epoch; False when it is at least 2 s behind 7/8 of our own clock: a restart."""
        last, self._last = self._last, (epoch, now)
        return last is None or epoch >= last[0] + (now - last[1]) * 7 / 8 - EPOCH_SLACK_S
