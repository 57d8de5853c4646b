"""Which addresses a node tells others: as few as lead to it, the best first (sans-IO).

Problem: a node knows many addresses of itself (interfaces, what a router mapped, what peers see it at, its relays), and each
wrong one costs everybody who dials a time-out. Idea: one pure function over what has been learnt. An address is told when it is
proved, or when it may be useful and nothing speaks against it:

    configured by the operator      alone, before everything else that is direct: he knows
    on a local interface            while no dial-back has failed for it; private ones for neighbours in the same network
    mapped by the router            while no dial-back has failed for it
    seen by peers                   only when a dial-back reached it
    relayed                         while no public address is certain to let strangers in

Order: private and loopback (cheapest when they work, refused at once when not), public IPv6, public IPv4, relayed last.

Invariants: at most `limit` addresses; while there are any relayed ones, at least one is told; no wildcard, multicast or
link-local address ever is.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence

import attrs

from transport.address import Address
from transport.address_kinds import is_public

MAX_RELAYED = 3
"""Relayed addresses told: two that are used and one on the way."""


@attrs.frozen(kw_only=True)
class KnownAddresses:
    """What a node has learnt of its own addresses."""

    configured: Sequence[Address] = ()
    """By the operator."""
    bound: Sequence[Address] = ()
    """What the listeners are bound to; wildcards stand for the interfaces of their family."""
    interfaces: Sequence[str] = ()
    """Usable IP addresses of this machine."""
    mapped: Sequence[Address] = ()
    """External addresses that a router forwards here."""
    observed: Sequence[Address] = ()
    """What enough peers see us at when we dial from where we listen."""
    relayed: Sequence[Address] = ()
    """Where relays have reserved a place for us."""
    open: Sequence[Address] = ()
    """Those of all these that strangers can dial for certain; with a public one, no relay is told."""


Verdict = Callable[[Address], bool | None]
"""True: a dial-back reached it; False: several did not; None: not known."""


def addresses_to_tell(
    known: KnownAddresses, reached: Verdict, *, limit: int = 16
) -> tuple[Address, ...]:
    """The addresses to advertise, best first."""
    if known.configured:
        direct = _distinct(known.configured)
    else:
        own = [*bound_addresses(known.bound, known.interfaces), *known.mapped]
        candidates = _distinct(address for address in own if reached(address) is not False)
        candidates += [address for address in known.observed if reached(address) is True]
        direct = sorted(_distinct(candidates), key=lambda address: scope_rank(address.host))
    proved = any(is_public(address.host) for address in known.open if address in direct)
    relayed = [] if proved else _distinct(known.relayed)[:MAX_RELAYED]
    return tuple(direct[: max(0, limit - len(relayed))] + relayed)[:limit]


def bound_addresses(bound: Iterable[Address], interfaces: Sequence[str]) -> list[Address]:
    """Where the listeners can be dialed: each wildcard once per interface address of its family."""
    found: list[Address] = []
    for address in bound:
        if not address.is_wildcard:
            found.append(address)
            continue
        family = 6 if ":" in address.host else 4
        found += [
            Address(host, address.port)
            for host in interfaces
            if (6 if ":" in host else 4) == family and _is_usable(host)
        ]
    return _distinct(found)


def scope_rank(host: str) -> int:
    """0 for loopback and private addresses and names, 1 for public IPv6, 2 for public IPv4."""
    if not is_public(host):
        return 0
    return 1 if ":" in host else 2


def _is_usable(host: str) -> bool:
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False
    return not (ip.is_unspecified or ip.is_multicast or ip.is_link_local or ip.is_loopback)


def _distinct(addresses: Iterable[Address]) -> list[Address]:
    return list(dict.fromkeys(addresses))
