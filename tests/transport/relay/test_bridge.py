"""The two halves of a circuit end together, each in the way it should."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import trio

from tests.transport.nodes import address
from tests.transport.relay.worlds import World, world
from transport.codec import pack
from transport.errors import StreamReset
from transport.relay.messages import (
    CONNECT,
    INCOMING,
    RESERVE,
    Accepted,
    CircuitEnd,
    Connect,
    Reserve,
    read_connect_answer,
)
from transport.relay.settings import RelaySettings
from transport.streams.stream import Stream


@asynccontextmanager
async def halves(
    settings: RelaySettings | None = None,
) -> AsyncIterator[tuple[World, Stream, Stream]]:
    """The two ends of one circuit, after the preamble, without a handshake."""
    async with world(settings=settings) as w:
        arrived: list[Stream] = []

        async def take(stream: Stream) -> None:
            await stream.receive_message()
            await stream.send_message(pack(Accepted()))
            arrived.append(stream)
            await trio.sleep_forever()

        source, target = w.endpoints
        target.unserve(INCOMING)
        target.serve(INCOMING, take)
        await (await target.connect([address(1)])).call(RESERVE, pack(Reserve(release=False)))
        peer = await source.connect([address(1)])
        stream = await peer.open_stream(CONNECT)
        await stream.send_message(pack(Connect(target.node_id)))
        assert isinstance(read_connect_answer(await stream.receive_message()), Accepted)
        yield w, stream, arrived[0]


async def read_all(stream: Stream) -> int:
    count = 0
    while data := await stream.receive_some():
        count += len(data)
    return count


async def test_each_direction_ends_by_itself(autojump_clock: object) -> None:
    async with halves() as (w, source, target):
        await source.send_all(bytes(200_000))
        await source.send_eof()
        assert await read_all(target) == 200_000
        await trio.sleep(5)
        await target.send_all(bytes(100_000))
        await target.send_eof()
        assert await read_all(source) == 100_000
        await trio.sleep(1)
        statistics = w.services[0].statistics()
        assert statistics.ended == {"finished": 1}
        assert statistics.ledger.circuits == 0
        assert statistics.ledger.carried_bytes == 300_000


@pytest.mark.parametrize("who", ["source", "target"])
async def test_a_reset_passes_with_its_code(autojump_clock: object, who: str) -> None:
    async with halves() as (w, source, target):
        (source if who == "source" else target).reset(77)
        with trio.fail_after(1), pytest.raises(StreamReset) as reset:
            await (target if who == "source" else source).receive_some()
        assert reset.value.reset_code == 77
        await trio.sleep(1)
        assert w.services[0].statistics().ended == {"reset": 1}


@pytest.mark.parametrize("who", ["source", "target"])
async def test_a_lost_node_ends_the_circuit_for_the_other(autojump_clock: object, who: str) -> None:
    async with halves() as (w, source, target):
        left = target if who == "source" else source
        for peer in list(w.endpoints[0 if who == "source" else 1].peers.values()):
            peer.close("gone")
        with trio.fail_after(1), pytest.raises(StreamReset) as reset:
            await left.receive_some()
        assert reset.value.reset_code == CircuitEnd.PEER_LOST
        await trio.sleep(1)
        assert w.services[0].statistics().ledger.circuits == 0


async def test_who_closes_while_the_other_still_talks_is_heard_to_the_end(
    autojump_clock: object,
) -> None:
    async with halves() as (w, source, target):
        await source.send_all(bytes(300_000))
        await source.aclose()
        await trio.sleep(1)  # all of it is with the relay by now
        for _ in range(20):  # nobody reads this any more
            await target.send_all(bytes(1000))
            await trio.sleep(0.1)
        assert await read_all(target) == 300_000
        await target.send_eof()
        await trio.sleep(1)
        assert w.services[0].statistics().ended == {"finished": 1}


async def test_who_never_stops_talking_to_nobody_is_stopped(autojump_clock: object) -> None:
    async with halves() as (_, source, target):
        await source.aclose()
        with trio.fail_after(10), pytest.raises(StreamReset):
            await target.send_all(bytes(1 << 26))


async def test_an_older_connection_that_ends_takes_no_newer_reservation_along(
    autojump_clock: object,
) -> None:
    """The loss of a connection may be heard of after the node has come back and reserved again."""
    async with world() as w:
        client = await w.reserved(1)
        node_id = w.endpoints[1].node_id
        older = SimpleNamespace(node_id=node_id, close_reason="silent")
        w.services[0]._lose(older)  # type: ignore[arg-type]
        assert w.services[0].statistics().ledger.reservations == 1
        older.node_id = w.relays[0].node_id
        client._reservations._lose(older, "silent")  # type: ignore[arg-type]
        assert len(client.addresses) == 1
