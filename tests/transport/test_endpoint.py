"""Whole endpoints over the simulated network: connecting, losing, crossing, refusing."""

import os
import random
import subprocess
import sys

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.transport.nodes import address, identity, node, nodes
from transport.address import Address
from transport.endpoint import Endpoint, open_endpoint
from transport.errors import (
    AddressInUse,
    EndpointClosed,
    PeerLost,
    PeerUnreachable,
    SelfDialed,
    StreamReset,
    UsageError,
)
from transport.limits import HANDSHAKE_BYTES, Limits
from transport.peer import Peer
from transport.simulated.deterministic import run_deterministically
from transport.simulated.memory import LinkSettings, MemoryNetwork
from transport.streams.stream import Stream
from transport.swarm import Swarm
from transport.watch import BUFFER, Lagged, PeerDown, PeerEvent, PeerUp


async def echo(_peer: Peer, request: bytes) -> bytes:
    return request


async def lost(peer: Peer, within_s: float) -> float:
    """Wait until a peer is lost; return how long that took."""
    start = trio.current_time()
    with trio.fail_after(within_s):
        await peer.closed.wait()
    return trio.current_time() - start


async def peer_of(endpoint: Endpoint, other: Endpoint) -> Peer:
    """Wait until `endpoint` is connected to `other`."""
    with endpoint.watch() as events:
        while other.node_id not in endpoint.peers:
            with trio.fail_after(10):
                await events.receive()
    return endpoint.peers[other.node_id]


async def test_two_nodes_know_each_other(autojump_clock: object) -> None:
    async with nodes(MemoryNetwork(1), 2) as (a, b):
        peer = await a.connect([address(2)])
        back = await peer_of(b, a)
        assert (peer.node_id, back.node_id) == (b.node_id, a.node_id)
        assert (peer.name, back.name) == ("node-2", "node-1")
        assert peer.address == address(2)
        assert back.listen == (address(1),)
        assert peer.public_key == b.identity.public_key
        assert await a.connect([address(2)]) is peer
        assert await a.connect([], expected=b.node_id) is peer
        assert await peer.ping() >= 0
        await trio.sleep(3)
        assert peer.rtt_s is not None
        assert peer.bytes_sent > 0
        assert peer.bytes_received == back.bytes_sent
        assert trio.current_time() - peer.last_seen <= 1.0
    assert peer.closed.is_set()
    assert not a.peers
    assert a.lost[b.node_id].name == "node-2"


async def test_leaving_tells_the_other_side_at_once(autojump_clock: object) -> None:
    world = MemoryNetwork(1)
    async with node(world.host("10.0.0.1"), 1) as a:
        async with node(world.host("10.0.0.2"), 2) as b:
            back = await a.connect(b.addresses)
            await peer_of(b, a)
            start = trio.current_time()
        assert trio.current_time() - start < 0.5
        await back.closed.wait()
        assert back.close_reason == "closed by the peer: shutting down"
        assert a.lost[b.node_id].reason == back.close_reason
    assert world.open_connections == 0


async def test_leaving_by_cancellation_says_goodbye_too(autojump_clock: object) -> None:
    world = MemoryNetwork(1, default=LinkSettings(latency_s=0.05))
    async with node(world.host("10.0.0.1"), 1) as a:
        with trio.CancelScope() as scope:
            async with node(world.host("10.0.0.2"), 2) as b:
                peer = await a.connect(b.addresses)
                await peer_of(b, a)
                scope.cancel()
                await trio.sleep_forever()
        await lost(peer, 1)
        assert peer.close_reason == "closed by the peer: shutting down"


async def test_two_sides_that_close_at_once_do_not_wait_for_each_other(
    autojump_clock: object,
) -> None:
    world = MemoryNetwork(1)
    async with nodes(world, 2) as (a, b):
        ours = await a.connect([address(2)])
        theirs = await peer_of(b, a)
        ours.close("one")
        theirs.close("other")
        await trio.sleep(0.01)
        assert world.open_connections == 0


async def test_an_exception_from_the_block_comes_out_bare() -> None:
    async def block() -> None:
        async with nodes(MemoryNetwork(1), 2) as (a, _b):
            await a.connect([address(2)])
            raise KeyError("mine")

    with pytest.raises(KeyError):
        await block()


async def test_the_port_is_taken(autojump_clock: object) -> None:
    world = MemoryNetwork(1)
    async with node(world.host("10.0.0.1"), 1):
        with pytest.raises(AddressInUse):
            async with node(world.host("10.0.0.1"), 1):
                pass


async def test_serving_twice_or_under_a_bad_name_is_a_usage_error(autojump_clock: object) -> None:
    async with nodes(MemoryNetwork(1), 1) as (a,):
        a.serve_calls("echo", echo)
        with pytest.raises(UsageError):
            a.serve_calls("echo", echo)
        with pytest.raises(UsageError):
            a.serve_calls("with space", echo)
        a.unserve("echo")
        a.serve_calls("echo", echo)


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


# Refusing


async def test_unreachable_lists_every_reason(autojump_clock: object) -> None:
    world = MemoryNetwork(1)
    async with nodes(world, 3) as (a, _b, c):
        world.kill_host("10.0.0.9")
        world.block("10.0.0.1", "10.0.0.8")
        with pytest.raises(PeerUnreachable) as caught:
            await a.connect([address(9), address(8), address(2), address(1)], expected=c.node_id)
        reasons = dict(caught.value.attempts)
        assert reasons[str(address(9))] == "direct: connection refused"
        assert reasons[str(address(8))] == "direct: connection timed out"
        assert "expected" in reasons[str(address(2))]
        assert "own identity" in reasons[str(address(1))]
        with pytest.raises(SelfDialed):
            await a.connect([address(2)], expected=a.node_id)
        assert not a.peers
        peer = await a.connect([address(9), address(3)], expected=c.node_id)
        assert peer.node_id == c.node_id


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


async def test_another_swarm_is_refused_on_both_sides(autojump_clock: object) -> None:
    world = MemoryNetwork(1)
    async with node(world.host("10.0.0.1"), 1) as a:
        foreign = Swarm(bytes(32))
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


async def test_a_handler_that_fails_ends_only_its_stream(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    async with nodes(MemoryNetwork(1), 2) as (a, b):

        async def explode(_stream: Stream) -> None:
            async with trio.open_nursery() as nursery:  # its errors come in a group
                nursery.start_soon(trio.sleep_forever)
                raise ZeroDivisionError("in the handler")

        b.serve("explode", explode)
        b.serve_calls("echo", echo)
        peer = await a.connect([address(2)])
        for _ in range(10):
            stream = await peer.open_stream("explode")
            with pytest.raises(StreamReset):
                await stream.receive_some()
        assert await peer.call("echo", b"alive") == b"alive"
        assert b.counters["handler-failed"] == 10
        lines = [record for record in caplog.records if "explode" in record.getMessage()]
        assert len(lines) == 1
        assert "ZeroDivisionError" in lines[0].getMessage()


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


# Watching


async def test_watchers_hear_of_peers_and_learn_when_they_lag(autojump_clock: object) -> None:
    async with nodes(MemoryNetwork(1), 2) as (a, _b):
        with a.watch() as events:
            peer = await a.connect([address(2)])
            assert await events.receive() == PeerUp(peer)
            peer.close("enough")
            assert await events.receive() == PeerDown(peer, "closed here: enough")
            for _ in range(BUFFER):
                (await a.connect([address(2)])).close("again")
                await trio.sleep(1)
            heard: list[PeerEvent] = []
            while True:
                try:
                    heard.append(events.receive_nowait())
                except trio.WouldBlock:
                    break
            assert heard[-1] == Lagged()
            assert Lagged() not in heard[:-1]
            assert len(heard) == BUFFER
            await a.connect([address(2)])
            assert isinstance(await events.receive(), PeerUp)


async def test_a_closed_endpoint_refuses_and_ends_its_watchers(autojump_clock: object) -> None:
    async with nodes(MemoryNetwork(1), 1) as (a,):
        watching = a.watch()
        events = watching.__enter__()
    with pytest.raises(trio.EndOfChannel):
        await events.receive()
    watching.__exit__(None, None, None)
    with pytest.raises(EndpointClosed):
        await a.connect([address(2)])


# Cancelling and counting


async def test_cancelling_anywhere_in_a_dial_leaves_nothing(autojump_clock: object) -> None:
    """Cancel after each virtual millisecond of a connection that takes 0.2 s."""
    world = MemoryNetwork(1, default=LinkSettings(latency_s=0.03, split=0.5))
    async with nodes(world, 2) as (a, b):
        tasks = trio.lowlevel.current_statistics().tasks_living
        cancelled = 0
        for milliseconds in range(0, 200, 3):
            with trio.move_on_after(milliseconds / 1000) as scope:
                await a.connect([address(2)])
            cancelled += scope.cancelled_caught
            for peer in [*a.peers.values(), *b.peers.values()]:
                peer.close("next")
            await trio.sleep(10)
            assert world.open_connections == 0
            assert trio.lowlevel.current_statistics().tasks_living == tasks
        assert 20 < cancelled < 60


async def test_no_peer_means_no_leftover_tasks(autojump_clock: object) -> None:
    before = trio.lowlevel.current_statistics().tasks_living
    async with nodes(MemoryNetwork(1), 3) as (a, b, c):
        await a.connect([address(2)])
        await b.connect([address(3)])
        await c.connect([address(1)])
    assert trio.lowlevel.current_statistics().tasks_living == before


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
        "from tests.transport.test_endpoint import _story\n"
        "from transport.simulated.deterministic import run_deterministically\n"
        "print(run_deterministically(5, _story, 5))"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("0", "4711")
    }
    assert len(digests) == 1


async def test_wildcard_addresses_are_advertised_as_what_the_peer_sees(
    autojump_clock: object,
) -> None:
    world = MemoryNetwork(1)
    hidden = Address("0.0.0.0", 9)
    async with (
        node(world.host("10.0.0.1"), 1) as a,
        open_endpoint(
            identity(2),
            a.swarm,
            world.host("10.0.0.2"),
            [address(2)],
            advertise=[hidden],
        ) as b,
    ):
        await b.connect(a.addresses)
        assert (await peer_of(a, b)).listen == (Address("10.0.0.2", 9), address(2))


async def test_what_peers_hold_is_reserved_and_comes_back(autojump_clock: object) -> None:
    world = MemoryNetwork(1)
    async with nodes(world, 3) as (a, b, c):
        for other in (a, c):
            await other.connect([address(2)])
        limits, system = b.limits, b._context.scopes.system
        while len(b.peers) < 2:
            await trio.sleep(0.01)
        await trio.sleep(0.1)
        assert system.used == (2 * limits.connection_bytes, 0, 2, 2)
        links = []

        async def accept() -> None:
            links.append(await b.accept_bulk(a.node_id, b"x"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            ours = await a.peers[b.node_id].open_bulk(b"x")
        await trio.sleep(0.1)
        assert b.peers[a.node_id].scope.used[2] == 2
        await ours.aclose()
        links[0].abort()
        assert b.peers[a.node_id].scope.used == (limits.connection_bytes, 0, 1, 1)
        stranger = await world.host("10.9.9.9").connect(address(2))
        await trio.sleep(0.1)
        assert b._context.scopes.unauthenticated.used == (HANDSHAKE_BYTES, 0, 1, 1)
        stranger.abort()
        for peer in list(b.peers.values()):
            peer.close("done")
        await trio.sleep(1)
        assert system.used == (0, 0, 0, 0)


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
