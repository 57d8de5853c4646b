"""What others may make a relay hold, carry and do; and a node that is reached through one."""

import pytest
import trio

from tests.transport.nodes import address, identity
from tests.transport.relay.worlds import World, via, world
from transport.address import Address
from transport.codec import pack
from transport.errors import PeerLost, StreamReset, TransportError
from transport.limits import Limits
from transport.network import Path
from transport.peer import Peer
from transport.relay.bridge import OPENING_S
from transport.relay.candidates import MAX_CANDIDATES, Candidates
from transport.relay.client import MAX_INCOMING
from transport.relay.messages import (
    CONNECT,
    INCOMING,
    RESERVE,
    Accepted,
    CircuitEnd,
    Connect,
    Granted,
    Incoming,
    Reason,
    Refused,
    RelayRefused,
    Reserve,
    read_connect_answer,
    read_reserve_answer,
)
from transport.relay.settings import RelaySettings
from transport.streams.stream import Stream


async def reserve(peer: Peer) -> Granted | str:
    answer = read_reserve_answer(await peer.call(RESERVE, pack(Reserve(release=False))))
    return answer.reason if isinstance(answer, Refused) else answer  # type: ignore[return-value]


async def ask(peer: Peer, target: bytes) -> tuple[Stream, str]:
    stream = await peer.open_stream(CONNECT)
    await stream.send_message(pack(Connect(target)))  # type: ignore[arg-type]
    answer = read_connect_answer(await stream.receive_message())
    return stream, "" if isinstance(answer, Accepted) else answer.reason


async def sink(stream: Stream) -> None:
    """A target that takes every circuit and never reads."""
    await stream.receive_message()
    await stream.send_message(pack(Accepted()))
    await trio.sleep_forever()


async def dull_target(w: World, index: int = 1) -> Peer:
    """Client `index` with a reservation, whose circuits end in `sink`."""
    endpoint = w.endpoints[index]
    endpoint.unserve(INCOMING)
    endpoint.serve(INCOMING, sink)
    peer = await endpoint.connect([address(1)])
    assert isinstance(await reserve(peer), Granted)
    return peer


async def test_a_flood_of_requests_costs_the_relay_nothing_but_answers(
    autojump_clock: object,
) -> None:
    settings = RelaySettings(requests_per_source_burst=20, requests_per_source_per_s=1.0)
    async with world(settings=settings) as w:
        peer = await w.endpoints[0].connect([address(1)])
        outcomes = [await reserve(peer) for _ in range(200)]
        assert sum(isinstance(outcome, Granted) for outcome in outcomes) <= 25
        assert outcomes[-1] == "rate"
        outcomes = []
        async with trio.open_nursery() as nursery:

            async def ten() -> None:
                for _ in range(10):
                    stream, outcome = await ask(peer, bytes(32))
                    outcomes.append(outcome)
                    await stream.aclose()

            for _ in range(20):
                nursery.start_soon(ten)
        assert outcomes.count("rate") >= 190
        statistics = w.services[0].statistics()
        assert statistics.ledger.circuits == 0
        assert statistics.ledger.reservations == 1
        assert statistics.refused["rate"] == w.relays[0].counters["relay-refused-rate"] >= 350
        await trio.sleep(5)
        assert isinstance(await reserve(peer), Granted)  # it may, once it has waited


async def test_circuits_beyond_the_limit_are_refused_and_freed_ones_are_free(
    autojump_clock: object,
) -> None:
    async with world(settings=RelaySettings(circuits_per_peer=12)) as w:
        await dull_target(w)
        peer = await w.endpoints[0].connect([address(1)])
        open_ = [await ask(peer, w.endpoints[1].node_id) for _ in range(5)]
        assert [outcome for _, outcome in open_] == ["", "", "", "peer-circuits", "peer-circuits"]
        for stream, _ in open_:
            stream.reset()
        await trio.sleep(1)
        assert w.services[0].statistics().ledger.circuits == 0
        assert (await ask(peer, w.endpoints[1].node_id))[1] == ""


async def test_who_keeps_circuits_open_for_nothing_keeps_nobody_out(autojump_clock: object) -> None:
    async with world(clients=3) as w:
        await w.reserved(1)
        peer = await w.endpoints[0].connect([address(1)])
        target = w.endpoints[1].node_id
        outcomes = [(await ask(peer, target))[1] for _ in range(20)]
        assert outcomes.count("") == 4
        assert (await w.connected(2, 1)).path is Path.RELAYED


async def test_a_circuit_that_nothing_comes_over_ends_early(autojump_clock: object) -> None:
    async with world() as w:
        await dull_target(w)
        peer = await w.endpoints[0].connect([address(1)])
        stream, outcome = await ask(peer, w.endpoints[1].node_id)
        assert outcome == ""
        with trio.fail_after(OPENING_S + 1), pytest.raises(StreamReset) as reset:
            await stream.receive_some()
        assert reset.value.reset_code == CircuitEnd.IDLE
        assert w.services[0].statistics().ledger.circuits == 0


async def test_an_end_that_stops_reading_stops_the_other_and_the_relay_holds_little(
    autojump_clock: object,
) -> None:
    async with world(settings=RelaySettings(idle_s=20.0)) as w:
        await dull_target(w)
        peer = await w.endpoints[0].connect([address(1)])
        stream, outcome = await ask(peer, w.endpoints[1].node_id)
        assert outcome == ""
        sent = 0
        with trio.move_on_after(10):
            while True:
                await stream.send_all(bytes(16384))
                sent += 16384
        # Four windows of 256 KiB between the two applications, and one chunk in the relay's hand.
        assert 600_000 < sent < 4 * 262144 + 32768 + 1
        carried = w.services[0].statistics().ledger.carried_bytes
        assert carried < 3 * 262144 + 1
        with trio.fail_after(45), pytest.raises(StreamReset) as reset:
            await stream.receive_some()
        assert reset.value.reset_code == 68  # idle
        assert w.services[0].statistics().ended == {"idle": 1}


async def test_the_rate_holds_and_heartbeats_get_through(autojump_clock: object) -> None:
    settings = RelaySettings(circuit_bytes_per_s=200_000.0, circuit_burst_bytes=200_000)
    async with world(settings=settings) as w:
        await w.reserved(1)
        received = 0

        async def count(stream: Stream) -> None:
            nonlocal received
            while data := await stream.receive_some():
                received += len(data)

        w.endpoints[1].serve("count", count)
        peer = await w.connected(0, 1)
        stream = await peer.open_stream("count")
        begun = trio.current_time()
        with trio.move_on_after(30):
            while True:
                await stream.send_all(bytes(16384))
        elapsed = trio.current_time() - begun
        assert not peer.close_reason  # saturated for 30 s, and not once silent
        carried = w.services[0].statistics().ledger.carried_bytes
        assert carried <= 200_000 + 200_000 * elapsed + 65536
        assert received > 0.9 * 200_000 * elapsed - 600_000


async def test_a_spent_budget_ends_circuits_and_is_said(autojump_clock: object) -> None:
    settings = RelaySettings(budget_bytes=2_000_000, circuit_burst_bytes=1_000_000)
    async with world(settings=settings) as w:
        await w.reserved(1)
        peer = await w.connected(0, 1)
        w.endpoints[1].serve("sink", sink_of_bytes)
        stream = await peer.open_stream("sink")
        with pytest.raises((PeerLost, StreamReset)):
            await stream.send_all(bytes(1 << 24))
        assert "traffic is spent" in peer.close_reason
        with pytest.raises(RelayRefused) as refused:
            await w.clients[0].circuit(via(w.relays[0]), w.endpoints[1].node_id)
        assert refused.value.reason is Reason.BUDGET
        assert w.services[0].statistics().ended == {"budget": 1}
        # A quarter of it is for those who send from one address, and the others have the rest.
        assert w.services[0].statistics().ledger.carried_bytes <= 600_000


async def sink_of_bytes(stream: Stream) -> None:
    while await stream.receive_some():
        pass


async def test_a_node_lost_by_the_relay_loses_its_reservation(autojump_clock: object) -> None:
    async with world() as w:
        peer = await dull_target(w)
        assert w.services[0].statistics().ledger.reservations == 1
        peer.close("bye")
        await trio.sleep(1)
        assert w.services[0].statistics().ledger.reservations == 0


async def test_an_evicted_node_is_told_and_looks_elsewhere(autojump_clock: object) -> None:
    settings = RelaySettings(reservations=2, wanted=1)
    async with world(relays=2, clients=4, settings=settings) as w:
        relay = w.relays[0]
        # Two nodes of one network hold both places: the simulated hosts differ, so tell the ledger.
        service = w.services[0]
        for index in (0, 1):
            w.clients[index].candidates.add(via(relay))
            w.nursery.start_soon(w.clients[index].run)
            await trio.sleep(1)
        ledger = service._ledger
        for node_id in list(ledger.reservations):
            ledger.release(node_id)
            ledger.reserve(node_id, "6.6.6.6", trio.current_time())
        assert len(ledger.reservations) == 2
        w.clients[1].candidates.add(via(w.relays[1], 2))
        peer = await w.endpoints[2].connect([address(1)])
        assert isinstance(await reserve(peer), Granted)
        with trio.fail_after(5):
            while w.clients[1].addresses != (via(w.relays[1], 2),):
                await trio.sleep(0.01)
        assert relay.counters["relay-evicted"] == 1
        assert len(w.clients[0].addresses) == 1


async def test_garbage_instead_of_requests(autojump_clock: object) -> None:
    async with world() as w:
        peer = await w.endpoints[0].connect([address(1)])
        assert await reserve(peer)
        for garbage in (b"", b"\x00", b"\x81\xa6target\xc4\x01x", bytes(2000)):
            answer = read_reserve_answer(await peer.call(RESERVE, garbage))
            assert isinstance(answer, Refused)
            assert answer.reason == "malformed"
            stream = await peer.open_stream(CONNECT)
            await stream.send_message(garbage)
            told = read_connect_answer(await stream.receive_message())
            assert isinstance(told, Refused)
            assert told.reason == "malformed"
        silent = await peer.open_stream(CONNECT)
        with trio.fail_after(5), pytest.raises(StreamReset):
            await silent.receive_some()
        assert w.relays[0].counters["handler-failed"] == 0
        assert w.services[0].statistics().ledger.circuits == 0
        ended = (
            await w.relays[0]
            .peers[w.endpoints[0].node_id]
            .call("relay/ended", pack({"reason": "x"}))
        )
        assert ended == b""
        assert w.endpoints[0].counters["handler-failed"] == 0


async def test_a_relay_cannot_fill_a_node_with_circuits(autojump_clock: object) -> None:
    generous = Limits(
        pending_handshakes=256,
        pending_handshakes_per_source=256,
        new_connections_per_source_burst=256,
    )
    async with world(limits=generous) as w:
        await w.reserved(1)
        peer = w.relays[0].peers[w.endpoints[1].node_id]
        outcomes: list[str] = []

        async def open_one() -> None:
            stream = await peer.open_stream(INCOMING)
            await stream.send_message(pack(Incoming(w.endpoints[0].node_id)))
            try:
                answer = read_connect_answer(await stream.receive_message())
            except StreamReset:
                outcomes.append("reset")  # by the limits of streams, or of handshakes
            else:
                outcomes.append("" if isinstance(answer, Accepted) else answer.reason)

        for _ in range(8):
            async with trio.open_nursery() as nursery:
                for _ in range(16):
                    nursery.start_soon(open_one)
        assert outcomes.count("") == MAX_INCOMING
        assert outcomes.count("target-busy") == 128 - MAX_INCOMING
        await trio.sleep(10)  # no handshake came: all are given up
        assert w.clients[1]._incoming == 0
        # The node is reachable by others all the while; admission counts the relay as one source.
        assert (await w.connected(0, 1)).node_id == w.endpoints[1].node_id


async def test_who_gives_up_while_the_relay_asks_leaves_nothing(autojump_clock: object) -> None:
    async with world() as w:

        async def never(_stream: Stream) -> None:
            await trio.sleep_forever()

        endpoint = w.endpoints[1]
        endpoint.unserve(INCOMING)
        endpoint.serve(INCOMING, never)
        peer = await endpoint.connect([address(1)])
        assert isinstance(await reserve(peer), Granted)
        with trio.move_on_after(0.5):
            await w.clients[0].circuit(via(w.relays[0]), endpoint.node_id)
        await trio.sleep(10)
        assert w.services[0].statistics().ledger.circuits == 0
        for connected in w.relays[0].peers.values():
            assert connected.primary.mux.statistics().streams == 0
        begun = trio.current_time()
        with pytest.raises(TransportError, match="did not answer"):
            await w.clients[0].circuit(via(w.relays[0]), endpoint.node_id)
        assert trio.current_time() - begun < 4


def test_candidates_are_bounded_and_rest_after_failures() -> None:
    own = identity(1).node_id
    book = Candidates(own)
    ids = [identity(number).node_id for number in range(100, MAX_CANDIDATES + 104)]
    assert not book.add_node(own, [address(1)])
    for node_id in ids[:MAX_CANDIDATES]:
        assert book.add_node(node_id, [address(2)])
    assert not book.add_node(ids[MAX_CANDIDATES], [address(3)])
    book.failed(ids[5], "gone", 0.0)
    assert book.add_node(ids[MAX_CANDIDATES], [address(3)])
    assert ids[5] not in book
    assert len(book) == MAX_CANDIDATES
    # A node called a relay takes the place of one that was merely met, not of its like.
    assert book.add(Address("10.0.0.9", 7447, str(identity(900).node_id)))
    assert not book.add_node(identity(901).node_id, [address(9)])
    assert identity(900).node_id in book
    assert len(book) == MAX_CANDIDATES
    rests = []
    for _ in range(12):
        book.failed(ids[6], "gone", 100.0, jitter=1.0)
        entry = book.get(ids[6])
        assert entry is not None
        rests.append(entry.ready_at - 100.0)
    assert rests[0] == 7.5
    assert rests[-1] == 450.0
    assert ids[6] not in [entry.node_id for entry in book.ready(100.0)]
    assert ids[6] in [entry.node_id for entry in book.ready(600.0)]
    book.failed(ids[7], "full", 0.0, least_s=1000.0)
    assert ids[7] not in [entry.node_id for entry in book.ready(999.0)]
    book.measured(ids[8], 0.5)
    book.measured(ids[9], 0.1)
    assert [entry.node_id for entry in book.ready(0.0)][:2] == [ids[9], ids[8]]
    book.worked(ids[6])
    assert ids[6] in [entry.node_id for entry in book.ready(0.0)]
    assert book.next_at() == 0.0
    book.remove(ids[6])
    assert ids[6] not in book
    with pytest.raises(TransportError, match="not a relay"):
        book.add(address(5))
