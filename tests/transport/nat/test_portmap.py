"""The port mapper against a gateway on a real loopback socket."""

import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import pytest
import trio

from tests.transport.nat.fake_gateway import HOST, FakeGateway, fake_gateway
from transport.address import Address
from transport.nat.mapping_core import MapMethod, Mapping
from transport.nat.portmap import RELEASE_S, Gateway, PortMapper

pytestmark = pytest.mark.real

PORT = 7447
EXTERNAL = Address("11.1.1.2", PORT)


class Watched(PortMapper):
    """A mapper whose changes can be waited for."""

    def __init__(self, fake: FakeGateway, **options: object) -> None:
        self.told: list[Mapping | None] = []
        self._told_one = trio.Event()
        options.setdefault("methods", ("pcp", "natpmp"))
        options.setdefault("announcements", None)
        super().__init__(
            PORT,
            gateway=fake.gateway,
            gateway_port=fake.port,
            on_change=self._changed,
            rng=random.Random(1),
            **options,
        )

    def _changed(self, mapping: Mapping | None) -> None:
        self.told.append(mapping)
        self._told_one.set()
        self._told_one = trio.Event()

    async def wait_mapped(self) -> Mapping:
        with trio.fail_after(20):
            while self.mapping is None:
                await self._told_one.wait()
        return self.mapping

    async def wait_failed(self, *methods: str) -> dict[str, str]:
        with trio.fail_after(30):
            while not set(methods) <= set(self.failures):
                await trio.sleep(0.01)
        return self.failures


@asynccontextmanager
async def running(mapper: PortMapper) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mapper.run)
        yield
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("method", ["pcp", "natpmp"])
async def test_it_maps_and_releases_on_the_way_out(method):
    async with fake_gateway() as fake:
        mapper = Watched(fake, methods=[method])
        async with running(mapper):
            mapping = await mapper.wait_mapped()
            assert (mapping.external, mapping.method, mapping.gateway) == (
                EXTERNAL,
                MapMethod(method),
                HOST,
            )
            assert 3500 < mapping.expires_at - trio.current_time() <= 3600
            assert mapper.failures == {}
            assert fake.mapped == {PORT: (PORT, 3600)}
        assert fake.mapped == {}
        assert mapper.mapping is None
        assert mapper.told == [mapping, None]


async def test_a_gateway_without_pcp_is_asked_by_natpmp_at_once():
    async with fake_gateway() as fake:
        fake.pcp = False
        mapper = Watched(fake)
        async with running(mapper):
            mapping = await mapper.wait_mapped()
            assert mapping.method is MapMethod.NATPMP
            assert "does not speak PCP" in mapper.failures["pcp"]
            assert list(dict.fromkeys(data[0] for data in fake.requests)) == [2, 0]


async def test_lost_requests_are_sent_again_after_doubling_waits():
    async with fake_gateway() as fake:
        fake.ignore = 2
        mapper = Watched(fake)
        begin = trio.current_time()
        async with running(mapper):
            await mapper.wait_mapped()
            assert trio.current_time() - begin >= 0.75
            assert len(fake.requests) >= 3
            assert len(set(fake.requests)) == 1  # the same nonce: it is one request


@pytest.mark.parametrize("method", ["pcp", "natpmp"])
async def test_a_restart_that_is_announced_maps_again(method, free_port):
    async with fake_gateway() as fake:
        mapper = Watched(fake, methods=[method], announcements=(HOST, free_port))
        async with running(mapper):
            await mapper.wait_mapped()
            fake.reboot()
            seen = len(fake.requests)
            # As miniupnpd does: by PCP, whatever the mapping was made by. From the gateway's host, by any port.
            with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as speaker:
                speaker.bind((HOST, 0))
                speaker.sendto(b"nonsense", (HOST, free_port))
                speaker.sendto(bytes([2, 128]) + bytes(22), (HOST, free_port))
            await fake.heard(seen + 2)
            with trio.fail_after(20):
                while not fake.mapped:
                    await trio.sleep(0.01)
            assert mapper.mapping is not None


async def test_announcements_of_others_are_not_heard(free_port):
    async with fake_gateway() as fake:
        mapper = Watched(fake, methods=["pcp"], announcements=(HOST, free_port))
        async with running(mapper):
            await mapper.wait_mapped()
            seen = len(fake.requests)
            with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as speaker:
                speaker.bind(("127.0.0.2", 0))
                for _ in range(100):
                    speaker.sendto(bytes([2, 128]) + bytes(22), (HOST, free_port))
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert len(fake.requests) == seen


async def test_it_renews_at_half_life_with_the_port_and_address_that_it_has():
    async with fake_gateway() as fake:
        mapper = Watched(fake, methods=["pcp"], lifetime_s=30)
        async with running(mapper):
            first = await mapper.wait_mapped()
            # The machine's own tests cover the hours; here its clock is moved under it.
            mapper._core._ask_at = trio.current_time()
            mapper._nudge()
            await fake.heard(2)
            with trio.fail_after(5):
                while mapper.mapping is None or mapper.mapping.expires_at == first.expires_at:
                    await trio.sleep(0.01)
        wanted = [(data[42:44], data[-4:]) for data in fake.requests]
        assert (PORT.to_bytes(2, "big"), fake.external) in wanted
        assert mapper.told == [first, None]  # a renewal is no news


def short(answer: bytes) -> list[bytes]:
    return [b"", answer[:1], answer[:7], answer[:-4], answer]


def other_request(answer: bytes) -> list[bytes]:
    spoilt = bytearray(answer)
    spoilt[24] ^= 1  # the nonce
    return [bytes(spoilt), answer]


def other_port(answer: bytes) -> list[bytes]:
    spoilt = bytearray(answer)
    spoilt[41] ^= 1
    return [bytes(spoilt), answer]


def flood(answer: bytes) -> list[bytes]:
    return [b"\xff" * 1200] * 40 + [answer]


@pytest.mark.parametrize("spoil", [short, other_request, other_port, flood])
async def test_hostile_answers_are_passed_over_for_the_right_one(spoil):
    async with fake_gateway() as fake:
        fake.spoil = spoil
        mapper = Watched(fake, methods=["pcp"])
        async with running(mapper):
            assert (await mapper.wait_mapped()).external == EXTERNAL
            assert mapper.failures == {}


@pytest.mark.parametrize(
    ("external", "lifetime", "why"),
    [
        (bytes([192, 168, 1, 7]), None, "another NAT is before it"),
        (bytes([100, 64, 0, 7]), None, "another NAT is before it"),
        (bytes([0, 0, 0, 0]), None, "no usable external address"),
        (bytes([11, 1, 1, 2]), 0, "for only 0 s"),
    ],
)
async def test_what_is_of_no_use_is_removed_again_and_told(external, lifetime, why):
    async with fake_gateway() as fake:
        fake.external, fake.lifetime = external, lifetime
        mapper = Watched(fake)
        async with running(mapper):
            failures = await mapper.wait_failed("pcp", "natpmp")
            assert all(why in reason for reason in failures.values()), failures
            assert mapper.mapping is None
            with trio.fail_after(5):
                while fake.mapped:
                    await trio.sleep(0.01)


async def test_a_giant_lifetime_is_cut_to_what_was_asked_for():
    async with fake_gateway() as fake:
        fake.lifetime = 2**32 - 1
        mapper = Watched(fake)
        async with running(mapper):
            mapping = await mapper.wait_mapped()
            assert mapping.expires_at <= trio.current_time() + 3600


async def test_an_answer_from_another_address_is_never_seen():
    async with fake_gateway() as fake:
        mapper = Watched(fake, methods=["pcp"])
        fake.ignore = 1000
        async with running(mapper):
            await fake.heard(1)
            answer = fake.pcp_answer(fake.requests[0])
            # Right in every byte, from another port and from another host.
            for source in (HOST, "127.0.0.9"):
                with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as forger:
                    forger.bind((source, 0))
                    forger.sendto(answer, fake.clients[0])
            failures = await mapper.wait_failed("pcp")
            assert mapper.mapping is None
            assert failures["pcp"] == "no answer"


async def test_a_closed_port_is_known_at_once_and_told_for_every_method():
    async with fake_gateway() as fake:
        gateway, port = fake.gateway, fake.port
    mapper = PortMapper(
        PORT, methods=["pcp", "natpmp"], gateway=gateway, gateway_port=port, announcements=None
    )
    begin = trio.current_time()
    async with running(mapper):
        with trio.fail_after(5):
            while len(mapper.failures) < 2:
                await trio.sleep(0.01)
        assert trio.current_time() - begin < 3  # of 7.5
        assert set(mapper.failures.values()) == {
            "the gateway does not listen for this (port closed)"
        }


async def test_leaving_a_dead_gateway_takes_a_second_at_most():
    async with fake_gateway() as fake:
        mapper = Watched(fake)
        async with running(mapper):
            await mapper.wait_mapped()
            fake.ignore = 1000
            begin = trio.current_time()
        assert trio.current_time() - begin < RELEASE_S + 1.5  # its tries would take 3.75 s


async def test_leaving_in_the_middle_of_a_request_removes_what_it_may_have_made():
    async with fake_gateway() as fake:
        fake.spoil = lambda _: []  # it maps, and the answer is lost
        mapper = Watched(fake, methods=["pcp"])
        async with running(mapper):
            await fake.heard(1)
            fake.spoil = lambda answer: [answer]
        assert fake.mapped == {}
        assert int.from_bytes(fake.requests[-1][4:8], "big") == 0


async def test_a_gateway_that_cannot_be_reached_is_told_and_waited_for():
    mapper = PortMapper(
        PORT, gateway=Gateway("fe80::1%nowhere", "nowhere"), announcements=None, family=6
    )
    async with running(mapper):
        with trio.fail_after(5):
            while not mapper.failures:
                await trio.sleep(0.01)
    assert mapper.failures == {"pcp": "there is no default gateway"}


async def test_another_gateway_starts_anew():
    async with fake_gateway() as old, fake_gateway() as new:
        mapper = Watched(old, methods=["pcp"])
        async with running(mapper):
            await mapper.wait_mapped()
            mapper._gateway_port = new.port
            await mapper._settle(type(old.gateway)("127.0.0.1", "eth9"))
            with trio.fail_after(5):
                while not new.mapped:
                    await trio.sleep(0.01)
        assert new.mapped == {}


def test_an_unknown_method_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="smoke"):
        PortMapper(PORT, methods=["smoke"])


@pytest.fixture
def free_port() -> int:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.bind((HOST, 0))
        return sock.getsockname()[1]
