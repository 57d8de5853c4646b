"""Several links used as one: order, what is left over, and one end for all."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.transport.pool_links import ignore, result
from transport.address import Address
from transport.bulk.link import BulkLink, LinkClosed
from transport.bulk.striped import AHEAD, StripedLink
from transport.errors import UsageError
from transport.tcp import TcpStream

HERE, THERE = Address("127.0.0.1", 1), Address("127.0.0.2", 2)


Pair = tuple[StripedLink, StripedLink, list[BulkLink]]


@asynccontextmanager
async def opened(count: int, nursery: trio.Nursery) -> AsyncIterator[Pair]:
    ends: list[list[BulkLink]] = [[], []]
    for index in range(count):
        for side, sock in enumerate(socket.socketpair()):
            sock.setblocking(False)
            raw = TcpStream(sock, HERE, THERE)
            keys = result(str(index), ("initiator", "responder")[side])
            ends[side].append(BulkLink(raw, keys, ignore))
    out, into = (
        StripedLink(ends[0], nursery.start_soon, receiving=False),
        StripedLink(ends[1], nursery.start_soon, receiving=True),
    )
    try:
        yield out, into, ends[0]
    finally:
        out.abort()
        into.abort()


@pytest.mark.parametrize("count", [1, 2, 3, 8])
async def test_transfers_come_in_their_order_whatever_their_size(count: int) -> None:
    rng = random.Random(count)
    sizes = [rng.choice([0, 1, 1000, 300_000, 1 << 20]) for _ in range(40)]
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery, opened(count, nursery) as (out, into, _):

            async def send() -> None:
                for number, size in enumerate(sizes):
                    payload = bytes([number]) * size
                    if not (number % 3 == 0 and out.try_send(b"%d" % number, payload)):
                        await out.send(b"%d" % number, payload)

            nursery.start_soon(send)
            for number, size in enumerate(sizes):
                header, announced = await into.receive_head()
                assert (header, announced) == (b"%d" % number, size)
                data = bytearray(size)
                await into.receive_data(memoryview(data))
                assert data == bytes([number]) * size


async def test_transfers_may_come_in_parts_and_nothing_comes_between_them() -> None:
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery, opened(3, nursery) as (out, into, _):
            for number in range(12):
                payload = bytes([number]) * 3000
                assert out.try_begin(b"%d" % number, len(payload))
                assert out.busy
                assert not out.try_begin(b"", 1)
                assert not out.try_send(b"", b"x")
                with pytest.raises(UsageError):
                    await out.send(b"", b"x")
                out.put(payload[:1000])
                out.put(payload[1000:])
                out.end()
                assert (await into.receive_head()) == (b"%d" % number, len(payload))
                data = bytearray(len(payload))
                await into.receive_data(memoryview(data))
                assert data == payload
            for act in (lambda: out.put(b""), out.end):
                with pytest.raises(UsageError):
                    act()


async def test_a_link_that_ends_ends_all() -> None:
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery, opened(3, nursery) as (out, into, links):
            await out.send(b"first", b"x")
            assert (await into.receive_head())[0] == b"first"
            await into.receive_data(memoryview(bytearray(1)))
            links[2].abort("this one is gone")
            assert out.closed
            with pytest.raises(LinkClosed):
                await into.receive_head()
            with pytest.raises(LinkClosed):
                await out.send(b"second", b"")
            out.abort()
            assert all(link.closed for link in links)


async def test_one_that_waits_for_room_is_woken_by_the_end() -> None:
    with trio.fail_after(30):
        with pytest.RaisesGroup(LinkClosed, flatten_subgroups=True):
            async with trio.open_nursery() as outer, opened(2, outer) as (out, _, _):

                async def fill() -> None:
                    while True:
                        await out.send(b"", bytes(1 << 20))

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(fill)
                    await trio.testing.wait_all_tasks_blocked()
                    out.abort("enough")


async def test_it_says_what_a_link_would() -> None:
    async with trio.open_nursery() as nursery, opened(2, nursery) as (out, into, _):
        told = (out.closed, out.local, out.shares_memory, out.waiting, out.busy)
        assert not any(told)
        assert into.take_measure() == (0.0, 0)
        await out.flush()
        out.abort()
        into.abort()


async def test_what_is_sent_while_one_waits_does_not_overtake_it() -> None:
    """A ring sends what has just come from its receiving task, if that needs no waiting."""
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery, opened(2, nursery) as (out, into, _):
            sent = 0
            while out.try_send(b"%d" % sent, bytes(1 << 20)):
                sent += 1
                await trio.testing.wait_all_tasks_blocked()
            waiting = sent
            left = False

            async def send_last() -> None:
                nonlocal left
                await out.send(b"%d" % waiting, bytes(1 << 20))
                left = True

            nursery.start_soon(send_last)
            await trio.testing.wait_all_tasks_blocked()
            assert not left
            for number in range(waiting + 1):
                assert left or not out.try_send(b"too early", b"")
                header, size = await into.receive_head()
                assert header == b"%d" % number
                await into.receive_data(memoryview(bytearray(size)))
            assert left


async def test_what_comes_early_is_put_aside_so_that_no_socket_stays_full() -> None:
    """A kernel widens the window of a connection that is read, not of one whose transfers wait for their turn."""
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery, opened(3, nursery) as (_, into, links):
            for number in (2, 1):
                await links[number].send(struct.pack(">Q", number) + b"%d" % number, b"x" * 1000)
            await trio.testing.wait_all_tasks_blocked()
            assert set(into._arrived) == {1, 2}
            await links[0].send(struct.pack(">Q", 0) + b"0", b"x" * 1000)
            for number in range(3):
                header, size = await into.receive_head()
                assert header == b"%d" % number
                data = bytearray(size)
                await into.receive_data(memoryview(data)[:400])
                with pytest.raises(UsageError):
                    await into.receive_data(memoryview(bytearray(601)))
                await into.receive_data(memoryview(data)[400:])
                assert data == b"x" * 1000


async def test_what_has_come_before_a_link_ends_can_be_received() -> None:
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery, opened(2, nursery) as (out, into, _):
            await out.send(b"first", b"x")
            await trio.testing.wait_all_tasks_blocked()
            out.abort("over")
            await trio.testing.wait_all_tasks_blocked()
            assert into.closed
            assert await into.receive_head() == (b"first", 1)
            await into.receive_data(memoryview(bytearray(1)))
            with pytest.raises(LinkClosed):
                await into.receive_head()


async def test_no_more_than_a_few_transfers_are_put_aside() -> None:
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery, opened(2, nursery) as (out, into, _):
            sent = 0
            for _ in range(200):  # far more than two sockets hold, were they read on and on
                if out.try_send(b"", bytes(1 << 20)):
                    sent += 1
                await trio.testing.wait_all_tasks_blocked()
            assert 2 * AHEAD <= sent <= 2 * (AHEAD + 3)
            assert len(into._arrived) == 2 * AHEAD
