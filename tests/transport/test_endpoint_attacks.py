"""What an endpoint refuses: strangers, garbage, and more than it has room for."""

import pytest
import trio

from tests.transport.nodes import address, echo, lost, node, nodes
from tests.trusted import FOREIGN
from transport.errors import PeerUnreachable
from transport.limits import Limits
from transport.simulated.memory import MemoryNetwork


async def test_another_swarm_is_refused_on_both_sides(autojump_clock: object) -> None:
    world = MemoryNetwork(1)
    async with node(world.host("10.0.0.1"), 1) as a:
        foreign = FOREIGN
        async with node(world.host("10.0.0.2"), 2, swarm=foreign) as b:
            with pytest.raises(PeerUnreachable, match="another swarm"):
                await a.connect(b.addresses)
            await trio.sleep(1)
            assert b.counters["handshake-wrong-swarm"] == 1
            assert not b.peers


async def test_garbage_closes_only_its_connection(autojump_clock: object) -> None:
    world = MemoryNetwork(1)
    async with nodes(world, 2) as (a, b):
        b.serve_calls("echo", echo)
        peer = await a.connect([address(2)])
        stranger = await world.host("10.0.0.3").connect(address(2))
        await stranger.send_all(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(trio.BrokenResourceError):
            await stranger.receive_into(memoryview(bytearray(10)))
        assert b.counters["handshake-not-noded"] == 1
        assert await peer.call("echo", b"still here") == b"still here"


async def test_garbage_after_the_handshake_closes_only_its_connection(
    autojump_clock: object,
) -> None:
    world = MemoryNetwork(1)
    async with nodes(world, 3) as (a, b, c):
        b.serve_calls("echo", echo)
        victim = await c.connect([address(2)])
        liar = await a.connect([address(2)])
        await liar.primary.link.raw.send_all(b"\0\0\0\0\1" + bytes(16))
        await lost(liar, 1)
        assert b.counters["record-refused"] == 1
        assert await victim.call("echo", b"fine") == b"fine"


async def test_no_room_for_another_peer(autojump_clock: object) -> None:
    world = MemoryNetwork(1)
    async with (
        node(world.host("10.0.0.1"), 1, limits=Limits(max_peers=1)) as full,
        node(world.host("10.0.0.2"), 2) as first,
        node(world.host("10.0.0.3"), 3) as second,
    ):
        kept = await first.connect(full.addresses)
        refused = await second.connect(full.addresses)
        await lost(refused, 1)
        assert "no room" in refused.close_reason
        assert full.counters["refused-max-peers"] == 1
        assert not kept.closed.is_set()
        assert list(full.peers) == [first.node_id]
        with pytest.raises(PeerUnreachable, match="peers already"):
            await full.connect(second.addresses)


async def test_idle_connections_are_refused_past_the_limits_and_members_still_join(
    autojump_clock: object,
) -> None:
    world = MemoryNetwork(1)
    async with nodes(world, 2) as (a, b):
        idle = [await world.host("10.9.9.9").connect(address(2)) for _ in range(128)]
        await trio.sleep(0.1)
        assert b.counters["handshake-pushed-out"] == 32
        assert b.counters["refused-rate"] == 64
        peer = await a.connect([address(2)])
        assert peer.node_id == b.node_id
        await trio.sleep(6)
        assert b.counters["handshake-handshake-timeout"] == 32
        for stream in idle:
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_into(memoryview(bytearray(1)))
        assert world.open_connections == 1


async def test_one_byte_per_second_does_not_keep_a_connection(autojump_clock: object) -> None:
    world = MemoryNetwork(1)
    async with nodes(world, 1) as (b,):
        slow = await world.host("10.9.9.9").connect(address(1))
        start = trio.current_time()

        async def dribble() -> None:
            for byte in b"\x93noded\r\n\1\1\0\0":
                await slow.send_all(bytes([byte]))
                await trio.sleep(1)

        with pytest.raises(trio.BrokenResourceError):
            await dribble()
        assert trio.current_time() - start <= 6.1
        assert b.counters["handshake-handshake-timeout"] == 1


async def test_a_node_without_room_refuses_and_leaks_nothing(autojump_clock: object) -> None:
    world = MemoryNetwork(1)
    small = Limits(descriptors=3)
    async with (
        nodes(world, 3) as (first, second, third),
        node(world.host("10.0.0.4"), 4, limits=small) as full,
    ):
        await first.connect([address(4)])
        await second.connect([address(4)])
        peer = await third.connect([address(4)])
        await peer.closed.wait()
        assert full.counters["refused-descriptors"] == 1
        assert len(full.peers) == 2
        first.peers[full.node_id].close("make room")
        await trio.sleep(1)
        again = await third.connect([address(4)])
        await trio.sleep(1)
        assert not again.closed.is_set()
