"""The replication driver over real endpoints on the simulated network."""

import random
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio

from crdt.clock import HybridClock
from crdt.entry import Author
from crdt.record import CheckpointInfo, MemberInfo, Progress
from crdt.state import RunState
from gossip.errors import GossipError
from gossip.replication import open_replication, protocol_of
from tests.transport.nodes import address, node, nodes
from transport.errors import EndOfStream
from transport.identity import Identity, verify
from transport.simulated.deterministic import run_deterministically
from transport.simulated.memory import LinkSettings, MemoryNetwork

NOW_MS = 1_700_000_000_000
RUN = bytes(range(32)).hex()
HASH = bytes(range(32))


def wall_ms():
    return NOW_MS + int(trio.current_time() * 1000)


def new_state(endpoint):
    identity = endpoint.identity
    author = Author(identity.public_key, identity.sign)
    return RunState(author, HybridClock(endpoint.node_id, wall_ms), bytes.fromhex(RUN), verify)


@asynccontextmanager
async def replicate(endpoint, state=None):
    state = state or new_state(endpoint)
    rng = random.Random(bytes(endpoint.node_id))
    async with open_replication(endpoint, state, RUN, rng=rng) as replication:
        state.set_member(MemberInfo(endpoint.name, tuple(map(str, endpoint.addresses))))
        replication.notify()
        yield replication


@asynccontextmanager
async def swarm(world, count):
    """`count` nodes, all connected, each replicating."""
    async with nodes(world, count) as endpoints, AsyncExitStack() as stack:
        for index, endpoint in enumerate(endpoints):
            for other in range(index):
                await endpoint.connect([address(other + 1)])
        yield endpoints, [await stack.enter_async_context(replicate(e)) for e in endpoints]


async def until_equal(replications, within_s):
    with trio.fail_after(within_s):
        while len({each.state.digest() for each in replications}) > 1:
            await trio.sleep(0.01)


async def test_edits_arrive_after_one_way(autojump_clock):
    world = MemoryNetwork(1, default=LinkSettings(latency_s=0.05))
    async with swarm(world, 4) as (endpoints, replications):
        await until_equal(replications, 2)
        assert [member.name for member in replications[0].state.members().values()] == [
            endpoint.name for endpoint in sorted(endpoints, key=lambda e: e.node_id)
        ]
        await trio.sleep(3)
        replications[2].state.set_checkpoint(CheckpointInfo(9, 1, HASH, endpoints[2].node_id))
        began = trio.current_time()
        version = replications[0].version
        replications[2].notify()
        await replications[0].wait_change(version)
        assert trio.current_time() - began < 0.06
        assert replications[0].state.checkpoint().step == 9
        await until_equal(replications, 1)


async def test_news_is_passed_on_to_those_who_are_not_connected_to_its_writer(autojump_clock):
    world = MemoryNetwork(1, default=LinkSettings(latency_s=0.05))
    count = 6
    async with nodes(world, count) as endpoints, AsyncExitStack() as stack:
        for index in range(1, count):
            await endpoints[index].connect([address(index)])  # a line
        replications = [await stack.enter_async_context(replicate(e)) for e in endpoints]
        await until_equal(replications, 30)
        await trio.sleep(3)
        first, last = replications[0], replications[-1]
        first.state.set_checkpoint(CheckpointInfo(9, 1, HASH, endpoints[0].node_id))
        version, began = last.version, trio.current_time()
        first.notify()
        await last.wait_change(version)
        assert trio.current_time() - began < (count - 1) * 0.12
        assert last.state.checkpoint().step == 9


async def test_a_peer_without_the_run_costs_little_and_is_found_later(autojump_clock):
    async with nodes(MemoryNetwork(1), 2) as (a, b):
        await a.connect([address(2)])
        async with replicate(a) as first:
            await trio.sleep(120)
            assert b.counters["no-such-protocol"] <= 12
            assert first.partners == []
            async with replicate(b) as second:
                await until_equal([first, second], 1)
                assert first.partners == [b.node_id]
            await trio.sleep(1)
            assert first.partners == []
            async with replicate(b, second.state) as again:
                await until_equal([first, again], 1)


async def test_a_killed_node_returns_and_a_partition_heals(autojump_clock):
    world = MemoryNetwork(3, default=LinkSettings(latency_s=0.01, jitter_s=0.005))
    async with nodes(world, 2) as (a, b), replicate(a) as first, replicate(b) as second:
        await a.connect([address(2)])
        with trio.CancelScope() as life:
            async with (
                node(world.host("10.0.0.3"), 3) as c,
                replicate(c) as third,
            ):
                await c.connect([address(1)])
                await until_equal([first, second, third], 10)
                world.kill_host("10.0.0.3")
                life.cancel()
        world.revive_host("10.0.0.3")
        for step in range(5):
            first.state.set_progress(Progress(1, step, 1.0, 1, 1.0))
            first.notify()
            await trio.sleep(0.5)
        async with node(world.host("10.0.0.3"), 3, seed=1) as c, replicate(c) as third:
            await c.connect([address(1)])
            await until_equal([first, second, third], 10)
            assert third.state.members()[c.node_id].status == "active"

            world.partition(["10.0.0.1"], ["10.0.0.2", "10.0.0.3"])
            await trio.sleep(10)
            assert not a.peers
            second.state.set_progress(Progress(1, 77, 1.0, 1, 1.0))
            third.state.leave("enough")
            second.notify()
            third.notify()
            await trio.sleep(1)
            world.heal()
            await c.connect([address(1)])
            await b.connect([address(1)])
            await until_equal([first, second, third], 5)
            assert first.state.progress()[b.node_id].step == 77
            assert first.state.members()[c.node_id].status == "left"


async def test_last_words_are_heard(autojump_clock):
    world = MemoryNetwork(1, default=LinkSettings(latency_s=0.02))
    async with node(world.host("10.0.0.1"), 1) as a, replicate(a) as first:
        async with node(world.host("10.0.0.2"), 2) as b, replicate(b) as second:
            await b.connect([address(1)])
            await until_equal([first, second], 5)
            second.state.leave("stopped")
            with trio.fail_after(1):
                await second.flush()
        await trio.sleep(0.1)
        assert first.state.members()[b.node_id].status == "left"


async def test_a_large_document_crosses(autojump_clock):
    async with nodes(MemoryNetwork(1), 2) as (a, b):
        state = new_state(a)
        for index in range(1, 600):
            who = Identity.from_seed(index.to_bytes(32, "little"))
            author = Author(who.public_key, who.sign)
            other = RunState(author, HybridClock(who.node_id, wall_ms), bytes.fromhex(RUN), verify)
            other.set_member(MemberInfo("x" * 64, tuple(f"{n:0>60}:1" for n in range(8))))
            state.merge(other.to_wire())
        async with replicate(a, state) as first, replicate(b) as second:
            await a.connect([address(2)])
            await until_equal([first, second], 10)
            assert len(second.state.members()) == 601


async def test_garbage_ends_its_stream_only(autojump_clock):
    async with nodes(MemoryNetwork(1), 2) as (a, b), replicate(a) as first:
        peer = await b.connect([address(1)])
        stream = await peer.open_stream(protocol_of(RUN))
        await stream.send_message(b"\xc1")
        with pytest.raises(EndOfStream):
            await stream.receive_message()
        assert first.counters["refused"] == 1
        async with replicate(b) as second:
            await until_equal([first, second], 5)
        assert await peer.ping() >= 0


async def test_names_make_protocols(autojump_clock):
    assert protocol_of("ab") == "state/ab"
    assert len(protocol_of(RUN)) <= 64
    assert protocol_of(RUN) != protocol_of(RUN[:-1] + "0")
    async with nodes(MemoryNetwork(1), 1) as (a,):
        for bad in ("with space", "\n"):
            with pytest.raises(GossipError):
                async with open_replication(a, new_state(a), bad, rng=random.Random(0)):
                    pass
        async with replicate(a):
            with pytest.raises(GossipError, match="already"):
                async with open_replication(a, new_state(a), RUN, rng=random.Random(0)):
                    pass


def storm(seed):
    """Edits, resets and stalls; returns what the network saw."""
    world = MemoryNetwork(seed, default=LinkSettings(latency_s=0.02, jitter_s=0.02, stall=0.05))
    rng = random.Random(seed)

    async def main():
        async with swarm(world, 5) as (endpoints, replications):
            for step in range(60):
                each = rng.choice(replications)
                each.state.set_progress(Progress(1, step, 1.0, 1, 1.0))
                each.notify()
                if step % 15 == 14:
                    one, other = rng.sample(range(1, 6), 2)
                    world.reset_connections(f"10.0.0.{one}", f"10.0.0.{other}")
                    await endpoints[one - 1].connect([address(other)])
                await trio.sleep(rng.uniform(0, 0.2))
            await until_equal(replications, 10)
            return world.trace_digest()

    return run_deterministically(seed, main)


def test_a_seed_fixes_the_whole_run():
    assert storm(1) == storm(1) != storm(2)
