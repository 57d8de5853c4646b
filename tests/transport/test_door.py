"""The door for those who are no members yet: one question, one answer, and nothing else."""

import itertools

import pytest
import trio

from tests.transport.nodes import address, echo, identity, node, seeded_bytes
from tests.trusted import FOREIGN_ROOT, SWARM, judge_of, member_chain, shaking
from transport.connect.door import (
    ANSWER_S,
    DOOR_BURST,
    DOOR_RATE,
    MAX_ANSWER_BYTES,
    MAX_OF_ONE_SOURCE,
    MAX_REQUEST_BYTES,
    Door,
    ask_at_door,
)
from transport.errors import (
    ConnectionBroken,
    HandshakeFailed,
    RecordTooLarge,
    UsageError,
    WrongSwarm,
)
from transport.identity import verify
from transport.secure.handshake import Handshake, Intro
from transport.secure.link import shake_hands
from transport.secure.processor import can_use_aegis
from transport.secure.record import RecordKind
from transport.simulated.link_model import LinkSettings
from transport.simulated.memory import MemoryNetwork
from transport.streams import frames
from transport.swarm import Gate
from transport.trust.refusal import CertificateRefused, Refusal
from transport.trust.trust import Trust

SEEDS = itertools.count()


async def ask(world: MemoryNetwork, request: bytes, *, host: str = "10.0.0.9", swarm_id=SWARM.id):
    raw = await world.host(host).connect(address(1))
    seed = next(SEEDS)  # the same fresh keys twice would be a replay
    return await ask_at_door(
        raw, swarm_id, identity(9), request, random_bytes=seeded_bytes(seed), wall_clock=lambda: 0.0
    )


def counted(endpoint) -> dict[str, int]:
    return {key: value for key, value in endpoint.counters.items() if "door" in key}


@pytest.mark.parametrize("split", [0, 0.9])
async def test_a_newcomer_asks_once_and_is_answered(autojump_clock, split):
    world = MemoryNetwork(1, default=LinkSettings(latency_s=0.02, split=split))
    heard = []

    async def answer(request: bytes, source: str) -> bytes:
        heard.append((request, source))
        return request[::-1] * 8

    async with node(world.host("10.0.0.1"), 1) as member:
        member.open_door(answer)
        assert await ask(world, b"let me in" * 100) == (b"let me in" * 100)[::-1] * 8
        assert heard == [(b"let me in" * 100, "10.0.0.9")]
        assert not member.peers
        assert member.counters["door-answered"] == 1


def newcomer(seed: int, swarm_id: bytes = SWARM.id) -> Handshake:
    return Handshake(
        role="join",
        identity=identity(9),
        gate=Gate.joining(swarm_id),
        chain=b"",
        judge=judge_of(Trust(swarm_id)),
        intro=Intro("control", "newcomer", (address(9),)),
        random_bytes=seeded_bytes(seed),
    )


async def test_nobody_is_answered_where_no_door_is_open(autojump_clock):
    world = MemoryNetwork(1)
    async with node(world.host("10.0.0.1"), 1) as member:
        with pytest.raises((HandshakeFailed, ConnectionBroken)):
            await ask(world, b"x")
        assert member.counters["handshake-join-refused"] == 1
        member.open_door(lambda request, _source: echo(None, request))
        with pytest.raises(WrongSwarm):
            await ask(world, b"x", swarm_id=b"j" * 32)
        assert await ask(world, b"x") == b"x"
        member.close_door()
        with pytest.raises((HandshakeFailed, ConnectionBroken)):
            await ask(world, b"x")


async def test_the_door_does_not_lead_to_anything_else(autojump_clock):
    """Not to being a peer, whatever the newcomer says after its handshake."""
    world = MemoryNetwork(1)
    async with node(world.host("10.0.0.1"), 1) as member:
        member.open_door(lambda request, _source: echo(None, request))
        raw = await world.host("10.0.0.2").connect(address(1))
        result = await shake_hands(raw, newcomer(5), deadline=trio.current_time() + 5)
        assert result.node_id == member.node_id  # the member shows that it is one
        assert (result.intro.name, result.intro.listen) == ("", ())  # and no more
        record = memoryview(bytearray(100))
        size = result.sealer.seal_into(RecordKind.DATA, frames.encode(frames.Ping(1)), record)
        await raw.send_all(record[:size])
        with pytest.raises(trio.BrokenResourceError):
            await raw.receive_into(memoryview(bytearray(1)))
        assert member.counters["door-broken"] == 1
        assert not member.peers


async def test_no_signature_is_verified_for_a_newcomer(autojump_clock, monkeypatch):
    world = MemoryNetwork(1)
    verified = []
    monkeypatch.setattr(
        "transport.secure.handshake.verify",
        lambda key, signature, data: verified.append(key) or verify(key, signature, data),
    )
    async with node(world.host("10.0.0.1"), 1) as member:
        member.open_door(lambda request, _source: echo(None, request))
        assert await ask(world, b"x") == b"x"
        assert verified == [member.identity.public_key]  # by the newcomer


async def test_newcomers_come_no_faster_than_they_may(autojump_clock):
    door = Door(lambda request, _source: echo(None, request), 0.0)
    assert all(door.may_enter(0.0) for _ in range(DOOR_BURST))
    assert not door.may_enter(0.0)
    assert door.may_enter(1 / DOOR_RATE)
    assert not door.may_enter(1 / DOOR_RATE)


async def test_a_false_member_is_noticed_by_the_newcomer(autojump_clock):
    """Who knows the swarm's id can answer at a door of its own, but shows no certificate of that swarm."""
    world = MemoryNetwork(1)
    shown = Trust(SWARM.id, member_chain(identity(1), root=FOREIGN_ROOT).raw)
    async with node(world.host("10.0.0.1"), 1, trust=shown) as liar:
        liar.open_door(lambda request, _source: echo(None, request))
        with pytest.raises(CertificateRefused) as caught:
            await ask(world, b"a secret request")
        assert caught.value.refusal is Refusal.OTHER_SWARM


@pytest.mark.parametrize("role", ["join", "initiator"])
def test_a_member_and_a_newcomer_do_not_mistake_each_other(role):
    """What was said under the door's key is worth nothing under the swarm's, and the other way round."""
    responder = Handshake(
        role="responder",
        **shaking(identity(1)),
        intro=Intro("control", "secret name"),
        random_bytes=seeded_bytes(1),
        may_join=lambda: True,
    )
    comes = newcomer(2)
    if role == "initiator":
        comes = Handshake(
            role="initiator",
            **shaking(identity(9)),
            intro=Intro(),
            random_bytes=seeded_bytes(2),
        )
    first = bytearray(comes.outgoing())
    first[9] = 1 if role == "join" else 4
    with pytest.raises(WrongSwarm, match="does not hold its key"):
        responder.receive(bytes(first))
    assert responder.outgoing() == b""


def test_a_newcomer_says_nothing_about_itself():
    responder = Handshake(
        role="responder",
        **shaking(identity(1)),
        intro=Intro("control", "secret name"),
        random_bytes=seeded_bytes(1),
        may_join=lambda: True,
    )
    comes = newcomer(2)
    responder.receive(comes.outgoing())
    comes.receive(responder.outgoing())
    assert comes.result.intro == Intro()
    third = comes.outgoing()
    assert len(third) == 2 + 32 + 16 + 16  # the static key of this handshake, and nothing else
    responder.receive(third)
    assert responder.joining
    assert responder.result.member is None
    assert responder.result.node_id not in {identity(9).node_id, identity(1).node_id}


@pytest.mark.skipif(not can_use_aegis(), reason="no aeg here, or a processor without VAES")
async def test_a_join_connection_has_one_cipher(autojump_clock):
    """The newcomer says nothing about itself, so not which ciphers it can, and the longest answer would be a long record."""

    async def at_length(_request, _source):
        return bytes(MAX_ANSWER_BYTES)

    world = MemoryNetwork(1)
    async with node(world.host("10.0.0.1"), 1, aegis=True) as member:
        member.open_door(at_length)
        assert await ask(world, b"request") == bytes(MAX_ANSWER_BYTES)


@pytest.mark.parametrize("size", [0, MAX_REQUEST_BYTES + 1])
async def test_a_request_that_is_empty_or_too_long_gets_no_answer(autojump_clock, size):
    world = MemoryNetwork(1)
    async with node(world.host("10.0.0.1"), 1) as member:
        member.open_door(lambda request, _source: echo(None, request))
        with pytest.raises(ConnectionBroken):
            await ask(world, bytes(size))
        assert sum(counted(member).values()) == 1
        assert await ask(world, bytes(MAX_REQUEST_BYTES)) == bytes(MAX_REQUEST_BYTES)


async def test_an_answer_that_is_too_long_is_refused_by_the_newcomer(autojump_clock):
    world = MemoryNetwork(1)

    async def flood(_request: bytes, _source: str) -> bytes:
        return bytes(MAX_ANSWER_BYTES + 1)

    async with node(world.host("10.0.0.1"), 1) as member:
        member.open_door(flood)
        with pytest.raises(RecordTooLarge):
            await ask(world, b"x")


async def test_who_says_nothing_or_waits_for_ever_is_let_go(autojump_clock):
    world = MemoryNetwork(1)
    begun = trio.current_time()

    async def never(_request: bytes, _source: str) -> bytes:
        await trio.sleep_forever()

    async with node(world.host("10.0.0.1"), 1) as member:
        member.open_door(never)
        with pytest.raises(ConnectionBroken):
            await ask(world, b"x")
        assert trio.current_time() - begun < ANSWER_S + 1
        raw = await world.host("10.0.0.9").connect(address(1))
        await shake_hands(raw, newcomer(3), deadline=trio.current_time() + 5)
        with (
            trio.fail_after(member.limits.handshake_timeout_s + 1),
            pytest.raises(trio.BrokenResourceError),
        ):
            await raw.receive_into(memoryview(bytearray(1)))
        raw.abort()
        assert member.counters["door-timeout"] == 1


async def test_one_source_has_so_many_places(autojump_clock):
    world = MemoryNetwork(1)
    at_once, most = 0, 0

    async def slowly(request: bytes, _source: str) -> bytes:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await trio.sleep(2)
        at_once -= 1
        return request

    outcomes = []

    async def one(host: str, number: int) -> None:
        try:
            outcomes.append((host, await ask(world, bytes([number]) * 9, host=host)))
        except (ConnectionBroken, HandshakeFailed):
            outcomes.append((host, None))

    async with node(world.host("10.0.0.1"), 1) as member:
        member.open_door(slowly)
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(one, "10.0.0.9", number)
            nursery.start_soon(one, "10.0.0.8", 99)
        served = [host for host, answer in outcomes if answer]
        assert served.count("10.0.0.9") == MAX_OF_ONE_SOURCE
        assert served.count("10.0.0.8") == 1
        assert member.counters["refused-door-is-busy"] == 20 - MAX_OF_ONE_SOURCE
        assert await ask(world, b"later") == b"later"


async def test_a_handler_that_fails_ends_one_connection(autojump_clock, caplog):
    world = MemoryNetwork(1)

    async def broken(_request: bytes, _source: str) -> bytes:
        raise ZeroDivisionError

    async with node(world.host("10.0.0.1"), 1) as member:
        member.open_door(broken)
        with pytest.raises(ConnectionBroken):
            await ask(world, b"x")
        assert member.counters["door-failed"] == 1
        async with node(world.host("10.0.0.2"), 2) as other:
            assert (await other.connect([address(1)])).node_id == member.node_id
    assert "the answer for a newcomer failed" in caplog.text


async def test_newcomers_do_not_use_up_what_is_for_members(autojump_clock):
    """A door's proof can be made by everybody, so it protects no place and gives no token back."""
    world = MemoryNetwork(1)
    async with node(world.host("10.0.0.1"), 1) as member:
        member.open_door(lambda request, _source: echo(None, request))
        burst = int(member.limits.new_connections_per_source_burst)
        refused = 0
        for number in range(burst + 5):
            try:
                await ask(world, b"%d" % number)
            except (ConnectionBroken, HandshakeFailed, UsageError):
                refused += 1
        assert 0 < refused <= 5
        async with node(world.host("10.0.0.2"), 2) as other:
            assert await other.connect([address(1)])


async def test_those_who_want_to_join_do_not_make_the_member_forget_members_first_flights(
    autojump_clock, monkeypatch
):
    """Everybody who knows the swarm's id can prove that: such proofs have no part in the memory against copies."""
    world = MemoryNetwork(1)
    async with node(world.host("10.0.0.1"), 1) as member:
        member.open_door(lambda request, _source: echo(None, request))
        remembered = []
        flights = member._context.first_flights
        monkeypatch.setattr(
            type(flights), "is_new", lambda _self, key: remembered.append(key) or True
        )
        for _ in range(5):
            await ask(world, b"x")
        assert not remembered
        async with node(world.host("10.0.0.2"), 2) as other:
            await other.connect([address(1)])
        assert len(remembered) == 1
