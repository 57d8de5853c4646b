"""The table where bulk connections meet their takers: order, bounds, and nobody left behind."""

from typing import cast

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.transport.nodes import identity
from transport.bulk.rendezvous import ARRIVAL_WAIT_S, MAX_WAITING_PER_PEER, Delivery, Rendezvous
from transport.errors import PeerLost, StreamLimitReached
from transport.network import RawStream
from transport.secure.handshake import HandshakeResult

PEER = identity(1).node_id
OTHER = identity(2).node_id


class FakeStream:
    aborted = False

    def abort(self) -> None:
        self.aborted = True


def delivery() -> tuple[FakeStream, Delivery]:
    stream = FakeStream()
    return stream, (cast("RawStream", stream), cast("HandshakeResult", None))


async def test_arrivals_and_takers_meet_in_order(autojump_clock: object) -> None:
    table = Rendezvous()
    arrivals = [delivery() for _ in range(4)]
    results: list[Delivery] = []

    async def take() -> None:
        results.append(await table.wait(table.expect((PEER, b"x"))))

    async with trio.open_nursery() as nursery:
        for _, arrival in arrivals[:2]:
            nursery.start_soon(table.offer, (PEER, b"x"), arrival)
            await wait_all_tasks_blocked()
        for _ in range(4):
            nursery.start_soon(take)
            await wait_all_tasks_blocked()
        for _, arrival in arrivals[2:]:
            assert await table.offer((PEER, b"x"), arrival) == ""
            await wait_all_tasks_blocked()
    assert results == [arrival for _, arrival in arrivals]
    assert not any(stream.aborted for stream, _ in arrivals)
    assert (table._takers, table._arrivals, table._counts) == ({}, {}, {})


async def test_other_labels_and_other_peers_do_not_meet(autojump_clock: object) -> None:
    table = Rendezvous()
    taker = table.expect((PEER, b"x"))
    for key in ((PEER, b"y"), (OTHER, b"x")):
        stream, arrival = delivery()
        assert await table.offer(key, arrival) == "refused-bulk-unclaimed"
        assert stream.aborted
    assert trio.current_time() >= 2 * ARRIVAL_WAIT_S
    table.forget(taker)
    assert (table._takers, table._arrivals, table._counts) == ({}, {}, {})


async def test_both_queues_are_bounded_per_peer(autojump_clock: object) -> None:
    table = Rendezvous()
    takers = [table.expect((PEER, b"x")) for _ in range(MAX_WAITING_PER_PEER)]
    with pytest.raises(StreamLimitReached):
        table.expect((PEER, b"y"))
    table.expect((OTHER, b"y"))
    async with trio.open_nursery() as nursery:
        for _ in range(MAX_WAITING_PER_PEER):
            nursery.start_soon(table.offer, (PEER, b"z"), delivery()[1])
        await wait_all_tasks_blocked()
        stream, arrival = delivery()
        assert await table.offer((PEER, b"z"), arrival) == "refused-bulk-pending"
        assert stream.aborted
    for taker in takers:
        table.forget(taker)
        table.forget(taker)


async def test_losing_a_peer_fails_its_takers_and_closes_its_arrivals(
    autojump_clock: object,
) -> None:
    table = Rendezvous()
    stream, arrival = delivery()

    async def expect_lost() -> None:
        with pytest.raises(PeerLost, match="gone"):
            await table.wait(table.expect((PEER, b"x")))

    async def expect_closed() -> None:
        assert await table.offer((PEER, b"y"), arrival) == "refused-bulk-unclaimed"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_lost)
        nursery.start_soon(expect_closed)
        await wait_all_tasks_blocked()
        start = trio.current_time()
        table.drop_peer(PEER, "gone")
    assert trio.current_time() == start
    assert stream.aborted
    assert (table._takers, table._arrivals, table._counts) == ({}, {}, {})


async def test_a_taker_cancelled_as_its_arrival_comes_closes_it(autojump_clock: object) -> None:
    table = Rendezvous()
    stream, arrival = delivery()
    with trio.CancelScope() as scope:
        taker = table.expect((PEER, b"x"))
        assert await table.offer((PEER, b"x"), arrival) == ""
        scope.cancel()
        await table.wait(taker)
    assert scope.cancelled_caught
    assert stream.aborted


async def test_an_arrival_cancelled_while_it_waits_is_closed(autojump_clock: object) -> None:
    table = Rendezvous()
    stream, arrival = delivery()
    with trio.move_on_after(1) as scope:
        await table.offer((PEER, b"x"), arrival)
    assert scope.cancelled_caught
    assert stream.aborted
    assert (table._takers, table._arrivals, table._counts) == ({}, {}, {})
