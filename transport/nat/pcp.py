"""PCP (RFC 6887): MAP and ANNOUNCE in bytes, result codes in words, and the epoch rule; sans-IO.

    request   02 opcode 0000 lifetime:4 our address:16
    answer    02 opcode|80 00 result lifetime:4 epoch:4 zero:12
    MAP adds  nonce:12 protocol:1 zero:3 internal port:2 external port:2 external address:16     (opcode 1, both directions)
    ANNOUNCE adds nothing                                                                        (opcode 0)

Numbers are big-endian; IPv4 addresses are written as ::ffff:a.b.c.d. Options may follow and are skipped. Lifetimes and epochs
are in seconds; the lifetime of an error says how long the gateway expects it to last (section 7.2).

Answers are bytes from a stranger: anything that does not fit (short, long, odd length, other nonce, other port) raises
`MalformedMessage`, to be treated as if it had not come (section 8.3).
"""

from __future__ import annotations

import ipaddress
import struct
from enum import IntEnum
from typing import Final

import attrs

from transport.errors import MalformedMessage, TransportError, UsageError
from transport.nat import natpmp

VERSION: Final = 2
NONCE_BYTES: Final = 12
MAX_BYTES: Final = 1100
"""Section 7: no message is longer."""
PROTOCOL_TCP: Final = 6
_ANSWER: Final = 0x80
_ANNOUNCE: Final = 0
_MAP: Final = 1
_REQUEST = struct.Struct("!BBHI16s")
_RESPONSE = struct.Struct("!BBBBII12x")
_MAPPING = struct.Struct("!12sB3xHH16s")


class Result(IntEnum):
    """Section 7.4."""

    SUCCESS = 0
    UNSUPP_VERSION = 1
    NOT_AUTHORIZED = 2
    MALFORMED_REQUEST = 3
    UNSUPP_OPCODE = 4
    UNSUPP_OPTION = 5
    MALFORMED_OPTION = 6
    NETWORK_FAILURE = 7
    NO_RESOURCES = 8
    UNSUPP_PROTOCOL = 9
    USER_EX_QUOTA = 10
    CANNOT_PROVIDE_EXTERNAL = 11
    ADDRESS_MISMATCH = 12
    EXCESSIVE_REMOTE_PEERS = 13


_WORDS: Final = {
    Result.UNSUPP_VERSION: "the gateway does not speak PCP of this version",
    Result.NOT_AUTHORIZED: "the gateway refuses port mapping, or the port is mapped for another program",
    Result.MALFORMED_REQUEST: "the gateway could not read the request",
    Result.UNSUPP_OPCODE: "the gateway does not know this request",
    Result.UNSUPP_OPTION: "the gateway does not know an option of the request",
    Result.MALFORMED_OPTION: "the gateway could not read an option of the request",
    Result.NETWORK_FAILURE: "the gateway has no external address itself",
    Result.NO_RESOURCES: "the gateway has no room for another mapping",
    Result.UNSUPP_PROTOCOL: "the gateway does not map TCP",
    Result.USER_EX_QUOTA: "this machine has as many mappings as the gateway allows it",
    Result.CANNOT_PROVIDE_EXTERNAL: "the gateway cannot give the external port or address",
    Result.ADDRESS_MISMATCH: "another NAT stands between this machine and the gateway",
    Result.EXCESSIVE_REMOTE_PEERS: "the request names too many remote peers",
}
_HINTS: Final = {
    Result.NOT_AUTHORIZED: "switch on PCP (or automatic port mapping) in the router's settings",
    Result.ADDRESS_MISMATCH: "map the port by hand in both routers, or rely on hole punching and relays",
    Result.USER_EX_QUOTA: "remove mappings of other programs in the router's settings",
}


class PcpRefused(TransportError):
    """The gateway answered by PCP that it will not.

    Attributes:
        result: its code (`Result` where known).
        lifetime_s: for how long it expects to say so.
        epoch: its age in seconds, or None where the answer has none that counts (another version).
    """

    def __init__(self, result: int, lifetime_s: int = 0, epoch: int | None = None) -> None:
        known = Result(result) if result in Result.__members__.values() else None
        words = _WORDS.get(known) if known is not None else None
        super().__init__(
            words or f"the gateway refused with code {result}",
            hint=_HINTS.get(known, "") if known is not None else "",
        )
        self.result = result
        self.lifetime_s = lifetime_s
        self.epoch = epoch


@attrs.frozen
class Mapped:
    """Answer to `map_request`."""

    epoch: int
    """The gateway's age in seconds."""
    external_host: str
    """IPv4 or IPv6, canonical."""
    external_port: int
    lifetime_s: int
    """0 confirms a removal."""


def map_request(
    client: str,
    nonce: bytes,
    *,
    internal_port: int,
    external_port: int,
    lifetime_s: int,
    external_host: str = "",
) -> bytes:
    """Map a TCP port to `client`; a lifetime of 0 removes the mapping (section 15).

    Args:
        client: our address as the gateway sees it in the packet; it refuses another (ADDRESS_MISMATCH).
        nonce: 12 bytes; renewal and removal need the same (section 11.3).
        internal_port: where we listen.
        external_port: what we would like, 0 for any.
        lifetime_s: what we would like.
        external_host: what we would like; "" for any.

    Raises:
        UsageError: a nonce of another length.
    """
    if len(nonce) != NONCE_BYTES:
        raise UsageError("a PCP nonce has 12 bytes")
    ip = ipaddress.ip_address(_bare(client))
    wanted = ipaddress.ip_address(external_host or ("0.0.0.0" if ip.version == 4 else "::"))  # noqa: S104 - "any", on the wire
    return _REQUEST.pack(VERSION, _MAP, 0, lifetime_s, _pack(ip)) + _MAPPING.pack(
        nonce, PROTOCOL_TCP, internal_port, external_port, _pack(wanted)
    )


def announce_request(client: str) -> bytes:
    """Ask for nothing but the epoch (section 14.1)."""
    return _REQUEST.pack(VERSION, _ANNOUNCE, 0, 0, _pack(ipaddress.ip_address(_bare(client))))


def parse_map(data_untrusted: bytes, nonce: bytes, internal_port: int) -> Mapped:
    """What the gateway mapped.

    Raises:
        MalformedMessage: not an answer to this request; to be ignored.
        PcpRefused: the gateway said no, or speaks another version (UNSUPP_VERSION).
    """
    refusal, lifetime, epoch = _head(data_untrusted, _MAP)
    if len(data_untrusted) >= _RESPONSE.size + _MAPPING.size:
        got_nonce, protocol, internal, external, packed = _MAPPING.unpack_from(
            data_untrusted, _RESPONSE.size
        )
        if (got_nonce, protocol, internal) != (nonce, PROTOCOL_TCP, internal_port):
            raise MalformedMessage("a PCP answer is for another request")
        if refusal is None:
            if external == 0 and lifetime != 0:
                raise MalformedMessage("a PCP answer maps no port")
            return Mapped(epoch, _unpack(packed), external, lifetime)
    elif refusal is None:
        raise MalformedMessage("a PCP answer is too short")
    raise refusal


def parse_announce(data_untrusted: bytes) -> int:
    """The epoch, from an answer to `announce_request` or from what the gateway says unasked.

    A refusal carries the epoch as well, and it counts (section 8.5).

    Raises:
        MalformedMessage: no such message; to be ignored.
        PcpRefused: the gateway speaks another version; `epoch` is None.
    """
    return _head(data_untrusted, _ANNOUNCE)[2]


def _head(data: bytes, opcode: int) -> tuple[PcpRefused | None, int, int]:
    """(refusal or None, lifetime, epoch) of an answer."""
    if natpmp.is_answer(data):
        raise PcpRefused(Result.UNSUPP_VERSION)  # section 9: a gateway that knows only NAT-PMP
    if len(data) < _RESPONSE.size or len(data) > MAX_BYTES or len(data) % 4:
        raise MalformedMessage("a PCP answer has an impossible length")
    version, op, _, result, lifetime, epoch = _RESPONSE.unpack_from(data)
    if op != (opcode | _ANSWER):
        raise MalformedMessage("not an answer to this PCP request")
    if version != VERSION:
        if result == Result.UNSUPP_VERSION:
            raise PcpRefused(Result.UNSUPP_VERSION, lifetime)
        raise MalformedMessage("a PCP answer of another version")
    return (PcpRefused(result, lifetime, epoch) if result else None), lifetime, epoch


def _bare(host: str) -> str:
    return host.partition("%")[0]


def _pack(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bytes:
    return ip.packed if ip.version == 6 else bytes(10) + b"\xff\xff" + ip.packed


def _unpack(packed: bytes) -> str:
    ip = ipaddress.IPv6Address(packed)
    return str(ip.ipv4_mapped or ip)


class Epoch:
    """Notice that the gateway lost its table (section 8.5). Times are monotonic seconds of one clock."""

    def __init__(self) -> None:
        self._last: tuple[int, float] | None = None

    def observe(self, epoch: int, now: float) -> bool:
        """Take in an epoch; False when it went back or its pace does not fit ours: a restart."""
        last, self._last = self._last, (epoch, now)
        if last is None:
            return True
        if epoch < last[0] - 1:
            return False
        theirs, ours = epoch - last[0], now - last[1]
        return ours + 2 >= theirs - theirs / 16 and theirs + 2 >= ours - ours / 16
