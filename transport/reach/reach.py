"""Being reached: everything a node does so that others can connect to it, and knows about that.

`open_reach` runs beside an endpoint and holds the parts together. Each part learns something; each piece of news leads to one
`_settle`, which decides again, from all that is known, what to advertise and whether relays are needed:

    interfaces, port mapper, observers, dial-backs  ->  _settle  ->  advertised addresses, reservations, relay service

What has been learnt is in `transport.reach.evidence`, what follows from it in `transport.reach.advertising` and `transport.reach.diagnosis`.

Invariants: the decision is a pure function of what the parts hold; every task ends with the block, and leaving it gives back port
mappings and reservations (for at most a second and a half); a part that fails to start says so in the report and stops nothing.
"""

from __future__ import annotations

import hmac
import logging
import math
import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Final

import attrs
import trio

from transport.address import Address
from transport.address_kinds import is_public
from transport.budget.admission import source_of
from transport.endpoint import Endpoint, PeerDown, PeerUp
from transport.nat.mapping_core import Mapping
from transport.nat.pcp import NONCE_BYTES
from transport.nat.portmap import PortMapper
from transport.network import Path
from transport.peer import Peer
from transport.punch.puncher import Puncher, machine_interfaces
from transport.punch.targets import IPInterface
from transport.punch.upgrader import Upgrader
from transport.reach import interfaces as machine
from transport.reach.advertising import KnownAddresses, addresses_to_tell
from transport.reach.diagnosis import Diagnosis, Facts, Relay, Standing, diagnose
from transport.reach.dial_back import ask_dial_back, can_be_asked, serve_dial_back
from transport.reach.evidence import Evidence
from transport.reach.log import ReachLog
from transport.reach.outside import Outside
from transport.reach.reachability import ReachabilitySettings
from transport.relay.client import RelayClient
from transport.relay.service import RelayService
from transport.relay.settings import RelaySettings
from transport.watch import Lagged

PORT_MAPPING_METHODS: Final = ("pcp", "natpmp", "upnp")
"""Best first: one packet each for the first two, a web service for the last."""
MAX_MAPPED_PORTS: Final = 2
"""Listening ports to ask the router for: one is usual."""
_NO_RELAYS: Final = frozenset({Standing.DIRECT, Standing.LOCAL, Standing.ISOLATED})
MAX_ASKED_TO_COME: Final = 2
"""Peers asked to come over one relay, at random; who is not connected with it refuses at once."""
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
    knows_others: bool = True
    """Whether this node was given addresses of others to begin with; for the advice when nobody is connected."""
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
        self.evidence = Evidence(settings.configured, settings.reachability, rng)
        self.relays = RelayClient(endpoint, settings.relay, on_change=lambda _: self._news.set())
        self.relays.wanted = 0
        self.relays.ask_to_come = self._ask_to_come
        self.service = RelayService(
            endpoint, settings.relay, spent_bytes=settings.relay_spent_bytes
        )
        self.mappers: list[PortMapper] = []
        self.puncher: Puncher | None = None
        self.upgrader: Upgrader | None = None
        self.endpoint = endpoint
        self._outside = Outside(endpoint, self.evidence.observations)
        self._lines = ReachLog(_log, trio.current_time())
        self._news = trio.Event()
        self._settled = trio.Event()
        self._diagnosis = diagnose(Facts())
        self._met_at = math.inf  # since when far peers are there, without a verdict
        serve_dial_back(endpoint)
        endpoint.is_near = self.evidence.is_near
        endpoint.leave_from_listener = self._leave_from_listener
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
        evidence, mappings, tested = self.evidence, self._mappings(), self._tested(now)
        return Facts(
            peers=len(peers),
            knows_others=self.settings.knows_others,
            far_peers=sum(_is_far(peer) for peer in peers),
            interfaces=evidence.hosts,
            reached={address: evidence.reachability.reached(address, now) for address in tested},
            open=[address for address in tested if evidence.is_open(address, mappings, now)],
            observed=evidence.observations.believed(now),
            mapping=evidence.mapping(now),
            port_mapping=", ".join(str(held.method) for held in mappings),
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

    def _mappings(self) -> list[Mapping]:
        """What routers say that they forward to us."""
        return [mapping for mapper in self.mappers if (mapping := mapper.mapping)]

    def _tested(self, now: float) -> list[Address]:
        return self.evidence.tested(self.endpoint.addresses, self._mappings(), now)

    # ---- what is decided -------------------------------------------------------------------------

    def _settle(self) -> None:
        now, endpoint = trio.current_time(), self.endpoint
        networks = {
            source_of(peer.address.host)
            for peer in endpoint.peers.values()
            if peer.path is not Path.RELAYED
        }
        evidence, mappings = self.evidence, self._mappings()
        evidence.set_networks_in_swarm(len(networks))
        tested = self._tested(now)
        evidence.reachability.set_addresses(tested, now)
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
                interfaces=evidence.hosts,
                mapped=[held.external for held in evidence.plausible(mappings, now)],
                # One network alone could make both the address and its dial-back up.
                observed=evidence.observations.believed(now) if len(networks) > 1 else (),
                relayed=self.relays.addresses,
                open=[address for address in tested if evidence.is_open(address, mappings, now)],
            ),
            lambda address: evidence.reachability.reached(address, now),
        )
        self._lines.diagnosis(self._diagnosis, now)
        self._lines.addresses(addresses, now)
        if addresses != endpoint.advertised:
            endpoint.set_advertised(addresses)
        self._settled.set()
        self._settled = trio.Event()

    def _needs_relays(self, now: float) -> bool:
        """Relays are for nodes with far peers that cannot be dialed, or that probably cannot."""
        if not self.settings.relay.use or self._diagnosis.standing in _NO_RELAYS:
            return False
        tested = self._tested(now)
        verdicts = [self.evidence.reachability.reached(address, now) for address in tested]
        has_public = any(address.host in self.evidence.hosts for address in tested)
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
                self.puncher = Puncher(
                    endpoint, self.evidence.observations, interfaces=settings.interfaces
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
            nursery.start_soon(self._watch_peers, nursery)
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
                if self._outside.should_look:
                    nursery.start_soon(self._outside.look)

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
        own = self.endpoint.trust.own
        may_relay = own is not None and own.leaf.role != "observer"
        if serve == "off" or not may_relay:  # nobody would ask an observer
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
                before = self.evidence.hosts
                self._look_at_interfaces()
                if before != self.evidence.hosts:
                    self._moved(set(before) - set(self.evidence.hosts))

    def _look_at_interfaces(self) -> None:
        self.evidence.set_interfaces(self.settings.interfaces())

    def _moved(self, gone: set[str]) -> None:
        """Our addresses are others now: what was learnt at the old ones means nothing."""
        now = trio.current_time()
        hosts = ", ".join(self.evidence.hosts)
        self._lines.say(f"this machine's addresses: {hosts or 'none'}", now)
        self.evidence.move(now)
        self._outside.start_over()
        for peer in list(self.endpoint.peers.values()):
            host = peer.primary.link.raw.local.host
            if host in gone:  # it would hang until the silence is noticed
                peer.replace(f"the local address {host} is gone")
        if self.upgrader is not None:
            self.upgrader.start_over()
        self._news.set()

    async def _watch_peers(self, nursery: trio.Nursery) -> None:
        observations = self.evidence.observations
        with self.endpoint.watch() as events:
            async for event in events:
                match event:
                    case PeerDown(peer, _):
                        if peer.node_id not in self.endpoint.peers:  # else it is back already
                            observations.forget(peer.node_id)
                    case Lagged():
                        observations.keep(self.endpoint.peers)
                    case PeerUp(peer) if peer.path is not Path.RELAYED:
                        self.evidence.reachability.hasten(trio.current_time())
                        if self._outside.should_look:  # a punch may come at any moment
                            nursery.start_soon(self._outside.look)
                    case _:
                        pass
                self._news.set()

    def _leave_from_listener(self, address: Address) -> bool:
        """Dial from the port we listen on where that shows what our NAT does, and only there."""
        now = trio.current_time()
        return address.is_ip and self.evidence.observations.wanted(address.host, now)

    def _hear_observed(self, peer: Peer, seen: Address) -> None:
        if peer.path is Path.RELAYED:
            return
        now, host = trio.current_time(), peer.address.host
        ports = {address.port for address in self.endpoint.addresses}
        from_listener = peer.initiated and peer.primary.link.raw.local.port in ports
        noted = self.evidence.observations.note(
            peer.node_id, host, seen, now, from_listener=from_listener
        )
        dialed_us = not peer.initiated and peer.path is Path.DIRECT
        if noted and dialed_us and not self.endpoint.has_dialed(host):
            self.evidence.strangers.stranger(seen, host, now)
        self._news.set()

    async def _test(self) -> None:
        """Ask for dial-backs as they are due, one at a time."""
        while True:
            now = trio.current_time()
            for address in self.evidence.reachability.due(now):
                await self._ask(address)
            deadline = self.evidence.reachability.next_deadline()
            with trio.move_on_at(float("inf") if deadline is None else deadline):
                await self._news.wait()
                await trio.sleep(SETTLE_S)

    async def _ask(self, address: Address) -> None:
        reachability, observations = self.evidence.reachability, self.evidence.observations
        servers = [
            peer
            for peer in self.endpoint.peers.values()
            if can_be_asked(peer, address)  # a server dials nobody else than who asks
            and observations.sees_us_at(peer.node_id, six=":" in address.host) == address.host
        ]
        hosts = [peer.address.host for peer in servers]
        now = trio.current_time()
        chosen = reachability.choose(address, hosts, now)
        if chosen is None:
            reachability.no_vote(address, now)
            return
        result = await ask_dial_back(self.endpoint, servers[chosen], address)
        now = trio.current_time()
        if result.reached is None:
            reachability.no_vote(address, now)
        else:
            reachability.vote(address, hosts[chosen], result.reached, now)
        self._news.set()

    async def _ask_to_come(self, address: Address) -> bool:
        """Have a peer come to us over a relay; returns whether one did."""
        others = [
            peer
            for peer in self.endpoint.peers.values()
            if peer.path is not Path.RELAYED and peer.node_id != address.relay_id
        ]
        for peer in self.endpoint.rng.sample(others, min(MAX_ASKED_TO_COME, len(others))):
            if (await ask_dial_back(self.endpoint, peer, address)).reached:
                return True
        return False


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
