"""Punching a hole: two nodes behind NATs agree, over a relay, to dial each other at the same moment (sans-IO).

Problem: a NAT lets a packet in only from where one went out, so neither of two nodes behind NATs can dial the other; but if both
dial at once, from the ports the NATs know, each SYN opens the way for the other's (Ford, Srisuresh, Kegel 2005, arXiv
cs/0603074, section 4; RFC 9293, section 3.5). Idea: libp2p's DCUtR (libp2p/specs: relay/DCUtR.md), one stream per punch:

    coordinator                                follower
      CONNECT(token, addresses)          ->
                                        <-     CONNECT(the same token, addresses)
      SYNC(the same token)               ->
      dials half a round trip later            dials at once, both for `ROUND_S`
      CONNECT(a fresh token, addresses)  ->    when that led nowhere, up to `MAX_ROUNDS` times; each measures the round trip anew
      END(reason)                       <->    at any time; also when it worked

A NAT that drops what it does not know needs no precision: the later SYN finds the hole. One that answers with RST does, and two
of those only meet by chance; therefore failed dials are repeated after random gaps of `MIN_GAP_S` to `MAX_GAP_S` (measured: 11 of
12 with 100 ms of skew, where a fixed gap gave none of 8). A dial that nobody answers is left to the kernel, which repeats its SYN
after 1 s and 3 s (RFC 6298): a new dial would have another sequence number, which a NAT that follows the old one lets in from
neither side. For the same reason the plain dials leave from another port: after one that was given up, the other side's SYN would come
in through its hole to the listener, whose answer the NAT drops as none of that connection's (captured; it lasts for a minute or two).

Invariants: at most `MAX_ADDRESSES` addresses of the other side are looked at, and none is dialed that leads to this machine or to
a network that only we are in (`screen`); a message out of order is a `MalformedMessage` and the end of the session; time and
chance are arguments.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Final, Literal, TypeAlias

import attrs
import msgspec

from transport.address import Address
from transport.address_kinds import AddressKind, kind_of
from transport.codec import decode_untrusted, pack
from transport.errors import InvalidAddress, MalformedMessage, UsageError
from transport.network import Path

PROTOCOL: Final = "reach/punch"
MAX_MESSAGE_BYTES: Final = 4096
MAX_ADDRESSES: Final = 8
TOKEN_BYTES: Final = 16
MAX_REASON_CHARS: Final = 200
MAX_ROUNDS: Final = 3
ROUND_S: Final = 5.0
"""How long both sides dial in one round."""
MIN_GAP_S: Final = 0.02
MAX_GAP_S: Final = 0.3
MAX_ATTEMPTS: Final = 40
"""Dials of one address in one round; with the mean gap, what fits into `ROUND_S`."""
MIN_REVERSE_S: Final = 0.3
MAX_REVERSE_S: Final = 1.5
CROSSED: Final = "the other side's punch counts"
"""The reason with which the second of two sessions that crossed is refused."""
BUSY: Final = "busy with other punches"
CANCELLED: Final = "the punch was given up"
MAX_FAILED_HANDSHAKES: Final = 3
"""Connections to one address that lead to no peer, until a session dials it no more: somebody else may be there."""

_FINAL: Final = frozenset(
    {
        "network is unreachable",
        "address family not supported by protocol",
        "cannot assign requested address",
        "invalid argument",
        "permission denied",
        "operation not permitted",
    }
)
"""Reasons for which a dial fails that lie with our machine and will not change within seconds."""

_DOCUMENTATION: Final = tuple(
    ipaddress.ip_network(text)
    for text in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
)
"""Nobody's, on the real network (RFC 5737, RFC 3849); the public addresses of simulated ones."""

IPInterface: TypeAlias = ipaddress.IPv4Interface | ipaddress.IPv6Interface


class Connect(msgspec.Struct, frozen=True, tag="connect"):
    """Where its sender can be met."""

    token: bytes
    addresses: tuple[str, ...] = ()


class Sync(msgspec.Struct, frozen=True, tag="sync"):
    """Dial now."""

    token: bytes


class End(msgspec.Struct, frozen=True, tag="end"):
    """The session is over."""

    reason: str = ""


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
    if isinstance(message, End):
        reason = message.reason[:MAX_REASON_CHARS]
        return End(reason if reason.isprintable() else ascii(reason))
    if len(message.token) != TOKEN_BYTES:
        raise MalformedMessage(f"a punch's token has {TOKEN_BYTES} bytes")
    return message


State: TypeAlias = Literal["idle", "connecting", "ready", "dialing", "over"]


class PunchSession:
    """One side of one punch, as messages go; the dialing is the driver's.

    Args:
        coordinates: whether this side measures and gives the signal.
        addresses: where we can be met; the first `MAX_ADDRESSES` are told.

    Attributes:
        state: "idle", then per round "connecting" (a CONNECT is under way, or the SYNC that follows), "ready" (the
            coordinator has its answer) and "dialing"; at last "over".
        round: 1 to `MAX_ROUNDS` once begun.
        rtt_s: the last round trip over the relay, seconds; None for the follower.
        theirs: where the other side says it can be met; not screened.
        dial_at: when to dial, in the caller's time.
        end_reason: what the other side gave as it ended the session.
    """

    def __init__(self, *, coordinates: bool, addresses: Sequence[Address]) -> None:
        self.coordinates = coordinates
        self.state: State = "idle"
        self.round = 0
        self.rtt_s: float | None = None
        self.theirs: tuple[Address, ...] = ()
        self.dial_at = 0.0
        self.end_reason = ""
        self._addresses = tuple(str(address) for address in addresses[:MAX_ADDRESSES])
        self._token = b""
        self._sent_at = 0.0

    @property
    def over(self) -> bool:
        """Whether either side has ended the session."""
        return self.state == "over"

    @property
    def may_go_on(self) -> bool:
        """Whether another round is allowed."""
        return self.state != "over" and self.round < MAX_ROUNDS

    @property
    def dial_until(self) -> float:
        """When this round's dialing ends."""
        return self.dial_at + ROUND_S

    @property
    def reverse_s(self) -> float:
        """How long a plain dial to the other side may take before it is given up for the punch."""
        return min(MAX_REVERSE_S, max(MIN_REVERSE_S, 2 * (self.rtt_s or 0.0)))

    def begin(self, token: bytes, now: float) -> bytes:
        """Coordinator: start a round; the message to send.

        Args:
            token: `TOKEN_BYTES` fresh random bytes.
            now: seconds, any origin.

        Raises:
            UsageError: this is not the time.
        """
        if not self.coordinates or self.state not in ("idle", "dialing") or not self.may_go_on:
            raise UsageError("no round of this punch can begin now")
        self.round += 1
        self.state = "connecting"
        self._token, self._sent_at = token, now
        return encode(Connect(token, self._addresses))

    def sync(self, now: float) -> bytes:
        """Coordinator: give the signal; the message to send at once. Sets `dial_at`."""
        if not self.coordinates or self.state != "ready":
            raise UsageError("the other side has not answered yet")
        self.state = "dialing"
        self.dial_at = now + (self.rtt_s or 0.0) / 2
        return encode(Sync(self._token))

    def end(self, reason: str) -> bytes:
        """End the session here; the message to send."""
        self.state = "over"
        return encode(End(reason[:MAX_REASON_CHARS]))

    def receive(self, data_untrusted: bytes, now: float) -> bytes:
        """Take one message; returns the answer to send, or b"".

        Raises:
            MalformedMessage: it is malformed or out of order; the session is over.
        """
        try:
            if self.state == "over":
                raise MalformedMessage("the punch is over")
            message = decode(data_untrusted)
            if isinstance(message, End):
                self.state, self.end_reason = "over", message.reason
                return b""
            if self.coordinates:
                self._take_answer(message, now)
                return b""
            return self._follow(message, now)
        except MalformedMessage:
            self.state = "over"
            raise

    def _take_answer(self, message: Message, now: float) -> None:
        if self.state != "connecting" or not isinstance(message, Connect):
            raise MalformedMessage("a message of the punch out of order")
        if message.token != self._token:
            raise MalformedMessage("the answer belongs to another round")
        self.rtt_s = max(0.0, now - self._sent_at)
        self.theirs = _addresses_of(message)
        self.state = "ready"

    def _follow(self, message: Message, now: float) -> bytes:
        if isinstance(message, Connect):
            if self.state not in ("idle", "dialing") or not self.may_go_on:
                raise MalformedMessage("a message of the punch out of order")
            self.round += 1
            self.state = "connecting"
            self._token, self.theirs = message.token, _addresses_of(message)
            return encode(Connect(message.token, self._addresses))
        if self.state != "connecting" or not isinstance(message, Sync):
            raise MalformedMessage("a message of the punch out of order")
        if message.token != self._token:
            raise MalformedMessage("the signal belongs to another round")
        self.state, self.dial_at = "dialing", now
        return b""


def _addresses_of(message: Connect) -> tuple[Address, ...]:
    try:
        return tuple(
            dict.fromkeys(Address.parse(text) for text in message.addresses[:MAX_ADDRESSES])
        )
    except InvalidAddress as error:
        raise MalformedMessage(f"an address of the punch is {error}") from None


def gap_s(chance: float) -> float:
    """The pause before a failed dial is repeated, seconds.

    Args:
        chance: uniform in [0, 1).
    """
    return MIN_GAP_S + (MAX_GAP_S - MIN_GAP_S) * chance


def is_final(reason: str) -> bool:
    """Whether it makes no sense to repeat a dial that failed for this reason."""
    return reason in _FINAL


# Whom to dial


def tellable(advertised: Iterable[Address], observed: Iterable[Address]) -> tuple[Address, ...]:
    """What to tell the other side: where peers see us first, then what we advertise; at most `MAX_ADDRESSES`.

    A wildcard, a relayed address and a name say nothing about where a SYN would come from.
    """
    seen = [address for address in observed if address.is_ip and is_public(address.host)]
    rest = [address for address in advertised if address.port and _may_be_met(address)]
    return tuple(dict.fromkeys([*seen, *rest]))[:MAX_ADDRESSES]


def is_public(host: str) -> bool:
    """Whether an address of this IP may be met from anywhere."""
    if kind_of(host) is AddressKind.GLOBAL:
        return True
    return any(ipaddress.ip_address(host) in network for network in _DOCUMENTATION)


def _may_be_met(address: Address) -> bool:
    if address.relay or not address.is_ip:
        return False
    ip = ipaddress.ip_address(address.host)
    return not (ip.is_unspecified or ip.is_multicast or ip.is_link_local)


def screen(
    theirs: Iterable[Address], *, own: Iterable[Address], interfaces: Iterable[IPInterface]
) -> tuple[list[Address], list[tuple[Address, str]]]:
    """Split the other side's addresses into those to dial and those refused, with the reason.

    A peer may name anything; we must not be made to dial ourselves, our machine's other services, or the hosts of a private
    network that the peer cannot be in.

    Args:
        theirs: what it named.
        own: our addresses, with ports.
        interfaces: our interfaces, with their networks; loopback only if we listen on nothing else.
    """
    own = set(own)
    ports = {address.port for address in own}
    interfaces = list(interfaces)
    hosts = {interface.ip for interface in interfaces}
    good: list[Address] = []
    refused: list[tuple[Address, str]] = []
    for address in theirs:
        reason = _reason_against(address, own, ports, hosts, interfaces)
        if reason:
            refused.append((address, reason))
        else:
            good.append(address)
    return good, refused


def _reason_against(
    address: Address,
    own: set[Address],
    ports: set[int],
    hosts: set[ipaddress.IPv4Address | ipaddress.IPv6Address],
    interfaces: Sequence[IPInterface],
) -> str:
    if address.relay:
        return "a relayed address cannot be punched"
    if not address.is_ip:
        return "a name cannot be punched"
    if not address.port:
        return "no port"
    ip = ipaddress.ip_address(address.host)
    if (
        ip.is_unspecified
        or ip.is_multicast
        or ip.is_link_local
        or address.host == "255.255.255.255"
    ):
        return "not an address of one machine"
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        return "an IPv4 address in disguise"
    if address in own or (ip in hosts and address.port in ports):
        return "our own address"
    if is_public(address.host) or any(ip in interface.network for interface in interfaces):
        return ""
    return "a private address of a network that we are not in"


# What came of it

MAX_NOTED: Final = 128
"""Different attempts kept for the report of one punch."""


@attrs.frozen
class Attempt:
    """The dials of one address in one round that came to the same end."""

    address: Address
    round: int
    """0 for the plain dials before the first round."""
    started_s: float
    """The first one's beginning, since the punch began."""
    took_s: float
    """The longest one's time."""
    reason: str
    """Why they failed; "" if it connected and the handshake went through."""
    count: int = 1
    """How many there were."""


@attrs.frozen(kw_only=True)
class PunchReport:
    """What came of one punch, for people and for statistics."""

    ok: bool
    """Whether the peer is connected without a relay now."""
    path: Path | None
    """How; None if not at all."""
    reason: str
    """Why not; "" if it is."""
    coordinated: bool
    """Whether we gave the signal."""
    rounds: int
    """0 if it did not come to dialing both ways."""
    rtt_s: float | None
    """Over the relay, the last one measured; None if we did not measure."""
    took_s: float
    attempts: tuple[Attempt, ...]
    """Equal ones together, in the order in which the first of each ended; at most `MAX_NOTED`."""
