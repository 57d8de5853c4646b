"""What an IP address is good for: which of ours a stranger can dial, which only a neighbour can, which a peer may send us to.

Problem: `ipaddress.is_global` calls multicast and some reserved blocks global and shared address space nothing at all. Idea:
one small table of the kinds that matter for reaching a peer.
"""

from __future__ import annotations

import ipaddress
from enum import StrEnum
from typing import Final

CGNAT_V4: Final = ipaddress.IPv4Network("100.64.0.0/10")
"""RFC 6598: between a provider's NAT and its customers."""
PRIVATE_V4: Final = tuple(
    ipaddress.IPv4Network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")
)
ULA_V6: Final = ipaddress.IPv6Network("fc00::/7")
DOCUMENTATION: Final = tuple(
    ipaddress.ip_network(text)
    for text in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
)
"""Nobody's on the real network (RFC 5737, RFC 3849); the public addresses of simulated ones."""


class AddressKind(StrEnum):
    """Who can dial an address."""

    GLOBAL = "global"
    """Anybody, if no firewall is between."""
    PRIVATE = "private"
    """The same site (RFC 1918)."""
    CGNAT = "cgnat"
    """Customers of the same provider, at best (RFC 6598)."""
    ULA = "ula"
    """The same site, IPv6 (RFC 4193)."""
    LINK_LOCAL = "link-local"
    """The same link, and only with an interface name."""
    LOOPBACK = "loopback"
    """This machine."""
    OTHER = "other"
    """Nobody from outside: unspecified, multicast, documentation, reserved."""


def kind_of(host: str) -> AddressKind:
    """The kind of an IP literal; a name is OTHER, since nobody asked the resolver."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return AddressKind.OTHER
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if ip.is_unspecified or ip.is_multicast:
        return AddressKind.OTHER
    if ip.is_loopback:
        return AddressKind.LOOPBACK
    if ip.is_link_local:
        return AddressKind.LINK_LOCAL
    if isinstance(ip, ipaddress.IPv4Address):
        if ip in CGNAT_V4:
            return AddressKind.CGNAT
        if any(ip in network for network in PRIVATE_V4):
            return AddressKind.PRIVATE
    elif ip in ULA_V6:
        return AddressKind.ULA
    return AddressKind.GLOBAL if ip.is_global and not ip.is_reserved else AddressKind.OTHER


def is_public(host: str) -> bool:
    """Whether an address of this IP means the same everywhere, so that it may be met from anywhere; False for a name."""
    if kind_of(host) is AddressKind.GLOBAL:
        return True
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False
    return any(ip in network for network in DOCUMENTATION)


def is_credible(host: str, seen_host: str) -> bool:
    """Whether a peer that we see at `seen_host` may be dialed at `host`, which it names itself.

    No peer may aim our resolver or send us to our own services: a name is not dialed, a loopback address only if we see the peer
    at one, and nothing that is no single place to us (unspecified, multicast, link-local, reserved). The host we see always is.

    Args:
        host: canonical, untrusted.
        seen_host: as the network reports it; "" when it is not seen, as over a relay.
    """
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if ip.is_loopback:
        return kind_of(seen_host) is AddressKind.LOOPBACK
    return host == seen_host or not (
        ip.is_unspecified or ip.is_multicast or ip.is_link_local or ip.is_reserved
    )
