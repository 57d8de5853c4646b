"""Where a node may be reached: a host (IP literal or name) and a TCP port, itself or its relay's.

Problem: addresses come from configuration, from peers and from the kernel, in several spellings; equal ones must compare equal
and hostile ones must not reach the resolver. Idea: one frozen value, normalised when it is made.

A relayed address, `host:port/via/<node id>`, names a relay and where it listens: dial that, and ask it for a circuit to the
node. So whatever carries addresses (handshakes, the DHT, the shared state) carries relays too.

Invariants: IP literals are in canonical form, names are lower-case ASCII of at most 253 characters; the port is 0..65535, where
0 only means "any port" when listening.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Self

import attrs

from transport.errors import InvalidAddress, InvalidNodeId
from transport.identity import NodeId

_NAME = re.compile(
    r"(?=.{1,253}\Z)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*\Z"
)
_ZONE = re.compile(r"[A-Za-z0-9_.-]{1,15}\Z")  # IFNAMSIZ - 1 on Linux
_ALL_NUMERIC = re.compile(r"[0-9.]+\Z")
_MAX_TEXT = 400
_VIA = "/via/"


def normalise_host(host_untrusted: str) -> str:
    """Canonical spelling of an IP literal or host name.

    Raises:
        InvalidAddress: neither of them.
    """
    if not isinstance(host_untrusted, str) or len(host_untrusted) > _MAX_TEXT:
        raise InvalidAddress("the host is not a name or an IP address")
    try:
        ip = ipaddress.ip_address(host_untrusted)
    except ValueError:
        name = host_untrusted.lower()
        # "1.2.3" or "256.1.1.1" must not go to the resolver, which reads such texts in surprising ways.
        if _NAME.match(name) is None or _ALL_NUMERIC.match(name) is not None:
            raise InvalidAddress("the host is not a name or an IP address") from None
        return name
    zone = getattr(ip, "scope_id", None)
    if zone is not None and _ZONE.match(zone) is None:
        raise InvalidAddress("the zone of the IPv6 address is not an interface name")
    return str(ip)


def _check_host(_address: object, _attribute: object, value: str) -> None:
    # msgspec fills attrs classes without running converters, so what comes from the wire is checked here again.
    if normalise_host(value) != value:
        raise InvalidAddress("the host is not in canonical form")


def _check_port(_address: object, _attribute: object, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 65535:
        raise InvalidAddress("the port is not a number from 0 to 65535")


def normalise_relay(relay_untrusted: str) -> str:
    """Canonical spelling of a relay's node id; "" for no relay.

    Raises:
        InvalidAddress: not a node id.
    """
    if relay_untrusted == "":
        return ""
    try:
        return str(NodeId.parse(relay_untrusted))
    except InvalidNodeId as error:
        raise InvalidAddress(f"the relay is {error}") from None


def _check_relay(_address: object, _attribute: object, value: str) -> None:
    if not isinstance(value, str) or normalise_relay(value) != value:
        raise InvalidAddress("the relay's node id is not in canonical form")


@attrs.frozen(order=True)
class Address:
    """A TCP address; `str()` gives `host:port` or `[v6]:port`, with `/via/<relay>` if there is one."""

    host: str = attrs.field(converter=normalise_host, validator=_check_host)
    """IP literal or name, canonical."""
    port: int = attrs.field(validator=_check_port)
    """0 to 65535; 0 only for listening."""
    relay: str = attrs.field(default="", converter=normalise_relay, validator=_check_relay)
    """Node id of the relay that listens at host and port, as text; "" when the node itself does."""

    @classmethod
    def parse(cls, text_untrusted: str) -> Self:
        """The address in `host:port` or `[v6]:port`, with `/via/<relay>` or without.

        Raises:
            InvalidAddress: with what is wrong.
        """
        text = text_untrusted.strip() if isinstance(text_untrusted, str) else ""
        if not text or len(text) > _MAX_TEXT:
            raise InvalidAddress("not host:port")
        text, via, relay = text.partition(_VIA)
        if via and not relay:
            raise InvalidAddress("the relay's node id is missing")
        if text.startswith("["):
            host, closed, port = text[1:].partition("]:")
            if not closed:
                raise InvalidAddress("not [address]:port")
            if ":" not in host:
                raise InvalidAddress("brackets belong to IPv6 addresses only")
        else:
            host, colon, port = text.rpartition(":")
            if not colon:
                raise InvalidAddress("the port is missing")
            if ":" in host:
                raise InvalidAddress("an IPv6 address needs brackets before its port")
        if not (port.isascii() and port.isdigit() and len(port) <= 5):
            raise InvalidAddress("the port is not a number from 0 to 65535")
        return cls(host, int(port), relay)

    @property
    def is_ip(self) -> bool:
        """Whether the host is an IP literal (no resolver needed)."""
        return ":" in self.host or _ALL_NUMERIC.match(self.host) is not None

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can dial it."""
        return self.host == "localhost" or (
            self.is_ip and ipaddress.ip_address(self.host).is_loopback
        )

    @property
    def is_wildcard(self) -> bool:
        """Whether the host means "any interface": good for listening only."""
        return self.host in {"0.0.0.0", "::"}  # noqa: S104  (recognised, not bound)

    @property
    def direct(self) -> Self:
        """The same place without the relay's id: what to dial in either case."""
        return attrs.evolve(self, relay="") if self.relay else self

    @property
    def relay_id(self) -> NodeId | None:
        """The relay's node id, or None if the node itself listens here."""
        return NodeId.parse(self.relay) if self.relay else None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}{_VIA if self.relay else ''}{self.relay}"
