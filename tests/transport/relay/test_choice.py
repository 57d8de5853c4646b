"""Which relays a node keeps: not all of one owner, none that brings nobody, and none that speaks for others."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Literal

import attrs
import pytest
import trio

from tests.transport.nodes import identity, node
from tests.transport.relay.worlds import via, world
from transport.address import Address
from transport.codec import pack
from transport.endpoint import Endpoint
from transport.errors import TransportError
from transport.network import Path
from transport.peer import Peer
from transport.relay import reservations
from transport.relay.candidates import Candidate, in_turn
from transport.relay.client import RelayClient
from transport.relay.ledger import Circuit
from transport.relay.messages import (
    CONNECT,
    INCOMING,
    RESERVE,
    Accepted,
    Granted,
    Incoming,
    Reason,
    Refused,
    read_connect_answer,
)
from transport.relay.reservations import FAILED_TRIALS, TRY_AGAIN_S
from transport.relay.service import RelayService
from transport.relay.trial import TRIAL_S
from transport.simulated.memory import LinkSettings, MemoryNetwork
from transport.streams.stream import Stream


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Virtual time is not free either: heartbeats come every second."""
    monkeypatch.setattr(reservations, "IMPROVE_S", IMPROVE_S)
    monkeypatch.setattr(reservations, "TRIAL_S", IMPROVE_S / 2)


IMPROVE_S = 60.0
TERMS = Granted(expires_s=3600.0, bytes_per_s=1e6, circuit_bytes=1 << 30, circuit_s=3600.0)


async def grant(_peer: Peer, _request: bytes) -> bytes:
    """A relay that grants every place, and serves no circuit."""
    return pack(TERMS)


class CarriesTrialsOnly(RelayService):
    """A relay that grants every place, and serves no circuit but those of a node to itself."""

    async def _allow(self, source: Stream) -> Circuit | Refused | None:
        given = await super()._allow(source)
        if not isinstance(given, Circuit) or given.source == given.target:
            return given
        self._ledger.close(given)
        return Refused(Reason.SILENT)


@attrs.define
class Place:
    """A relay: where, how far from the client, and what it carries."""

    host: str
    latency_s: float
    carries: Literal["all", "trials", "nothing"] = "all"


@attrs.define
class Kept:
    """One client that nobody can dial, and somebody who looks for it."""

    client: RelayClient
    relays: list[Endpoint]
    endpoint: Endpoint
    asker: Endpoint

    def held(self) -> set[int]:
        ids = [relay.node_id for relay in self.relays]
        return {ids.index(status.node_id) for status in self.client.relays}

    async def reach(self) -> bool:
        """Whether somebody comes through now."""
        try:
            peer = await self.asker.connect(self.client.addresses, expected=self.endpoint.node_id)
        except TransportError:
            return False
        assert peer.path is Path.RELAYED
        peer.close("seen")
        await trio.sleep(1)
        return True


@asynccontextmanager
async def kept(*places: Place) -> AsyncIterator[Kept]:
    network = MemoryNetwork(7, default=LinkSettings(latency_s=0.03))
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        relays = []
        for number, place in enumerate(places, 1):
            for ends in ((place.host, "10.8.0.1"), ("10.8.0.1", place.host)):
                network.set_link(*ends, LinkSettings(latency_s=place.latency_s))
            host, listen = network.host(place.host), [Address(place.host, 7447)]
            relay = await stack.enter_async_context(node(host, number, listen=listen))
            relays.append(relay)
            if place.carries == "nothing":
                relay.serve_calls(RESERVE, grant)
            else:
                kind = RelayService if place.carries == "all" else CarriesTrialsOnly
                await nursery.start(kind(relay).run)
        hidden, asker = [
            await stack.enter_async_context(node(network.host(host), number, listen=[]))
            for number, host in ((50, "10.8.0.1"), (51, "10.9.0.1"))
        ]
        client = RelayClient(hidden)
        RelayClient(asker)
        for relay in relays:
            client.candidates.add(attrs.evolve(relay.addresses[0], relay=str(relay.node_id)))
        await nursery.start(client.run)
        await trio.sleep(10)
        yield Kept(client, relays, hidden, asker)


async def test_the_second_place_is_in_another_network(autojump_clock: object) -> None:
    many = [Place(f"10.0.0.{number}", 0.001) for number in range(1, 12)]
    async with kept(*many, Place("10.0.1.1", 0.1)) as it:
        assert 11 in it.held()
        assert len(it.held()) == 2
    async with kept(*many) as it:  # there is no other
        assert len(it.held()) == 2


async def test_another_network_is_tried_before_a_known_relay_of_the_same(
    autojump_clock: object,
) -> None:
    near = [Place(f"10.0.0.{number}", 0.001) for number in (1, 2, 3)]
    async with kept(*near, Place("10.0.1.1", 0.05)) as it:
        assert 3 in it.held()
        (other,) = it.held() - {3}
        it.client.candidates.failed(it.relays[3].node_id, "away", trio.current_time())
        it.endpoint.peers[it.relays[3].node_id].close("away")
        await trio.sleep(2)
        assert other in it.held()
        assert len(it.held()) == 2
        assert 3 not in it.held()  # it rests
        it.endpoint.peers[it.relays[min(it.held() - {other})].node_id].close("away, too")
        await trio.sleep(20)
        it.endpoint.peers[it.relays[min(it.held() - {other})].node_id].close("and again")
        await trio.sleep(20)
        assert 3 in it.held()


async def test_relays_that_carry_nothing_lose_their_places_within_seconds(
    autojump_clock: object,
) -> None:
    places = [Place("10.0.0.1", 0.03), Place("10.0.0.2", 0.03)]
    places += [Place(f"10.0.0.{n}", 0.001, carries="nothing") for n in (3, 4, 5)]
    async with kept(*places) as it:
        await trio.sleep(5)
        assert it.held() == {0, 1}
        assert await it.reach()
        entry = it.client.candidates.get(it.relays[2].node_id)
        assert entry is not None
        assert "carries nothing" in entry.reason
        assert it.endpoint.counters["relay-trial-failed"] >= 2 * FAILED_TRIALS
        assert not it.endpoint.counters["handler-failed"]
        # They are asked again, ever more seldom, and never kept.
        failures = entry.failures
        await trio.sleep(30)
        assert it.held() == {0, 1}
        assert entry.failures <= failures + 2


async def test_a_relay_that_stops_carrying_is_left(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reservations, "TRY_AGAIN_S", 20.0)
    places = [Place(f"10.0.0.{n}", 0.01) for n in (1, 2)] + [Place("10.0.0.3", 0.1)]
    async with kept(*places) as it:
        assert it.held() == {0, 1}

        async def deaf(_stream: Stream) -> None:
            await trio.sleep_forever()

        it.relays[0].unserve(CONNECT)
        it.relays[0].serve(CONNECT, deaf)
        await trio.sleep(60)
        assert it.held() == {1, 2}
        assert await it.reach()


async def test_the_only_relay_that_has_too_much_to_do_keeps_its_place(
    autojump_clock: object,
) -> None:
    async with kept(Place("10.0.0.1", 0.01)) as it:

        async def full(stream: Stream) -> None:
            await stream.send_message(pack(Refused(Reason.CIRCUITS)))

        it.relays[0].unserve(CONNECT)
        it.relays[0].serve(CONNECT, full)
        await trio.sleep(3 * TRY_AGAIN_S)
        assert it.held() == {0}


async def test_who_pretends_that_a_trial_came_in_convinces_nobody(autojump_clock: object) -> None:
    """A circuit from ourselves that we did not ask for is refused, and one with other bytes in it is no proof."""
    async with kept(Place("10.0.0.1", 0.01)) as it:
        relay = it.relays[0]
        peer = relay.peers[it.endpoint.node_id]
        stream = await peer.open_stream(INCOMING)
        await stream.send_message(pack(Incoming(it.endpoint.node_id)))
        assert read_connect_answer(await stream.receive_message()) == Refused(Reason.TARGET_BUSY)
        stream.reset()

        async def forged(source: Stream) -> None:
            await source.receive_message()
            target = await peer.open_stream(INCOMING)
            await target.send_message(pack(Incoming(it.endpoint.node_id)))
            await target.receive_message()
            await source.send_message(pack(Accepted()))
            await target.send_all(bytes(32))
            await trio.sleep_forever()

        relay.unserve(CONNECT)
        relay.serve(CONNECT, forged)
        with trio.fail_after(TRY_AGAIN_S * 1.2 + 3 * TRIAL_S):
            while it.held():
                await trio.sleep(0.1)


async def test_near_relays_that_carry_trials_only_lose_their_places(
    autojump_clock: object,
) -> None:
    places = [Place("10.0.0.1", 0.03), Place("10.0.0.2", 0.03)]
    places += [Place(f"10.0.0.{n}", 0.001, carries="trials") for n in (3, 4)]
    async with kept(*places) as it:
        assert it.held() == {2, 3}
        assert not await it.reach()
        reached = 0
        for _ in range(8):
            await trio.sleep(IMPROVE_S)
            reached += await it.reach()
        assert reached >= 6
        # What was proved to work stays, and the other place is not left to who brings nobody.
        proved = {n for n in it.held() if it.client.candidates.get(it.relays[n].node_id).circuits}  # type: ignore[union-attr]
        assert proved
        for _ in range(5):
            await trio.sleep(IMPROVE_S)
            assert proved <= it.held()


async def test_a_nearer_relay_does_not_take_the_only_place_that_works(
    autojump_clock: object,
) -> None:
    places = [Place("10.0.0.1", 0.05), Place("10.0.0.2", 0.06)]
    async with kept(*places) as it:
        assert await it.reach()
        (proved,) = [
            n
            for n in (0, 1)
            if it.client.candidates.get(it.relays[n].node_id).circuits  # type: ignore[union-attr]
        ]
        # It is the farthest now, and one that was never tried is next door.
        it.client.candidates.measured(it.relays[proved].node_id, 0.5)
        await trio.sleep(3 * IMPROVE_S)
        assert proved in it.held()


async def test_a_relay_speaks_of_itself_only(autojump_clock: object) -> None:
    async with world(clients=1) as w:
        relay = w.relays[0]
        victims = [
            Address("1.2.3.4", 443),
            Address("metadata.example", 80),
            Address("127.0.0.1", 1),
        ]
        relay.set_advertised([*victims, Address("10.0.0.1", 8448)])
        client = w.clients[0]
        # And somebody else speaks of it.
        client.candidates.add(Address("1.2.3.5", 443, str(relay.node_id)))
        await w.reserved(0)
        await trio.sleep(5)
        assert client.addresses[0] == via(relay)
        assert {(a.host, a.relay) for a in client.addresses} == {("10.0.0.1", str(relay.node_id))}


def entry(number: int, host: str, idle_at: float | None = None) -> Candidate:
    return Candidate(identity(number).node_id, (Address(host, 7447),), idle_at=idle_at)


def order(entries: Sequence[Candidate], *taken: str) -> list[int]:
    turns = in_turn(entries, lambda e: e.addresses[0].host.rpartition(".")[0], taken)
    return [entries.index(e) for e in turns]


def test_turns() -> None:
    assert order([]) == []
    numbers = [entry(n, f"10.0.0.{n}") for n in (1, 2, 3)] + [entry(4, "10.0.1.1")]
    assert order(numbers) == [0, 3, 1, 2]
    assert order(numbers, "10.0.0") == [3, 0, 1, 2]
    idle = [entry(1, "10.0.0.1", 5.0), entry(2, "10.0.0.2", 3.0), entry(3, "10.0.0.3")]
    assert order(idle) == [2, 1, 0]
    assert order([*idle, entry(4, "10.0.1.1", 1.0)], "10.0.0") == [3, 2, 1, 0]
