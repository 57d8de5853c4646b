"""The driver of a punch under the virtual clock: simulated NATs, crossing sessions, hostile and silent followers."""

import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio

from tests.transport.nodes import node
from tests.transport.stand_in_relay import relayed
from transport.address import Address
from transport.codec import pack
from transport.endpoint import Endpoint
from transport.errors import ConnectFailed, UsageError
from transport.network import Path, RawStream
from transport.peer import Peer
from transport.punch.agreement import MAX_FAILED_HANDSHAKES, MAX_ROUNDS
from transport.punch.attempt import MESSAGE_S
from transport.punch.messages import (
    MAX_MESSAGE_BYTES,
    PROTOCOL,
    Connect,
    End,
    EndReason,
    Sync,
    decode,
    encode,
)
from transport.punch.puncher import FOLLOW_AGAIN_S, FOLLOW_BURST, Puncher
from transport.punch.targets import Screen
from transport.reach.observed import Observations
from transport.simulated.link_model import LinkSettings
from transport.simulated.memory import MemoryNetwork
from transport.streams.stream import Stream

WILD = [Address("0.0.0.0", 7447)]
THIRD = Address("192.0.2.10", 9000)


@dataclass
class Pair:
    """Two endpoints behind NATs, connected over a third place: `a` dialed."""

    world: MemoryNetwork
    a: Endpoint
    b: Endpoint
    punchers: tuple[Puncher, Puncher]

    @property
    def peer_b(self) -> Peer:
        return self.a.peers[self.b.node_id]

    @property
    def peer_a(self) -> Peer:
        return self.b.peers[self.a.node_id]

    @property
    def paths(self) -> set[Path]:
        return {self.peer_a.path, self.peer_b.path}


@asynccontextmanager
async def pair(
    kinds: tuple[str, str], *, seed: int = 0, delay_s: float = 0.02
) -> AsyncIterator[Pair]:
    world = MemoryNetwork(seed)
    world.set_default(LinkSettings(latency_s=delay_s))
    hosts = [
        world.host(f"10.{number}.0.2", behind=world.nat(f"198.51.100.{number}", kind))
        for number, kind in enumerate(kinds, 1)
    ]
    async with (
        node(hosts[0], 1, listen=WILD, seed=seed) as a,
        node(hosts[1], 2, listen=WILD, seed=seed) as b,
        relayed(a, b, world.host(THIRD.host), THIRD) as punchers,
    ):
        yield Pair(world, a, b, punchers)


PORT, ADDRESS, FULL, SYMMETRIC = (
    "port-restricted",
    "address-restricted",
    "full-cone",
    "symmetric",
)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("kinds", "paths"),
    [
        ((PORT, PORT), (Path.PUNCHED,)),
        ((ADDRESS, PORT), (Path.PUNCHED, Path.REVERSED)),
        ((ADDRESS, SYMMETRIC), (Path.PUNCHED, Path.REVERSED)),
        ((SYMMETRIC, ADDRESS), (Path.PUNCHED, Path.REVERSED)),
        ((FULL, SYMMETRIC), (Path.REVERSED,)),
        ((SYMMETRIC, FULL), (Path.REVERSED,)),  # the follower dials as well
    ],
    ids=str,
)
async def test_nats_are_passed(kinds, paths, seed, autojump_clock) -> None:
    async with pair(kinds, seed=seed) as pair_:
        pair_.a.serve_calls("test/echo", echo)
        report = await pair_.punchers[1].punch(pair_.peer_a)
        assert report.ok
        assert report.path in paths
        assert report.coordinated
        assert report.rtt_s == pytest.approx(0.08, abs=0.01)
        assert [attempt.reason for attempt in report.attempts].count("") <= 1
        assert await pair_.peer_a.call("test/echo", b"x") == b"x"
        assert pair_.paths == {report.path}


async def echo(_peer: object, request: bytes) -> bytes:
    return request


async def test_a_hopeless_pair_tries_three_rounds_and_stays_relayed(autojump_clock) -> None:
    async with pair((PORT, SYMMETRIC)) as pair_:
        report = await pair_.punchers[1].punch(pair_.peer_a)
        assert (report.ok, report.path, report.rounds) == (False, None, MAX_ROUNDS)
        assert report.reason
        assert {attempt.round for attempt in report.attempts} == {0, 1, 2, 3}
        assert 15 < report.took_s < 20
        assert pair_.paths == {Path.RELAYED}
        assert pair_.a.node_id in pair_.b.peers


async def test_streams_go_on_while_the_connection_moves(autojump_clock) -> None:
    async with pair((PORT, PORT)) as pair_:
        received = bytearray()
        done = trio.Event()

        async def collect(stream: Stream) -> None:
            while data := await stream.receive_some():
                received.extend(data)
            done.set()

        pair_.a.serve("test/collect", collect)
        stream = await pair_.peer_a.open_stream("test/collect")
        sent = bytes(range(256)) * 4000
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair_.punchers[1].punch, pair_.peer_a)
            for start in range(0, len(sent), 1000):
                await stream.send_all(sent[start : start + 1000])
                await trio.sleep(0.001)
        await stream.send_eof()
        await done.wait()
        assert received == sent
        assert pair_.paths == {Path.PUNCHED}


@pytest.mark.parametrize("later", [0.0, 0.05, 0.1, 0.2])
async def test_two_that_begin_at_once_make_one_punch(later, autojump_clock) -> None:
    async with pair((PORT, PORT)) as pair_:
        reports = []

        async def begin(puncher: Puncher, peer: Peer, after: float) -> None:
            await trio.sleep(after)
            reports.append(await puncher.punch(peer))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(begin, pair_.punchers[0], pair_.peer_b, 0.0)
            nursery.start_soon(begin, pair_.punchers[1], pair_.peer_a, later)
        assert [report.ok for report in reports] == [True, True]
        assert pair_.paths == {Path.PUNCHED}


async def test_callers_share_one_punch(autojump_clock) -> None:
    async with pair((PORT, PORT)) as pair_:
        reports = []

        async def begin() -> None:
            reports.append(await pair_.punchers[1].punch(pair_.peer_a))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(begin)
        assert len(set(map(id, (report.attempts for report in reports)))) <= 3
        assert {report.rounds for report in reports} == {1}
        again = await pair_.punchers[1].punch(pair_.peer_a)
        assert (again.ok, again.path, again.rounds) == (True, Path.PUNCHED, 0)


async def test_a_cancelled_punch_leaves_nothing_behind(autojump_clock) -> None:
    async with pair((PORT, SYMMETRIC)) as pair_:
        for seconds in (0.01, 0.1, 0.3, 1.0, 6.0):
            with trio.move_on_after(seconds) as scope:
                await pair_.punchers[1].punch(pair_.peer_a)
            assert scope.cancelled_caught
            await trio.sleep(FOLLOW_AGAIN_S + MESSAGE_S)
            assert pair_.paths == {Path.RELAYED}
        report = await pair_.punchers[1].punch(pair_.peer_a)
        assert report.rounds == MAX_ROUNDS  # the other side follows again


# Followers and coordinators that misbehave


def play(endpoint: Endpoint, script) -> None:
    """Answer punches with `script(stream)` instead of the real thing."""
    endpoint.unserve(PROTOCOL)
    endpoint.serve(PROTOCOL, script)


async def silent(stream: Stream) -> None:
    await trio.sleep_forever()


async def gone(stream: Stream) -> None:
    return


async def malformed(stream: Stream) -> None:
    await stream.send_message(b"\xc1")


async def stale(stream: Stream) -> None:
    await stream.receive_message()
    await stream.send_message(encode(Connect(bytes(16))))


async def gives_up(stream: Stream) -> None:
    await stream.receive_message()
    await stream.send_message(encode(End("no-thanks")))


async def silent_after_connect(stream: Stream) -> None:
    hello = decode(await stream.receive_message())
    assert isinstance(hello, Connect)
    await stream.send_message(encode(Connect(hello.token)))
    await trio.sleep_forever()


async def huge(stream: Stream) -> None:
    await stream.receive_message()
    await stream.send_message(pack({"type": "end", "reason": "x" * MAX_MESSAGE_BYTES}))


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (silent, "said nothing"),
        (gone, ""),
        (malformed, "msgpack"),
        (stale, "another round"),
        (gives_up, "unknown here"),
        (silent_after_connect, "said nothing"),
        (huge, "limit"),
    ],
)
async def test_a_follower_that_misbehaves_costs_a_bounded_wait(
    script, reason, autojump_clock
) -> None:
    async with pair((PORT, PORT)) as pair_:
        play(pair_.a, script)
        report = await pair_.punchers[1].punch(pair_.peer_a)
        assert not report.ok
        assert reason in report.reason
        assert report.reason
        assert report.took_s <= 40
        assert pair_.paths == {Path.RELAYED}
        assert not pair_.b.counters["handler-failed"]


async def test_a_peer_that_does_not_punch_is_said_so(autojump_clock) -> None:
    async with pair((PORT, PORT)) as pair_:
        pair_.a.unserve(PROTOCOL)
        report = await pair_.punchers[1].punch(pair_.peer_a)
        assert not report.ok
        assert "reset" in report.reason


async def test_a_coordinator_that_says_nothing_or_nonsense_is_left(autojump_clock) -> None:
    async with pair((PORT, PORT)) as pair_:
        for message in (b"", b"\xc1", encode(Sync(bytes(16)))):
            stream = await pair_.peer_a.open_stream(PROTOCOL)
            if message:
                await stream.send_message(message)
            with trio.fail_after(2 * MESSAGE_S):
                assert await stream.receive_some() == b""
            stream.close()
            await trio.sleep(FOLLOW_AGAIN_S)
        assert not pair_.a.counters["handler-failed"]
        report = await pair_.punchers[1].punch(pair_.peer_a)
        assert report.ok


async def test_a_coordinator_may_not_send_us_about_without_a_pause(autojump_clock) -> None:
    async with pair((PORT, PORT)) as pair_:
        for _ in range(FOLLOW_BURST):
            with trio.move_on_after(0.2) as scope:
                await pair_.punchers[1].punch(pair_.peer_a)
            assert scope.cancelled_caught
            await trio.sleep(0.1)
        report = await pair_.punchers[1].punch(pair_.peer_a)
        assert (report.ok, report.reason) == (False, EndReason.BUSY.sentence)
        await trio.sleep(FOLLOW_AGAIN_S)
        assert (await pair_.punchers[1].punch(pair_.peer_a)).ok


@pytest.mark.parametrize("after_s", [0.05, 0.2, 1.0])
async def test_a_punch_that_is_given_up_ends_at_the_other_side_too(after_s, autojump_clock) -> None:
    async with pair((PORT, SYMMETRIC)) as pair_:
        with trio.move_on_after(after_s):
            await pair_.punchers[1].punch(pair_.peer_a)
        assert pair_.punchers[0].following == 1
        await trio.sleep(0.1)  # what is on its way
        assert pair_.punchers[0].following == 0


async def test_what_cannot_work_is_dialed_once_and_said_once(autojump_clock) -> None:
    async with pair((PORT, SYMMETRIC)) as pair_:
        network, dials = pair_.b.network, list[Address]()
        connect = network.connect

        async def counted(address: Address, *, source: Address | None = None) -> RawStream:
            dials.append(address)
            if ":" in address.host:
                raise ConnectFailed("network is unreachable", lasting=True)
            return await connect(address, source=source)

        network.connect = counted
        told = pair_.punchers[0].tell
        elsewhere = Address("2001:db8::7", 7447)
        pair_.punchers[0].tell = lambda: (*told(), elsewhere)
        report = await pair_.punchers[1].punch(pair_.peer_a)
        assert report.rounds == MAX_ROUNDS
        assert dials.count(elsewhere) == 1
        reasons = [a.reason for a in report.attempts if a.address == elsewhere]
        assert reasons == ["network is unreachable"]


async def test_where_somebody_else_answers_is_soon_dialed_no_more(autojump_clock) -> None:
    async with pair((PORT, SYMMETRIC)) as pair_:
        elsewhere = Address("203.0.113.9", 7447)
        async with node(pair_.world.host(elsewhere.host), 3, listen=[elsewhere]) as other:
            told = pair_.punchers[0].tell
            pair_.punchers[0].tell = lambda: (elsewhere, *told())
            report = await pair_.punchers[1].punch(pair_.peer_a)
            attempts = [a for a in report.attempts if a.address == elsewhere]
            assert sum(attempt.count for attempt in attempts) == MAX_FAILED_HANDSHAKES
            assert len(attempts) == 2  # the plain one, and those of the first round together
            assert all("handshake failed" in attempt.reason for attempt in attempts)
            assert not other.peers


async def test_named_addresses_that_are_not_the_peers_are_not_dialed(autojump_clock) -> None:
    """The follower names loopback, our own address and a stranger in our network; only the last is dialed, and only if we are there."""
    async with pair((PORT, PORT)) as pair_:
        ours = Address("198.51.100.2", 7447)
        other = Address("203.0.113.77", 1)  # one that sees us is in the pair already
        pair_.punchers[1]._observations.note(
            *(pair_.a.node_id, other.host, ours, trio.current_time()), from_listener=True
        )
        named = ["127.0.0.1:22", "198.51.100.2:7447", "10.2.0.9:22", "0.0.0.0:1", "203.0.113.9:1"]

        async def liar(stream: Stream) -> None:
            hello = decode(await stream.receive_message())
            assert isinstance(hello, Connect)
            await stream.send_message(encode(Connect(hello.token, tuple(named))))
            await stream.receive_message()
            await stream.send_message(encode(End("done")))

        play(pair_.a, liar)
        report = await pair_.punchers[1].punch(pair_.peer_a)
        dialed = {
            str(attempt.address)
            for attempt in report.attempts
            if not attempt.reason.startswith("not dialed")
        }
        assert dialed == {"203.0.113.9:1"}
        assert len(report.attempts) >= len(named)


class Named:
    """A peer, as far as choosing addresses looks at it."""

    def __init__(self, *listen: Address) -> None:
        self.listen = listen


async def test_loopback_nodes_and_neighbours_are_dialed() -> None:
    world = MemoryNetwork(1)
    async with node(world.host("127.0.0.1"), 1, listen=[Address("127.0.0.1", 7447)]) as lone:
        puncher = Puncher(
            lone, Observations(), interfaces=lambda: [ipaddress.ip_interface("192.168.7.5/24")]
        )
        wanted = [Address("127.0.0.1", 7448), Address("192.168.7.6", 7447)]
        good, refused = puncher.choose(
            Named(*wanted),  # type: ignore[arg-type]
            Screen(),
            [*wanted, Address("127.0.0.1", 7447)],
        )
        assert good == wanted
        assert len(refused) == 1
        with pytest.raises(UsageError):
            Puncher(lone, Observations())


async def test_who_waits_for_a_cancelled_punch_makes_one_of_its_own(autojump_clock) -> None:
    async with pair((PORT, PORT)) as pair_:
        reports = []

        async def wait() -> None:
            reports.append(await pair_.punchers[1].punch(pair_.peer_a))

        async with trio.open_nursery() as nursery:
            with trio.move_on_after(0.05):
                nursery.start_soon(wait)  # begins after the first, and waits for it
                await pair_.punchers[1].punch(pair_.peer_a)
        (report,) = reports
        assert (report.ok, report.coordinated) == (True, True)
