"""UPnP through a stand-in for miniupnpc with its habits, good and bad."""

import random
from threading import Event

import pytest
import trio

from transport.nat.gateway import Gateway
from transport.nat.mapping_core import Grant, MapMethod
from transport.nat.portmap import PortMapper
from transport.nat.upnp import Upnp, UpnpFailed, load_igd

GATEWAY = "10.1.0.1"


class RouterError(Exception):
    """The library raises bare `Exception`s; by its text alone can they be told apart, as here."""


class FakeIgd:
    """What is used of `miniupnpc.UPnP`, over a router that is a dictionary."""

    def __init__(self) -> None:
        self.lanaddr = "10.1.0.2"
        self.found = 1
        self.url = f"http://{GATEWAY}:5000/ctl/IPConn"
        self.external = "11.1.1.2"
        self.table: dict[int, tuple[str, int, int]] = {}
        self.taken: set[int] = set()
        self.permanent_only = False
        self.go_on = Event()  # calls that change something wait for it
        self.go_on.set()
        self.calls: list[str] = []

    def discover(self) -> int:
        self.calls.append("discover")
        if not self.found:
            raise RouterError("Success")
        return self.found

    def selectigd(self) -> str:
        return self.url

    def externalipaddress(self) -> str:
        return self.external

    def addportmapping(self, external, protocol, host, internal, description, remote, lease):
        assert (protocol, remote) == ("TCP", "")
        self.calls.append(f"add {external}")
        self.go_on.wait(10)
        if external in self.taken:
            raise RouterError("ConflictInMappingEntry")
        if lease and self.permanent_only:
            raise RouterError("OnlyPermanentLeasesSupported")
        self.table[external] = (host, internal, lease)
        return True

    def deleteportmapping(self, external, protocol):
        self.calls.append(f"delete {external}")
        if external not in self.table:
            raise RouterError("NoSuchEntryInArray")
        del self.table[external]
        return True

    def getspecificportmapping(self, external, protocol):
        return self.table.get(external)


@pytest.fixture
def igd() -> FakeIgd:
    return FakeIgd()


def upnp(igd: FakeIgd) -> Upnp:
    return Upnp(GATEWAY, load=lambda _: igd)


async def test_it_maps_checks_and_releases_and_looks_for_the_device_once(igd):
    router = upnp(igd)
    assert await router.map(7447, 7448, 3600) == Grant("11.1.1.2", 7448, 3600)
    assert igd.table == {7448: ("10.1.0.2", 7447, 3600)}
    assert await router.check(7448) == ("11.1.1.2", True)
    await router.release(7448)
    assert igd.table == {}
    assert await router.check(7448) == ("11.1.1.2", False)
    assert igd.calls.count("discover") == 1


async def test_success_as_an_error_means_that_nothing_answers(igd):
    igd.found = 0
    with pytest.raises(UpnpFailed, match="no device answers"):
        await upnp(igd).map(7447, 7447, 3600)


@pytest.mark.parametrize(
    "url",
    [
        "http://10.1.0.66:5000/ctl",
        "http://[",
        "",
        None,
        "junk",
        "https://10.1.0.1/ctl",
        # What the library and others read in two ways: it asks 10.1.0.66 at each of these.
        "http://10.1.0.66:5000@10.1.0.1:5000/ctl",
        "http://10.1.0.66:5000\\@10.1.0.1:5000/ctl",
        "http://10.1.0.66/@10.1.0.1/ctl",
        # And what nobody needs, so that nothing depends on how it is read.
        "http://user@10.1.0.1/ctl",
        "http://10.1.0.1:5000@10.1.0.66/ctl",
        "http://10.1.0.1:x/ctl",
        "http://10.1.0.1/a\\@10.1.0.66/ctl",
        "http://10.1.0.1/ctl\r\nHost: 10.1.0.66",
        "http://10.1.0.1.example/ctl",
        "http://10x1.0.1/ctl",
    ],
)
async def test_a_device_that_is_not_the_gateway_is_not_believed(igd, url):
    igd.url = url
    with pytest.raises(UpnpFailed, match="not the gateway"):
        await upnp(igd).map(7447, 7447, 3600)
    assert igd.table == {}


@pytest.mark.parametrize(
    "url", [f"http://{GATEWAY}", f"http://{GATEWAY}/", f"http://{GATEWAY}:80/a?b=c:d&e"]
)
async def test_every_usual_url_of_the_gateway_is_believed(igd, url):
    igd.url = url
    assert (await upnp(igd).map(7447, 7447, 3600)).external_port == 7447


async def test_a_router_that_knows_only_permanent_mappings_gets_one_that_is_renewed_hourly(igd):
    igd.permanent_only = True
    grant = await upnp(igd).map(7447, 7447, 600)
    assert grant.lifetime_s == 3600
    assert igd.table[7447][2] == 0


async def test_a_port_of_another_machine_is_left_to_it(igd):
    igd.taken = {7447}
    grant = await upnp(igd).map(7447, 7447, 3600)
    assert grant.external_port not in igd.taken
    assert 1024 <= grant.external_port < 65536
    igd.taken = set(range(65536))
    with pytest.raises(UpnpFailed, match="ConflictInMappingEntry"):
        await upnp(igd).map(7447, 7447, 3600)


async def test_words_of_the_router_are_made_harmless(igd):
    def refuse() -> str:
        raise RouterError("bad\x1b[31m\nthing" + "x" * 500)

    igd.externalipaddress = refuse
    with pytest.raises(UpnpFailed) as caught:
        await upnp(igd).map(7447, 7447, 3600)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 120


async def test_an_abandoned_mapping_is_removed_by_its_thread(igd):
    igd.go_on.clear()
    router = upnp(igd)
    with trio.move_on_after(5) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(router.map, 7447, 7447, 3600)
            while "add 7447" not in igd.calls:
                await trio.sleep(0.01)
            scope.cancel()
    assert scope.cancelled_caught
    igd.go_on.set()
    with trio.fail_after(5):
        while "delete 7447" not in igd.calls:
            await trio.sleep(0.01)
    assert igd.table == {}


async def test_an_abandoned_job_makes_no_permanent_mapping(igd):
    igd.permanent_only = True
    igd.go_on.clear()
    router = upnp(igd)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(router.map, 7447, 7447, 3600)
        while "add 7447" not in igd.calls:
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    igd.go_on.set()
    await router.check(1)  # one job at a time: after this the abandoned one has ended
    assert igd.table == {}
    assert igd.calls.count("add 7447") == 1


async def test_the_mapper_uses_it_last_and_releases(igd):
    mapper = PortMapper(
        7447,
        gateway=Gateway("127.0.0.1", "lo"),
        gateway_port=9,  # discard: nothing listens
        announcements=None,
        load=lambda _: igd,
        rng=random.Random(1),
    )
    igd.url = "http://127.0.0.1:5000/ctl"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mapper.run)
        with trio.fail_after(20):
            while mapper.mapping is None:
                await trio.sleep(0.01)
        assert mapper.mapping.method is MapMethod.UPNP
        assert set(mapper.failures) == {"pcp", "natpmp"}
        # The router forgets; the next check finds out, and the port comes back.
        igd.table.clear()
        mapper._core._check_at = trio.current_time()
        mapper._nudge()
        with trio.fail_after(20):
            while not igd.table:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert igd.table == {}


def test_the_real_library_has_what_is_used_of_it():
    pytest.importorskip("miniupnpc", reason="needs miniupnpc (no wheel for this Python)")
    real = load_igd("127.0.0.1")
    wanted = [name for name in vars(FakeIgd) if not name.startswith("_")]
    assert all(callable(getattr(real, name)) for name in wanted)
    assert real.multicastif == "127.0.0.1"


async def test_without_the_library_the_reason_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "miniupnpc", None)
    with pytest.raises(UpnpFailed, match="not installed") as caught:
        await Upnp(GATEWAY).map(7447, 7447, 3600)
    assert "noded[upnp]" in caught.value.hint
