"""Which addresses go into a code, and which a newcomer is given to ask first.

Problem: a code with an address that only works where it was made is worse than none, and the commonest such address is loopback.
Idea: our own addresses that others can dial, the most widely reachable first; for each relay of ours, the relay itself, since any
member passes a request on; then members we are connected to. Loopback only where it was asked for.

Invariants: never loopback unless `local`, and then nothing else; never an address that cannot be dialed from another machine; pure.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from transport.address import Address
from transport.address_kinds import AddressKind, kind_of

__all__ = ["dialable", "places"]

_ORDER = {
    AddressKind.GLOBAL: 0,
    AddressKind.PRIVATE: 1,
    AddressKind.ULA: 2,
    AddressKind.CGNAT: 3,
    AddressKind.OTHER: 4,
}
"""The last: blocks with which somebody may well have built a network."""


def places(
    own: Iterable[Address], others: Iterable[Address], *, local: bool = False, most: int
) -> tuple[Address, ...]:
    """Where a newcomer may ask.

    Args:
        own: what this node advertises, relayed addresses included.
        others: where members are that it is connected to.
        local: for newcomers on this machine: loopback addresses of our own, and nothing else.
        most: how many at most.
    """
    own = list(own)
    if local:
        return tuple(dict.fromkeys(each for each in own if each.is_loopback and each.port))[:most]
    direct = sorted((each for each in own if dialable(each)), key=_rank)
    relays = [each.direct for each in own if each.relay and dialable(each.direct)]
    rest = sorted((each for each in others if dialable(each)), key=_rank)
    return tuple(dict.fromkeys([*direct, *relays, *rest]))[:most]


def dialable(address: Address) -> bool:
    """Whether another machine may be able to dial it: a name, or an address that is more than this machine's or this link's."""
    if address.relay or not address.port or address.is_loopback or address.is_wildcard:
        return False
    return not address.is_ip or (
        not ipaddress.ip_address(address.host).is_multicast and kind_of(address.host) in _ORDER
    )


def _rank(address: Address) -> int:
    return _ORDER[kind_of(address.host)] if address.is_ip else 0  # a name was written by a person
