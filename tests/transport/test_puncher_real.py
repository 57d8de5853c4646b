"""Punching through the kernel's own NATs: real sockets, real simultaneous opens, 40 ms apart.

Two hosts behind a NAT each (network namespaces, nft), their first connection carried by a third."""

import contextlib
import ipaddress
import os

import pytest
import trio

from tests.lab.meeting import PlacedNetwork
from tests.lab.namespaces import why_not
from tests.lab.nat_types import NatType
from tests.lab.switch import LinkProfile
from tests.lab.topology import Lab
from tests.transport.stand_in_relay import relayed
from tests.trusted import SWARM, trust_of
from transport.address import Address
from transport.endpoint import Endpoint, open_endpoint
from transport.identity import Identity
from transport.network import Path, RawStream
from transport.punch.report import PunchReport

pytestmark = [pytest.mark.real, pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")]

FAR = LinkProfile(delay_ms=20)
LOSSY = LinkProfile(delay_ms=20, loss=0.05)
NEAR = LinkProfile()
ANY_PORT = Address("0.0.0.0", 0)
PORT, RST, ADDRESS, FULL, SYMMETRIC, DOUBLE = (
    *(NatType.PORT, NatType.PORT_RST, NatType.ADDRESS, NatType.FULL),
    *(NatType.SYMMETRIC, NatType.DOUBLE),
)


def open_one(network: PlacedNetwork) -> contextlib.AbstractAsyncContextManager[Endpoint]:
    identity = Identity.generate(os.urandom)
    return open_endpoint(identity, SWARM, network, [ANY_PORT], trust=trust_of(identity))


class Pair:
    """A third place, and two homes behind routers of the given types."""

    def __init__(self, stack: contextlib.ExitStack, profile: LinkProfile, *kinds: NatType) -> None:
        lab = stack.enter_context(Lab(profile))
        self.third = lab.public()
        self.hosts = [lab.home(kind).host for kind in kinds]
        self.networks = [PlacedNetwork(host.namespace) for host in self.hosts]

    async def punch(self, *, initiator_coordinates: bool = False) -> PunchReport:
        """Connect two fresh nodes over the third place, punch, and see the peer answer on the new path."""
        async with contextlib.AsyncExitStack() as stack:
            a, b = [await stack.enter_async_context(open_one(network)) for network in self.networks]
            punchers = await stack.enter_async_context(
                relayed(
                    *(a, b, PlacedNetwork(self.third.namespace), Address(self.third.ip, 0)),
                    # Both homes use the same private network: the other's host has our own address.
                    interfaces=lambda: [ipaddress.ip_interface(f"{self.hosts[0].ip}/24")],
                )
            )
            a.serve_calls("test/echo", echo)
            peer = (b.peers[a.node_id], a.peers[b.node_id])[initiator_coordinates]
            report = await punchers[0 if initiator_coordinates else 1].punch(peer)
            if report.ok:
                assert await b.peers[a.node_id].call("test/echo", b"still here") == b"still here"
                paths = a.peers[b.node_id].path, b.peers[a.node_id].path
                assert paths == (report.path, report.path)
            return report


async def echo(_peer: object, request: bytes) -> bytes:
    return request


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kinds", "profile", "count"),
    [
        ((PORT, PORT), FAR, 20),
        ((PORT, PORT), NEAR, 10),
        ((PORT, PORT), LOSSY, 20),
        ((PORT, RST), FAR, 6),
        ((RST, RST), FAR, 6),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else None,
)
async def test_restricted_nats_are_punched_every_time(kinds, profile, count) -> None:
    if os.environ.get("NODED_LAB") != "all":
        count = min(count, 4)  # all of them take a minute and a half
    with contextlib.ExitStack() as stack:
        pair = Pair(stack, profile, *kinds)
        reports = [await pair.punch() for _ in range(count)]
    assert [report.path for report in reports] == [Path.PUNCHED] * count
    for report in reports:
        assert report.rounds >= 1
        assert report.rtt_s is not None
        assert report.rtt_s >= 4 * profile.delay_ms / 1000  # to the third and back, twice
        assert report.attempts[0].round == 0  # the plain dial that could not work
        assert report.attempts[0].reason


@pytest.mark.parametrize(
    "kinds", [(FULL, SYMMETRIC), (ADDRESS, SYMMETRIC), (ADDRESS, PORT), (DOUBLE, PORT)]
)
async def test_other_nats_lead_to_a_direct_connection(kinds) -> None:
    with contextlib.ExitStack() as stack:
        report = await Pair(stack, FAR, *kinds).punch()
    assert report.path in (Path.PUNCHED, Path.REVERSED)
    if kinds[0] == FULL:  # a plain dial does
        assert (report.path, report.rounds) == (Path.REVERSED, 0)


async def test_the_dialer_of_the_relayed_connection_may_coordinate_too() -> None:
    with contextlib.ExitStack() as stack:
        report = await Pair(stack, FAR, PORT, PORT).punch(initiator_coordinates=True)
    assert report.path is Path.PUNCHED


@pytest.mark.slow
async def test_a_hopeless_pair_stays_relayed_and_every_attempt_is_kept() -> None:
    with contextlib.ExitStack() as stack:
        report = await Pair(stack, FAR, PORT, SYMMETRIC).punch()
    assert (report.ok, report.path, report.rounds) == (False, None, 3)
    assert "3 rounds" in report.reason
    assert {attempt.round for attempt in report.attempts} == {0, 1, 2, 3}
    assert all(attempt.reason and attempt.took_s >= 0 for attempt in report.attempts)
    assert 15 <= report.took_s <= 20


async def test_a_simultaneous_open_gives_both_sides_one_connection() -> None:
    """Two firewalls without a NAT: both `connect` return, no listener took part, and it is the same connection."""
    with contextlib.ExitStack() as stack:
        pair = Pair(stack, FAR, NatType.IPV6, NatType.IPV6)
        listeners = [await network.listen(Address("::", 0)) for network in pair.networks]
        places = [
            Address(host.ip6, listener.address.port)
            for host, listener in zip(pair.hosts, listeners, strict=True)
        ]
        streams: list[RawStream] = []

        async def dial(ours: int, theirs: int) -> None:
            network, source = pair.networks[ours], listeners[ours].address
            streams.append(await network.connect(places[theirs], source=source))

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(dial, 0, 1)
                nursery.start_soon(dial, 1, 0)
        one, other = streams
        assert (one.local, one.remote) == (other.remote, other.local)
        assert {one.local, other.local} == set(places)
        await one.send_all(b"hello")
        assert await other.receive_into(memoryview(bytearray(9))) == 5
        for stream in streams:
            stream.abort()
        for listener in listeners:
            await listener.aclose()
