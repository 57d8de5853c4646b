"""A simulated machine: its listeners, and how it opens connections.

A connection attempt sends a SYN, and sends it again after 1, 2, 4, ... seconds as Linux does while nothing comes back. What a SYN meets
at a host is decided as RFC 9293 and Linux do it, by its four addresses:

* an attempt of that host from and to exactly these addresses: the two become one connection, and both attempts return an end of it
  (simultaneous open, RFC 9293 section 3.5; on the wire both are done after two one-way delays, here too);
* a live connection between these addresses: the dialer has forgotten it, so it is reset, and the next SYN comes through;
* a listener on the port with room in its queue: a new connection; without room nothing is answered;
* otherwise an RST.

Not modelled: TIME_WAIT, and an RST that overtakes a SYN of the other side by less than a round trip.
"""
# ruff: noqa: SLF001  (world, host, listener and stream are one model in four classes)

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, ClassVar, Final

import trio

from transport.address import Address
from transport.connect.source import SourceBusy
from transport.errors import AddressInUse, ConnectFailed, ListenFailed
from transport.network import Network, RawListener, RawStream
from transport.simulated.link_model import LinkModel
from transport.simulated.nat_model import Refusal
from transport.simulated.nat_topology import Arrival, Realm, arrive, depart, reset
from transport.simulated.stream import MemoryStream
from transport.wakeup import Waiter

if TYPE_CHECKING:
    from transport.simulated.memory import MemoryNetwork

FIRST_EPHEMERAL_PORT: Final = 49152
CONNECT_TIMEOUT_S: Final = 127.0
"""How long Linux retries a SYN by default (tcp_syn_retries = 6)."""
FIRST_RETRY_S: Final = 1.0
"""After the first SYN; doubles each time (RFC 6298, section 2)."""


class Attempt:
    """A connection being opened: the state SYN-SENT of one pair of addresses."""

    __slots__ = ("local", "number", "ready_at", "stream", "target", "waiter")

    def __init__(self, number: int, local: Address, target: Address) -> None:
        self.number = number
        self.local = local
        self.target = target
        self.stream: MemoryStream | None = None  # set when a SYN of the other side meets this one
        self.ready_at = 0.0
        self.waiter = Waiter()


class MemoryHost(Network):
    """The network as one machine sees it; made by `MemoryNetwork.host`.

    Attributes:
        world: where it stands.
        ip: its own address.
        name: what links, partitions and kills call it: its address, with those of its NATs before it.
    """

    seeded: ClassVar[bool] = True

    def __init__(self, world: MemoryNetwork, realm: Realm, ip: str) -> None:
        self.world = world
        self.ip = ip
        self.name = realm.name_of(ip)
        self._realm = realm
        self._next_port = FIRST_EPHEMERAL_PORT
        self._listeners: dict[int, MemoryListener] = {}
        self._attempts: dict[tuple[int, Address], Attempt] = {}  # by local port and target
        self._flows: dict[tuple[int, Address], MemoryStream] = {}  # by local port and remote

    def __repr__(self) -> str:
        return f"<MemoryHost {self.name}>"

    async def connect(self, address: Address, *, source: Address | None = None) -> RawStream:
        """See `Network.connect`; takes one round trip.

        Raises:
            SourceBusy: `source` is not of this host; or it has a connection or an attempt between exactly these addresses, which may
                be the accepted dial of the other side.
        """
        await trio.lowlevel.checkpoint()
        if self.name in self.world._dead:
            raise ConnectFailed("network is down")
        with trio.move_on_after(CONNECT_TIMEOUT_S):
            return await self._connect(address, self._local(address, source))
        raise ConnectFailed("connection timed out")

    async def listen(self, address: Address) -> RawListener:
        """See `Network.listen`; the host part must be this host, or 0.0.0.0 for it."""
        await trio.lowlevel.checkpoint()
        if self.name in self.world._dead:
            raise ListenFailed(f"cannot listen on {address}: network is down")
        if not address.is_wildcard and address.host != self.ip:
            raise ListenFailed(f"cannot listen on {address}: this host is {self.ip}")
        port = address.port or self._ephemeral_port()
        if port in self._listeners:
            raise AddressInUse(f"cannot listen on {address}: the address is already in use")
        bound = Address(host=self.ip, port=port)
        listener = self._listeners[port] = MemoryListener(self, bound)
        self.world._record("listen", bound if self.name == self.ip else f"{self.name}:{port}")
        return listener

    # Opening

    def _local(self, target: Address, source: Address | None) -> Address:
        """Choose the address to dial from."""
        if source is None:
            port = self._ephemeral_port()
        elif source.is_wildcard or source.host == self.ip:
            port = source.port or self._ephemeral_port()
        else:
            raise SourceBusy(f"this host is {self.ip}, not {source.host}")
        if (port, target) in self._flows or (port, target) in self._attempts:
            raise SourceBusy("a connection between the same two ports exists already")
        return Address(host=self.ip, port=port)

    async def _connect(self, target: Address, local: Address) -> MemoryStream:
        attempt = self.world._new_attempt(local, target)
        key = (local.port, target)
        self._attempts[key] = attempt
        retry_s = FIRST_RETRY_S
        try:
            while True:
                sent_at = trio.current_time()
                outcome = await self._send_syn(attempt)
                if attempt.stream is None:
                    if isinstance(outcome, MemoryStream):
                        return outcome
                    if outcome == Refusal.RESET:
                        raise ConnectFailed("connection refused")
                    await self._sleep(attempt, sent_at + retry_s)
                    retry_s *= 2
                if attempt.stream is not None:
                    while trio.current_time() < attempt.ready_at:
                        self.world._alarms.set(attempt.ready_at, attempt.waiter.wake)
                        await attempt.waiter.wait()
                    return attempt.stream
        except BaseException:
            if attempt.stream is not None:
                attempt.stream.abort()
            raise
        finally:
            self._forget(key, attempt)

    def _forget(self, key: tuple[int, Address], attempt: Attempt) -> None:
        if self._attempts.get(key) is attempt:
            del self._attempts[key]
        self.world._attempts.pop(attempt.number, None)

    async def _send_syn(self, attempt: Attempt) -> MemoryStream | Refusal | None:
        """Send one SYN and learn what came of it; None if the other side's came first."""
        world = self.world
        departure = depart(self._realm, attempt.local, attempt.target, trio.current_time())
        if isinstance(departure, Refusal):
            return world._refused(departure, attempt.local, attempt.target)
        face = departure.realm.name_of(attempt.target.host)
        there, back = world._link(departure.face, face), world._link(face, departure.face)
        await self._travel(attempt, there)
        if attempt.stream is not None:
            return None
        arrival = arrive(departure, attempt.target, trio.current_time())
        if isinstance(arrival, Arrival):
            host = arrival.place
            assert isinstance(host, MemoryHost)
            verdict = host._receive_syn(arrival)
            if verdict is attempt:  # TCP would talk to itself; `transport.tcp` refuses that too
                verdict = Refusal.RESET
        else:
            host = None
            silent = world._dead.get(face) == "silent"
            verdict = Refusal.DROP if silent else arrival or Refusal.RESET
        if isinstance(verdict, Refusal):
            world._refused(verdict, attempt.local, attempt.target)
            if verdict == Refusal.RESET:
                await self._travel(attempt, back)
                if attempt.stream is None:
                    reset(departure.trail)
            return verdict
        if self.name in world._dead:
            raise ConnectFailed("network is down")
        assert isinstance(arrival, Arrival)
        assert host is not None
        return await self._open(attempt, arrival, host, verdict, (there, back))

    def _receive_syn(self, arrival: Arrival) -> Attempt | MemoryListener | Refusal:
        """Decide what a SYN meets here; see the module."""
        state = self.world._dead.get(self.name)
        if state is not None:
            return Refusal.DROP if state == "silent" else Refusal.RESET
        key = (arrival.target.port, arrival.source)
        attempt = self._attempts.get(key)
        if attempt is not None and attempt.stream is None:
            return attempt
        flow = self._flows.get(key)
        if flow is not None and not flow._reset_is_due():
            flow._fail("connection reset by peer", tell_peer=False)
            return Refusal.DROP
        listener = self._listeners.get(arrival.target.port)
        if listener is None:
            return Refusal.RESET
        return listener if len(listener._waiting) < self.world.backlog else Refusal.DROP

    async def _open(
        self,
        attempt: Attempt,
        arrival: Arrival,
        host: MemoryHost,
        by: Attempt | MemoryListener,
        links: tuple[LinkModel, LinkModel],
    ) -> MemoryStream:
        """Make the two ends of a connection, hand the other one over, and wait for the answer."""
        world, (there, back) = self.world, links
        number = world._new_number()
        client = MemoryStream(
            world,
            number,
            there,
            world._random(number, "out"),
            host=self,
            local=attempt.local,
            remote=attempt.target,
            way=arrival.way,
        )
        server = MemoryStream(
            world,
            number,
            back,
            world._random(number, "in"),
            host=host,
            local=arrival.target,
            remote=arrival.source,
            way=arrival.way.back(),
        )
        client._peer, server._peer = server, client
        self._forget((attempt.local.port, attempt.target), attempt)
        self._flows[attempt.local.port, attempt.target] = client
        host._flows[arrival.target.port, arrival.source] = server
        world._connected(client, server)
        arrival.way.carry(trio.current_time())  # from now on the boxes see an open connection
        if isinstance(by, MemoryListener):
            by._waiting.append(server)
            by._lot.unpark()
        else:
            world._record("simultaneous-open", number)
            by.stream = server
            by.ready_at = world._arrival(trio.current_time() + there.settings.latency_s)
            by.waiter.wake()
        try:
            await world._travel(back)
        except BaseException:
            client.abort()
            raise
        return client

    async def _travel(self, attempt: Attempt, link: LinkModel) -> None:
        """Sleep until something sent over `link` now arrives, or the other side's SYN does."""
        world, delay = self.world, link.settings.latency_s
        if delay > 0:
            await self._sleep(attempt, world._arrival(trio.current_time() + delay))
        while link.blocked and attempt.stream is None:
            await attempt.waiter.wait()  # healing wakes every attempt

    async def _sleep(self, attempt: Attempt, until: float) -> None:
        while attempt.stream is None and trio.current_time() < until:
            self.world._alarms.set(until, attempt.waiter.wake)
            await attempt.waiter.wait()

    def _ephemeral_port(self) -> int:
        while True:
            port = self._next_port
            self._next_port = port + 1 if port < 65535 else FIRST_EPHEMERAL_PORT
            if port not in self._listeners:
                return port


class MultiHomedHost(Network):
    """One machine with several addresses, for example one of each family.

    A dial leaves by the address that `source` names, else by the first of the target's family.
    """

    seeded: ClassVar[bool] = True

    def __init__(self, *hosts: MemoryHost) -> None:
        self.hosts = hosts

    async def connect(self, address: Address, *, source: Address | None = None) -> RawStream:
        """See `Network.connect`."""
        for host in self.hosts:
            if source is not None and not source.is_wildcard:
                fits = source.host == host.ip
            else:
                fits = (":" in host.ip) == (":" in address.host)
            if fits:
                return await host.connect(address, source=source)
        await trio.lowlevel.checkpoint()
        if source is not None and not source.is_wildcard:
            raise SourceBusy(f"this host has no address {source.host}")
        raise ConnectFailed("network is unreachable")

    async def listen(self, address: Address) -> RawListener:
        """See `Network.listen`; a wildcard means the first address of its family."""
        for host in self.hosts:
            wildcard = address.is_wildcard and (":" in host.ip) == (":" in address.host)
            if wildcard or address.host == host.ip:
                return await host.listen(address)
        await trio.lowlevel.checkpoint()
        raise ListenFailed(f"cannot listen on {address}: this host has no such address")


class MemoryListener(RawListener):
    """A listening address of a simulated host."""

    def __init__(self, host: MemoryHost, address: Address) -> None:
        self.address = address
        self._host = host
        self._waiting: deque[MemoryStream] = deque()  # bounded by world.backlog
        self._lot = trio.lowlevel.ParkingLot()
        self._closed = False

    async def accept(self) -> RawStream:
        """See `RawListener.accept`."""
        await trio.lowlevel.checkpoint()
        while not self._closed and not self._waiting:
            await self._lot.park()
        if self._closed:
            raise trio.ClosedResourceError
        return self._waiting.popleft()

    async def aclose(self) -> None:
        """See `RawListener.aclose`; connections nobody accepted are reset."""
        self._close()
        await trio.lowlevel.checkpoint()

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._host._listeners.get(self.address.port) is self:
                del self._host._listeners[self.address.port]
            while self._waiting:
                self._waiting.popleft().abort()
            self._lot.unpark_all()
