"""Keep a port of the gateway open for as long as this runs.

Problem: a node behind a home router can be dialed only if the router leads a port of its own to it, and routers differ, restart
and change. Idea: `mapping_core` decides; this file does what it says by one of the `methods`, listens for announcements of the
gateway, and looks again at the routing table whenever the network of the machine changes.

Invariants: answers are taken from the gateway's address only; whatever was or may have been mapped is removed on the way out,
within RELEASE_S, also when `run` is cancelled; when `run` has ended no socket is open and no task is left (a thread inside
miniupnpc may outlive it, see `upnp`).
"""

from __future__ import annotations

import logging
import random
import secrets
from collections.abc import Callable, Iterable
from contextlib import aclosing
from typing import Final

import attrs
import trio

from transport.address_kinds import AddressKind
from transport.errors import MalformedMessage, TransportError
from transport.nat import natpmp, pcp
from transport.nat.gateway import Gateway, default_gateway
from transport.nat.gateway_socket import GatewaySilent, GatewaySocket, open_announcements
from transport.nat.mapping_core import Ask, Check, Idle, MapMethod, Mapping, MappingCore
from transport.nat.methods import Method, NatPmpMethod, PcpMethod, UpnpMethod
from transport.nat.upnp import Igd, Upnp, load_igd
from transport.reach.interfaces import changes, local_addresses

__all__ = ["Gateway", "Igd", "MapMethod", "Mapping", "PortMapper"]

log = logging.getLogger(__name__)

LIFETIME_S: Final = 3600.0
RELEASE_S: Final = 1.0
"""The most that leaving costs; a mapping that could not be removed ends with its lifetime."""
READ_BYTES: Final = 1101


@attrs.frozen
class _Place:
    """What a mapping depends on: the router and our own address on its network."""

    gateway: Gateway
    local_host: str


class PortMapper:
    """One TCP port of ours, open at the gateway.

    Attributes:
        listen_port: the port that the mapping leads to.
    """

    def __init__(
        self,
        listen_port: int,
        *,
        lifetime_s: float = LIFETIME_S,
        methods: Iterable[str] = ("pcp", "natpmp", "upnp"),
        gateway: Gateway | None = None,
        on_change: Callable[[Mapping | None], None] | None = None,
        family: int = 4,
        nonce: bytes | None = None,
        gateway_port: int = natpmp.PORT,
        announcements: tuple[str, int] | None = (natpmp.ANNOUNCE_GROUP, natpmp.ANNOUNCE_PORT),
        load: Callable[[str], Igd] = load_igd,
        rng: random.Random | None = None,
    ) -> None:
        """Nothing is sent before `run`.

        Args:
            listen_port: where we listen, 1 to 65535.
            lifetime_s: what to ask for; renewed at half of it.
            methods: "pcp", "natpmp", "upnp", in the order to try.
            gateway: the router; None finds the default gateway and follows its changes.
            on_change: told the mapping, or None, whenever its external address, method or gateway is another; must not block.
            family: 4, or 6 to open a port in the gateway's IPv6 firewall (PCP alone can).
            nonce: 12 bytes for PCP. The same after a restart lets us take over what we had mapped; None draws one.
            gateway_port: where the gateway listens for PCP and NAT-PMP.
            announcements: group and port where gateways announce a restart; None does not listen.
            load: makes miniupnpc's object.
            rng: for jitter.

        Raises:
            ValueError: an unknown method.
        """
        self.listen_port = listen_port
        chosen = [MapMethod(method) for method in methods]
        self._family = family
        self._fixed = gateway
        self._on_change = on_change
        self._nonce = nonce if nonce is not None else secrets.token_bytes(pcp.NONCE_BYTES)
        self._gateway_port = gateway_port
        self._announcements = announcements if family == 4 else None
        self._load = load
        self._lifetime_s = round(lifetime_s)
        self._core = MappingCore(
            port=listen_port,
            lifetime_s=lifetime_s,
            methods=[m for m in chosen if family == 4 or m is MapMethod.PCP],
            rng=rng or random.Random(secrets.randbits(64)),
        )
        self._place: _Place | None = None
        self._methods: dict[MapMethod, Method] = {}  # of the gateway that we are at
        self._attempt: trio.CancelScope | None = None
        self._wake = trio.Event()
        self._told: Mapping | None = None
        self._perhaps: dict[MapMethod, int] = {}  # external ports that may be open at the gateway

    @property
    def mapping(self) -> Mapping | None:
        """What is open now; `expires_at` is in trio's clock."""
        held = self._core.mapping
        return held if held is not None and held.expires_at > trio.current_time() else None

    @property
    def settled(self) -> bool:
        """Whether the port is open, or every method has been tried in vain."""
        return self.mapping is not None or self._core.exhausted

    @property
    def failures(self) -> dict[str, str]:
        """Method -> why its last attempt brought nothing."""
        return {str(method): reason for method, reason in self._core.failures.items()}

    async def run(self) -> None:
        """Map, renew, and map again, until cancelled; then remove the mapping, which takes RELEASE_S at most."""
        try:
            async with trio.open_nursery() as nursery:
                if self._announcements is not None:
                    nursery.start_soon(self._hear, *self._announcements)
                nursery.start_soon(self._follow)
                await self._work()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + RELEASE_S):
                async with trio.open_nursery() as nursery:
                    for method, port in self._perhaps.items():
                        nursery.start_soon(self._release, method, port)
            self._perhaps.clear()
            self._core.gateway_changed(None, trio.current_time())
            self._tell()

    # --- where we are ---

    async def _follow(self) -> None:
        """Look at the routing table now and after every change."""
        async with aclosing(changes()) as news:
            async for _ in news:
                await self._settle(self._fixed or await default_gateway(self._family))

    async def _settle(self, gateway: Gateway | None) -> None:
        place = self._place_at(gateway) if gateway is not None else None
        now = trio.current_time()
        if place == self._place and (place is not None or self._core.failures):
            await trio.lowlevel.checkpoint()
            return
        self._place = place
        self._methods = {} if place is None else self._methods_at(place)
        self._perhaps.clear()  # it is another router's business, or leads to an address that we do not have
        self._core.gateway_changed(place.gateway.host if place is not None else None, now)
        if self._attempt is not None:
            self._attempt.cancel()
        self._nudge()
        await trio.lowlevel.checkpoint()

    def _methods_at(self, place: _Place) -> dict[MapMethod, Method]:
        port, source = self.listen_port, place.local_host if self._family == 6 else ""

        def open_socket() -> GatewaySocket:
            return GatewaySocket(place.gateway.host, self._gateway_port, source=source)

        router = Upnp(place.gateway.host, source=place.local_host, load=self._load)
        return {
            MapMethod.PCP: PcpMethod(port, self._nonce, open_socket),
            MapMethod.NATPMP: NatPmpMethod(port, open_socket),
            MapMethod.UPNP: UpnpMethod(port, router),
        }

    def _place_at(self, gateway: Gateway) -> _Place | None:
        source = ""
        if self._family == 6 and self._fixed is None:
            # The gateway is link-local; what is to be opened is a global address of ours.
            found = [
                local.host
                for local in local_addresses()
                if local.family == 6
                and local.kind is AddressKind.GLOBAL
                and local.interface == gateway.interface
                and not local.deprecated
            ]
            if not found:
                return None
            source = found[0]
        try:
            with GatewaySocket(gateway.host, self._gateway_port, source=source) as sock:
                return _Place(gateway, sock.local_host)
        except GatewaySilent:
            return None

    # --- what the core says ---

    async def _work(self) -> None:
        while True:
            step = self._core.next_step(trio.current_time())
            self._tell()
            if isinstance(step, Idle):
                with trio.move_on_at(step.until):
                    await self._wake.wait()
                self._wake = trio.Event()
                continue
            with trio.CancelScope() as self._attempt:
                if isinstance(step, Ask):
                    await self._ask(step)
                else:
                    await self._check(step)
            self._attempt = None

    async def _ask(self, step: Ask) -> None:
        place, held = self._place, self._core.mapping
        held_host = "" if held is None else held.external.host
        self._perhaps[step.method] = step.external_port
        try:
            grant = await self._methods[step.method].map(
                step.external_port, self._lifetime_s, external_host=held_host
            )
        except TransportError as error:
            if place is self._place:
                held = self._core.mapping
                if held is None or held.method is not step.method:
                    self._perhaps.pop(step.method, None)
                wait = error.lifetime_s if isinstance(error, pcp.PcpRefused) else 0
                log.debug("no mapping by %s: %s", step.method, error)
                self._core.failed(step.method, str(error), trio.current_time(), retry_after_s=wait)
            return
        if place is not self._place:
            return
        self._perhaps[step.method] = grant.external_port
        if not self._core.mapped(step.method, grant, trio.current_time()):
            self._perhaps.pop(step.method)
            with trio.move_on_after(RELEASE_S):
                await self._release(step.method, grant.external_port)

    async def _check(self, step: Check) -> None:
        place, held = self._place, self._core.mapping
        assert held is not None
        try:
            checked = await self._methods[step.method].check(held.external.port)
        except TransportError as error:
            if place is self._place:
                log.debug("the gateway does not answer a check: %s", error)
                self._core.check_failed(trio.current_time())
            return
        if place is self._place:
            now = trio.current_time()
            self._core.checked(now, external_host=checked.external_host)
            if not checked.alive:
                self._core.epoch_lost(now)

    async def _release(self, method: MapMethod, external_port: int) -> None:
        """Remove a mapping; the caller bounds the time."""
        try:
            if (way := self._methods.get(method)) is not None:
                await way.release(external_port)
        except TransportError as error:
            log.debug("a mapping was not removed by %s: %s", method, error)

    # --- what the gateway says unasked ---

    async def _hear(self, group: str, port: int) -> None:
        try:
            sock = open_announcements(group, port)
        except OSError as error:
            log.debug("announcements of gateways cannot be heard: %s", error.strerror)
            return  # the checks find a restart as well, later
        with sock:
            while True:
                try:
                    data, sender = await sock.recvfrom(READ_BYTES)
                except OSError:
                    await trio.sleep(1)  # the network went down; it says so once
                    continue
                place = self._place
                if place is not None and sender[0] == place.gateway.host:
                    self._announced(data)

    def _announced(self, data: bytes) -> None:
        try:
            if data[:1] == bytes((pcp.VERSION,)):
                pcp.parse_announce(data)
            else:
                natpmp.parse_address(data)
        except (MalformedMessage, pcp.PcpRefused, natpmp.NatPmpRefused):
            return
        self._core.announced(trio.current_time())
        self._nudge()

    def _nudge(self) -> None:
        self._wake.set()

    def _tell(self) -> None:
        held, told = self._core.mapping, self._told
        self._told = held
        same = (
            (held.external, held.method, held.gateway) == (told.external, told.method, told.gateway)
            if held is not None and told is not None
            else held is told
        )
        if not same:
            if held is not None:
                log.info("port %d is open at the gateway as %s", self.listen_port, held.external)
            elif told is not None:
                log.info("port %d is not open at the gateway any more", self.listen_port)
            if self._on_change is not None:
                self._on_change(held)
