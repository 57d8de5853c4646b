"""Members of the swarm that turn against a node: what each of them can take is bounded, and honest nodes still get in."""

from contextlib import AsyncExitStack

import pytest
import trio

from tests.transport.nodes import identity, node, seeded_bytes
from tests.trusted import shaking
from transport.address import Address
from transport.connect.dialer import CONNECT_TIMEOUT_S
from transport.connect.inbound import MAX_EARLY
from transport.errors import PeerUnreachable
from transport.limits import LINK_BYTES, Limits
from transport.network import Path, RawStream
from transport.secure.first_flights import FirstFlights
from transport.secure.handshake import Handshake, HandshakeResult, Intro
from transport.secure.link import GOODBYE_S, shake_hands
from transport.simulated.memory import MemoryNetwork

VICTIM = Address("11.0.0.1", 7447)
JOIN_S = 5.0


async def introduce(
    world: MemoryNetwork,
    host: str,
    number: int,
    intro: Intro,
    *,
    to: Address = VICTIM,
    seed: int = 0,
) -> tuple[RawStream, HandshakeResult]:
    """Member `number` completes a handshake and says what it likes."""
    raw = await world.host(host).connect(to)
    handshake = Handshake(
        role="initiator",
        **shaking(identity(number)),
        intro=intro,
        random_bytes=seeded_bytes("hostile", number, seed),
    )
    return raw, await shake_hands(raw, handshake, deadline=trio.current_time() + JOIN_S)


async def hung_up(raw: RawStream) -> None:
    try:
        while await raw.receive_into(memoryview(bytearray(4096))):
            pass
    except trio.BrokenResourceError:
        pass


async def joins(world: MemoryNetwork, host: str, number: int) -> None:
    """An honest node connects and is answered."""
    with trio.fail_after(JOIN_S):
        async with node(world.host(host), number, listen=[]) as honest:
            peer = await honest.connect([VICTIM])
            await peer.ping()


async def test_bulk_links_without_a_peer_keep_no_newcomer_out(autojump_clock: object) -> None:
    world = MemoryNetwork(1)
    limits = Limits(pending_handshakes=16, pending_handshakes_per_source=8)
    async with node(world.host("11.0.0.1"), 1, listen=[VICTIM], limits=limits) as victim:
        began = trio.current_time()
        held = []
        for number in range(2 * MAX_EARLY):  # one member with as many names, on two hosts
            raw, _ = await introduce(
                world, f"12.{number % 2}.0.1", 10 + number // 2, Intro("bulk"), seed=number
            )
            held.append(raw)
        for seed in range(3):
            raw, _ = await introduce(world, "12.2.0.1", 90, Intro("bulk"), seed=seed)
            held.append(raw)
        await trio.sleep(0.1)
        assert victim.counters["refused-bulk-without-peer"] == MAX_EARLY + 3
        await joins(world, "13.0.0.1", 100)
        assert trio.current_time() - began < limits.handshake_timeout_s
        for raw in held:
            await hung_up(raw)
        assert victim.counters["refused-bulk-without-peer"] == 2 * MAX_EARLY + 3


async def test_a_bulk_link_that_overtook_its_control_connection_is_taken(
    autojump_clock: object,
) -> None:
    world = MemoryNetwork(1)
    async with node(world.host("11.0.0.1"), 1, listen=[VICTIM]) as victim:
        await introduce(world, "12.0.0.1", 2, Intro("bulk", label=b"early"), seed=1)
        await trio.sleep(1)
        raw, _ = await introduce(world, "12.0.0.1", 2, Intro("control"), seed=2)
        await trio.sleep(0.1)
        link = await victim.accept_bulk(identity(2).node_id, b"early")
        await link.aclose()
        raw.abort()


async def test_a_name_that_no_connection_has_changes_no_path(autojump_clock: object) -> None:
    world = MemoryNetwork(1)
    async with node(world.host("11.0.0.1"), 1, listen=[VICTIM]) as victim:
        raw, _ = await introduce(world, "12.0.0.1", 2, Intro("control", label=b"junk"))
        await trio.sleep(0.1)
        assert victim.peers[identity(2).node_id].path is Path.DIRECT
        raw.abort()


async def test_who_wait_for_a_dial_that_fails_fail_with_it(autojump_clock: object) -> None:
    world = MemoryNetwork(1)
    world.host("10.9.0.2", behind=world.nat("11.9.9.9", "port-restricted"))
    async with node(world.host("11.0.0.1"), 1, listen=[VICTIM]) as asking:
        reasons: list[str] = []

        async def connect(*addresses: Address) -> None:
            try:
                await asking.connect(addresses, expected=identity(50).node_id)
            except PeerUnreachable as error:
                reasons.append(str(error))

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(connect, Address("11.9.9.9", 1))
        assert trio.current_time() - began <= CONNECT_TIMEOUT_S + 1
        assert len(reasons) == 20
        assert len(set(reasons)) == 1


async def test_who_knows_another_address_tries_it_after_a_dial_that_failed(
    autojump_clock: object,
) -> None:
    world = MemoryNetwork(1)
    world.host("10.9.0.2", behind=world.nat("11.9.9.9", "port-restricted"))
    there = Address("12.0.0.1", 7447)
    async with (
        node(world.host("11.0.0.1"), 1, listen=[VICTIM]) as asking,
        node(world.host(there.host), 2, listen=[there]) as other,
        trio.open_nursery() as nursery,
    ):

        async def fail() -> None:
            with pytest.raises(PeerUnreachable):
                await asking.connect([Address("11.9.9.9", 1)], expected=other.node_id)

        nursery.start_soon(fail)
        await trio.sleep(1)  # its dial is under way
        peer = await asking.connect([there], expected=other.node_id)
        assert peer.node_id == other.node_id


async def test_one_machine_with_many_names_keeps_no_other_machine_out(
    autojump_clock: object,
) -> None:
    world = MemoryNetwork(1)
    limits = Limits(max_peers=8)
    async with (
        node(world.host("11.0.0.1"), 1, listen=[VICTIM], limits=limits) as victim,
        node(world.host("12.0.0.1"), 9, listen=[Address("12.0.0.1", 7447)]) as dialed,
        AsyncExitStack() as stack,
    ):
        await victim.connect(dialed.addresses)
        for number in range(7):
            sybil = await stack.enter_async_context(
                node(world.host("12.0.0.1"), 20 + number, listen=[])
            )
            await sybil.connect([VICTIM])
        await trio.sleep(1)
        assert len(victim.peers) == 8
        for number in range(4):
            honest = await stack.enter_async_context(
                node(world.host(f"13.{number}.0.1"), 100 + number, listen=[])
            )
            peer = await honest.connect([VICTIM])
            await peer.ping()
        assert victim.counters["peers-replaced"] == 4
        assert dialed.node_id in victim.peers
        late = await stack.enter_async_context(node(world.host("12.0.0.1"), 50, listen=[]))
        refused = await late.connect([VICTIM])
        await refused.closed.wait()
        assert "no room" in refused.close_reason
        assert len(victim.peers) == 8
        homes = [peer.address.host for peer in victim.peers.values()]
        assert homes.count("12.0.0.1") == 4


async def test_who_is_refused_for_want_of_room_is_reserved_for_until_it_is_gone(
    autojump_clock: object,
) -> None:
    world = MemoryNetwork(1)
    limits = Limits(max_peers=1)
    async with node(world.host("11.0.0.1"), 1, listen=[VICTIM], limits=limits) as victim:
        first, _ = await introduce(world, "12.0.0.1", 2, Intro("control"))
        await trio.sleep(0.1)
        system = victim._context.scopes.system
        alone = system.used
        second, _ = await introduce(world, "13.0.0.1", 3, Intro("control"))
        await trio.sleep(GOODBYE_S / 2)
        assert victim.counters["refused-max-peers"] == 1
        assert system.used == (alone[0] + LINK_BYTES, 0, 2, 2)
        await trio.sleep(1)
        assert system.used == alone
        first.abort()
        second.abort()


async def test_a_recorded_first_flight_gets_no_place_and_no_answer(autojump_clock: object) -> None:
    world = MemoryNetwork(1)
    limits = Limits(pending_handshakes=8)
    recorded = Handshake(
        role="initiator",
        **shaking(identity(2)),
        intro=Intro(),
        random_bytes=seeded_bytes("recorded"),
    ).outgoing()
    async with node(world.host("11.0.0.1"), 1, listen=[VICTIM], limits=limits) as victim:
        for number in range(20):
            raw = await world.host(f"12.{number}.0.1").connect(VICTIM)
            await raw.send_all(recorded)
            await trio.sleep(0.01)
            if number:
                with pytest.raises(trio.BrokenResourceError):
                    await raw.receive_into(memoryview(bytearray(1)))
        assert victim.counters["handshake-replayed"] == 19
        assert victim._context.admission.pending == 1
        await joins(world, "13.0.0.1", 100)


def test_the_keys_of_first_flights_are_forgotten_in_turn() -> None:
    flights = FirstFlights(max_seen=2)
    assert flights.is_new(b"a")
    assert flights.is_new(b"b")
    assert not flights.is_new(b"a")  # seen again, so it stays
    assert flights.is_new(b"c")
    assert not flights.is_new(b"a")
    assert flights.is_new(b"b")
    assert len(flights) == 2


async def test_dials_count_as_descriptors_and_stop_at_the_limit(autojump_clock: object) -> None:
    world = MemoryNetwork(1)
    world.host("10.9.0.2", behind=world.nat("11.9.9.9", "port-restricted"))
    limits = Limits(descriptors=8)
    async with node(world.host("11.0.0.1"), 1, listen=[VICTIM], limits=limits) as dialing:
        reasons: list[str] = []

        async def connect(number: int) -> None:
            try:
                await dialing.connect([Address("11.9.9.9", number)])
            except PeerUnreachable as error:
                reasons.append(str(error))

        async with trio.open_nursery() as nursery:
            for number in range(1, 7):
                nursery.start_soon(connect, number)
            await trio.sleep(1)
            assert dialing._context.scopes.system.used == (0, 0, 4, 4)
        assert sum("would exceed the limit of 4" in reason for reason in reasons) == 2
        assert dialing._context.scopes.system.used == (0, 0, 0, 0)
