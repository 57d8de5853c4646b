"""Paced streams: the cap holds, shares are fair, the contract of a raw stream stays, cancellation costs nobody anything."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from transport.address import Address
from transport.budget.pacing import Budget, Budgets, PacedStream, pace
from transport.limits import Limits
from transport.network import Path, RawStream
from transport.simulated.memory import MemoryNetwork

CAP = 100_000
PORT = 7447


@asynccontextmanager
async def pair(
    world: MemoryNetwork, port: int = PORT
) -> AsyncIterator[tuple[RawStream, RawStream]]:
    listener = await world.host("10.0.0.1").listen(Address("10.0.0.1", port))
    client = await world.host("10.0.0.2").connect(listener.address)
    server = await listener.accept()
    try:
        yield client, server
    finally:
        client.abort()
        server.abort()
        await listener.aclose()


async def drain(raw: RawStream, counts: dict[str, int], name: str) -> None:
    buffer = memoryview(bytearray(65536))
    while count := await raw.receive_into(buffer):
        counts[name] = counts.get(name, 0) + count


async def flood(raw: RawStream, piece: int = 30_000) -> None:
    while True:
        await raw.send_all(bytes(piece))


async def test_no_cap_costs_nothing(autojump_clock: object) -> None:
    async with pair(MemoryNetwork(1)) as (client, _):
        assert pace(client) is client
        assert pace(client, Budget(), Budget()) is client
        assert Budgets(Limits()).pace(client, b"peer") is client


async def test_the_addresses_and_the_path_are_those_of_the_raw_stream(
    autojump_clock: object,
) -> None:
    async with pair(MemoryNetwork(1)) as (client, _):
        client.path = Path.PUNCHED
        paced = pace(client, Budget(CAP))
        assert (paced.local, paced.remote, paced.path) == (client.local, client.remote, client.path)
        assert "PacedStream" in repr(paced)
        paced.expect_bulk()


@pytest.mark.parametrize("direction", ["upload", "download"])
async def test_a_cap_holds_and_is_reached(direction: str, autojump_clock: object) -> None:
    async with pair(MemoryNetwork(1)) as (client, server):
        budget = Budget(CAP, 0) if direction == "upload" else Budget(0, CAP)
        sender = pace(client, budget) if direction == "upload" else client
        receiver = server if direction == "upload" else pace(server, budget)
        counts: dict[str, int] = {}
        with trio.move_on_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood, sender)
                nursery.start_soon(drain, receiver, counts, "x")
        assert 0.95 * 10 * CAP <= counts["x"] <= 1.05 * 10 * CAP + 65536


async def test_two_connections_share_one_budget_and_the_node_s_cap_holds_over_peers(
    autojump_clock: object,
) -> None:
    world = MemoryNetwork(1)
    limits = Limits(upload_bytes_per_s=CAP, per_peer_upload_bytes_per_s=70_000)
    budgets = Budgets(limits)
    async with pair(world) as (a, a2), pair(world, 8000) as (b, b2), pair(world, 8001) as (c, c2):
        counts: dict[str, int] = {}
        with trio.move_on_after(20):
            async with trio.open_nursery() as nursery:
                for name, client, server, peer in (
                    ("a", a, a2, b"p"),
                    ("b", b, b2, b"p"),
                    ("c", c, c2, b"q"),
                ):
                    nursery.start_soon(flood, budgets.pace(client, peer))
                    nursery.start_soon(drain, server, counts, name)
        total = sum(counts.values())
        assert 0.95 * 20 * CAP <= total <= 1.05 * 20 * CAP
        assert counts["a"] + counts["b"] <= 1.05 * 20 * 70_000
        assert counts["a"] == pytest.approx(counts["b"], rel=0.1)
        assert min(counts.values()) >= 0.25 * total


async def test_a_heartbeat_does_not_wait_behind_tensors(autojump_clock: object) -> None:
    world = MemoryNetwork(1)
    budget = Budget(CAP)
    async with pair(world) as (control, _), pair(world, 8000) as (bulk, sink):
        paced, busy = pace(control, budget), pace(bulk, budget)
        busy.expect_bulk()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood, busy)
            nursery.start_soon(drain, sink, {}, "x")
            await trio.sleep(2)
            for _ in range(20):
                start = trio.current_time()
                await paced.send_all(bytes(40))
                assert trio.current_time() - start <= 0.03
                await trio.sleep(0.1)
            nursery.cancel_scope.cancel()


async def test_an_idle_connection_holds_nothing(autojump_clock: object) -> None:
    world = MemoryNetwork(1)
    budget = Budget(0, CAP)
    async with pair(world) as (_, idle), pair(world, 8000) as (client, server):
        counts: dict[str, int] = {}
        with trio.move_on_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(drain, pace(idle, budget), counts, "idle")
                nursery.start_soon(flood, client)
                nursery.start_soon(drain, pace(server, budget), counts, "busy")
        assert counts["busy"] >= 0.95 * 5 * CAP


async def test_cancelled_waits_leave_the_line_and_the_others_go_on(autojump_clock: object) -> None:
    world = MemoryNetwork(1)
    budget = Budget(CAP)
    async with pair(world) as (a, a2), pair(world, 8000) as (b, b2):
        counts: dict[str, int] = {}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain, a2, counts, "a")
            nursery.start_soon(drain, b2, counts, "b")
            nursery.start_soon(flood, pace(b, budget))
            for _ in range(50):
                paced = pace(a, budget)
                with trio.move_on_after(0.003):
                    await paced.send_all(bytes(100_000))
            counts.clear()
            await trio.sleep(5)
            assert counts["b"] >= 0.9 * 5 * CAP
            nursery.cancel_scope.cancel()


async def test_a_cancelled_receive_consumes_nothing(autojump_clock: object) -> None:
    async with pair(MemoryNetwork(1)) as (client, server):
        paced = pace(server, Budget(0, CAP))
        sent = bytes(range(256)) * 400
        received = bytearray()
        buffer = memoryview(bytearray(4096))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, sent)
            while len(received) < len(sent):
                with trio.move_on_after(0.002):
                    count = await paced.receive_into(buffer)
                    received += buffer[:count]
        assert received == sent


@pytest.mark.parametrize("way", ["abort", "aclose"])
async def test_closing_wakes_those_who_wait_for_their_turn(
    way: str, autojump_clock: object
) -> None:
    async with pair(MemoryNetwork(1)) as (client, server):
        paced = pace(client, Budget(8192, 8192))

        async def send() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await paced.send_all(bytes(1_000_000))

        async def receive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await drain(paced, {}, "x")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.send_all, bytes(20_000))
            nursery.start_soon(send)
            nursery.start_soon(receive)
            await trio.sleep(0.5)
            with pytest.raises(trio.BusyResourceError):
                await paced.send_all(b"x")
            with pytest.raises(trio.BusyResourceError):
                await paced.receive_into(memoryview(bytearray(1)))
            if way == "abort":
                paced.abort()
            else:
                await paced.aclose()
        for _ in range(2):
            with pytest.raises(trio.ClosedResourceError):
                await paced.send_all(b"x")
            paced.abort()


async def test_the_ends_of_the_raw_stream_come_through(autojump_clock: object) -> None:
    async with pair(MemoryNetwork(1)) as (client, server):
        paced = pace(server, Budget(CAP, CAP))
        await client.aclose()
        assert await paced.receive_into(memoryview(bytearray(1))) == 0
        await paced.send_all(b"")
        with pytest.raises(trio.BrokenResourceError):
            await flood(paced)


async def test_a_peer_s_budget_goes_with_its_last_connection(autojump_clock: object) -> None:
    async with pair(MemoryNetwork(1)) as (client, server):
        budgets = Budgets(Limits(per_peer_upload_bytes_per_s=CAP))
        first = budgets.pace(client, b"p")
        second = budgets.pace(server, b"p")
        assert isinstance(first, PacedStream)
        assert isinstance(second, PacedStream)
        assert first._budgets == second._budgets
        assert len(budgets._peers) == 1
        del first, second
        assert len(budgets._peers) == 0


async def test_bytes_inside_another_connection_pay_once(autojump_clock: object) -> None:
    async with pair(MemoryNetwork(1)) as (client, server):
        budgets = Budgets(Limits(per_peer_upload_bytes_per_s=CAP, upload_bytes_per_s=CAP))
        client.inner = True  # in a stream of the connection with the same peer, which pays
        assert budgets.pace(client, b"p") is client
        server.path = Path.RELAYED  # into the node's budget pays the connection with the relay
        paced = budgets.pace(server, b"p")
        assert isinstance(paced, PacedStream)
        assert paced._budgets == (budgets._peers[b"p"],)
        only_total = Budgets(Limits(upload_bytes_per_s=CAP))
        assert only_total.pace(server, b"p") is server
