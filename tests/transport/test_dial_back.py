"""Dial-backs between whole endpoints through simulated NATs, and what askers and servers may try."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.transport.nodes import PORT, identity, node
from transport.address import Address
from transport.endpoint import Endpoint
from transport.errors import MalformedMessage, RemoteCallFailed, UsageError
from transport.identity import NodeId
from transport.network import Network
from transport.peer import Peer
from transport.reach.dial_back import (
    DialBackResult,
    DialBackServer,
    ask_dial_back,
    can_be_asked,
    serve_dial_back,
)
from transport.reach.dial_back_rules import (
    PROTOCOL,
    DialBackAnswer,
    DialBackGate,
    DialBackLimits,
    DialBackRequest,
    Outcome,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
    objection,
)
from transport.reach.reachability import Reachability, ReachabilitySettings, Verdict
from transport.simulated.link_model import LinkSettings
from transport.simulated.memory import MemoryNetwork, NatKind

HERE = Address("0.0.0.0", PORT)
NONCE = bytes(range(16))


def server_host(number: int) -> str:
    return f"203.0.113.{number}"


@asynccontextmanager
async def connected(
    world: MemoryNetwork,
    network: Network,
    *,
    servers: int = 1,
    limits: DialBackLimits | None = None,
) -> AsyncIterator[tuple[Endpoint, list[Endpoint], list[Peer], list[Address]]]:
    """An asker on `network`, servers on the internet, the asker's peers, and what they see it at."""
    async with AsyncExitStack() as stack:
        asker = await stack.enter_async_context(node(network, 99, listen=[HERE]))
        seen: list[Address] = []
        asker.on_observed.append(lambda _peer, address: seen.append(address))
        running = []
        for number in range(1, servers + 1):
            server = await stack.enter_async_context(
                node(world.host(server_host(number)), number, listen=[HERE])
            )
            serve_dial_back(server)
            running.append(server)
        peers = [await asker.connect(server.addresses) for server in running]
        yield asker, running, peers, seen


def quick(**options: float) -> MemoryNetwork:
    return MemoryNetwork(1, default=LinkSettings(latency_s=0.01, **options))


async def test_a_public_node_is_reached_from_another_port(autojump_clock: object) -> None:
    world = quick()
    told: list[tuple[object, bytes]] = []
    async with connected(world, world.host("203.0.113.99")) as (asker, servers, peers, seen):
        asker.on_probe = lambda who, nonce: told.append((who, nonce))
        result = await ask_dial_back(asker, peers[0], seen[0])
        assert result == DialBackResult(seen[0], peers[0].node_id, server_host(1), True)
        assert servers[0].counters["dial-backs-reached"] == 1
        assert len(asker.peers) == 1  # a probe makes no peer
        await servers[0].network.connect(asker.addresses[0])
        assert told == []  # ours alone; what we do not wait for goes to who was there before
        assert asker.on_probe is not None
        asker.on_probe(peers[0].node_id, b"another")
        assert told == [(peers[0].node_id, b"another")]


@pytest.mark.parametrize(
    ("kind", "reached"),
    [
        (NatKind.FULL_CONE, True),
        (NatKind.ADDRESS_RESTRICTED, True),  # the server is no stranger: see the module
        (NatKind.PORT_RESTRICTED, False),
        (NatKind.PORT_RESTRICTED_RST, False),
        (NatKind.SYMMETRIC, False),
    ],
)
async def test_behind_nats(autojump_clock: object, kind: NatKind, reached: bool) -> None:
    world = quick()
    nat = world.nat("198.51.100.1", kind)
    async with connected(world, world.host("192.168.1.2", behind=nat)) as (asker, _, peers, seen):
        assert seen[0].host == nat.public_ip
        result = await ask_dial_back(asker, peers[0], seen[0])
        assert result.reached is reached
        if kind is NatKind.PORT_RESTRICTED_RST:
            assert result.reason == "connection refused"
        elif not reached:
            assert result.reason == "no answer within 8 s"
        mapped = nat.forward(asker.addresses[0], 8000)
        assert (await ask_dial_back(asker, peers[0], mapped)).reached


async def test_something_else_answers_there(autojump_clock: object) -> None:
    world = quick()
    host = world.host("203.0.113.99")
    async with (
        connected(world, host) as (asker, _, peers, _),
        node(host, 98, listen=[Address("0.0.0.0", 9)]) as other,
    ):
        result = await ask_dial_back(asker, peers[0], Address(host.ip, 9))
        assert result.reached is False
        assert result.reason.startswith("connected, but ")
        assert other.counters["handshake-broken"] == 1


# What an asker may try


@pytest.mark.parametrize(
    "named",
    [
        Address("203.0.113.77", PORT),
        Address("127.0.0.1", PORT),
        Address("2001:db8::1", PORT),
        Address("victim.example", PORT),
        Address("203.0.113.99", PORT, str(identity(5).node_id)),
        Address("203.0.113.99", 0),
    ],
)
async def test_nobody_is_pointed_at_somebody_else(autojump_clock: object, named: Address) -> None:
    world = quick()
    victim = await world.host("203.0.113.77").listen(HERE)
    async with connected(world, world.host("203.0.113.99")) as (asker, servers, peers, _):
        before = dict(world.statistics())
        result = await ask_dial_back(asker, peers[0], named)
        assert result.reached is None
        assert "address" in result.reason or "not connected with that relay" in result.reason
        assert servers[0].counters["dial-backs-refused"] == 1
        after = world.statistics()
        for event in ("connect", "syn-drop", "syn-reset"):
            assert after.get(event, 0) == before.get(event, 0)
    await victim.aclose()


async def test_a_relayed_asker_has_no_address_of_its_own() -> None:
    relay = Address("203.0.113.7", PORT, str(identity(7).node_id))
    assert "relay" in objection(relay.direct, relay, relayed=True)
    assert objection(relay.direct, relay.direct, relayed=False) == ""


async def test_a_request_costs_at_most_four_syns(autojump_clock: object) -> None:
    world = quick()
    nat = world.nat("198.51.100.1", "port-restricted")
    async with connected(world, world.host("192.168.1.2", behind=nat)) as (asker, _, peers, seen):
        await ask_dial_back(asker, peers[0], Address(seen[0].host, 25))
        assert world.statistics()["syn-drop"] == 4


async def test_a_flood_of_requests_ends_at_the_limits(autojump_clock: object) -> None:
    world = quick()
    async with connected(world, world.host("203.0.113.99")) as (asker, servers, peers, seen):
        start = trio.current_time()
        results = []
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                results.append(await ask_dial_back(asker, peers[0], seen[0]))

            for _ in range(100):
                nursery.start_soon(ask)
        for _ in range(200):
            await ask()
        assert trio.current_time() - start < 60
        assert servers[0].counters["dial-backs-reached"] <= 12
        assert sum(result.reached is None for result in results) >= 288
        assert {result.reason for result in results if result.reached is None} == {
            "busy with other dial-backs; ask again later",
            "the peer has too many streams open to answer 'reach/dial-back'",
            "too many dial-backs in the last minute; ask again later",
        }
        await trio.sleep(60)
        assert (await ask_dial_back(asker, peers[0], seen[0])).reached  # and it passes


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9), st.floats(0, 5)), max_size=400),
    st.booleans(),
)
def test_no_minute_has_more_than_the_limits(
    requests: list[tuple[int, int, float]], quickly: bool
) -> None:
    limits = DialBackLimits(max_known=16)
    gate = DialBackGate(limits, 0.0)
    now = 0.0
    served: list[tuple[float, int, int]] = []
    for asker, network, pause_s in requests:
        now += pause_s / 50 if quickly else pause_s
        node_id = fake_id(asker)
        if gate.enter(node_id, server_host(network), now) == "":
            served.append((now, asker, network))
            gate.leave(node_id)
        assert gate.known <= 16
        minute = [entry for entry in served if entry[0] > now - 60]
        assert len(minute) <= limits.per_minute


def fake_id(number: int) -> NodeId:
    return NodeId(number.to_bytes(32, "big"))


def test_one_network_of_many_identities_leaves_room_for_others() -> None:
    gate = DialBackGate(DialBackLimits(), 0.0)
    let_in = 0
    for number in range(1000):
        if gate.enter(fake_id(number), "2001:db8:1:2::1", number / 1000) == "":
            gate.leave(fake_id(number))
            let_in += 1
    assert let_in == 15  # half of the 30 a minute at once
    assert gate.enter(fake_id(2000), "2001:db8:9::1", 1.0) == ""


def test_few_dials_are_under_way_at_once() -> None:
    gate = DialBackGate(DialBackLimits(at_once=2), 0.0)
    assert gate.enter(fake_id(1), server_host(1), 0.0) == ""
    assert gate.enter(fake_id(1), server_host(1), 0.0).startswith("busy")
    assert gate.enter(fake_id(2), server_host(2), 0.0) == ""
    assert gate.enter(fake_id(3), server_host(3), 0.0).startswith("busy")
    gate.leave(fake_id(1))
    assert gate.enter(fake_id(3), server_host(3), 0.0) == ""


async def test_an_asker_that_leaves_frees_its_place(autojump_clock: object) -> None:
    world = quick()
    nat = world.nat("198.51.100.1", "port-restricted")
    async with connected(world, world.host("192.168.1.2", behind=nat)) as (asker, _, peers, seen):
        with trio.move_on_after(1) as scope:
            await ask_dial_back(asker, peers[0], seen[0])
        assert scope.cancelled_caught
        await trio.sleep(0.1)
        result = await ask_dial_back(asker, peers[0], seen[0])
        assert result.reason == "no answer within 8 s"


# What a server may try


def lying(
    answer: DialBackAnswer | bytes, *, dial: Callable[[bytes], bytes] | None = None
) -> Callable[[Endpoint], None]:
    """A server that says `answer`; if `dial`, it shows dial(nonce) first."""

    def serve(server: Endpoint) -> None:
        async def handle(peer: Peer, request: bytes) -> bytes:
            wanted = decode_request(request)
            if dial is not None:
                forged = DialBackRequest(wanted.address, dial(wanted.nonce))
                honest = DialBackServer(server, DialBackLimits())
                await honest._dial(peer.node_id, forged)
                await trio.sleep(1)  # the nonce gets there before the answer
            return answer if isinstance(answer, bytes) else encode_answer(answer)

        server.serve_calls(PROTOCOL, handle)

    return serve


REACHED = DialBackAnswer(Outcome.REACHED)
FAILED = DialBackAnswer(Outcome.FAILED, "connection refused")
UNPROVEN = "it says that it reached us, but nothing came in"


@pytest.mark.parametrize(
    ("serve", "reached", "reason"),
    [
        (lying(REACHED), None, UNPROVEN),
        (lying(REACHED, dial=lambda _: NONCE), None, UNPROVEN),
        (lying(FAILED), False, "connection refused"),
        (lying(FAILED, dial=lambda nonce: nonce), True, ""),
        (lying(DialBackAnswer(Outcome.REFUSED, "no\x1b[2J")), None, "'no\\x1b[2J'"),
        (lying(b"\xc1"), None, None),
        (lying(b""), None, None),
    ],
)
async def test_a_server_is_believed_as_far_as_it_proves(
    autojump_clock: object,
    serve: Callable[[Endpoint], None],
    reached: bool | None,
    reason: str | None,
) -> None:
    world = quick()
    asker_host = world.host("203.0.113.99")
    async with (
        node(asker_host, 99, listen=[HERE]) as asker,
        node(world.host(server_host(1)), 1, listen=[HERE]) as server,
    ):
        serve(server)
        peer = await asker.connect(server.addresses)
        result = await ask_dial_back(asker, peer, asker.addresses[0])
        assert result.reached is reached
        if reason is not None:
            assert result.reason == reason
        assert result.reason.isprintable()


async def test_another_node_cannot_show_the_nonce(autojump_clock: object) -> None:
    world = quick()
    async with connected(world, world.host("203.0.113.99"), servers=2) as (
        asker,
        servers,
        peers,
        _,
    ):
        servers[0].unserve(PROTOCOL)

        async def pass_on(peer: Peer, request: bytes) -> bytes:
            return await servers[0].peers[servers[1].node_id].call("accomplice", request)

        async def accomplice(peer: Peer, request: bytes) -> bytes:
            honest = DialBackServer(servers[1], DialBackLimits())
            await honest._dial(asker.node_id, decode_request(request))
            return encode_answer(REACHED)

        servers[0].serve_calls(PROTOCOL, pass_on)
        servers[1].serve_calls("accomplice", accomplice)
        await servers[0].connect(servers[1].addresses)
        result = await ask_dial_back(asker, peers[0], asker.addresses[0])
        assert (result.reached, result.reason) == (None, UNPROVEN)
        assert asker.counters["probes-answered"] == 1


async def test_a_silent_server_is_given_up(autojump_clock: object) -> None:
    world = quick()
    async with (
        node(world.host("203.0.113.99"), 99, listen=[HERE]) as asker,
        node(world.host(server_host(1)), 1, listen=[HERE]) as server,
    ):

        async def never(peer: Peer, request: bytes) -> bytes:
            await trio.sleep_forever()
            raise AssertionError

        server.serve_calls(PROTOCOL, never)
        peer = await asker.connect(server.addresses)
        start = trio.current_time()
        result = await ask_dial_back(asker, peer, asker.addresses[0])
        assert trio.current_time() - start == pytest.approx(15)
        assert (result.reached, result.reason) == (None, "no answer within 15 s")
        peer.close("enough")
        assert (await ask_dial_back(asker, peer, asker.addresses[0])).reached is None


async def test_a_minority_of_liars_does_not_flip_the_verdict(autojump_clock: object) -> None:
    """Seven servers, three of which deny; the verdict and its schedule with everything in between real."""
    world = quick()
    async with connected(world, world.host("203.0.113.99"), servers=7) as (
        asker,
        servers,
        peers,
        _,
    ):
        address = asker.addresses[0]
        tally = Reachability(ReachabilitySettings(), random.Random(1))
        tally.set_addresses([address], trio.current_time())

        async def ask_once() -> None:
            await trio.sleep_until(tally.next_deadline() or 0.0)
            now = trio.current_time()
            chosen = tally.choose(address, [peer.address.host for peer in peers], now)
            assert chosen is not None
            result = await ask_dial_back(asker, peers[chosen], address)
            if result.reached is None:
                tally.no_vote(address, trio.current_time())
            else:
                tally.vote(address, result.server_host, result.reached, trio.current_time())

        for _ in range(7):
            await ask_once()
        assert tally.verdict(address, trio.current_time()) == Verdict.REACHABLE
        for server in servers[:3]:
            server.unserve(PROTOCOL)
            lying(FAILED)(server)
        for _ in range(30):
            await ask_once()
            assert tally.verdict(address, trio.current_time()) == Verdict.REACHABLE


async def test_who_can_be_asked(autojump_clock: object) -> None:
    world = quick()
    async with connected(world, world.host("203.0.113.99")) as (_, _, peers, seen):
        assert can_be_asked(peers[0], seen[0])
        assert not can_be_asked(peers[0], Address("2001:db8::1", 1))
        assert not can_be_asked(peers[0], Address("203.0.113.99", 1, str(identity(7).node_id)))
        assert not can_be_asked(peers[0], Address("a.example", 1))


# The messages


def test_messages_survive_the_wire() -> None:
    request = DialBackRequest(Address("2001:db8::1", 7), NONCE)
    assert decode_request(encode_request(request)) == request
    answer = DialBackAnswer(Outcome.FAILED, "x" * 200)
    assert decode_answer(encode_answer(answer)) == DialBackAnswer(Outcome.FAILED, "x" * 128)


@given(st.binary(max_size=200))
def test_garbage_is_malformed_and_nothing_else(data: bytes) -> None:
    for decode in (decode_request, decode_answer):
        with pytest.raises(MalformedMessage):
            decode(data)


@pytest.mark.parametrize(
    "data",
    [
        b"\x82\xa7address\xa3a:1\xa5nonce\xc4\x0f" + bytes(15),
        b"\x82\xa7address\xa1:\xa5nonce\xc4\x10" + bytes(16),
        b"\x82\xa7address\xda\x03\xe8" + b"a" * 1000 + b"\xa5nonce\xc4\x10" + bytes(16),
    ],
)
async def test_a_malformed_request_is_refused(autojump_clock: object, data: bytes) -> None:
    world = quick()
    async with connected(world, world.host("203.0.113.99")) as (_, servers, peers, _):
        with pytest.raises(RemoteCallFailed, match="malformed"):
            await peers[0].call(PROTOCOL, data)
        assert servers[0].counters["dial-backs-malformed"] == 1


@pytest.mark.parametrize("options", [{"at_once": 0}, {"dial_s": -1.0}])
def test_nonsense_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        DialBackLimits(**options)  # type: ignore[arg-type]
