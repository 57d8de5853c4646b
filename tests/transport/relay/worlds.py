"""Nodes that nobody can dial, and relays, on the in-memory network."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import attrs
import trio

from tests.transport.nodes import address, node
from transport.address import Address
from transport.codec import decode_untrusted, pack
from transport.endpoint import Endpoint
from transport.errors import TransportError
from transport.limits import Limits
from transport.peer import Peer
from transport.relay.client import RelayClient
from transport.relay.messages import (
    CONNECT,
    INCOMING,
    RESERVE,
    Accepted,
    Connect,
    Granted,
    Incoming,
    Reserve,
    read_connect_answer,
)
from transport.relay.service import RelayService
from transport.relay.settings import RelaySettings
from transport.simulated.memory import LinkSettings, MemoryNetwork
from transport.streams.stream import Stream


def via(relay: Endpoint, number: int = 1) -> Address:
    """Where `relay`, node `number`, relays."""
    return attrs.evolve(address(number), relay=str(relay.node_id))


@attrs.define
class World:
    """Relays are nodes 1, 2, ...; `clients[n]` is node 11 + n, which listens nowhere."""

    network: MemoryNetwork
    relays: list[Endpoint]
    services: list[RelayService]
    clients: list[RelayClient]
    endpoints: list[Endpoint]
    nursery: trio.Nursery
    stops: list[trio.CancelScope]

    async def reserved(self, index: int = 0, count: int = 1) -> RelayClient:
        """Have client `index` know every relay, and wait until it is reached through `count`."""
        client = self.clients[index]
        for number, relay in enumerate(self.relays, 1):
            client.candidates.add(via(relay, number))
        await self.nursery.start(client.run)
        with trio.fail_after(30):
            while len(client.relays) < count:
                await trio.sleep(0.01)
        return client

    async def connected(self, source: int, target: int) -> Peer:
        """Connect client `source` with client `target` over what the latter has published."""
        source_endpoint, target_endpoint = self.endpoints[source], self.endpoints[target]
        peer = await source_endpoint.connect(
            self.clients[target].addresses, expected=target_endpoint.node_id
        )
        with trio.fail_after(1):
            while source_endpoint.node_id not in target_endpoint.peers:
                await trio.sleep(0.01)
        return peer


@asynccontextmanager
async def world(
    *,
    relays: int = 1,
    clients: int = 2,
    settings: RelaySettings | None = None,
    link: LinkSettings | None = None,
    limits: Limits | None = None,
    serve: bool = True,
    listening: frozenset[int] = frozenset(),
) -> AsyncIterator[World]:
    settings = RelaySettings() if settings is None else settings
    network = MemoryNetwork(7, default=LinkSettings(latency_s=0.01) if link is None else link)
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        made = World(network, [], [], [], [], nursery, [])
        for number in range(1, relays + 1):
            relay = await stack.enter_async_context(
                node(network.host(f"10.0.0.{number}"), number, limits=limits)
            )
            made.relays.append(relay)
            if serve:
                service = RelayService(relay, settings)
                made.services.append(service)
                made.stops.append(await nursery.start(run_stoppable, service))
        for number in range(11, 11 + clients):
            endpoint = await stack.enter_async_context(
                node(
                    network.host(f"10.0.0.{number}"),
                    number,
                    listen=[address(number)] if number in listening else [],
                    limits=limits,
                )
            )
            made.endpoints.append(endpoint)
            made.clients.append(RelayClient(endpoint, settings))
        yield made


async def run_stoppable(
    service: RelayService, task_status: trio.TaskStatus[trio.CancelScope]
) -> None:
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(service.run)
            task_status.started(scope)


Mangle = Callable[[str, int, bytes], bytes | None]
"""(direction "out" or "back", number of the chunk, the chunk) -> what is passed on; None cuts the circuit."""


async def copy_one_way(source: Stream, sink: Stream) -> None:
    """Pass on what comes until either side ends it."""
    try:
        while data := await source.receive_some():
            await sink.send_all(data)
    except TransportError:
        pass
    source.reset()
    sink.reset()


class HostileRelay:
    """A relay that grants everything and passes on what `mangle` makes of it; without limits, without honour."""

    def __init__(self, endpoint: Endpoint, mangle: Mangle, delay_s: float = 0.0) -> None:
        self.seen: list[tuple[str, bytes]] = []
        self.claimed: bytes | None = None  # the source it names to the target, if not the true one
        self.divert: Callable[[Connect], bytes] | None = None
        self._endpoint = endpoint
        self._mangle = mangle
        self._delay_s = delay_s
        endpoint.serve_calls(RESERVE, self._reserve)
        endpoint.serve(CONNECT, self._connect)

    async def _reserve(self, _peer: Peer, request: bytes) -> bytes:
        decode_untrusted(request, Reserve)
        return pack(
            Granted(expires_s=3600.0, bytes_per_s=1e9, circuit_bytes=1 << 40, circuit_s=1e6)
        )

    async def _connect(self, source: Stream) -> None:
        request = decode_untrusted(await source.receive_message(), Connect)
        wanted = request.target if self.divert is None else self.divert(request)
        target = await self._endpoint.peers[wanted].open_stream(INCOMING)
        await target.send_message(pack(Incoming(source.peer.node_id)))
        assert isinstance(read_connect_answer(await target.receive_message()), Accepted)
        await source.send_message(pack(Accepted()))
        if (
            request.target == source.peer.node_id
        ):  # its target tries it: such circuits it serves well
            await copy_one_way(source, target)
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pump, "out", source, target)
            nursery.start_soon(self._pump, "back", target, source)

    async def _pump(self, direction: str, source: Stream, sink: Stream) -> None:
        number = 0
        try:
            while data := await source.receive_some():
                self.seen.append((direction, data))
                passed_on = self._mangle(direction, number, data)
                number += 1
                if passed_on is None:
                    source.reset()
                    sink.reset()
                    return
                if self._delay_s:
                    await trio.sleep(self._delay_s)
                if passed_on:
                    await sink.send_all(passed_on)
            await sink.send_eof()
        except TransportError:
            source.reset()
            sink.reset()
