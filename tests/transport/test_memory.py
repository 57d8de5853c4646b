"""The simulated network: stream contract, delays, faults, and determinism itself."""

import os
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.hash_seeds import same_under_two_hash_seeds
from transport.address import Address
from transport.errors import AddressInUse, ConnectFailed
from transport.network import RawStream
from transport.simulated.deterministic import run_deterministically
from transport.simulated.memory import LinkSettings, MemoryNetwork

SERVER = Address(host="10.0.0.2", port=7447)


async def pair(world: MemoryNetwork) -> tuple[RawStream, RawStream]:
    listener = await world.host("10.0.0.2").listen(Address(host="0.0.0.0", port=0))
    client = await world.host("10.0.0.1").connect(listener.address)
    server = await listener.accept()
    await listener.aclose()
    return client, server


async def receive_exactly(stream: RawStream, size: int) -> bytes:
    buffer = bytearray(size)
    view, got = memoryview(buffer), 0
    while got < size:
        count = await stream.receive_into(view[got:])
        assert count, "the stream ended early"
        got += count
    return bytes(buffer)


async def raises(kind: type[Exception], operation: Callable[[], Awaitable[object]]) -> None:
    with pytest.raises(kind):
        await operation()


async def read_one(stream: RawStream) -> int:
    return await stream.receive_into(memoryview(bytearray(1)))


async def test_bytes_travel_and_end(autojump_clock: object) -> None:
    client, server = await pair(MemoryNetwork(1))
    assert client.remote == server.local
    assert client.local == server.remote
    data = os.urandom(1_000_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, data)
        assert await receive_exactly(server, len(data)) == data
    await server.send_all(b"back")
    await server.aclose()
    assert await receive_exactly(client, 4) == b"back"
    assert await read_one(client) == 0


async def test_the_window_bounds_what_a_silent_reader_costs(autojump_clock: object) -> None:
    client, server = await pair(MemoryNetwork(1, window_bytes=1000))
    with trio.move_on_after(60) as scope:
        await client.send_all(bytes(1001))
    assert scope.cancelled_caught
    assert sum(len(chunk) for _, chunk in server._inbox) == 1000  # type: ignore[attr-defined]
    await receive_exactly(server, 1000)
    await client.send_all(bytes(1000))


async def test_latency_and_bandwidth_add_up(autojump_clock: object) -> None:
    settings = LinkSettings(latency_s=0.1, bandwidth_bytes_per_s=1000)
    world = MemoryNetwork(1, default=settings, tick_s=0)
    start = trio.current_time()
    client, server = await pair(world)
    assert trio.current_time() - start == pytest.approx(0.2)
    start = trio.current_time()
    await client.send_all(bytes(500))
    await receive_exactly(server, 500)
    assert trio.current_time() - start == pytest.approx(0.6)


async def test_split_reads_deliver_every_byte_in_order(autojump_clock: object) -> None:
    world = MemoryNetwork(1, default=LinkSettings(split=1.0))
    client, server = await pair(world)
    data = bytes(range(256))
    await client.send_all(data)
    assert await receive_exactly(server, 256) == data
    assert world.statistics()["split"] > 1


async def test_a_stall_delays_and_keeps_order(autojump_clock: object) -> None:
    world = MemoryNetwork(1, default=LinkSettings(stall=0.5, stall_s=1.0))
    client, server = await pair(world)
    for number in range(20):
        await client.send_all(bytes([number]))
    assert await receive_exactly(server, 20) == bytes(range(20))
    assert world.statistics()["stall"] > 0
    assert trio.current_time() >= 0.5


async def test_a_reset_breaks_both_ends(autojump_clock: object) -> None:
    world = MemoryNetwork(1)
    client, server = await pair(world)
    world.set_default(LinkSettings(reset=1.0))
    await raises(trio.BrokenResourceError, lambda: client.send_all(b"x"))
    await raises(trio.BrokenResourceError, lambda: read_one(server))
    assert world.open_connections == 0


async def test_partition_holds_bytes_until_it_heals(autojump_clock: object) -> None:
    world = MemoryNetwork(1, default=LinkSettings(latency_s=0.01))
    client, server = await pair(world)
    world.partition(["10.0.0.1"], ["10.0.0.2"])
    await client.send_all(b"held")
    with trio.move_on_after(1000) as scope:
        await read_one(server)
    assert scope.cancelled_caught
    with trio.move_on_after(10) as scope:
        await world.host("10.0.0.1").connect(SERVER)
    assert scope.cancelled_caught
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive_exactly, server, 4)
        await wait_all_tasks_blocked()
        world.heal()
    await server.send_all(b"ok")
    assert await receive_exactly(client, 2) == b"ok"


async def test_a_one_way_blackhole_lets_the_other_way_through_until_the_window_is_full(
    autojump_clock: object,
) -> None:
    world = MemoryNetwork(1, window_bytes=1000)
    client, server = await pair(world)
    world.block("10.0.0.1", "10.0.0.2")
    await server.send_all(bytes(1000))
    assert await receive_exactly(client, 1000) == bytes(1000)
    with trio.move_on_after(10) as scope:
        await server.send_all(b"x")  # the credit cannot come back
    assert scope.cancelled_caught
    world.heal()
    await server.send_all(b"x")
    assert await receive_exactly(client, 1) == b"x"


async def test_a_killed_host_resets_or_is_silent(autojump_clock: object) -> None:
    for silent in (False, True):
        world = MemoryNetwork(1)
        client, server = await pair(world)
        world.kill_host("10.0.0.2", silent=silent)
        await raises(trio.BrokenResourceError, lambda server=server: read_one(server))
        with trio.move_on_after(1000) as scope:
            await raises(trio.BrokenResourceError, lambda client=client: read_one(client))
        assert scope.cancelled_caught == silent
        if silent:
            await client.send_all(b"into the void")
            world.revive_host("10.0.0.2")
            await raises(trio.BrokenResourceError, lambda client=client: read_one(client))
        else:
            await raises(ConnectFailed, lambda world=world: world.host("10.0.0.1").connect(SERVER))


async def test_listening_rules(autojump_clock: object) -> None:
    world = MemoryNetwork(1, backlog=2)
    host = world.host("10.0.0.2")
    listener = await host.listen(SERVER)
    await raises(AddressInUse, lambda: host.listen(SERVER))
    waiting = [await world.host("10.0.0.1").connect(SERVER) for _ in range(2)]
    with trio.move_on_after(10) as scope:
        await world.host("10.0.0.1").connect(SERVER)
    assert scope.cancelled_caught  # the queue is full
    await listener.aclose()
    for stream in waiting:
        await raises(trio.BrokenResourceError, lambda stream=stream: read_one(stream))
    await raises(ConnectFailed, lambda: world.host("10.0.0.1").connect(SERVER))
    assert world.open_connections == 0


async def test_closing_wakes_everybody(autojump_clock: object) -> None:
    client, server = await pair(MemoryNetwork(1, window_bytes=10))
    listener = await MemoryNetwork(1).host("10.0.0.9").listen(Address(host="10.0.0.9", port=1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raises, trio.ClosedResourceError, lambda: read_one(client))
        nursery.start_soon(raises, trio.ClosedResourceError, lambda: client.send_all(bytes(11)))
        nursery.start_soon(raises, trio.ClosedResourceError, listener.accept)
        await wait_all_tasks_blocked()
        client.abort()
        await listener.aclose()
    await raises(trio.BrokenResourceError, lambda: server.send_all(b"x"))


async def _chatter(seed: int) -> str:
    """Run a little traffic with every fault class and return the digest."""
    world = MemoryNetwork(
        seed,
        default=LinkSettings(
            latency_s=0.02,
            jitter_s=0.01,
            bandwidth_bytes_per_s=1e6,
            stall=0.1,
            split=0.3,
            reset=0.002,
        ),
    )

    async def echo(stream: RawStream) -> None:
        buffer = memoryview(bytearray(4096))
        try:
            while (count := await stream.receive_into(buffer)) > 0:
                await stream.send_all(buffer[:count])
        except trio.BrokenResourceError:
            stream.abort()

    async def client(number: int) -> None:
        try:
            stream = await world.host(f"10.0.1.{number}").connect(SERVER)
            for _ in range(10):
                await stream.send_all(bytes(100 * number))
                await receive_exactly(stream, 100 * number)
            await stream.aclose()
        except trio.BrokenResourceError:
            pass

    async with trio.open_nursery() as servers:
        listener = await world.host("10.0.0.2").listen(SERVER)

        async def accept() -> None:
            while True:
                servers.start_soon(echo, await listener.accept())

        servers.start_soon(accept)
        async with trio.open_nursery() as clients:
            for number in range(1, 9):
                clients.start_soon(client, number)
        servers.cancel_scope.cancel()
    return world.trace_digest().hex()


def test_same_seed_same_trace_other_seed_other_trace() -> None:
    first = run_deterministically(7, _chatter, 7)
    assert run_deterministically(7, _chatter, 7) == first
    assert run_deterministically(8, _chatter, 8) != first


@pytest.mark.real
def test_the_trace_does_not_depend_on_the_hash_seed() -> None:
    program = (
        "from tests.transport.test_memory import _chatter\n"
        "from transport.simulated.deterministic import run_deterministically\n"
        "print(run_deterministically(7, _chatter, 7))"
    )
    same_under_two_hash_seeds("-c", program)
