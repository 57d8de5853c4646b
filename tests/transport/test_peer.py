"""Calls, limits and bulk links of a peer."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from tests.transport.nodes import address, node, nodes
from transport.bulk.door import NOT_REACHED
from transport.bulk.link import BulkLink, LinkClosed
from transport.bulk.rendezvous import ARRIVAL_WAIT_S
from transport.endpoint import Endpoint
from transport.errors import (
    MessageTooLarge,
    PeerLost,
    PeerUnreachable,
    RemoteCallFailed,
    StreamLimitReached,
    UsageError,
)
from transport.limits import Limits
from transport.peer import Peer
from transport.simulated.memory import LinkSettings, MemoryNetwork
from transport.streams.stream import Stream


@asynccontextmanager
async def two(
    limits: Limits | None = None, settings: LinkSettings | None = None
) -> AsyncIterator[tuple[MemoryNetwork, Endpoint, Endpoint, Peer]]:
    world = MemoryNetwork(1, default=settings)
    async with nodes(world, 2, limits=limits) as (a, b):
        peer = await a.connect([address(2)])
        await trio.sleep(1)
        yield world, a, b, peer


async def test_calls_carry_bytes_and_run_side_by_side(autojump_clock: object) -> None:
    async with two(settings=LinkSettings(latency_s=0.05)) as (_, a, b, peer):

        async def reverse(caller: Peer, request: bytes) -> bytes:
            assert caller.node_id == a.node_id
            await trio.sleep(1)
            return request[::-1]

        b.serve_calls("reverse", reverse)
        start = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def one(number: int) -> None:
                request = number.to_bytes(4, "big") * 100
                assert await peer.call("reverse", request) == request[::-1]

            for number in range(50):
                nursery.start_soon(one, number)
        assert trio.current_time() - start < 1.2
        assert await peer.call("reverse", b"") == b""
        assert await peer.call("reverse", bytes(65536)) == bytes(65536)


async def test_every_way_a_call_can_fail_is_told(autojump_clock: object) -> None:
    async with two() as (_, _a, b, peer):

        async def handler(_caller: Peer, request: bytes) -> bytes:
            if request == b"refuse":
                raise RemoteCallFailed("not today")
            if request == b"fail":
                raise ValueError("internal")
            return bytes(65537)

        b.serve_calls("moody", handler)
        for request, text in (
            (b"refuse", "not today"),
            (b"fail", "handler of 'moody' failed"),
            (b"large", "handler of 'moody' failed"),
        ):
            with pytest.raises(RemoteCallFailed, match=text):
                await peer.call("moody", request)
        with pytest.raises(RemoteCallFailed, match="does not serve 'unknown'"):
            await peer.call("unknown", b"")
        with pytest.raises(MessageTooLarge):
            await peer.call("moody", bytes(65537))
        assert b.counters["handler-failed"] == 2


async def test_a_hostile_answer_fails_the_call(autojump_clock: object) -> None:
    async with two() as (_, _a, b, peer):

        async def answer(stream: Stream) -> None:
            request = await stream.receive_to_end(10)
            await stream.send_all(b"" if request == b"empty" else bytes(70_000))

        b.serve("liar", answer)
        with pytest.raises(RemoteCallFailed, match="no status"):
            await peer.call("liar", b"empty")
        with pytest.raises(RemoteCallFailed, match="too large"):
            await peer.call("liar", b"large")


async def test_a_cancelled_call_frees_its_stream_on_both_sides(autojump_clock: object) -> None:
    async with two() as (_, a, b, peer):
        started = trio.Event()
        ended: list[str] = []

        async def slow(_caller: Peer, _request: bytes) -> bytes:
            started.set()
            try:
                await trio.sleep_forever()
            finally:
                ended.append("ended")

        b.serve_calls("slow", slow)
        with trio.move_on_after(1) as scope:
            await peer.call("slow", b"x")
        assert scope.cancelled_caught
        await trio.sleep(1)
        assert started.is_set()
        assert ended == ["ended"]
        assert peer.primary.mux.statistics().streams == 0
        assert b.peers[a.node_id].primary.mux.statistics().streams == 0


async def test_more_calls_than_streams_wait_for_their_turn(autojump_clock: object) -> None:
    async with two(Limits(streams_per_peer=4)) as (_, _a, b, peer):

        async def slow(_caller: Peer, request: bytes) -> bytes:
            await trio.sleep(1)
            return request

        b.serve_calls("slow", slow)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(peer.call, "slow", b"x")
        held = [await peer.open_stream("slow") for _ in range(4)]
        with pytest.raises(StreamLimitReached):
            await peer.open_stream("slow")
        await held[0].aclose()
        await trio.sleep(2)
        await peer.open_stream("slow")


async def test_handlers_of_streams_that_were_reset_are_bounded(autojump_clock: object) -> None:
    async with two(Limits(streams_per_peer=4)) as (_, _a, b, peer):

        async def deaf(_stream: Stream) -> None:
            await trio.sleep_forever()

        b.serve("deaf", deaf)
        before = trio.lowlevel.current_statistics().tasks_living
        for _ in range(20):
            (await peer.open_stream("deaf")).reset()
            await trio.sleep(1)
        # Opened and reset within one record, a stream never reaches its handler.
        for _ in range(20):
            stream = await peer.open_stream("deaf")
            await trio.sleep(1)
            stream.reset()
        assert trio.lowlevel.current_statistics().tasks_living == before + 8
        assert b.counters["refused-handlers"] == 12


async def test_a_call_on_a_peer_that_is_gone_is_lost(autojump_clock: object) -> None:
    async with two() as (world, _a, _b, peer):
        world.kill_host("10.0.0.2")
        await trio.sleep(1)
        with pytest.raises(PeerLost, match="reset"):
            await peer.call("any", b"")
        with pytest.raises(PeerLost):
            await peer.open_bulk(b"")
        peer.close("twice is fine")


# Bulk


async def exchange(ours: BulkLink, theirs: BulkLink) -> None:
    target = bytearray(5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.send, b"head", b"hello")
        header = await theirs.receive(lambda _header, _size: memoryview(target))
    assert (header, bytes(target)) == (b"head", b"hello")


@pytest.mark.parametrize("first", ["open", "accept"])
async def test_a_bulk_link_meets_its_taker_whoever_is_first(
    first: str, autojump_clock: object
) -> None:
    async with two() as (_, a, b, peer):
        links: dict[str, BulkLink] = {}

        async def open_it() -> None:
            links["a"] = await peer.open_bulk(b"label")

        async def accept_it() -> None:
            links["b"] = await b.accept_bulk(a.node_id, b"label")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_it if first == "open" else accept_it)
            await trio.sleep(2)
            nursery.start_soon(accept_it if first == "open" else open_it)
        await exchange(links["a"], links["b"])
        await exchange(links["b"], links["a"])
        assert peer.bytes_sent > 100


async def test_a_bulk_link_nobody_takes_is_closed_and_counted(autojump_clock: object) -> None:
    async with two() as (_, a, b, peer):
        link = await peer.open_bulk(b"nobody")
        await trio.sleep(ARRIVAL_WAIT_S + 1)
        assert b.counters["refused-bulk-unclaimed"] == 1
        with pytest.raises(LinkClosed):
            await link.receive(lambda _header, size: memoryview(bytearray(size)))
        with trio.move_on_after(1) as scope:
            await b.accept_bulk(a.node_id, b"nobody")
        assert scope.cancelled_caught


async def test_bulk_links_die_with_the_peer(autojump_clock: object) -> None:
    async with two() as (world, a, b, peer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.accept_bulk, a.node_id, b"x")
            link = await peer.open_bulk(b"x")

        async def expect_closed() -> None:
            with pytest.raises(LinkClosed, match="silent for 4 s"):
                await link.receive(lambda _header, size: memoryview(bytearray(size)))

        async def expect_lost() -> None:
            with pytest.raises(PeerLost, match="silent for 4 s"):
                await a.accept_bulk(b.node_id, b"never")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_closed)
            nursery.start_soon(expect_lost)
            await trio.sleep(1)
            world.partition(["10.0.0.1"], ["10.0.0.2"])
        assert peer.closed.is_set()


async def test_bulk_without_a_control_connection_is_refused(autojump_clock: object) -> None:
    world = MemoryNetwork(1)
    async with nodes(world, 2) as (a, b):
        peer = await a.connect([address(2)])
        await trio.sleep(1)
        with pytest.raises(PeerLost, match="not connected"):
            await a.accept_bulk(a.node_id, b"")
        # b forgets a, and a dials its bulk link all the same.
        dial = a._bulk.dial
        b.peers[a.node_id].close("bye")
        raw, _ = await dial(peer, b"label")
        with pytest.raises(trio.BrokenResourceError):
            await raw.receive_into(memoryview(bytearray(1)))
        assert b.counters["refused-bulk-without-peer"] == 1


async def test_the_number_of_bulk_links_is_bounded(autojump_clock: object) -> None:
    async with two(Limits(bulk_links_per_peer=2)) as (_, a, b, peer):
        links: list[BulkLink] = []
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(b.accept_bulk, a.node_id, b"x")
            for _ in range(2):
                links.append(await peer.open_bulk(b"x"))  # noqa: PERF401
        with pytest.raises(StreamLimitReached):
            await peer.open_bulk(b"x")
        with pytest.raises(UsageError):
            await a.open_bulk(peer, bytes(65))
        await links[0].aclose()
        await peer.open_bulk(b"x")


async def test_who_cannot_be_dialed_dials_back(autojump_clock: object) -> None:
    world = MemoryNetwork(1, default=LinkSettings(latency_s=0.01))
    async with (
        node(world.host("10.0.0.1"), 1) as a,
        node(world.host("10.0.0.2"), 2, listen=[]) as hidden,
    ):
        await hidden.connect(a.addresses)
        await trio.sleep(1)
        peer = a.peers[hidden.node_id]
        links: dict[str, BulkLink] = {}

        async def accept_it() -> None:
            links["hidden"] = await hidden.accept_bulk(a.node_id, b"label")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept_it)
            links["a"] = await peer.open_bulk(b"label")
        await exchange(links["a"], links["hidden"])
        await exchange(links["hidden"], links["a"])


async def test_who_can_neither_be_dialed_nor_dial_gets_its_bulk_links_over_a_stream(
    autojump_clock: object,
) -> None:
    world = MemoryNetwork(1, default=LinkSettings(latency_s=0.01))
    async with (
        node(world.host("10.0.0.1"), 1) as a,
        node(world.host("10.0.0.2"), 2, listen=[]) as hidden,
    ):
        await hidden.connect(a.addresses)
        await trio.sleep(1)
        peer = a.peers[hidden.node_id]
        world.host("10.0.0.1")._listeners[7447]._close()
        links: dict[str, BulkLink] = {}

        async def accept_it(name: str) -> None:
            links[name] = await hidden.accept_bulk(a.node_id, b"label")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept_it, "hidden")
            links["a"] = await peer.open_bulk(b"label")
        await exchange(links["a"], links["hidden"])
        await exchange(links["hidden"], links["a"])
        assert peer.bulk_way == "over-stream"
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept_it, "again")
            await peer.open_bulk(b"label")
        assert trio.current_time() - start < 0.2  # the way that worked is tried first


async def test_no_way_works(autojump_clock: object) -> None:
    world = MemoryNetwork(1)
    async with (
        node(world.host("10.0.0.1"), 1) as a,
        node(world.host("10.0.0.2"), 2, listen=[]) as hidden,
    ):
        await hidden.connect(a.addresses)
        await trio.sleep(1)
        peer = a.peers[hidden.node_id]
        world.host("10.0.0.1")._listeners[7447]._close()
        del hidden._registry.handlers["bulk/over-stream"]
        with pytest.raises(PeerUnreachable) as caught:
            await peer.open_bulk(b"label")
        assert [target for target, _ in caught.value.attempts] == ["dial-back", "over-stream"]
        assert caught.value.attempts[0][1] == NOT_REACHED
        assert "does not serve" in caught.value.attempts[1][1]
