"""Who is the router: the default gateways of this machine, from the kernel's routing tables.

Problem: PCP and NAT-PMP are spoken with the default gateway and nobody else. Idea: read /proc/net/route and
/proc/net/ipv6_route, which need no privilege and no library. On a machine without them (not Linux, no /proc) there is no
gateway, and port mapping says so.

Invariants: parsing never raises; lines that make no sense are skipped.
"""

from __future__ import annotations

import ipaddress
import sys
from typing import Final

import attrs
import trio

ROUTES_V4: Final = "/proc/net/route"
ROUTES_V6: Final = "/proc/net/ipv6_route"
_UP_GATEWAY: Final = 0x3  # RTF_UP | RTF_GATEWAY, linux/route.h
_REJECT: Final = 0x200


@attrs.frozen
class Gateway:
    """A next hop of a default route."""

    host: str
    """Its address; a link-local one carries its zone, `fe80::1%eth0`."""
    interface: str
    metric: int = 0
    """Lower is preferred."""

    @property
    def family(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.host else 4


def parse_v4(text: str) -> list[Gateway]:
    """Default gateways of /proc/net/route, the preferred one first."""
    found = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        try:
            interface, destination, gateway, flags, _, _, metric, mask = fields[:8]
            bits = int(flags, 16)
            if int(destination, 16) or int(mask, 16) or bits & _UP_GATEWAY != _UP_GATEWAY:
                continue
            # The kernel prints the four bytes as one number of its own byte order.
            packed = int(gateway, 16).to_bytes(4, sys.byteorder)
            found.append(Gateway(str(ipaddress.IPv4Address(packed)), interface, int(metric)))
        except (ValueError, OverflowError):
            continue
    return sorted(found, key=lambda route: route.metric)


def parse_v6(text: str) -> list[Gateway]:
    """Default gateways of /proc/net/ipv6_route, the preferred one first."""
    found = []
    for line in text.splitlines():
        fields = line.split()
        try:
            destination, length, _, _, gateway, metric, _, _, flags, interface = fields[:10]
            bits = int(flags, 16)
            if int(destination, 16) or int(length, 16) or bits & _UP_GATEWAY != _UP_GATEWAY:
                continue
            if bits & _REJECT:
                continue
            ip = ipaddress.IPv6Address(bytes.fromhex(gateway))
            host = f"{ip}%{interface}" if ip.is_link_local else str(ip)
            found.append(Gateway(host, interface, int(metric, 16)))
        except (ValueError, OverflowError):
            continue
    return sorted(found, key=lambda route: route.metric)


async def default_gateway(family: int = 4) -> Gateway | None:
    """The preferred default gateway of one family (4 or 6), or None."""
    try:
        text = await trio.Path(ROUTES_V4 if family == 4 else ROUTES_V6).read_text("ascii")
    except (OSError, ValueError):
        return None
    found = parse_v4(text) if family == 4 else parse_v6(text)
    return found[0] if found else None
