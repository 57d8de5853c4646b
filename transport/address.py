"""Where a node may be reached: a host (IP literal or name) and a TCP port.

Problem: addresses come from configuration, from peers and from the kernel, in several spellings; equal ones must compare equal
and hostile ones must not reach the resolver. Idea: one frozen value, normalised when it is made.

Invariants: IP literals are in canonical form, names are lower-case ASCII of at most 253 characters; the port is 0..65535, where
0 only means "any port" when listening.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Self

import attrs

from transport.errors import InvalidAddress

_NAME = re.compile(
    r"(?=.{1,253}\Z)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*\Z"
)
_ZONE = re.compile(r"[A-Za-z0-9_.-]{1,15}\Z")  # IFNAMSIZ - 1 on Linux
_ALL_NUMERIC = re.compile(r"[0-9.]+\Z")
_MAX_TEXT = 300


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


@attrs.frozen(order=True)
class Address:
    """A TCP address; `str()` gives `host:port` or `[v6]:port`."""

    host: str = attrs.field(converter=normalise_host, validator=_check_host)
    """IP literal or name, canonical."""
    port: int = attrs.field(validator=_check_port)
    """0 to 65535; 0 only for listening."""

    @classmethod
    def parse(cls, text_untrusted: str) -> Self:
        """The address in `host:port` or `[v6]:port`.

        Raises:
            InvalidAddress: with what is wrong.
        """
        text = text_untrusted.strip() if isinstance(text_untrusted, str) else ""
        if not text or len(text) > _MAX_TEXT:
            raise InvalidAddress("not host:port")
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
        return cls(host, int(port))

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

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
