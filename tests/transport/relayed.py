"""Two endpoints whose connection travels a way of its own, as if a third node carried it."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from tests.transport.nodes import nodes
from transport.address import Address
from transport.endpoint import Endpoint
from transport.errors import PeerLost, StreamReset
from transport.identity import NodeId
from transport.limits import Limits
from transport.network import Path, RawListener, RawStream
from transport.peer import Peer
from transport.simulated.link_model import LinkSettings
from transport.simulated.memory import MemoryNetwork
from transport.streams.stream import Stream

FAR = Address("10.9.0.2", 9)
"""Where the circuits to the second endpoint end; dialed from 10.9.0.1."""
VIA = Address(FAR.host, FAR.port, str(NodeId(bytes(32))))
"""What says so."""


@dataclass
class Pair:
    """Two endpoints with a relayed connection, and the raw streams between them."""

    world: MemoryNetwork
    a: Endpoint
    b: Endpoint
    ours: Peer
    theirs: Peer
    circuits: list[RawStream] = field(default_factory=list)
    links: list[RawStream] = field(default_factory=list)

    @property
    def leader(self) -> Endpoint:
        return min(self.a, self.b, key=lambda endpoint: endpoint.node_id)

    async def direct(self, me: Endpoint) -> RawStream:
        """A fresh connection from `me` to the other one's listener."""
        other = self.b if me is self.a else self.a
        raw = await me.network.connect(other.addresses[0])
        self.links.append(raw)
        return raw

    async def upgrade(self, me: Endpoint) -> bool:
        other = self.b if me is self.a else self.a
        return await me.upgrade(me.peers[other.node_id], await self.direct(me), "initiator")


@asynccontextmanager
async def relayed_pair(
    world: MemoryNetwork,
    *,
    swapped: bool = False,
    limits: Limits | None = None,
    circuit: LinkSettings | None = None,
    early: bool = False,
) -> AsyncIterator[Pair]:
    """Endpoint 1 connected with endpoint 2 over a circuit; `swapped`: endpoint 2 dialed.

    `early`: meanwhile the other endpoint dials it directly.
    """
    if circuit is not None:
        world.set_link("10.9.0.1", "10.9.0.2", circuit)
    async with nodes(world, 2, limits=limits) as pair:
        a, b = reversed(pair) if swapped else pair
        circuits: list[RawStream] = []

        async def dial(target: Address, _expected: NodeId) -> RawStream:
            raw = await world.host("10.9.0.1").connect(target.direct)
            raw.path = Path.RELAYED
            circuits.append(raw)
            return raw

        listener = await world.host("10.9.0.2").listen(FAR)
        a.relay_dialer = dial
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_carry, listener, b, nursery)
            if early:
                nursery.start_soon(b.connect, a.addresses)
            ours = await a.connect([VIA], expected=b.node_id)
            a.relay_dialer = None
            while a.node_id not in b.peers:
                await trio.sleep(0.01)
            yield Pair(world, a, b, ours, b.peers[a.node_id], circuits)
            nursery.cancel_scope.cancel()
        await listener.aclose()


async def _carry(listener: RawListener, to: Endpoint, nursery: trio.Nursery) -> None:
    while True:
        raw = await listener.accept()
        raw.path = Path.RELAYED
        nursery.start_soon(to.take_inbound, raw)


class Traffic:
    """Streams in both directions between two endpoints, each with bytes of its own.

    Attributes:
        sent, received: (who, stream) -> bytes; a receiver has a prefix of what was sent.
        finished: streams whose end was read.
        broken: streams that ended with their peer.
    """

    def __init__(self, rng: random.Random, *, streams: int, size: int) -> None:
        self.rng = rng
        self.streams = streams
        self.size = size
        self.sent: dict[tuple[str, str], bytearray] = {}
        self.received: dict[tuple[str, str], bytearray] = {}
        self.finished: set[tuple[str, str]] = set()
        self.broken: set[tuple[str, str]] = set()

    def serve(self, endpoint: Endpoint) -> None:
        async def answer(stream: Stream) -> None:
            name = (await stream.receive_message()).decode()
            await self._both(stream, f"{endpoint.name}-answers", f"{name}")

        endpoint.serve("traffic", answer)

    async def run(self, endpoint: Endpoint, peer: Peer) -> None:
        """Open the streams one after another and talk on all of them; ends when all have."""
        async with trio.open_nursery() as nursery:
            for number in range(self.streams):
                nursery.start_soon(self._one, peer, f"{endpoint.name}-{number}")
                await trio.sleep(self.rng.expovariate(20))

    async def _one(self, peer: Peer, name: str) -> None:
        try:
            stream = await peer.open_stream("traffic")
            await stream.send_message(name.encode())
        except (PeerLost, StreamReset):
            return
        await self._both(stream, "asks", name)

    async def _both(self, stream: Stream, who: str, name: str) -> None:
        key = ("asks" if who == "asks" else "answers", name)
        other = ("answers" if who == "asks" else "asks", name)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send, stream, key)
            await self._receive(stream, other)

    async def _send(self, stream: Stream, key: tuple[str, str]) -> None:
        data = self.rng.randbytes(self.rng.randint(1, self.size))
        assert key not in self.sent, "a stream was served twice"
        self.sent[key] = bytearray(data)
        offset = 0
        try:
            while offset < len(data):
                step = self.rng.choice((1, 100, 5_000, 70_000))
                await stream.send_all(data[offset : offset + step])
                offset += step
                if self.rng.random() < 0.3:
                    await trio.sleep(self.rng.expovariate(50))
            await stream.send_eof()
        except (PeerLost, StreamReset):
            self.broken.add(key)

    async def _receive(self, stream: Stream, key: tuple[str, str]) -> None:
        buffer = self.received[key] = bytearray()
        try:
            while chunk := await stream.receive_some(self.rng.choice((None, 1000, 50_000))):
                buffer += chunk
                if self.rng.random() < 0.1:
                    await trio.sleep(self.rng.expovariate(100))
            self.finished.add(key)
        except (PeerLost, StreamReset):
            self.broken.add(key)

    def check_prefixes(self) -> None:
        """Whatever happened: nothing doubled, moved or changed."""
        for key, got in self.received.items():
            whole = self.sent.get(key, bytearray())
            assert whole[: len(got)] == got, key
        for key in self.finished:
            assert self.received[key] == self.sent[key], key

    def check_complete(self) -> None:
        """Nothing was lost either."""
        self.check_prefixes()
        assert not self.broken
        assert set(self.finished) == set(self.sent)
        assert len(self.sent) == 4 * self.streams
