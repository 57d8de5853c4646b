"""Whom to dial in a punch, and what to tell the other side of where we are (sans-IO).

Problem: a peer may name anything as its own address, and a punch dials what it names again and again. Idea: a `Screen` for each session
lets through what may be the peer, and of that as little as a real peer needs: it has one public address of each family, seen under
one port or, by a NAT that changes it, under a few.

Invariants, over all rounds of a session: at most `MAX_PUBLIC_HOSTS` public hosts and `MAX_PUBLIC_PLACES` places (host and port) on them; other
addresses only of networks that we are in, and only those that the peer has advertised; never a name, this machine's own address, or what
is no single machine; every address is either let through or refused with a reason.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

from transport.address import Address
from transport.address_kinds import is_public
from transport.punch.messages import MAX_ADDRESSES

MAX_PUBLIC_HOSTS: Final = 2
"""Public hosts dialed in a session: one of each family."""
MAX_PUBLIC_PLACES: Final = 4
"""Ports of those hosts dialed in a session: where others see the peer, and what a router opened for it, in each family."""

IPInterface: TypeAlias = ipaddress.IPv4Interface | ipaddress.IPv6Interface


def tellable(advertised: Iterable[Address], observed: Iterable[Address]) -> tuple[Address, ...]:
    """What to tell the other side: where peers see us first, then what we advertise; at most `MAX_ADDRESSES`.

    A wildcard, a relayed address and a name say nothing about where a SYN would come from.
    """
    seen = [address for address in observed if address.is_ip and is_public(address.host)]
    rest = [address for address in advertised if address.port and _may_be_met(address)]
    return tuple(dict.fromkeys([*seen, *rest]))[:MAX_ADDRESSES]


def _may_be_met(address: Address) -> bool:
    if address.relay or not address.is_ip:
        return False
    ip = ipaddress.ip_address(address.host)
    return not (ip.is_unspecified or ip.is_multicast or ip.is_link_local)


class Screen:
    """Splits the other side's addresses into those to dial and those refused; one for each session."""

    def __init__(self) -> None:
        self._places: set[Address] = set()  # public ones let through; bounded by MAX_PUBLIC_PLACES

    def split(
        self,
        theirs: Iterable[Address],
        *,
        own: Iterable[Address],
        interfaces: Iterable[IPInterface],
        advertised: Iterable[Address],
    ) -> tuple[list[Address], list[tuple[Address, str]]]:
        """Those to dial, and those refused with the reason.

        Args:
            theirs: what it named, in this round.
            own: our addresses, with ports.
            interfaces: our interfaces, with their networks; loopback only if we listen on nothing else.
            advertised: where the peer tells everybody that it can be dialed.
        """
        own, advertised, interfaces = set(own), set(advertised), list(interfaces)
        good: list[Address] = []
        refused: list[tuple[Address, str]] = []
        for address in theirs:
            reason = _reason_against(address, own, interfaces)
            if not reason:
                reason = (
                    self._room_for(address)
                    if is_public(address.host)
                    else _reason_against_private(address, interfaces, advertised)
                )
            if reason:
                refused.append((address, reason))
            else:
                good.append(address)
        return good, refused

    def _room_for(self, address: Address) -> str:
        if address in self._places:
            return ""
        hosts = {place.host for place in self._places}
        if address.host not in hosts and len(hosts) >= MAX_PUBLIC_HOSTS:
            return f"the peer has named {MAX_PUBLIC_HOSTS} other public hosts"
        if len(self._places) >= MAX_PUBLIC_PLACES:
            return f"the peer has named {MAX_PUBLIC_PLACES} other public addresses"
        self._places.add(address)
        return ""


def _reason_against(address: Address, own: set[Address], interfaces: Sequence[IPInterface]) -> str:
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
    hosts = {interface.ip for interface in interfaces}
    if address in own or (ip in hosts and address.port in {place.port for place in own}):
        return "our own address"
    return ""


def _reason_against_private(
    address: Address, interfaces: Sequence[IPInterface], advertised: set[Address]
) -> str:
    ip = ipaddress.ip_address(address.host)
    if not any(ip in interface.network for interface in interfaces):
        return "a private address of a network that we are not in"
    if address not in advertised:
        return "a private address that the peer does not advertise"
    return ""
