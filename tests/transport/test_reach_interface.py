"""What an endpoint offers to those who find ways to it: addresses, sources, circuits, probes."""

import pytest
import trio

from tests.transport.nodes import address, node, nodes
from tests.transport.relayed import FAR, relayed_pair
from tests.trusted import shaking
from transport.address import Address
from transport.codec import pack
from transport.connect.announce import PROTOCOL
from transport.connect.source import SourceBusy
from transport.endpoint import Endpoint
from transport.errors import ConnectFailed, PeerUnreachable, RemoteCallFailed, UsageError
from transport.identity import NodeId
from transport.limits import Limits
from transport.network import Network, Path, RawListener, RawStream
from transport.peer import Peer, seen_from_here
from transport.secure.handshake import Handshake, Intro
from transport.secure.link import shake_hands
from transport.simulated.link_model import LinkSettings
from transport.simulated.memory import MemoryNetwork

FAST = LinkSettings(latency_s=0.01)


async def test_connected_peers_learn_new_addresses(autojump_clock: object) -> None:
    async with nodes(MemoryNetwork(1, default=FAST), 3) as (a, b, c):
        await a.connect(b.addresses)
        await c.connect(a.addresses)
        await trio.sleep(10)
        new = [Address("203.0.113.9", 1234), Address("0.0.0.0", 7447)]
        a.set_advertised(new)
        await trio.sleep(1)
        told = (Address("203.0.113.9", 1234), address(1))  # the wildcard is what they see
        assert b.peers[a.node_id].listen == told
        assert c.peers[a.node_id].listen == told
        assert a.advertised == tuple(new)
        a.set_advertised(new)  # nothing new: nobody is told
        with pytest.raises(UsageError):
            a.set_advertised([Address("203.0.113.9", port) for port in range(1, 18)])


async def test_a_handshake_under_way_does_not_keep_the_old_addresses(
    autojump_clock: object,
) -> None:
    async with nodes(MemoryNetwork(1, default=LinkSettings(latency_s=0.5)), 2) as (a, b):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.connect, a.addresses)
            await trio.sleep(1.7)  # a has sent its introduction
            a.set_advertised([Address("203.0.113.9", 1)])
        await trio.sleep(5)
        assert b.peers[a.node_id].listen == (Address("203.0.113.9", 1),)


@pytest.mark.parametrize(
    "message",
    [b"", pack({"listen": ["nonsense"]}), pack({"listen": ["1.2.3.4:5"] * 17}), pack({"x": 1})],
)
async def test_malformed_addresses_are_refused(message: bytes, autojump_clock: object) -> None:
    async with nodes(MemoryNetwork(1), 2) as (a, b):
        peer = await a.connect(b.addresses)
        await trio.sleep(1)
        with pytest.raises(RemoteCallFailed):
            await peer.call(PROTOCOL, message)
        assert b.peers[a.node_id].listen == (address(1),)
        assert not b.counters["handler-failed"]


def test_over_a_relay_any_interface_means_nothing() -> None:
    relay = Address("198.51.100.1", 7447, str(NodeId(bytes(32))))
    listen = [Address("0.0.0.0", 1), Address("10.0.0.7", 1), relay]
    assert seen_from_here(listen, relay) == (Address("10.0.0.7", 1), relay)


async def test_each_side_says_where_it_sees_the_other(autojump_clock: object) -> None:
    async with nodes(MemoryNetwork(1, default=FAST), 2) as (a, b):
        seen: list[tuple[str, NodeId, Address]] = []

        def note(name: str, endpoint: Endpoint) -> None:
            endpoint.on_observed.append(lambda peer, at: seen.append((name, peer.node_id, at)))

        note("a", a)
        note("b", b)
        await a.connect(b.addresses)
        await trio.sleep(1)
        # Dials leave from the listening port, so both see the other where it listens.
        assert sorted(seen) == [("a", b.node_id, address(1)), ("b", a.node_id, address(2))]


async def test_over_a_relay_nobody_sees_the_other(autojump_clock: object) -> None:
    world = MemoryNetwork(1, default=FAST)
    async with relayed_pair(world) as pair:
        seen: list[Address] = []
        pair.a.on_observed.append(lambda _peer, at: seen.append(at))
        assert pair.ours.primary.link.result.intro.observed == ""
        assert await pair.upgrade(pair.a)
        assert [at.host for at in seen] == ["10.0.0.1"]


async def test_a_probe_is_told_and_closed(autojump_clock: object) -> None:
    world = MemoryNetwork(1, default=FAST)
    async with nodes(world, 2) as (a, b):
        told: list[tuple[NodeId, bytes]] = []
        b.on_probe = lambda who, nonce: told.append((who, nonce))
        raw = await a.network.connect(address(2))
        handshake = Handshake(
            role="initiator",
            **shaking(a.identity),
            intro=Intro("probe", label=b"n" * 16),
            random_bytes=a.random_bytes,
        )
        await shake_hands(raw, handshake, deadline=trio.current_time() + 5)
        assert await raw.receive_into(memoryview(bytearray(1))) == 0
        await raw.aclose()
        assert told == [(a.node_id, b"n" * 16)]
        assert not b.peers
        assert world.open_connections == 0


# Dialing


class Sources(Network):
    """Notes where dials leave from; refuses some."""

    def __init__(self, network: Network, *, busy: bool) -> None:
        self.network = network
        self.busy = busy
        self.sources: list[Address | None] = []

    async def connect(self, address: Address, *, source: Address | None = None) -> RawStream:
        self.sources.append(source)
        if source is not None and self.busy:
            raise SourceBusy("a connection between the same two ports exists already")
        return await self.network.connect(address, source=source)

    async def listen(self, address: Address) -> RawListener:
        return await self.network.listen(address)


@pytest.mark.parametrize("busy", [False, True])
async def test_dials_leave_from_the_listening_port_if_they_can(
    busy: bool, autojump_clock: object
) -> None:
    world = MemoryNetwork(1)
    network = Sources(world.host("10.0.0.1"), busy=busy)
    async with node(network, 1) as a, node(world.host("10.0.0.2"), 2) as b:
        peer = await a.connect(b.addresses)
        await trio.sleep(1)
        assert network.sources == [address(1), *([None] if busy else [])]
        seen = b.peers[a.node_id].address
        assert (seen == address(1)) != busy
        network.sources.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.accept_bulk, a.node_id, b"")
            await peer.open_bulk(b"")
        assert network.sources == [None]  # bulk connections need no NAT to know them


async def test_relayed_candidates_come_last_and_need_to_know_whom_they_are_for(
    autojump_clock: object,
) -> None:
    world = MemoryNetwork(1, default=FAST)
    async with nodes(world, 3) as (a, b, relay):
        via = Address("10.0.0.3", 7447, str(relay.node_id))
        dialed: list[tuple[float, Address, NodeId]] = []

        async def circuit(at: Address, target: NodeId) -> RawStream:
            dialed.append((trio.current_time(), at, target))
            raise ConnectFailed("the relay has no reservation for it")

        with pytest.raises(PeerUnreachable) as caught:
            await a.connect([via, address(9)], expected=b.node_id)
        assert caught.value.attempts == (
            (str(address(9)), "direct: connection refused"),
            (str(via), "relay: no relay client"),
        )
        a.relay_dialer = circuit
        with pytest.raises(PeerUnreachable) as caught:
            await a.connect([via])
        assert caught.value.attempts == (
            (str(via), "relay: a relayed address needs the node id that it is for"),
        )
        start = trio.current_time()
        world.block("10.0.0.1", "10.0.0.8")
        with pytest.raises(PeerUnreachable) as caught:
            await a.connect([via, address(8)], expected=b.node_id)
        assert [reason for _, reason in caught.value.attempts] == [
            "direct: connection timed out",
            "relay: the relay has no reservation for it",
        ]
        ((at, where, whom),) = dialed
        assert (where, whom) == (via, b.node_id)
        assert 1 <= at - start < 2  # a direct dial that hangs gets its head start
        dialed.clear()
        peer = await a.connect([via, address(2)], expected=b.node_id)
        assert peer.path is Path.DIRECT
        assert peer.relay is None
        assert not dialed


async def test_many_direct_candidates_leave_room_for_relays(autojump_clock: object) -> None:
    async with nodes(MemoryNetwork(1), 2) as (a, b):
        relays = [Address("10.0.0.3", port, str(b.node_id)) for port in range(1, 10)]
        many = [Address("10.0.0.9", port) for port in range(1, 40)]
        with pytest.raises(PeerUnreachable) as caught:
            await a.connect([*many, *relays], expected=b.node_id)
        stages = [reason.partition(":")[0] for _, reason in caught.value.attempts]
        assert stages == ["direct"] * 12 + ["relay"] * 4


async def test_a_peer_knows_its_relay(autojump_clock: object) -> None:
    world = MemoryNetwork(1, default=FAST)
    async with relayed_pair(world) as pair:
        third = NodeId(bytes(32))
        pair.ours.primary.link.raw.remote = Address(FAR.host, FAR.port, str(third))
        pair.ours._note_path()
        assert pair.ours.relay == third
        assert await pair.upgrade(pair.a)
        assert pair.ours.relay is None


async def test_streams_that_came_another_way_pass_the_same_gate(autojump_clock: object) -> None:
    world = MemoryNetwork(1, default=FAST)
    async with nodes(world, 2) as (_a, b):
        listener = await world.host("10.9.9.2").listen(Address("10.9.9.2", 1))
        async with trio.open_nursery() as nursery:
            for _ in range(70):
                await world.host("10.9.9.1").connect(listener.address)
                nursery.start_soon(b.take_inbound, await listener.accept())
        assert b.counters["refused-rate"] == 6
        assert b.counters["handshake-handshake-timeout"] == 32
        assert b._context.admission.pending == 0
        await listener.aclose()


async def test_caps_apply_to_what_a_peer_gets(autojump_clock: object) -> None:
    world = MemoryNetwork(1)
    async with nodes(world, 2, limits=Limits(per_peer_upload_bytes_per_s=100_000)) as (a, b):
        got = 0

        async def take(stream: object) -> None:
            nonlocal got
            async for chunk in stream:  # type: ignore[attr-defined]
                got += len(chunk)

        b.serve("take", take)
        peer: Peer = await a.connect(b.addresses)
        stream = await peer.open_stream("take")
        with trio.move_on_after(5):
            while True:
                await stream.send_all(bytes(50_000))
        assert 300_000 < got < 1_500_000
