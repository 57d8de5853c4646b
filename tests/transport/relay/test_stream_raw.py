"""A stream as a raw stream: the contract of `transport.network`, and what its failures say."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio

from tests.transport.nodes import address, nodes
from transport.bulk.in_stream import PROTOCOL, open_over_stream
from transport.endpoint import Endpoint
from transport.errors import ConnectionBroken, UsageError
from transport.network import Path, RawStream
from transport.peer import Peer
from transport.secure.handshake import Intro
from transport.secure.link import shake_hands
from transport.simulated.memory import LinkSettings, MemoryNetwork
from transport.streams.raw import StreamRaw
from transport.streams.stream import Stream


@attrs.define
class Pair:
    world: MemoryNetwork
    a: Endpoint
    b: Endpoint
    peer: Peer
    here: StreamRaw
    there: StreamRaw


@asynccontextmanager
async def pair() -> AsyncIterator[Pair]:
    world = MemoryNetwork(1, default=LinkSettings(latency_s=0.01))
    async with nodes(world, 2) as (a, b):
        arrived: list[StreamRaw] = []

        async def take(stream: Stream) -> None:
            arrived.append(adapt(stream))
            await arrived[0].wait_closed()

        b.serve("raw", take)
        peer = await a.connect([address(2)])
        here = adapt(await peer.open_stream("raw"))
        await here.send_all(b"hello")
        await trio.sleep(0.1)
        assert await read(arrived[0]) == b"hello"
        yield Pair(world, a, b, peer, here, arrived[0])


def adapt(stream: Stream) -> StreamRaw:
    return StreamRaw(
        stream, local=address(1), remote=address(2), path=Path.RELAYED, resets={99: "for a test"}
    )


async def read(raw: RawStream, size: int = 65536) -> bytes:
    buffer = memoryview(bytearray(size))
    return bytes(buffer[: await raw.receive_into(buffer)])


async def read_all(raw: RawStream) -> bytes:
    parts = []
    while part := await read(raw):
        parts.append(part)
    return b"".join(parts)


async def test_both_ways_at_once_any_buffer_any_bytes(autojump_clock: object) -> None:
    async with pair() as p:
        data = bytes(range(256)) * 8192
        got: dict[str, bytes] = {}

        async def send(raw: RawStream) -> None:
            view = memoryview(bytearray(data))
            for start in range(0, len(view), 100_000):
                part = bytearray(view[start : start + 100_000])
                await raw.send_all(memoryview(part))
                part[:] = bytes(len(part))  # ours again: what was sent must be a copy
            await raw.aclose() if raw is p.there else None

        async def receive(name: str, raw: RawStream, size: int) -> None:
            parts = bytearray()
            while len(parts) < len(data):
                parts += await read(raw, size)
            got[name] = bytes(parts)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, p.here)
            nursery.start_soon(receive, "here", p.here, 3000)
            nursery.start_soon(receive, "there", p.there, 70_000)
            await p.there.send_all(data)
        assert got == {"here": data, "there": data}
        assert (p.here.local, p.here.remote, p.here.path) == (address(1), address(2), Path.RELAYED)
        assert "relayed" in repr(p.here)


@pytest.mark.parametrize("how", ["abort", "aclose"])
async def test_closing_wakes_whoever_waits_and_may_be_repeated(
    autojump_clock: object, how: str
) -> None:
    async with pair() as p:
        woken: list[str] = []

        async def wait_send() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await p.here.send_all(bytes(1 << 22))
            woken.append("sender")

        async def wait_receive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await read(p.here)
            woken.append("receiver")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_send)
            nursery.start_soon(wait_receive)
            await trio.sleep(1)
            assert woken == []
            for _ in range(2):
                if how == "abort":
                    p.here.abort()
                else:
                    await p.here.aclose()
            with trio.fail_after(1):
                await p.here.wait_closed()
        assert sorted(woken) == ["receiver", "sender"]
        for use in (p.here.send_all(b"x"), read(p.here)):
            with pytest.raises(trio.ClosedResourceError):
                await use


async def test_only_one_task_may_send_and_one_receive(autojump_clock: object) -> None:
    async with pair() as p, trio.open_nursery() as nursery:

        async def fill() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await p.here.send_all(bytes(1 << 22))

        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await read(p.here)

        nursery.start_soon(fill)
        nursery.start_soon(wait)
        await trio.sleep(1)
        with pytest.raises(trio.BusyResourceError):
            await p.here.send_all(b"x")
        with pytest.raises(trio.BusyResourceError):
            await read(p.here)
        p.here.abort()


async def test_a_cancelled_receive_takes_nothing(autojump_clock: object) -> None:
    async with pair() as p:
        data = bytes(range(200)) * 50
        got = bytearray()
        async with trio.open_nursery() as nursery:

            async def trickle() -> None:
                for start in range(0, len(data), 100):
                    await p.here.send_all(data[start : start + 100])
                    await trio.sleep(0.003)

            nursery.start_soon(trickle)
            while len(got) < len(data):
                with trio.move_on_after(0.002):
                    got += await read(p.there, 64)
        assert bytes(got) == data


async def test_a_close_in_order_lets_what_was_sent_arrive(autojump_clock: object) -> None:
    async with pair() as p:
        await p.here.send_all(bytes(200_000))
        await p.here.aclose()
        assert len(await read_all(p.there)) == 200_000
        await p.there.aclose()
        await trio.sleep(1)
        for endpoint in (p.a, p.b):
            (peer,) = endpoint.peers.values()
            assert peer.primary.mux.statistics().streams == 0


async def test_an_abort_and_a_lost_carrier_are_broken_streams_with_a_reason(
    autojump_clock: object,
) -> None:
    async with pair() as p:
        p.there.abort()
        await trio.sleep(1)
        for use in (p.here.send_all(b"x"), read(p.here)):
            with pytest.raises(trio.BrokenResourceError, match="connection reset by peer"):
                await use
    async with pair() as p:
        p.there._stream.reset(99)
        await trio.sleep(1)
        with pytest.raises(trio.BrokenResourceError, match="for a test"):
            await read(p.here)
    async with pair() as p:
        p.there._stream.reset(1234)
        await trio.sleep(1)
        with pytest.raises(trio.BrokenResourceError, match="code 1234"):
            await read(p.here)
    async with pair() as p:
        p.world.kill_host("10.0.0.2", silent=True)
        with pytest.raises(trio.BrokenResourceError, match="peer ended: silent for 4 s"):
            await read(p.here)


async def test_a_bulk_link_in_a_stream_of_the_connection_itself(autojump_clock: object) -> None:
    world = MemoryNetwork(1, default=LinkSettings(latency_s=0.01))
    async with nodes(world, 2) as (a, b):
        peer = await a.connect([address(2)])
        await trio.sleep(1)
        with pytest.raises(UsageError):
            b.serve(PROTOCOL, lambda stream: stream.aclose())
        raw = await open_over_stream(peer)
        assert raw.path is peer.path is Path.DIRECT
        handshake = a._context.handshake("initiator", Intro("bulk", "", (), b"label"), peer.node_id)
        async with trio.open_nursery() as nursery:

            async def take() -> None:
                link = await b.accept_bulk(a.node_id, b"label")
                target = bytearray(1 << 20)
                assert await link.receive(lambda _h, n: memoryview(target)[:n]) == b"header"
                assert target == bytes(range(256)) * 4096
                await link.aclose()

            nursery.start_soon(take)
            result = await shake_hands(raw, handshake, deadline=trio.current_time() + 5)
            link = peer.adopt_link(raw, result)
            before = peer.bytes_sent
            await link.send(b"header", bytes(range(256)) * 4096)
            assert 1 << 19 < peer.bytes_sent - before < 1.1 * (1 << 20)  # on the wire they are once
        await link.aclose()
        await trio.sleep(1)
        assert peer.primary.mux.statistics().streams == 0
        # What is no handshake ends the stream, and nothing else.
        raw = await open_over_stream(peer)
        await raw.send_all(b"GET / HTTP/1.1\r\n\r\n" + bytes(100))
        with pytest.raises(trio.BrokenResourceError):
            await read_all(raw)
        assert await peer.ping() > 0
        b._registry.handlers.pop(PROTOCOL)
        raw = await open_over_stream(peer)
        again = a._context.handshake("initiator", Intro("bulk", "", (), b"x"), peer.node_id)
        with pytest.raises(ConnectionBroken, match="does not serve this"):
            await shake_hands(raw, again, deadline=trio.current_time() + 5)


async def test_no_control_connection_hides_in_a_stream_for_bulk(autojump_clock: object) -> None:
    world = MemoryNetwork(1, default=LinkSettings(latency_s=0.01))
    async with nodes(world, 2) as (a, b):
        peer = await a.connect([address(2)])
        raw = await open_over_stream(peer)
        handshake = a._context.handshake("initiator", Intro("control"), peer.node_id)
        await shake_hands(raw, handshake, deadline=trio.current_time() + 5)
        with pytest.raises(trio.BrokenResourceError):
            await read_all(raw)
        assert b.counters["refused-not-a-bulk-link"] == 1
        assert await peer.ping() > 0
