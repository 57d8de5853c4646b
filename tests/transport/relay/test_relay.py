"""A node that nobody can dial is reached through a relay: the whole way, on the simulated network."""

import pytest
import trio

from tests.transport.nodes import address, identity, node
from tests.transport.relay.worlds import run_stoppable, via, world
from transport.address import Address
from transport.codec import pack
from transport.errors import PeerLost, PeerUnreachable
from transport.network import Path
from transport.peer import Peer
from transport.relay.messages import (
    CONNECT,
    INCOMING,
    RESERVE,
    Connect,
    Incoming,
    Reason,
    Refused,
    RelayRefused,
    Reserve,
    read_connect_answer,
    read_reserve_answer,
)
from transport.relay.service import RelayService
from transport.relay.settings import RelaySettings
from transport.simulated.deterministic import run_deterministically
from transport.simulated.memory import LinkSettings
from transport.streams.stream import Stream
from transport.watch import PeerDown, PeerUp


async def serve_forever(_stream: Stream) -> None:
    await trio.sleep_forever()


CANARY = b"the weights of a model, in clear: " + bytes(range(256))


async def echo(_peer: Peer, request: bytes) -> bytes:
    return request[::-1]


@pytest.fixture
def carried(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Everything that is read from a stream of a circuit, at the relay and at both ends of it."""
    seen: list[bytes] = []
    original = Stream.receive_some

    async def receive_some(self: Stream, max_bytes: int | None = None) -> bytes:
        data = await original(self, max_bytes)
        if self.protocol in (CONNECT, INCOMING):
            seen.append(data)
        return data

    monkeypatch.setattr(Stream, "receive_some", receive_some)
    return seen


async def test_two_nodes_that_only_dial_talk_and_the_relay_sees_no_word(
    autojump_clock: object, carried: list[bytes]
) -> None:
    async with world() as w:
        await w.reserved(1)
        assert w.clients[1].addresses == (via(w.relays[0]),)
        w.endpoints[1].serve_calls("echo", echo)
        peer = await w.connected(0, 1)
        assert peer.node_id == w.endpoints[1].node_id
        assert peer.path is Path.RELAYED
        assert peer.relay == w.relays[0].node_id
        other = w.endpoints[1].peers[w.endpoints[0].node_id]
        assert other.path is Path.RELAYED
        assert other.relay == w.relays[0].node_id
        for _ in range(20):
            assert await peer.call("echo", CANARY * 200) == (CANARY * 200)[::-1]
        everything = b"".join(carried)
        assert len(everything) > 40 * len(CANARY) * 200
        for part in (CANARY, CANARY[:16], CANARY[-16:], CANARY[::-1][:16], b"node-11", b"echo"):
            assert part not in everything
        statistics = w.services[0].statistics()
        assert statistics.circuits_opened == statistics.ledger.circuits == 1
        assert statistics.ledger.carried_bytes > 40 * len(CANARY) * 200


async def test_a_bulk_link_runs_over_the_circuit(autojump_clock: object) -> None:
    async with world() as w:
        await w.reserved(1)
        peer = await w.connected(0, 1)
        payload = bytes(range(256)) * 4096
        received = bytearray(len(payload))

        async def take() -> None:
            link = await w.endpoints[1].accept_bulk(w.endpoints[0].node_id, b"tensor")
            for _ in range(3):
                header = await link.receive(lambda _header, size: memoryview(received)[:size])
                assert header == b"head"
            await link.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            link = await peer.open_bulk(b"tensor")
            for _ in range(3):
                await link.send(b"head", payload)
        assert received == payload


async def test_closing_in_order_reaches_the_other_end_and_frees_the_relay(
    autojump_clock: object,
) -> None:
    async with world() as w:
        await w.reserved(1)
        peer = await w.connected(0, 1)
        there = w.endpoints[1].peers[w.endpoints[0].node_id]
        peer.close("enough for today")
        await there.closed.wait()
        assert "enough for today" in there.close_reason
        await trio.sleep(2)
        statistics = w.services[0].statistics()
        assert statistics.ledger.circuits == 0
        assert sum(statistics.ended.values()) == 1
        for endpoint in (*w.relays, *w.endpoints):
            for connected in endpoint.peers.values():
                assert connected.primary.mux.statistics().streams == 0


async def test_a_relay_that_dies_is_replaced_within_seconds(autojump_clock: object) -> None:
    async with world(relays=3, clients=2) as w:
        client = await w.reserved(1, count=2)
        changes: list[tuple[Address, ...]] = []
        client.on_change = changes.append
        first = client.relays[0].node_id
        number = next(n for n, relay in enumerate(w.relays, 1) if relay.node_id == first)
        peer = await w.connected(0, 1)
        assert peer.relay == first
        died_at = trio.current_time()
        w.network.kill_host(f"10.0.0.{number}", silent=True)
        await peer.closed.wait()
        with trio.fail_after(10):
            while len(client.relays) < 2 or first in {r.node_id for r in client.relays}:
                await trio.sleep(0.01)
        assert trio.current_time() - died_at < 8
        assert len(changes[0]) == 1  # the dead one is not published any more, at once
        assert len(client.addresses) == 2
        again = await w.connected(0, 1)
        assert again.relay != first
        assert trio.current_time() - died_at < 10


async def test_a_relay_that_stops_in_order_says_so(autojump_clock: object) -> None:
    async with world(relays=2, settings=RelaySettings(wanted=1)) as w:
        client = await w.reserved(1)
        first = client.relays[0].node_id
        index = [relay.node_id for relay in w.relays].index(first)
        peer = await w.connected(0, 1)
        w.stops[index].cancel()
        with trio.fail_after(2):
            await peer.closed.wait()
            while not client.relays or client.relays[0].node_id == first:
                await trio.sleep(0.01)
        assert not w.services[index].serving
        assert w.services[index].statistics().ended == {"stopped": 1}
        entry = client.candidates.get(first)
        assert entry is not None
        assert "does not serve" in entry.reason


async def test_the_nearest_relays_are_chosen_and_a_nearer_one_replaces(
    autojump_clock: object,
) -> None:
    async with world(relays=3, clients=1) as w:
        for number, latency_s in ((1, 0.1), (2, 0.02), (3, 0.05)):
            w.network.set_link(f"10.0.0.{number}", "10.0.0.11", LinkSettings(latency_s=latency_s))
        client = await w.reserved(0, count=2)
        assert {r.node_id for r in client.relays} == {w.relays[1].node_id, w.relays[2].node_id}
        w.network.set_link("10.0.0.1", "10.0.0.11", LinkSettings(latency_s=0.001))
        await trio.sleep(700)
        assert {r.node_id for r in client.relays} == {w.relays[0].node_id, w.relays[1].node_id}
        assert len(client.addresses) == 2
        assert w.services[2].statistics().ledger.reservations == 0


async def test_reservations_are_renewed_and_given_up(autojump_clock: object) -> None:
    async with world(settings=RelaySettings(reservation_s=60.0)) as w:
        client = await w.reserved(1)
        await trio.sleep(300)
        assert len(client.relays) == 1
        await w.connected(0, 1)
        client.wanted = 0
        await trio.sleep(1)
        assert client.addresses == ()
        assert w.services[0].statistics().ledger.reservations == 0
        client.wanted = 1
        await trio.sleep(1)
        assert len(client.addresses) == 1


async def test_a_candidate_may_come_at_any_time_and_connected_nodes_are_asked(
    autojump_clock: object,
) -> None:
    async with world(relays=2, clients=1, settings=RelaySettings(wanted=2)) as w:
        client = w.clients[0]
        await w.nursery.start(client.run)
        await trio.sleep(1)
        assert client.addresses == ()
        client.candidates.add(via(w.relays[0]))
        await trio.sleep(1)
        assert client.addresses == (via(w.relays[0]),)
        await w.endpoints[0].connect([address(2)])
        await trio.sleep(1)
        assert set(client.addresses) == {via(w.relays[0], 1), via(w.relays[1], 2)}


async def test_a_dead_candidate_does_not_hold_up_the_living(autojump_clock: object) -> None:
    async with world(relays=1, clients=1, settings=RelaySettings(wanted=1)) as w:
        w.network.kill_host("10.0.0.99", silent=True)
        client = w.clients[0]
        for number in (98, 99):  # nobody listens there; nothing is ever heard from there
            someone = str(identity(number).node_id)
            assert client.candidates.add(Address(f"10.0.0.{number}", 7447, someone))
        assert not client.candidates.add(Address("10.0.0.98", 7447, str(w.endpoints[0].node_id)))
        assert len(client.candidates) == 2
        begun = trio.current_time()
        await w.reserved(0)
        assert trio.current_time() - begun < 1.0


@pytest.mark.parametrize("silent", [False, True])
async def test_a_circuit_to_a_dead_node_is_refused_quickly(
    autojump_clock: object, silent: bool
) -> None:
    async with world() as w:
        client = await w.reserved(1)
        published = client.addresses
        await w.endpoints[0].connect([address(1)])
        w.network.kill_host("10.0.0.12", silent=silent)
        await trio.sleep(0.1 if silent else 1)
        begun = trio.current_time()
        with pytest.raises(RelayRefused) as refused:
            await w.clients[0].circuit(published[0], w.endpoints[1].node_id)
        assert trio.current_time() - begun < 4
        assert refused.value.reason is (Reason.SILENT if silent else Reason.NO_RESERVATION)
        assert refused.value.hint
        with pytest.raises(PeerUnreachable, match=r"did not answer|no reservation"):
            await w.endpoints[0].connect(published, expected=w.endpoints[1].node_id)


async def test_a_dead_relay_and_a_node_that_is_no_relay_are_told_apart(
    autojump_clock: object,
) -> None:
    async with world(relays=2, serve=False) as w:
        target = w.endpoints[1].node_id
        with pytest.raises(RelayRefused) as refused:
            await w.clients[0].circuit(via(w.relays[0]), target)
        assert refused.value.reason is Reason.NOT_SERVING
        w.network.kill_host("10.0.0.2")
        with pytest.raises(PeerUnreachable, match=r"relay is unreachable: .*refused"):
            await w.endpoints[0].connect([via(w.relays[1], 2)], expected=target)
        with pytest.raises(RelayRefused, match="circuit to itself"):
            await w.clients[0].circuit(via(w.relays[0]), w.relays[0].node_id)


async def test_the_relay_may_be_the_target_of_nobody(autojump_clock: object) -> None:
    """Whoever wants the relay itself dials it; a circuit to it is refused by the relay, too."""
    async with world() as w:
        peer = await w.endpoints[0].connect([address(1)])
        for target in (w.relays[0].node_id, w.endpoints[0].node_id, w.endpoints[1].node_id):
            stream = await peer.open_stream(CONNECT)
            await stream.send_message(pack(Connect(target)))
            answer = read_connect_answer(await stream.receive_message())
            assert isinstance(answer, Refused)
        refused = w.services[0].statistics().refused
        assert refused == {"self": 1, "no-reservation": 2}
        assert w.relays[0].counters["relay-refused-self"] == 1


async def test_no_relay_over_a_relay(autojump_clock: object) -> None:
    """A node reached over a relay neither gives reservations nor circuits, nor is given any."""
    async with world(clients=3) as w:
        await w.reserved(1)
        middle = w.endpoints[1]
        service = RelayService(middle)
        await w.nursery.start(service.run)
        peer = await w.connected(0, 1)
        assert peer.path is Path.RELAYED
        through = Address("10.0.0.12", 7447, str(middle.node_id))
        with pytest.raises(RelayRefused) as refused:
            await w.clients[0].circuit(through, w.endpoints[2].node_id)
        assert refused.value.reason is Reason.RELAYED
        answer = read_reserve_answer(await peer.call(RESERVE, pack(Reserve(release=False))))
        assert isinstance(answer, Refused)
        assert answer.reason == "relayed"
        stream = await peer.open_stream(CONNECT)
        await stream.send_message(pack(Connect(w.endpoints[2].node_id)))
        told = read_connect_answer(await stream.receive_message())
        assert isinstance(told, Refused)
        assert told.reason == "relayed"
        assert service.statistics().refused == {"relayed": 2}


async def test_an_incoming_circuit_of_a_stranger_is_declined(autojump_clock: object) -> None:
    """Only relays of ours may bring circuits: others would be a way round the limits of our own listener."""
    async with world() as w:
        peer = await w.endpoints[1].connect([address(1)])
        await trio.sleep(1)
        stream = await w.relays[0].peers[w.endpoints[1].node_id].open_stream(INCOMING)
        await stream.send_message(pack(Incoming(w.endpoints[0].node_id)))
        answer = read_connect_answer(await stream.receive_message())
        assert isinstance(answer, Refused)
        assert answer.reason == "no-reservation"
        assert w.endpoints[1].counters["circuit-refused-no-reservation"] == 1
        assert not peer.close_reason


async def test_a_restarted_relay_serves_again(autojump_clock: object) -> None:
    async with world(relays=0, clients=1, settings=RelaySettings(wanted=1)) as w:
        async with node(w.network.host("10.0.0.1"), 1) as relay:
            await w.nursery.start(RelayService(relay).run)
            w.relays.append(relay)
            client = await w.reserved(0)
            relay_address = via(relay)
        await trio.sleep(1)
        assert client.addresses == ()
        async with node(w.network.host("10.0.0.1"), 1, seed=2) as relay:
            await w.nursery.start(RelayService(relay).run)
            await trio.sleep(15)
            assert client.addresses == (relay_address,)


async def test_streams_end_with_the_circuit_and_say_why(autojump_clock: object) -> None:
    settings = RelaySettings(circuit_s=30.0)
    async with world(settings=settings) as w:
        await w.reserved(1)
        w.endpoints[1].serve("something", serve_forever)
        peer = await w.connected(0, 1)
        stream = await peer.open_stream("something")
        await peer.closed.wait()
        with pytest.raises(PeerLost, match="its time is over"):
            await stream.send_all(bytes(10))
        assert "its time is over" in peer.close_reason
        assert w.services[0].statistics().ended == {"too-long": 1}


async def test_a_connection_leaves_the_relay_and_its_streams_go_on(autojump_clock: object) -> None:
    async with world(listening=frozenset({11})) as w:
        await w.reserved(1)
        received = bytearray()

        async def collect(stream: Stream) -> None:
            while data := await stream.receive_some():
                received.extend(data)

        w.endpoints[1].serve("collect", collect)
        peer = await w.connected(0, 1)
        stream = await peer.open_stream("collect")
        sent = bytearray()
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                for number in range(600):
                    part = number.to_bytes(2, "big") * 2000
                    await stream.send_all(part)
                    sent.extend(part)
                    await trio.sleep(0.005)

            nursery.start_soon(send)
            await trio.sleep(1)
            there = w.endpoints[1].peers[w.endpoints[0].node_id]
            raw = await w.endpoints[1].network.connect(address(11))
            assert await w.endpoints[1].upgrade(there, raw, "initiator")
        await stream.send_eof()
        await trio.sleep(2)
        assert received == sent
        assert peer.path is there.path is Path.REVERSED
        assert peer.relay is there.relay is None
        statistics = w.services[0].statistics()
        assert statistics.ledger.circuits == 0
        assert statistics.ended == {"finished": 1}


async def test_a_relay_may_stop_and_start_again(autojump_clock: object) -> None:
    async with world(settings=RelaySettings(wanted=1)) as w:
        client = await w.reserved(1)
        (scope,) = w.stops
        for _ in range(3):
            scope.cancel()
            await trio.sleep(1)
            assert client.addresses == ()
            with pytest.raises(RelayRefused) as refused:
                await w.clients[0].circuit(via(w.relays[0]), w.endpoints[1].node_id)
            assert refused.value.reason is Reason.NOT_SERVING
            scope = await w.nursery.start(run_stoppable, w.services[0])
            with trio.fail_after(400):
                while not client.addresses:
                    await trio.sleep(1)
        assert (await w.connected(0, 1)).path is Path.RELAYED


async def test_watchers_hear_of_relayed_peers_like_of_any(autojump_clock: object) -> None:
    async with world() as w:
        await w.reserved(1)
        with w.endpoints[0].watch() as events:
            peer = await w.connected(0, 1)
            up = [await events.receive(), await events.receive()]
            assert {type(event) for event in up} == {PeerUp}
            w.stops[0].cancel()
            await peer.closed.wait()
            event = await events.receive()
            assert isinstance(event, PeerDown)
            assert "stops relaying" in event.reason


def test_the_relayed_world_is_deterministic() -> None:
    """The same seed, the same run: nothing here draws from the system."""

    async def run() -> bytes:
        async with world(relays=2, clients=2) as w:
            await w.reserved(1, count=2)
            w.endpoints[1].serve_calls("echo", echo)
            peer = await w.connected(0, 1)
            assert await peer.call("echo", b"abc") == b"cba"
            w.network.kill_host("10.0.0.1", silent=True)
            await trio.sleep(20)
            return w.network.trace_digest()

    assert run_deterministically(5, run) == run_deterministically(5, run)
