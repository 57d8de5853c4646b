"""NATs in the simulated network: the table of the measured prototype, and TCP's rules for who meets whom.

The prototype (plain sockets, MASQUERADE and nft, 0 and 50 ms) found direct paths for every pair but symmetric against port-restricted and
symmetric against symmetric; those need a relay. The same must come out here, by the same means: both dial from where they listen, at
random intervals, and whichever connection comes first counts.
"""

import random
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from transport.address import Address
from transport.connect.source import SourceBusy
from transport.errors import ConnectFailed
from transport.network import Network, RawListener, RawStream
from transport.simulated.deterministic import run_deterministically
from transport.simulated.link_model import LinkSettings
from transport.simulated.memory import MemoryHost, MemoryNetwork, MultiHomedHost, NatKind
from transport.simulated.nat_model import Nat

PORT = 7447
HERE = Address("0.0.0.0", PORT)
MEETING = Address("203.0.113.10", PORT)
KINDS = [kind for kind in NatKind if kind != NatKind.FIREWALL]


async def read(stream: RawStream, size: int = 1) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: await stream.receive_into(memoryview(buffer))])


async def joined(a: RawStream, b: RawStream) -> None:
    """Check that two streams are the ends of one connection."""
    with trio.fail_after(60):
        await a.send_all(b"a")
        await b.send_all(b"b")
        assert (await read(a), await read(b)) == (b"b", b"a")


async def silent(a: RawStream, b: RawStream) -> bool:
    """Whether what `a` sends never comes to `b`."""
    await a.send_all(b"?")
    with trio.move_on_after(1000) as scope:
        await read(b)
    return scope.cancelled_caught


class Side:
    """A host behind a NAT of its own, its listener, and its connection with the meeting point."""

    def __init__(self, world: MemoryNetwork, number: int, kind: NatKind | str) -> None:
        self.nat = world.nat(f"198.51.100.{number}", kind)
        self.host = world.host("192.168.1.2", behind=self.nat)  # the same on both sides
        self.listener: RawListener
        self.held: RawStream
        self.seen: Address

    async def register(self, meeting: RawListener) -> None:
        self.listener = await self.host.listen(HERE)
        self.held = await self.host.connect(MEETING, source=HERE)
        self.seen = (await meeting.accept()).remote


async def meet(
    kind_a: NatKind | str,
    kind_b: NatKind | str,
    *,
    seed: int,
    rtt_s: float,
    patience_s: float = 5.0,
) -> tuple[bool, str]:
    """Punch as the nodes do; whether there was a direct connection, and the digest of the run."""
    world = MemoryNetwork(seed, default=LinkSettings(latency_s=rtt_s / 2))
    meeting = await world.host(MEETING.host).listen(MEETING)
    a, b = Side(world, 1, kind_a), Side(world, 2, kind_b)
    await a.register(meeting)
    await b.register(meeting)
    found = False

    async def accept(side: Side) -> None:
        nonlocal found
        await side.listener.accept()
        found = True
        nursery.cancel_scope.cancel()

    async def dial(side: Side, other: Side, rng: random.Random) -> None:
        nonlocal found
        while True:
            try:
                await side.host.connect(other.seen, source=HERE)
            except SourceBusy:
                pass  # the other side's dial was accepted
            except ConnectFailed:
                await trio.sleep(rng.uniform(0.02, 0.3))
                continue
            found = True
            nursery.cancel_scope.cancel()

    rng = random.Random(seed)
    with trio.move_on_after(patience_s):
        async with trio.open_nursery() as nursery:
            for side, other in ((a, b), (b, a)):
                nursery.start_soon(accept, side)
                nursery.start_soon(dial, side, other, random.Random(rng.randrange(2**32)))
    return found, world.trace_digest().hex()


def hopeless(a: NatKind, b: NatKind) -> bool:
    filtering = {NatKind.PORT_RESTRICTED, NatKind.PORT_RESTRICTED_RST, NatKind.SYMMETRIC}
    return NatKind.SYMMETRIC in (a, b) and {a, b} <= filtering


@pytest.mark.parametrize("kind_b", KINDS)
@pytest.mark.parametrize("kind_a", KINDS)
def test_who_meets_whom_is_as_measured(kind_a: NatKind, kind_b: NatKind) -> None:
    for seed in range(3):
        for rtt_s in (0.02, 0.05, 0.2):
            found, _ = run_deterministically(seed, meet_args(kind_a, kind_b, seed, rtt_s))
            assert found == (not hopeless(kind_a, kind_b)), (seed, rtt_s)


def meet_args(
    kind_a: NatKind, kind_b: NatKind, seed: int, rtt_s: float
) -> Callable[[], Awaitable[tuple[bool, str]]]:
    async def run() -> tuple[bool, str]:
        return await meet(kind_a, kind_b, seed=seed, rtt_s=rtt_s)

    return run


def test_a_world_with_nats_is_a_function_of_its_seed() -> None:
    def digest(seed: int) -> str:
        run = meet_args(NatKind.PORT_RESTRICTED_RST, NatKind.SYMMETRIC, seed, 0.05)
        _, trace = run_deterministically(seed, run)
        return trace

    assert digest(1) == digest(1) != digest(2)


async def test_dropping_nats_forgive_a_late_start_and_resetting_ones_do_not(
    autojump_clock: object,
) -> None:
    """One dial each, 300 ms apart at 50 ms round trip: the first SYN's hole lets the second in, unless an RST closed it."""
    for kind, meets in (("port-restricted", True), ("port-restricted-rst", False)):
        world = MemoryNetwork(1, default=LinkSettings(latency_s=0.025))
        meeting = await world.host(MEETING.host).listen(MEETING)
        a, b = Side(world, 1, kind), Side(world, 2, kind)
        await a.register(meeting)
        await b.register(meeting)
        streams: list[RawStream] = []

        async def dial(side: Side, other: Side, streams: list[RawStream] = streams) -> None:
            with suppress(ConnectFailed):
                streams.append(await side.host.connect(other.seen, source=HERE))

        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dial, a, b)
            await trio.sleep(0.3)
            nursery.start_soon(dial, b, a)
        assert bool(streams) == meets
        assert world.statistics().get("simultaneous-open", 0) == meets
        if meets:
            assert trio.current_time() - start == pytest.approx(0.35, abs=0.003)
            await joined(*streams)


async def test_crossing_syns_become_one_connection_with_and_without_listeners(
    autojump_clock: object,
) -> None:
    for listening in (False, True):
        world = MemoryNetwork(1, default=LinkSettings(latency_s=0.1), tick_s=0)
        a, b = world.host("203.0.113.1"), world.host("203.0.113.2")
        if listening:
            await a.listen(HERE)
            await b.listen(HERE)
        ends: dict[str, RawStream] = {}

        async def dial(host: MemoryHost, to: str, ends: dict[str, RawStream] = ends) -> None:
            ends[host.ip] = await host.connect(Address(to, PORT), source=HERE)

        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dial, a, b.ip)
            nursery.start_soon(dial, b, a.ip)
        assert trio.current_time() - start == pytest.approx(0.2)
        assert world.statistics()["connect"] == world.statistics()["simultaneous-open"] == 1
        assert ends[a.ip].remote == ends[b.ip].local == Address(b.ip, PORT)
        await joined(ends[a.ip], ends[b.ip])
        for end in ends.values():
            await end.aclose()
        assert world.open_connections == 0


async def test_a_listener_accepts_what_no_dial_of_its_host_expects(autojump_clock: object) -> None:
    world = MemoryNetwork(1)
    a, b = world.host("203.0.113.1"), world.host("203.0.113.2")
    listener = await b.listen(HERE)
    async with trio.open_nursery() as nursery:
        # The other side dials too, but to another port: these are two connections.
        nursery.start_soon(refused, b, Address(a.ip, 9))
        client = await a.connect(Address(b.ip, PORT), source=HERE)
        await joined(client, await listener.accept())
    assert client.local == Address(a.ip, PORT)


async def refused(host: Network, address: Address) -> None:
    with pytest.raises(ConnectFailed, match="connection refused"):
        await host.connect(address, source=HERE)


async def test_one_pair_of_addresses_holds_one_connection(autojump_clock: object) -> None:
    world = MemoryNetwork(1, default=LinkSettings(latency_s=0.01))
    a, b = world.host("203.0.113.1"), world.host("203.0.113.2")
    there, back = Address(b.ip, PORT), Address(a.ip, PORT)
    await a.listen(HERE)
    listener = await b.listen(HERE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.connect, there)  # another local port does not matter
        first = await a.connect(there, source=HERE)
    await listener.accept()
    for host, target in ((a, there), (b, back)):  # b's listener holds the pair
        with pytest.raises(SourceBusy):
            await host.connect(target, source=HERE)
    first.abort()
    start = trio.current_time()
    again = await a.connect(there, source=HERE)
    assert trio.current_time() - start < 0.1  # the reset got there before the SYN
    assert again.local == back
    with pytest.raises(SourceBusy):
        await a.connect(there, source=Address("203.0.113.9", PORT))
    await refused(a, back)  # itself, from the very same port


async def test_a_forgotten_connection_gives_way_to_the_next_dial(autojump_clock: object) -> None:
    world = MemoryNetwork(1)
    a, b = world.host("203.0.113.1"), world.host("203.0.113.2")
    listener = await b.listen(HERE)
    await a.connect(Address(b.ip, PORT), source=HERE)
    stale = await listener.accept()
    world.kill_host(a.ip, silent=True)
    world.revive_host(a.ip)
    start = trio.current_time()
    fresh = await a.connect(Address(b.ip, PORT), source=HERE)
    assert trio.current_time() - start == pytest.approx(1.0, abs=0.01)  # the second SYN
    with pytest.raises(trio.BrokenResourceError):
        await read(stale)
    await joined(fresh, await listener.accept())


async def test_a_syn_is_sent_again_after_1_2_4_seconds_and_for_two_minutes(
    autojump_clock: object,
) -> None:
    world = MemoryNetwork(1)
    home = Side(world, 1, "port-restricted")
    stranger = world.host("203.0.113.2")
    start = trio.current_time()
    with pytest.raises(ConnectFailed, match="timed out"):
        await stranger.connect(Address("198.51.100.1", PORT))
    assert trio.current_time() - start == pytest.approx(127)
    assert world.statistics()["syn-drop"] == 7  # at 0, 1, 3, 7, 15, 31 and 63 s
    listener = await home.host.listen(HERE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stranger.connect, Address("198.51.100.1", PORT))
        await trio.sleep(2.5)
        home.nat.forward(Address(home.host.ip, PORT))
        start = trio.current_time()
        await listener.accept()
        assert trio.current_time() - start == pytest.approx(0.5)


async def test_cancelled_attempts_leave_nothing(autojump_clock: object) -> None:
    world = MemoryNetwork(1, default=LinkSettings(latency_s=0.1))
    a, b = world.host("203.0.113.1"), world.host("203.0.113.2")
    for patience_s in (0.05, 0.1, 0.15, 0.199):
        with trio.move_on_after(patience_s) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connect, a, b)
                nursery.start_soon(connect, b, a)
        assert scope.cancelled_caught
        await trio.sleep(1)
        assert world.open_connections == 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connect, a, b)
        nursery.start_soon(connect, b, a)
    assert world.statistics()["simultaneous-open"] >= 1


async def connect(a: MemoryHost, b: MemoryHost) -> RawStream:
    return await a.connect(Address(b.ip, PORT), source=HERE)


async def test_one_side_gives_up_while_the_syns_meet(autojump_clock: object) -> None:
    world = MemoryNetwork(1, default=LinkSettings(latency_s=0.1))
    a, b = world.host("203.0.113.1"), world.host("203.0.113.2")
    ends: list[RawStream] = []

    async def patient() -> None:
        ends.append(await connect(a, b))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(patient)
        with trio.move_on_after(0.15):
            await connect(b, a)
    with pytest.raises(trio.BrokenResourceError):
        await read(ends[0])


# Streams through boxes


async def through(
    kind: NatKind | str, *, idle_timeout_s: float = 7440.0
) -> tuple[MemoryNetwork, Nat, RawStream, RawStream]:
    world = MemoryNetwork(1, default=LinkSettings(latency_s=0.01))
    nat = world.nat("198.51.100.1", kind, idle_timeout_s=idle_timeout_s)
    listener = await world.host(MEETING.host).listen(MEETING)
    inside = await world.host("192.168.1.2", behind=nat).connect(MEETING)
    return world, nat, inside, await listener.accept()


async def test_the_far_side_sees_the_public_address(autojump_clock: object) -> None:
    _, nat, inside, outside = await through("symmetric")
    assert outside.remote.host == nat.public_ip
    assert inside.local.host == "192.168.1.2"
    assert inside.remote == outside.local == MEETING
    await joined(inside, outside)
    await inside.aclose()
    assert await read(outside) == b""
    await outside.aclose()
    assert not nat.sessions(trio.current_time() + 121)


async def test_an_idle_binding_is_forgotten_and_a_kept_one_is_not(autojump_clock: object) -> None:
    _, _, inside, outside = await through("port-restricted", idle_timeout_s=60)
    for _ in range(5):
        await trio.sleep(50)
        await outside.send_all(b"x")  # either direction keeps it
        assert await read(inside) == b"x"
    await outside.send_all(b"x")
    await trio.sleep(50)
    assert await read(inside) == b"x"  # so does the news that there is room again
    await trio.sleep(50)
    await joined(inside, outside)
    await trio.sleep(70)
    assert await silent(inside, outside)
    assert await silent(outside, inside)
    inside.abort()
    with trio.move_on_after(1000) as scope:
        await read(outside)
    assert scope.cancelled_caught  # the reset does not come through either


async def test_an_open_connection_outlives_the_patience_for_an_answer(
    autojump_clock: object,
) -> None:
    _, _, inside, outside = await through("port-restricted")
    await trio.sleep(1000)
    await joined(inside, outside)


async def test_an_end_that_the_box_forgot_does_not_come_through(autojump_clock: object) -> None:
    world, nat, inside, outside = await through("port-restricted")
    world.reboot_nat(nat)
    await inside.aclose()
    with trio.move_on_after(1000) as scope:
        await read(outside)
    assert scope.cancelled_caught


async def test_a_reset_from_the_box_tells_the_far_side(autojump_clock: object) -> None:
    world, nat, inside, outside = await through("port-restricted-rst")
    world.reboot_nat(nat)
    assert await silent(inside, outside)
    await outside.send_all(b"x")
    with pytest.raises(trio.BrokenResourceError, match="reset"):
        await read(outside)


async def test_a_rebooted_box_may_have_another_address(autojump_clock: object) -> None:
    world = MemoryNetwork(1)
    meeting = await world.host(MEETING.host).listen(MEETING)
    home = Side(world, 1, "full-cone")
    await home.register(meeting)
    world.reboot_nat(home.nat, "198.51.100.99")
    assert await silent(home.held, home.held)
    home.held.abort()
    await home.host.connect(MEETING, source=HERE)
    seen = (await meeting.accept()).remote
    assert seen == Address("198.51.100.99", PORT)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.host("203.0.113.7").connect, seen)
        await home.listener.accept()
    assert world.host("198.51.100.1").ip == "198.51.100.1"  # free again


async def test_hairpin_and_neighbours(autojump_clock: object) -> None:
    for hairpin in (True, False):
        world = MemoryNetwork(1)
        meeting = await world.host(MEETING.host).listen(MEETING)
        nat = world.nat("198.51.100.1", "full-cone", hairpin=hairpin)
        first, second = (world.host(f"192.168.1.{n}", behind=nat) for n in (2, 3))
        listener = await first.listen(HERE)
        await first.connect(MEETING, source=HERE)
        seen = (await meeting.accept()).remote
        with trio.move_on_after(30) as scope:
            client = await second.connect(seen, source=HERE)
            await joined(client, await listener.accept())
        assert scope.cancelled_caught != hairpin
        client = await second.connect(Address(first.ip, PORT), source=HERE)
        server = await listener.accept()
        assert server.remote == Address(second.ip, PORT)
        await joined(client, server)


async def test_double_nat_and_two_homes_with_the_same_addresses(autojump_clock: object) -> None:
    world = MemoryNetwork(1)
    meeting = await world.host(MEETING.host).listen(MEETING)
    provider = world.nat("198.51.100.1", "port-restricted")
    seen = []
    for number in (1, 2):
        home = world.nat(f"100.64.0.{number}", "port-restricted", behind=provider)
        host = world.host("192.168.1.2", behind=home)
        assert host.name == f"198.51.100.1/100.64.0.{number}/192.168.1.2"
        await joined(await host.connect(MEETING, source=HERE), stream := await meeting.accept())
        seen.append(stream.remote)
    assert {address.host for address in seen} == {"198.51.100.1"}
    assert seen[0].port == PORT != seen[1].port


async def test_a_firewall_opens_for_two_who_dial_each_other(autojump_clock: object) -> None:
    world = MemoryNetwork(1, default=LinkSettings(latency_s=0.02))
    hosts = [
        world.host(f"2001:db8:{n}::2", behind=world.nat(f"2001:db8:{n}::1", "firewall"))
        for n in (1, 2)
    ]
    with trio.move_on_after(100) as scope:
        await connect(hosts[0], hosts[1])
    assert scope.cancelled_caught
    await trio.sleep(130)
    ends: list[RawStream] = []

    async def dial(a: MemoryHost, b: MemoryHost) -> None:
        ends.append(await connect(a, b))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dial, hosts[0], hosts[1])
        nursery.start_soon(dial, hosts[1], hosts[0])
    await joined(*ends)
    assert {end.remote.host for end in ends} == {host.ip for host in hosts}


async def test_a_host_with_two_families_leaves_by_the_one_of_its_target(
    autojump_clock: object,
) -> None:
    world = MemoryNetwork(1)
    four = world.host("192.168.1.2", behind=world.nat("198.51.100.1", "symmetric"))
    six = world.host("2001:db8:1::2", behind=world.nat("2001:db8:1::1", "firewall"))
    both = MultiHomedHost(four, six)
    server = MultiHomedHost(world.host(MEETING.host), world.host("2001:db8:9::9"))
    listeners = [await server.listen(Address(host, PORT)) for host in ("0.0.0.0", "::")]
    for listener, host in zip(listeners, (four, six), strict=True):
        stream = await both.connect(listener.address)
        assert stream.local.host == host.ip
        await joined(stream, await listener.accept())
    with pytest.raises(ConnectFailed, match="unreachable"):
        await MultiHomedHost(four).connect(listeners[1].address)
    with pytest.raises(SourceBusy):
        await both.connect(MEETING, source=Address("10.0.0.1", PORT))


async def test_links_partitions_and_kills_go_by_face_and_name(autojump_clock: object) -> None:
    world = MemoryNetwork(1, tick_s=0)
    nat = world.nat("198.51.100.1", "full-cone")
    host = world.host("192.168.1.2", behind=nat)
    world.set_link("198.51.100.1", MEETING.host, LinkSettings(latency_s=0.5))
    listener = await world.host(MEETING.host).listen(MEETING)
    start = trio.current_time()
    inside = await host.connect(MEETING)
    assert trio.current_time() - start == pytest.approx(1.0)
    outside = await listener.accept()
    world.partition(["198.51.100.1"], [MEETING.host])
    await inside.send_all(b"held")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.connect, MEETING)
        await wait_all_tasks_blocked()
        await trio.sleep(20)
        world.heal()
        assert await read(outside, 4) == b"held"
    await joined(inside, outside)
    world.kill_host(host.name)
    with pytest.raises(trio.BrokenResourceError):
        await read(outside)
    with pytest.raises(ConnectFailed, match="down"):
        await host.connect(MEETING)
