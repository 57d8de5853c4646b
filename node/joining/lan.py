"""The beacon's sockets: say on every network of this machine where we listen, hear the others, dial them.

One UDP socket for IPv4 multicast and one for IPv6, both bound to the group's port and shared with other nodes on this machine
(SO_REUSEADDR). The groups are of this machine's own links: 239.255.0.0/16 with a TTL of 1 (RFC 2365), and ff02:: (RFC 4291). The networks
are looked up again at every beacon, so that a laptop that changes networks is heard on the new one.

Nothing is ever sent in answer to a datagram. Whoever is heard of is dialed by the ordinary way, whose handshake proves who it is; at
most `DIALS` at a time.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import random
import socket
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Final, Protocol

import trio

from node.joining.beacon import BEACON_BYTES, Beacon, Hint
from node.wall_clock import wall_ms
from transport.address import Address
from transport.address_kinds import AddressKind
from transport.errors import TransportError
from transport.identity import Identity, NodeId
from transport.reach.interfaces import LocalAddress, local_addresses
from transport.swarm import Swarm

__all__ = ["announces", "discover"]

PORT: Final = 7447
GROUP_V4: Final = "239.255.110.100"
GROUP_V6: Final = "ff02::6e6f:6465"
DIALS: Final = 4
DIAL_S: Final = 10.0
MAX_NETWORKS: Final = 16
_READ_BYTES: Final = BEACON_BYTES + 1
"""One more than a beacon has, so that a longer datagram is seen to be none."""
_STILL_THERE: Final = {errno.EADDRINUSE}
"""The group was joined on that interface before."""

_log = logging.getLogger(__name__)


class LanEndpoint(Protocol):
    """What this needs of `transport.endpoint.Endpoint`."""

    @property
    def identity(self) -> Identity: ...
    @property
    def swarm(self) -> Swarm: ...
    @property
    def addresses(self) -> tuple[Address, ...]: ...
    @property
    def peers(self) -> Mapping[NodeId, object]: ...
    async def connect(
        self, addresses: Sequence[Address], *, expected: NodeId | None = None
    ) -> object: ...


def announces(listening: Iterable[Address]) -> bool:
    """Whether there is anything to say: the node listens beyond this machine."""
    return any(not address.is_loopback for address in listening)


async def discover(
    endpoint: LanEndpoint,
    *,
    rng: random.Random,
    wall_ms: Callable[[], int] = wall_ms,
    port: int = PORT,
) -> None:
    """Send beacons and follow those of others, until cancelled.

    Args:
        endpoint: of the node.
        rng: for jitter.
        wall_ms: milliseconds since 1970.
        port: UDP port of the beacons; another one in tests.
    """
    core = Beacon(endpoint.identity, endpoint.swarm, rng, trio.current_time())
    with ExitStack() as stack:
        sockets = {}
        for family in (4, 6):
            try:
                sockets[family] = stack.enter_context(_open(family, port))
            except OSError as error:
                _log.info("no LAN discovery over IPv%d: %s", family, error.strerror)
        names: dict[int, str] = {}
        limiter = trio.CapacityLimiter(DIALS)
        async with trio.open_nursery() as nursery:

            def follow(data: bytes, host: str, interface: int) -> None:
                if interface in names and ipaddress.ip_address(host).is_link_local:
                    host = f"{host}%{names[interface]}"
                hint = core.receive(data, host, trio.current_time(), wall_ms())
                if hint is not None and hint.node_id not in endpoint.peers:
                    nursery.start_soon(_dial, endpoint, hint, limiter)

            for sock in sockets.values():
                nursery.start_soon(_listen, sock, follow)
            while True:
                names.update(_join_groups(sockets))
                await trio.sleep_until(core.next_deadline())
                if core.tick(trio.current_time()):
                    await _announce(core, sockets, endpoint.addresses, port, wall_ms)


def _networks() -> list[LocalAddress]:
    """One address for each interface and family: over IPv6 the link-local one, which every interface has."""
    found: dict[tuple[str, int], LocalAddress] = {}
    for address in local_addresses(link_local=True):
        if address.family == 4 or address.kind is AddressKind.LINK_LOCAL:
            found.setdefault((address.interface, address.family), address)
    return list(found.values())[:MAX_NETWORKS]


def _open(family: int, port: int) -> trio.socket.SocketType:
    sock = socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == 4:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
            sock.bind((GROUP_V4, port))  # the group's own datagrams, and no others
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 1)
            sock.bind(("::", port))
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return trio.socket.from_stdlib_socket(sock)


def _join_groups(sockets: Mapping[int, trio.socket.SocketType]) -> dict[int, str]:
    """Hear beacons on all networks; returns the names of the interfaces by number."""
    names = {}
    for network in _networks():
        sock = sockets.get(network.family)
        if sock is None:
            continue
        try:
            if network.family == 4:
                group = socket.inet_aton(GROUP_V4) + socket.inet_aton(network.host)
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
            else:
                index = socket.if_nametoindex(network.interface)
                names[index] = network.interface
                group = socket.inet_pton(socket.AF_INET6, GROUP_V6) + struct.pack("@I", index)
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
        except OSError as error:
            if error.errno not in _STILL_THERE:
                _log.debug("cannot listen for beacons on %s: %s", network.interface, error.strerror)
    return names


async def _announce(
    core: Beacon,
    sockets: Mapping[int, trio.socket.SocketType],
    listening: Iterable[Address],
    port: int,
    wall_ms: Callable[[], int],
) -> None:
    for network in _networks():
        sock, listens_on = sockets.get(network.family), _port_on(network, listening)
        if sock is None or not listens_on:
            continue
        data = core.make(listens_on, wall_ms())
        try:
            if network.family == 4:
                source = socket.inet_aton(network.host)
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, source)
                await sock.sendto(data, (GROUP_V4, port))
            else:
                index = socket.if_nametoindex(network.interface)
                await sock.sendto(data, (GROUP_V6, port, 0, index))
        except OSError as error:  # no route, a firewall, an interface that has just gone
            _log.debug("no beacon on %s: %s", network.interface, error.strerror)


def _port_on(network: LocalAddress, listening: Iterable[Address]) -> int:
    """The TCP port at which this address is listened on; 0 for none."""
    wildcard = "0.0.0.0" if network.family == 4 else "::"  # noqa: S104 (compared with)
    hosts = {wildcard, network.host}
    return next((address.port for address in listening if address.host in hosts), 0)


async def _listen(sock: trio.socket.SocketType, follow: Callable[[bytes, str, int], None]) -> None:
    while True:
        try:
            data, source = await sock.recvfrom(_READ_BYTES)
        except OSError as error:
            _log.debug("a beacon could not be read: %s", error.strerror)
            await trio.sleep(1)
            continue
        follow(data, str(source[0]).partition("%")[0], source[3] if len(source) == 4 else 0)


async def _dial(endpoint: LanEndpoint, hint: Hint, limiter: trio.CapacityLimiter) -> None:
    async with limiter:
        with trio.move_on_after(DIAL_S):
            try:
                await endpoint.connect([hint.address], expected=hint.node_id)
            except TransportError as error:
                _log.debug("heard of %s, but: %s", hint.node_id.short, error)
            else:
                _log.info("found %s on this network", hint.node_id.short)
