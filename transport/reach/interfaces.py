"""The addresses of this machine, and word when they change.

Problem: a node that listens everywhere must know which addresses to offer, and a laptop changes networks while it trains. Idea:
one rtnetlink dump for the list, one subscribed rtnetlink socket for the word (see `netlink` for why not a package). Where there
is no netlink (not Linux, a strict sandbox) the list is empty and the word comes by the clock.

Invariant: a wake-up says "look again", never what changed; so a lost or doubled event does no harm.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncGenerator
from typing import Final

import attrs
import trio

from transport.address_kinds import AddressKind, kind_of
from transport.errors import MalformedMessage
from transport.reach import netlink

DEBOUNCE_S: Final = 0.5
"""A network change is a burst of events; the look comes once it is over."""
POLL_S: Final = 30.0
"""How often to look where nobody tells us."""
_DUMP_BYTES: Final = 1 << 16
_DUMP_TIMEOUT_S: Final = 1.0
"""The kernel answers a dump at once; this only bounds a sandbox that swallows it."""
_ORDER: Final = tuple(AddressKind)


@attrs.frozen
class LocalAddress:
    """An address of this machine."""

    host: str
    """IP literal; a link-local one carries its zone."""
    interface: str
    prefix_length: int
    family: int
    """4 or 6."""
    kind: AddressKind
    temporary: bool = False
    """A privacy address (RFC 8981): gone within a day."""
    deprecated: bool = False
    """Its network was withdrawn: valid, but not for anything new."""


def local_addresses(*, link_local: bool = False, loopback: bool = False) -> list[LocalAddress]:
    """Usable addresses of interfaces that are up, the most widely reachable and most lasting first.

    Addresses that are still being checked for a double, or are one, are left out.

    Args:
        link_local: also fe80::/10 and 169.254/16.
        loopback: also 127/8 and ::1.
    """
    try:
        links, addresses = _dump()
    except (OSError, MalformedMessage):
        return []
    left_out: set[AddressKind] = set()  # a reserved block that is in use here has its reasons
    if not link_local:
        left_out.add(AddressKind.LINK_LOCAL)
    if not loopback:
        left_out.add(AddressKind.LOOPBACK)
    found = []
    for address in addresses:
        link, kind = links.get(address.index), kind_of(address.host)
        unusable = netlink.IFA_F_DADFAILED | netlink.IFA_F_TENTATIVE
        if link is None or not link.up or kind in left_out or address.flags & unusable:
            continue
        zoned = kind is AddressKind.LINK_LOCAL and ":" in address.host
        six = ":" in address.host
        found.append(
            LocalAddress(
                host=f"{address.host}%{link.name}" if zoned else address.host,
                interface=link.name,
                prefix_length=address.prefix_length,
                family=6 if six else 4,
                kind=kind,
                # For IPv4 the same bit means a second address of one network (IFA_F_SECONDARY).
                temporary=six and bool(address.flags & netlink.IFA_F_TEMPORARY),
                deprecated=bool(address.flags & netlink.IFA_F_DEPRECATED),
            )
        )
    return sorted(found, key=lambda one: (_ORDER.index(one.kind), one.deprecated, one.temporary))


def _dump() -> tuple[dict[int, netlink.Link], list[netlink.InterfaceAddress]]:
    links: dict[int, netlink.Link] = {}
    addresses: list[netlink.InterfaceAddress] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.settimeout(_DUMP_TIMEOUT_S)
        sock.bind((0, 0))
        for sequence, kind in enumerate((netlink.RTM_GETLINK, netlink.RTM_GETADDR), start=1):
            sock.sendto(netlink.dump_request(kind, sequence), (0, 0))
            done = False
            while not done:
                data, (sender, _) = sock.recvfrom(_DUMP_BYTES)
                if sender != 0:  # only the kernel has this number
                    continue
                for answer, number, body in netlink.messages(data):
                    if number != sequence:
                        continue
                    if answer in {netlink.NLMSG_DONE, netlink.NLMSG_ERROR}:
                        done = True
                    elif answer == netlink.RTM_NEWLINK:
                        link = netlink.parse_link(body)
                        links[link.index] = link
                    elif answer == netlink.RTM_NEWADDR:
                        address = netlink.parse_address(body)
                        if address is not None:
                            addresses.append(address)
    return links, addresses


async def changes(*, debounce_s: float = DEBOUNCE_S) -> AsyncGenerator[None, None]:
    """Wake up when links, addresses or routes of this machine may have changed.

    The first item comes at once, when the subscription stands: a look taken then misses nothing that follows. Items that come
    while the consumer is busy are one. Use it inside `contextlib.aclosing`, so that its socket closes when the loop is left,
    by cancellation too:

        async with aclosing(changes()) as news:
            async for _ in news:
                look(local_addresses())
    """
    sock = _subscribe()
    if sock is None:
        while True:
            yield
            await trio.sleep(POLL_S)
    with sock:
        yield
        while True:
            await _event(sock)
            with trio.move_on_after(debounce_s):
                while True:
                    await _event(sock)
            yield


def _subscribe() -> trio.socket.SocketType | None:
    try:
        raw = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    except (OSError, AttributeError):
        return None
    try:
        raw.setblocking(False)
        raw.bind((0, netlink.GROUPS))
    except OSError:
        raw.close()
        return None
    return trio.socket.from_stdlib_socket(raw)


async def _event(sock: trio.socket.SocketType) -> None:
    try:
        await sock.recv(_DUMP_BYTES)
    except OSError as error:
        # ENOBUFS: more events than fit, which is a change, too. Anything else: look by the clock.
        if error.errno != errno.ENOBUFS:
            await trio.sleep(POLL_S)
