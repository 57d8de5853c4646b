"""Being reached: everything a node does so that others can connect to it, and knows about that.

`open_reach` runs beside an endpoint and holds the parts together. Each part learns something; each piece of news leads to one
`_settle`, which decides again, from all that is known, what to advertise and whether relays are needed:

    interfaces, port mapper, observers, dial-backs  ->  _settle  ->  advertised addresses, reservations, relay service

Invariants: the decision is a pure function of what the parts hold; every task ends with the block, and leaving it gives back port
mappings and reservations (for at most a second and a half); a part that fails to start says so in the report and stops nothing.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import math
import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any, Final

import attrs
import trio

from transport.address import Address
from transport.budget.admission import source_of
from transport.endpoint import Endpoint, PeerDown, PeerUp
from transport.identity import NodeId
from transport.nat.mapping_core import Mapping
from transport.nat.pcp import NONCE_BYTES
from transport.nat.portmap import PortMapper
from transport.network import Path
from transport.peer import Peer
from transport.punch.agreement import IPInterface
from transport.punch.puncher import Puncher, machine_interfaces, serve_punch
from transport.punch.upgrader import Upgrader
from transport.reach import interfaces as machine
from transport.reach.advertising import (
    KnownAddresses,
    addresses_to_tell,
    bound_addresses,
    is_public,
)
from transport.reach.diagnosis import Diagnosis, Facts, Relay, Standing, diagnose
from transport.reach.dial_back import ask_dial_back, can_be_asked, serve_dial_back
from transport.reach.log import ReachLog
from transport.reach.observed import ObservedAddresses
from transport.reach.openness import Openness
from transport.reach.reachability import Reachability, ReachabilitySettings
from transport.reach.report import punch_row, reach_report
from transport.relay.client import RelayClient
from transport.relay.service import RelayService
from transport.relay.settings import RelaySettings

PORT_MAPPING_METHODS: Final = ("pcp", "natpmp", "upnp")
"""Best first: one packet each for the first two, a web service for the last."""
MAX_MAPPED_PORTS: Final = 2
"""Listening ports to ask the router for: one is usual."""
_NO_RELAYS: Final = frozenset({Standing.DIRECT, Standing.LOCAL, Standing.ISOLATED})
PATIENCE_S: Final = 8.0
"""How long a machine with a public address waits for a verdict before it takes relays, too."""
SETTLE_S: Final = 0.2
"""News come in bursts (a node that starts gets several connections at once); one decision serves all."""

_log = logging.getLogger(__name__)

Interfaces = Callable[[], Iterable[IPInterface]]
News = Callable[[], AbstractAsyncContextManager[AsyncIterator[None]]]


def machine_news() -> AbstractAsyncContextManager[AsyncIterator[None]]:
    """Word of changes of this machine's addresses, for `ReachSettings.news`."""
    return aclosing(machine.changes())


@attrs.frozen(kw_only=True)
class ReachSettings:
    """What to do to be reached."""

    configured: tuple[Address, ...] = ()
    """Addresses to advertise instead of those found here."""
    port_mapping: tuple[str, ...] = PORT_MAPPING_METHODS
    """Methods to open a port at the router, in this order; none leaves the router alone."""
    punch: bool = True
    """Whether to try direct connections in place of relayed ones."""
    relay: RelaySettings = attrs.field(factory=RelaySettings)
    """Use of relays, and service as one."""
    relay_spent_bytes: int = 0
    """Of this relay's traffic budget, carried before this start."""
    reachability: ReachabilitySettings = attrs.field(factory=ReachabilitySettings)
    """How sure to be that others can dial us."""
    relays: tuple[Address, ...] = ()
    """Relays to use besides those found, with their ids (`host:port/via/<id>`)."""
    mapping_secret: bytes = attrs.field(default=b"", repr=False)
    """Makes the nonces of PCP, so that a node that was killed takes its mapping over; b"" draws new ones."""
    interfaces: Interfaces = machine_interfaces
    """This machine's interfaces, without loopback."""
    news: News | None = machine_news
    """Wakes up when the interfaces may have changed; None when they never do (a simulation)."""


class Reach:
    """How others reach this node; made by `open_reach`."""

    def __init__(self, endpoint: Endpoint, settings: ReachSettings, rng: random.Random) -> None:
        self.settings = settings
        self.observed = ObservedAddresses()
        self.reachability = Reachability(settings.reachability, rng)
        self.relays = RelayClient(endpoint, settings.relay, on_change=lambda _: self._news.set())
        self.relays.wanted = 0
        self.service = RelayService(
            endpoint, settings.relay, spent_bytes=settings.relay_spent_bytes
        )
        self.mappers: list[PortMapper] = []
        self.puncher: Puncher | None = None
        self.upgrader: Upgrader | None = None
        self.endpoint = endpoint
        self._hosts: tuple[str, ...] = ()
        self._networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()
        self._seen: dict[NodeId, Address] = {}  # peers only, so bounded by limits.max_peers
        self._strangers = Openness()
        self._lines = ReachLog(_log, trio.current_time())
        self._news = trio.Event()
        self._settled = trio.Event()
        self._diagnosis = diagnose(Facts())
        self._met_at = math.inf  # since when far peers are there, without a verdict
        serve_dial_back(endpoint)
        endpoint.is_near = self._is_near
        for address in settings.relays:
            self.relays.candidates.add(address)
        endpoint.on_observed.append(self._hear_observed)

    # ---- what is known ---------------------------------------------------------------------------

    @property
    def diagnosis(self) -> Diagnosis:
        """The verdict now."""
        return self._diagnosis

    def _direct(self) -> bool:
        return self._diagnosis.standing is Standing.DIRECT

    def facts(self) -> Facts:
        """What the verdict rests on, now."""
        now = trio.current_time()
        peers = self.endpoint.peers.values()
        tested = self._tested()
        return Facts(
            peers=len(peers),
            far_peers=sum(_is_far(peer) for peer in peers),
            interfaces=self._hosts,
            reached={address: self.reachability.reached(address, now) for address in tested},
            open=[address for address in tested if self._is_open(address, now)],
            observed=self.observed.believed(now),
            mapping=self._mapping(now),
            port_mapping=", ".join(
                str(held.method) for mapper in self.mappers if (held := mapper.mapping)
            ),
            port_mapping_failures={
                method: reason
                for mapper in self.mappers
                for method, reason in mapper.failures.items()
            },
            relays=[
                Relay(node=str(relay.node_id), rtt_s=relay.rtt_s) for relay in self.relays.relays
            ],
            punches=(0, 0)
            if self.upgrader is None
            else (self.upgrader.succeeded, self.upgrader.tried),
        )

    def _is_open(self, address: Address, now: float) -> bool:
        """Whether strangers can dial `address`.

        A dial-back comes from a host that we talk with, which a NAT that filters by address lets in. So it is proof where
        no such NAT can be: at an address of this machine, one that the router forwards or the operator vouches for;
        elsewhere only a stranger's connection is.
        """
        reached = self.reachability.reached(address, now)
        if reached is False:
            return False
        if self._strangers.is_open(address, now):
            return True
        known = address.host in self._hosts or address in self.settings.configured
        forwarded = any(held.external == address for held in self._mappings())
        return (known or forwarded) and reached is True

    def _mapping(self, now: float) -> str:
        """Mapping behaviour for IPv4; "none" when peers see an address of this machine itself."""
        outside = self.observed.hosts(now)
        if not outside and any(seen.host in self._hosts for seen in self._seen.values()):
            return "none"
        return str(self.observed.mapping(now))

    def report(self) -> dict[str, Any]:
        """Everything about being reached, now, as plain values."""
        return reach_report(self)

    def last_punch(self, node_id: NodeId) -> dict[str, Any] | None:
        """What came of the last attempt to connect directly to a relayed peer; None without one."""
        record = None if self.upgrader is None else self.upgrader.records.get(node_id)
        return None if record is None else punch_row(node_id, record, trio.current_time())

    # ---- what is decided -------------------------------------------------------------------------

    def _settle(self) -> None:
        now, endpoint = trio.current_time(), self.endpoint
        networks = {
            source_of(peer.address.host)
            for peer in endpoint.peers.values()
            if peer.path is not Path.RELAYED
        }
        self.observed.networks_in_swarm = self.reachability.networks_in_swarm = len(networks)
        self.reachability.set_addresses(self._tested(), now)
        self._diagnosis = diagnose(self.facts())
        if self._diagnosis.standing in _NO_RELAYS:
            self._met_at = math.inf
        elif self._met_at == math.inf:
            self._met_at = now
        self.relays.wanted = self.settings.relay.wanted if self._needs_relays(now) else 0
        addresses = addresses_to_tell(
            KnownAddresses(
                configured=self.settings.configured,
                bound=endpoint.addresses,
                interfaces=self._hosts,
                mapped=[held.external for held in self._mappings()],
                # One network alone could make both the address and its dial-back up.
                observed=self.observed.believed(now) if len(networks) > 1 else (),
                relayed=self.relays.addresses,
                open=[address for address in self._tested() if self._is_open(address, now)],
            ),
            lambda address: self.reachability.reached(address, now),
        )
        self._lines.diagnosis(self._diagnosis, now)
        self._lines.addresses(addresses, now)
        if addresses != endpoint.advertised:
            endpoint.set_advertised(addresses)
        self._settled.set()
        self._settled = trio.Event()

    def _mappings(self) -> list[Mapping]:
        """What routers forward; not what peers do not see us at, since anybody in the network may pose as the router."""
        seen = self.observed.hosts(trio.current_time())
        families = {":" in host for host in seen}
        held = [mapping for mapper in self.mappers if (mapping := mapper.mapping)]
        return [
            mapping
            for mapping in held
            if mapping.external.host in seen or (":" in mapping.external.host) not in families
        ]

    def _tested(self) -> list[Address]:
        """Public addresses that may lead here: what dial-backs are asked for."""
        candidates = [
            *self.settings.configured,
            *bound_addresses(self.endpoint.addresses, self._hosts),
            *(held.external for held in self._mappings()),
            *self.observed.believed(trio.current_time()),
        ]
        return [address for address in dict.fromkeys(candidates) if is_public(address.host)]

    def _needs_relays(self, now: float) -> bool:
        """Relays are for nodes with far peers that cannot be dialed, or that probably cannot."""
        if not self.settings.relay.use or self._diagnosis.standing in _NO_RELAYS:
            return False
        tested = self._tested()
        verdicts = [self.reachability.reached(address, now) for address in tested]
        has_public = any(address.host in self._hosts for address in tested)
        # A machine with a public address waits for its verdict, as most of them need no relay; but
        # not for ever: perhaps nobody is there who could be asked.
        return (
            not has_public
            or (bool(verdicts) and all(verdict is False for verdict in verdicts))
            or now >= self._met_at + PATIENCE_S
        )

    # ---- tasks -----------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Do everything until cancelled."""
        endpoint, settings = self.endpoint, self.settings
        self._look_at_interfaces()
        async with trio.open_nursery() as nursery:
            if settings.punch:
                self.puncher = serve_punch(
                    endpoint,
                    interfaces=settings.interfaces,
                    observed=lambda: self.observed.believed(trio.current_time()),
                )
                self.upgrader = Upgrader(endpoint, self.puncher)
                nursery.start_soon(self.upgrader.run)
            await nursery.start(self.relays.run)
            nursery.start_soon(self._run_service)
            self.mappers += [self._mapper(family, port) for family, port in self._ports_to_map()]
            for mapper in self.mappers:
                nursery.start_soon(mapper.run)
            if settings.news is not None:
                nursery.start_soon(self._watch_interfaces, settings.news)
            nursery.start_soon(self._watch_peers)
            nursery.start_soon(self._test)
            self._settle()
            task_status.started()
            while True:
                due = self._met_at + PATIENCE_S
                with trio.move_on_at(due if due > trio.current_time() else math.inf):
                    await self._news.wait()
                    await trio.sleep(SETTLE_S)
                self._news = trio.Event()
                self._settle()

    def _ports_to_map(self) -> list[tuple[int, int]]:
        """Address family and port of each listener that is not for this machine alone."""
        if not self.settings.port_mapping:
            return []
        wanted = [
            (6 if ":" in address.host else 4, address.port)
            for address in self.endpoint.addresses
            if not address.is_loopback
        ]
        return list(dict.fromkeys(wanted))[:MAX_MAPPED_PORTS]

    def _mapper(self, family: int, port: int) -> PortMapper:
        nonce = None
        if self.settings.mapping_secret:
            about = b"noded port mapping v1\0%d\0%d" % (family, port)
            nonce = hmac.digest(self.settings.mapping_secret, about, "sha256")[:NONCE_BYTES]
        return PortMapper(
            port,
            methods=self.settings.port_mapping,
            family=family,
            nonce=nonce,
            on_change=lambda _: self._news.set(),
        )

    async def _run_service(self) -> None:
        """Serve as a relay: always, never, or while others can dial us."""
        serve = self.settings.relay.serve
        if serve == "off":
            return
        if serve == "on":
            await self.service.run()
            return
        while True:
            while not self._direct():
                await self._settled.wait()
            async with trio.open_nursery() as nursery:
                await nursery.start(self.service.run)
                self._lines.say("serving as a relay for others", trio.current_time())
                while self._direct():
                    await self._settled.wait()
                nursery.cancel_scope.cancel()

    async def _watch_interfaces(self, news: News) -> None:
        async with news() as changes:
            async for _ in changes:
                before = self._hosts
                self._look_at_interfaces()
                if before != self._hosts:
                    self._moved(set(before) - set(self._hosts))

    def _look_at_interfaces(self) -> None:
        found_here = list(self.settings.interfaces())
        self._hosts = tuple(dict.fromkeys(str(found.ip) for found in found_here))
        self._networks = tuple(found.network for found in found_here)
        self.observed.set_own(self._hosts)

    def _is_near(self, host: str) -> bool:
        address = ipaddress.ip_address(host.partition("%")[0])
        return any(address in network for network in self._networks)

    def _moved(self, gone: set[str]) -> None:
        """Our addresses are others now: what was learnt at the old ones means nothing."""
        now = trio.current_time()
        self._lines.say(f"this machine's addresses: {', '.join(self._hosts) or 'none'}", now)
        self.observed.clear()
        self._strangers.clear()
        self.reachability.restart(now)
        for peer in list(self.endpoint.peers.values()):
            host = peer.primary.link.raw.local.host
            if host in gone:  # it would hang until the silence is noticed
                peer.replace(f"the local address {host} is gone")
        if self.upgrader is not None:
            self.upgrader.start_over()
        self._news.set()

    async def _watch_peers(self) -> None:
        with self.endpoint.watch() as events:
            async for event in events:
                if isinstance(event, PeerDown):
                    self._seen.pop(event.peer.node_id, None)
                elif isinstance(event, PeerUp) and event.peer.path is not Path.RELAYED:
                    self.reachability.hasten(trio.current_time())
                self._news.set()

    def _hear_observed(self, peer: Peer, seen: Address) -> None:
        if peer.path is Path.RELAYED:
            return
        self._seen[peer.node_id] = seen
        ports = {address.port for address in self.endpoint.addresses}
        host = peer.address.host
        if peer.initiated:
            if peer.primary.link.raw.local.port in ports:
                self.observed.report(host, seen, trio.current_time())
        elif peer.path is Path.DIRECT and not self.endpoint.has_dialed(host):
            self._strangers.stranger(seen, host, trio.current_time())
        self._news.set()

    async def _test(self) -> None:
        """Ask for dial-backs as they are due, one at a time."""
        while True:
            now = trio.current_time()
            for address in self.reachability.due(now):
                await self._ask(address)
            deadline = self.reachability.next_deadline()
            with trio.move_on_at(float("inf") if deadline is None else deadline):
                await self._news.wait()
                await trio.sleep(SETTLE_S)

    async def _ask(self, address: Address) -> None:
        servers = [
            peer
            for peer in self.endpoint.peers.values()
            if can_be_asked(peer, address)
            and (seen := self._seen.get(peer.node_id)) is not None
            and seen.host == address.host  # a server dials nobody else than who asks
        ]
        hosts = [peer.address.host for peer in servers]
        now = trio.current_time()
        chosen = self.reachability.choose(address, hosts, now)
        if chosen is None:
            self.reachability.no_vote(address, now)
            return
        result = await ask_dial_back(self.endpoint, servers[chosen], address)
        now = trio.current_time()
        if result.reached is None:
            self.reachability.no_vote(address, now)
        else:
            self.reachability.vote(address, hosts[chosen], result.reached, now)
        self._news.set()


def _is_far(peer: Peer) -> bool:
    return peer.path is Path.RELAYED or is_public(peer.address.host)


@asynccontextmanager
async def open_reach(
    endpoint: Endpoint, settings: ReachSettings | None = None, *, rng: random.Random
) -> AsyncIterator[Reach]:
    """Make `endpoint` reachable, as well as its network allows, for the length of the block.

    Args:
        endpoint: to be reached; it listens already.
        settings: the defaults when None.
        rng: of pauses and choices.
    """
    reach = Reach(endpoint, ReachSettings() if settings is None else settings, rng)
    async with trio.open_nursery() as nursery:
        await nursery.start(reach.run)
        yield reach
        nursery.cancel_scope.cancel()


__all__ = ["Reach", "ReachSettings", "open_reach"]
