"""The driver over a fake endpoint, under virtual time: deadlines, bootstrap, closing, hostile bytes."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from dht.errors import DhtClosed, DhtError, InvalidKey, InvalidRecord
from dht.key import record_key
from dht.messages import Answer, Hint, Nodes, Ping, Query, Refused
from dht.service import Dht, open_dht
from dht.settings import DhtSettings
from tests.dht.fake_endpoint import SWARM, FakeEndpoint, FakeNet
from transport.address import Address
from transport.codec import decode_untrusted, pack

KEY = record_key(SWARM.id, "run", "tiny")
WALL = 1_800_000_000.0


def wall() -> float:
    return WALL + trio.current_time()


@asynccontextmanager
async def dht_on(endpoint: FakeEndpoint, **settings: object) -> AsyncIterator[Dht]:
    async with open_dht(
        endpoint,
        rng=random.Random(endpoint.addresses[0].port),
        wall_clock=wall,
        settings=DhtSettings(**settings),  # type: ignore[arg-type]
    ) as dht:
        yield dht
        assert dht.stats().get("internal_errors", 0) == 0


async def until(condition: object, limit_s: float = 300.0) -> None:
    with trio.fail_after(limit_s):
        while not condition():  # type: ignore[operator]
            await trio.sleep(0.1)


async def test_four_nodes_with_one_address(autojump_clock: MockClock) -> None:
    net = FakeNet()
    points = [net.add(n) for n in range(1, 5)]
    async with (
        dht_on(points[0]) as first,
        dht_on(points[1]) as a,
        dht_on(points[2]) as b,
        dht_on(points[3]) as c,
    ):
        for dht in (a, b, c):
            assert await dht.bootstrap([points[0].addresses[0]]) == 1
        assert await a.put(KEY, b"here") == 3
        for dht in (first, a, b, c):
            assert [r.value for r in await dht.get(KEY)] == [b"here"]
            assert len(dht.contacts()) == 3
            assert len(await dht.find_node(KEY)) == 3
        net.kill(points[0])
        net.kill(points[1])
        for dht in (b, c):
            assert [r.value for r in await dht.get(KEY)] == [b"here"]
        assert a.bootstrap_status() == {"10.0.0.1:7447": ""}
        assert c.stats()["bootstrap_reached"] == 1


async def test_bootstrap_of_nobody_says_why_and_goes_on(autojump_clock: MockClock) -> None:
    net = FakeNet()
    me, late = net.add(1), FakeEndpoint(net, 2, listen=True)
    async with dht_on(me) as dht:
        assert await dht.bootstrap(late.addresses) == 0
        (reason,) = dht.bootstrap_status().values()
        assert "connection refused" in reason
        assert await dht.put(KEY, b"here") == 0
        async with dht_on(late) as other:
            net.endpoints[late.addresses[0]] = late
            await until(lambda: dht.bootstrap_status() == {"10.0.0.2:7447": ""})
            await until(lambda: other.stats()["records_held"] == 1)  # handed to the newcomer
            assert [r.value for r in await other.get(KEY)] == [b"here"]


async def test_lost_bootstrap_node_is_reached_again(autojump_clock: MockClock) -> None:
    net = FakeNet()
    me, other = net.add(1), net.add(2)
    async with dht_on(me) as dht, dht_on(other):
        assert await dht.bootstrap(other.addresses) == 1
        me.peers[other.node_id].close("cable")
        assert not me.peers
        await until(lambda: other.node_id in me.peers)


async def test_black_hole_among_bootstrap_addresses_costs_a_second(
    autojump_clock: MockClock,
) -> None:
    net = FakeNet()
    me, other = net.add(1), net.add(2)
    hole = Address("10.0.0.99", 7447)
    net.black_holes.add(hole)
    async with dht_on(me) as dht, dht_on(other):
        started = trio.current_time()
        assert await dht.bootstrap([hole, *other.addresses]) == 1
        assert trio.current_time() - started < 1.5
        await until(lambda: "within 5 s" in dht.bootstrap_status()[str(hole)])
        assert await dht.bootstrap([hole]) == 0  # known, tried: no new wait


async def test_black_hole_alone_costs_one_attempt(autojump_clock: MockClock) -> None:
    net = FakeNet()
    me = net.add(1)
    hole = Address("10.0.0.99", 7447)
    net.black_holes.add(hole)
    async with dht_on(me) as dht:
        started = trio.current_time()
        assert await dht.bootstrap([hole]) == 0
        assert trio.current_time() - started < 5.1
        assert await dht.bootstrap([]) == 0


async def test_own_address_and_other_services_are_no_contacts(autojump_clock: MockClock) -> None:
    net = FakeNet()
    me, mute = net.add(1), net.add(2)
    async with dht_on(me) as dht:
        assert await dht.bootstrap([*me.addresses, *mute.addresses]) == 0
        reasons = dht.bootstrap_status()
        assert "itself" in reasons["10.0.0.1:7447"]
        assert "does not serve" in reasons["10.0.0.2:7447"]


async def test_too_many_bootstrap_addresses(autojump_clock: MockClock) -> None:
    async with dht_on(FakeNet().add(1)) as dht:
        with pytest.raises(DhtError, match="64"):
            await dht.bootstrap([Address("10.1.0.1", port) for port in range(1, 66)])


async def test_search_that_finds_nobody_returns_within_a_second(
    autojump_clock: MockClock,
) -> None:
    net = FakeNet()
    points = [net.add(n) for n in range(1, 5)]
    async with dht_on(points[0]) as dht:
        started = trio.current_time()
        assert await dht.get(KEY) == []
        assert await dht.find_node(KEY) == []
        assert trio.current_time() == started
        async with dht_on(points[1]), dht_on(points[2]), dht_on(points[3]):
            assert await dht.bootstrap([p.addresses[0] for p in points[1:]]) == 3
            for point in points[1:]:
                net.kill(point, silently=True)
            started = trio.current_time()
            assert await dht.get(KEY) == []
            assert trio.current_time() - started <= 1.001
            await until(lambda: dht.stats()["unanswered"] >= 3, 2.2)  # after the query deadline


async def test_peers_that_connect_for_other_reasons_are_greeted(autojump_clock: MockClock) -> None:
    net = FakeNet()
    me, other = net.add(1), net.add(2)
    async with dht_on(me) as dht, dht_on(other) as theirs:
        await me.connect(other.addresses)
        await until(lambda: len(dht.contacts()) == len(theirs.contacts()) == 1)


async def test_node_that_cannot_be_dialed_is_a_client(autojump_clock: MockClock) -> None:
    net = FakeNet()
    server, hidden = net.add(1), net.add(2, listen=False)
    async with dht_on(server) as dht, dht_on(hidden) as mine:
        assert await mine.bootstrap(server.addresses) == 1
        assert await mine.put(KEY, b"here") == 1
        assert [r.value for r in await dht.get(KEY)] == [b"here"]
        assert dht.contacts() == []


async def test_false_address_does_not_stand_in_for_a_node(autojump_clock: MockClock) -> None:
    net = FakeNet()
    me, liar, victim = net.add(1), net.add(2), net.add(3)

    async def lie(_: object, request: bytes) -> bytes:
        query = decode_untrusted(request, Query)
        hints = Nodes([Hint(bytes(victim.node_id), (str(liar.addresses[0]),))])
        body = hints if not isinstance(query.body, Ping) else None
        return pack(
            Answer(server=True, body=body)
            if body
            else {"version": 1, "server": True, "body": {"type": "pong"}}
        )

    liar.serve_calls("dht", lie)
    async with dht_on(me) as dht:
        assert await dht.bootstrap(liar.addresses) == 1
        found = await dht.find_node(bytes(victim.node_id))
        assert [c.node_id for c in found] == [liar.node_id]
        assert [c.node_id for c in dht.contacts()] == [liar.node_id]
        assert dht.stats()["wrong_node"] == 0  # the connection itself was refused


async def test_garbage_in_either_direction_is_counted_and_harmless(
    autojump_clock: MockClock,
) -> None:
    net = FakeNet()
    me, other = net.add(1), net.add(2)
    rng = random.Random(1)

    async def garbage(_: object, request: bytes) -> bytes:
        return rng.randbytes(rng.randrange(60))

    async with dht_on(me) as dht:
        other.serve_calls("dht", garbage)
        assert await dht.bootstrap(other.addresses) == 0
        peer = other.peers[me.node_id]
        for _ in range(50):
            data = await peer.call("dht", rng.randbytes(rng.randrange(60)))
            assert decode_untrusted(data, Answer).body == Refused("malformed")
        assert dht.stats()["malformed_in"] >= 51
        other.unserve("dht")


async def test_queries_in_flight_are_bounded(autojump_clock: MockClock) -> None:
    net = FakeNet()
    points = [net.add(n) for n in range(1, 13)]
    async with trio.open_nursery() as nursery, dht_on(points[0], concurrency=3) as dht:
        for point in points[1:]:
            await nursery.start(serve_for_ever, point)
        await dht.bootstrap([p.addresses[0] for p in points[1:]])
        points[0].most_open_calls = 0
        async with trio.open_nursery() as searches:
            for number in range(40):
                searches.start_soon(dht.get, bytes([number]) * 32)
        assert points[0].most_open_calls == 3
        nursery.cancel_scope.cancel()


async def serve_for_ever(
    endpoint: FakeEndpoint, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    async with dht_on(endpoint):
        task_status.started()
        await trio.sleep_forever()


async def test_cancelled_search_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    net = FakeNet(latency_s=0.5)
    me, other = net.add(1), net.add(2)
    async with dht_on(me) as dht, dht_on(other):
        await dht.bootstrap(other.addresses)
        await trio.sleep(30)
        with trio.move_on_after(0.1) as scope:
            await dht.get(KEY)
        assert scope.cancelled_caught
        assert dht.stats()["operations"] == 0
        with trio.move_on_after(0.1) as scope:
            await dht.put(KEY, b"here")
        assert scope.cancelled_caught
        await trio.sleep(5)
        assert dht.stats()["operations"] == dht.stats()["calls_open"] == 0
        assert dht.stats()["records_own"] == 1  # a cancelled put stays published
        assert me.open_calls == 0


async def test_misuse_raises_and_changes_nothing(autojump_clock: MockClock) -> None:
    async with dht_on(FakeNet().add(1)) as dht:
        for bad in (b"", bytes(31)):
            with pytest.raises(InvalidKey):
                await dht.get(bad)
        with pytest.raises(InvalidRecord):
            await dht.put(KEY, bytes(1001))
        with pytest.raises(DhtError):
            await dht.put(KEY, b"", ttl_s=0)
        assert dht.stats()["records_own"] == 0
        assert dht.withdraw(KEY) is False
        await dht.put(KEY, b"")
        assert dht.withdraw(KEY) is True


async def test_closing_wakes_everybody_and_ends_all(autojump_clock: MockClock) -> None:
    net = FakeNet()
    me, other = net.add(1), net.add(2)
    hole = Address("10.0.0.99", 7447)
    net.black_holes.add(hole)
    raised: list[str] = []

    async def expect_closed(start: object, *args: object) -> None:
        try:
            await start(*args)  # type: ignore[operator]
        except DhtClosed:
            raised.append("closed")

    async with trio.open_nursery() as nursery:
        async with dht_on(me) as dht, dht_on(other):
            await dht.bootstrap(other.addresses)
            net.kill(other, silently=True)
            nursery.start_soon(expect_closed, dht.get, KEY)
            nursery.start_soon(expect_closed, dht.put, KEY, b"")
            nursery.start_soon(expect_closed, dht.bootstrap, [hole])
            await trio.sleep(0.1)
        assert "dht" not in me.handlers
    assert raised == ["closed"] * 3
    with pytest.raises(DhtClosed):
        await dht.get(KEY)
    with pytest.raises(DhtClosed):
        await dht.bootstrap([])


async def test_error_of_the_block_comes_out_bare(autojump_clock: MockClock) -> None:
    error = KeyError("mine")
    with pytest.raises(KeyError) as caught:
        async with dht_on(FakeNet().add(1)):
            raise error
    assert caught.value is error


async def test_connections_are_kept_unless_too_many_and_unneeded(
    autojump_clock: MockClock,
) -> None:
    net = FakeNet()
    me = net.add(1)
    others = [net.add(n) for n in range(2, 8)]
    needed = {others[0].node_id}
    async with trio.open_nursery() as nursery:
        for other in others:
            await nursery.start(serve_for_ever, other)
        settings = DhtSettings(keep_connections=3, bootstrap_most_s=1e6, refresh_s=1e6)
        async with open_dht(
            me,
            rng=random.Random(1),
            wall_clock=wall,
            settings=settings,
            in_use=lambda node_id: node_id in needed,
        ) as dht:
            assert await dht.bootstrap([o.addresses[0] for o in others]) == 6
            assert len(me.peers) == 6
            await until(lambda: len(me.peers) <= 3, 400)
            assert others[0].node_id in me.peers
            assert len(me.peers) == 3
        nursery.cancel_scope.cancel()
