"""Whole endpoints that lose each other, dial each other at once, and do the same again for the same seed."""

import random

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.hash_seeds import same_under_two_hash_seeds
from tests.transport.nodes import address, echo, lost, node, nodes, peer_of
from transport.endpoint import Endpoint
from transport.errors import PeerLost, PeerUnreachable, StreamReset
from transport.peer import Peer
from transport.simulated.deterministic import run_deterministically
from transport.simulated.memory import LinkSettings, MemoryNetwork
from transport.watch import PeerUp

# Losing peers


async def test_a_killed_host_is_lost_at_once_or_after_silence(autojump_clock: object) -> None:
    for silent, within_s in ((False, 0.1), (True, 4.1)):
        world = MemoryNetwork(1)
        async with nodes(world, 2) as (a, _b):
            peer = await a.connect([address(2)])
            await trio.sleep(2)
            world.kill_host("10.0.0.2", silent=silent)
            took = await lost(peer, 10)
            assert took <= within_s
            if silent:
                assert took > 2.9
                assert peer.close_reason == "silent for 4 s"


@pytest.mark.parametrize("one_way", [False, True])
async def test_a_partition_loses_the_peer_within_silence(
    one_way: bool, autojump_clock: object
) -> None:
    world = MemoryNetwork(1, default=LinkSettings(latency_s=0.02))
    async with nodes(world, 2) as (a, b):
        await a.connect([address(2)])
        back = await peer_of(b, a)
        stream = await back.open_stream("nothing")
        await trio.sleep(5)
        world.block("10.0.0.1", "10.0.0.2")
        if not one_way:
            world.block("10.0.0.2", "10.0.0.1")
        assert 2.9 < await lost(back, 10) < 4.2
        with pytest.raises((PeerLost, StreamReset)):
            await stream.send_all(b"x")
        world.heal()
        again = await b.connect([address(1)])
        assert again is not back
        assert b.peers[a.node_id] is again


async def test_a_quiet_but_living_peer_is_kept(autojump_clock: object) -> None:
    async with nodes(MemoryNetwork(1), 2) as (a, _b):
        peer = await a.connect([address(2)])
        await trio.sleep(1000)
        assert not peer.closed.is_set()


async def test_our_own_stall_does_not_count_against_the_peer(mock_clock: MockClock) -> None:
    """The loop stands still for a minute: the clock jumps while nobody can run."""
    async with nodes(MemoryNetwork(1), 2) as (a, _b):
        peer = await a.connect([address(2)])
        await wait_all_tasks_blocked()
        mock_clock.jump(60)
        await wait_all_tasks_blocked()
        assert not peer.closed.is_set()
        mock_clock.autojump_threshold = 0
        await trio.sleep(10)
        assert not peer.closed.is_set()


async def test_a_peer_that_lost_us_may_come_back_at_once(autojump_clock: object) -> None:
    world = MemoryNetwork(1)
    async with node(world.host("10.0.0.1"), 1) as a:
        async with node(world.host("10.0.0.2"), 2) as b:
            await b.connect([address(1)])
            old = await peer_of(a, b)
            await trio.sleep(100)
            world.kill_host("10.0.0.2", silent=True)
        world.revive_host("10.0.0.2")
        async with node(world.host("10.0.0.2"), 2, seed=1) as b:
            await b.connect([address(1)])
            await old.closed.wait()
            new = await peer_of(a, b)
            assert new is not old
            await trio.sleep(10)
            assert a.peers[b.node_id] is new


# Crossing dials


@pytest.mark.parametrize("seed", range(6))
async def test_simultaneous_dials_leave_one_connection_and_disturb_nobody(
    seed: int, autojump_clock: object
) -> None:
    world = MemoryNetwork(seed, default=LinkSettings(latency_s=0.05, jitter_s=0.01))
    async with nodes(world, 2) as (a, b):
        crossed = 0
        a.serve_calls("echo", echo)
        b.serve_calls("echo", echo)

        async def dial_and_talk(me: Endpoint, other: Endpoint) -> None:
            peer = await me.connect(other.addresses, expected=other.node_id)
            for _ in range(30):
                assert await peer.call("echo", b"hello") == b"hello"
                await trio.sleep(0.05)

        with a.watch() as events_a, b.watch() as events_b:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(dial_and_talk, a, b)
                nursery.start_soon(dial_and_talk, b, a)
            await trio.sleep(20)
            for events in (events_a, events_b):
                assert isinstance(events.receive_nowait(), PeerUp)
                with pytest.raises(trio.WouldBlock):
                    events.receive_nowait()
        crossed = a.counters["crossed-dials"] + b.counters["crossed-dials"]
        assert crossed == 2
        assert world.open_connections == 1
        low, high = (a, b) if a.node_id < b.node_id else (b, a)
        assert low.peers[high.node_id].primary.initiated
        assert not high.peers[low.node_id].primary.initiated


async def test_many_tasks_dialing_one_node_share_the_connection(autojump_clock: object) -> None:
    world = MemoryNetwork(1, default=LinkSettings(latency_s=0.05))
    async with nodes(world, 2) as (a, b):
        found: list[Peer] = []

        async def dial(expected: bool) -> None:
            found.append(await a.connect([address(2)], expected=b.node_id if expected else None))

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(dial, number % 2 == 0)
        assert len(set(map(id, found))) == 1
        await trio.sleep(1)
        assert world.open_connections == 1


async def test_a_mesh_of_simultaneous_dials_settles(autojump_clock: object) -> None:
    world = MemoryNetwork(3, default=LinkSettings(latency_s=0.02, jitter_s=0.02))
    async with nodes(world, 8) as mesh:
        async with trio.open_nursery() as nursery:
            for one in mesh:
                for other in mesh:
                    if one is not other:
                        nursery.start_soon(one.connect, other.addresses)
        await trio.sleep(20)
        assert all(len(one.peers) == 7 for one in mesh)
        assert world.open_connections == 8 * 7 // 2


async def test_a_dial_that_fails_is_saved_by_the_peer_that_dials_us(
    autojump_clock: object,
) -> None:
    world = MemoryNetwork(1)
    async with nodes(world, 2) as (a, b):
        async with trio.open_nursery() as nursery:
            found: list[Peer] = []

            async def dial() -> None:
                found.append(await a.connect([address(9)], expected=b.node_id))

            world.block("10.0.0.1", "10.0.0.9")
            nursery.start_soon(dial)
            await trio.sleep(1)
            await b.connect([address(1)])
        assert found == [a.peers[b.node_id]]


# Determinism


async def _story(seed: int, count: int = 6) -> str:
    """A small swarm with faults; returns the digest of everything that happened."""
    world = MemoryNetwork(
        seed, default=LinkSettings(latency_s=0.02, jitter_s=0.01, stall=0.01, split=0.1)
    )
    async with nodes(world, count) as swarm:
        for one in swarm:
            one.serve_calls("echo", echo)
        rng = random.Random(seed)

        async def live(one: Endpoint) -> None:
            for _ in range(10):
                try:
                    peer = await one.connect([address(rng.randint(1, count))])
                    await peer.call("echo", rng.randbytes(200))
                except (PeerUnreachable, PeerLost):
                    await trio.sleep(0.1)

        async with trio.open_nursery() as nursery:
            for one in swarm:
                nursery.start_soon(live, one)
            await trio.sleep(0.3)
            world.partition(["10.0.0.1", "10.0.0.2"], ["10.0.0.3", "10.0.0.4"])
            await trio.sleep(6)
            world.heal()
    return world.trace_digest().hex()


def test_the_same_seed_gives_the_same_history() -> None:
    first = run_deterministically(5, _story, 5)
    assert run_deterministically(5, _story, 5) == first
    assert run_deterministically(6, _story, 6) != first


@pytest.mark.real
def test_history_does_not_depend_on_the_hash_seed() -> None:
    program = (
        "from tests.transport.test_endpoint_loss import _story\n"
        "from transport.simulated.deterministic import run_deterministically\n"
        "print(run_deterministically(5, _story, 5))"
    )
    same_under_two_hash_seeds("-c", program)
