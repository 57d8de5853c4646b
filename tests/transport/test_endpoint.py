"""Whole endpoints over the simulated network: connecting, leaving, watching, cancelling, and what they hold."""

import pytest
import trio

from tests.transport.nodes import address, echo, identity, lost, node, nodes, peer_of
from tests.trusted import trust_of
from transport.address import Address
from transport.endpoint import open_endpoint
from transport.errors import (
    AddressInUse,
    EndpointClosed,
    PeerUnreachable,
    SelfDialed,
    StreamReset,
    UsageError,
)
from transport.limits import HANDSHAKE_BYTES
from transport.simulated.memory import LinkSettings, MemoryNetwork
from transport.streams.stream import Stream
from transport.watch import BUFFER, Lagged, PeerDown, PeerEvent, PeerUp


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
            trust=trust_of(identity(2)),
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
