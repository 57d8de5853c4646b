"""Endpoints without a transport: connecting is a dictionary look-up, a call is a function call after some latency."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import trio

from tests.trusted import SWARM
from transport.address import Address
from transport.errors import PeerLost, PeerUnreachable, RemoteCallFailed, TransportError
from transport.identity import Identity, NodeId
from transport.network import Path


class FakeNet:
    def __init__(self, *, latency_s: float = 0.01) -> None:
        self.latency_s = latency_s
        self.endpoints: dict[Address, FakeEndpoint] = {}
        self.black_holes: set[Address] = set()
        self.dials: list[tuple[str, str]] = []

    def add(self, number: int, *, listen: bool = True) -> FakeEndpoint:
        endpoint = FakeEndpoint(self, number, listen=listen)
        if listen:
            self.endpoints[endpoint.addresses[0]] = endpoint
        return endpoint

    def kill(self, endpoint: FakeEndpoint, *, silently: bool = False) -> None:
        self.endpoints.pop(endpoint.addresses[0], None)
        if silently:
            self.black_holes.add(endpoint.addresses[0])
            endpoint.frozen = True
        else:
            for peer in list(endpoint.peers.values()):
                peer.close("killed")


class FakeEndpoint:
    def __init__(self, net: FakeNet, number: int, *, listen: bool) -> None:
        self.net = net
        self.identity = Identity.from_seed(number.to_bytes(32, "big"))
        self.swarm = SWARM
        self.addresses = (Address(f"10.0.0.{number}", 7447),)
        self.listen = self.addresses if listen else ()
        self.advertised = self.listen
        self.peers: dict[NodeId, FakePeer] = {}
        self.handlers: dict[str, object] = {}
        self.frozen = False
        self.watchers: list[trio.MemorySendChannel[object]] = []
        self.open_calls = 0
        self.most_open_calls = 0

    @property
    def node_id(self) -> NodeId:
        return self.identity.node_id

    async def connect(
        self, addresses: Sequence[Address], *, expected: NodeId | None = None
    ) -> FakePeer:
        await trio.lowlevel.checkpoint()
        if expected is not None and expected in self.peers:
            return self.peers[expected]
        reasons = []
        for address in addresses:
            self.net.dials.append((str(self.addresses[0]), str(address)))
            if address in self.net.black_holes:
                await trio.sleep_forever()
            there = self.net.endpoints.get(address)
            await trio.sleep(self.net.latency_s)
            if there is None:
                reasons.append(f"{address}: connection refused")
            elif expected is not None and there.node_id != expected:
                reasons.append(f"{address}: another node answers there")
            elif there is self:
                reasons.append(f"{address}: this is the node itself")
            else:
                return link(self, there, address)
        raise PeerUnreachable("; ".join(reasons) or "no address")

    def serve_calls(self, protocol: str, handler: object) -> None:
        assert protocol not in self.handlers
        self.handlers[protocol] = handler

    def unserve(self, protocol: str) -> None:
        del self.handlers[protocol]

    @contextmanager
    def watch(self) -> Iterator[trio.MemoryReceiveChannel[object]]:
        send, receive = trio.open_memory_channel[object](256)
        self.watchers.append(send)
        try:
            yield receive
        finally:
            self.watchers.remove(send)
            send.close()
            receive.close()

    def tell(self) -> None:
        for watcher in self.watchers:
            watcher.send_nowait("something changed")


class FakePeer:
    path = Path.DIRECT

    def __init__(
        self, here: FakeEndpoint, there: FakeEndpoint, address: Address, *, initiated: bool
    ) -> None:
        self.here, self.there = here, there
        self.address = address
        self.initiated = initiated
        self.node_id = there.node_id
        self.public_key = there.identity.public_key
        self.listen = there.listen
        self.close_reason = ""
        self.gone = trio.Event()

    async def call(self, protocol: str, request: bytes) -> bytes:
        self.here.open_calls += 1
        self.here.most_open_calls = max(self.here.most_open_calls, self.here.open_calls)
        try:
            await trio.sleep(self.here.net.latency_s)
            if self.there.frozen:
                await self.gone.wait()
            if self.gone.is_set():
                raise PeerLost(self.close_reason)
            handler = self.there.handlers.get(protocol)
            if handler is None:
                raise RemoteCallFailed(f"the peer does not serve {protocol!r}")
            try:
                return await handler(self.there.peers[self.here.node_id], request)  # type: ignore[operator]
            except TransportError:
                raise RemoteCallFailed("the handler failed") from None
        finally:
            self.here.open_calls -= 1

    def close(self, reason: str, code: object = None) -> None:
        del code
        if self.gone.is_set():
            return
        other = self.there.peers.get(self.here.node_id)
        self.close_reason = reason
        self.gone.set()
        self.here.peers.pop(self.node_id, None)
        self.here.tell()
        if other is not None:
            other.close(reason)


def link(dialer: FakeEndpoint, listener: FakeEndpoint, address: Address) -> FakePeer:
    known = dialer.peers.get(listener.node_id)
    if known is not None:
        return known
    ephemeral = Address(dialer.addresses[0].host, 40000 + len(listener.peers))
    peer = dialer.peers[listener.node_id] = FakePeer(dialer, listener, address, initiated=True)
    listener.peers[dialer.node_id] = FakePeer(listener, dialer, ephemeral, initiated=False)
    dialer.tell()
    listener.tell()
    return peer


def seeded(number: int) -> random.Random:
    return random.Random(number)
