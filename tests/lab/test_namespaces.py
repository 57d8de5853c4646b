"""The lab itself: nothing is left behind, nothing outside is touched, and the segment does what it is asked to."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.lab.forwarder import Forwarder
from tests.lab.meeting import PlacedNetwork
from tests.lab.namespaces import LabError, Namespace, placed
from tests.lab.nat_types import NatType
from tests.lab.switch import LinkProfile
from tests.lab.topology import Lab
from transport.address import Address
from transport.errors import ConnectFailed
from transport.network import RawStream

pytestmark = pytest.mark.real
ROOT = Path(__file__).parents[2]


def here() -> int:
    return Path("/proc/thread-self/ns/net").stat().st_ino


def in_use() -> set[int]:
    """The network namespaces of all processes."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            found.add(path.stat().st_ino)
        except OSError:  # it ended meanwhile
            continue
    return found


def test_a_namespace_is_a_place_of_its_own():
    home, before = here(), set(Path("/sys/class/net").iterdir())
    with Namespace("a") as a, Namespace("b") as b:
        a.link("x", b, "y")
        a.ip("addr add 10.9.9.1/24 dev x", "link set x up")
        assert "10.9.9.1" in a.run("ip", "-br", "address")
        assert "10.9.9.1" not in b.run("ip", "-br", "address")
        with a.entered():
            assert here() != home
        assert here() == home
        with pytest.raises(ValueError, match="inside"), a.entered():
            raise ValueError("inside")
        assert here() == home
        with pytest.raises(LabError, match="no-such"):
            a.ip("link set no-such up")
    assert set(Path("/sys/class/net").iterdir()) == before


async def test_a_placed_coroutine_is_there_and_nobody_else_is():
    home = here()
    seen = []

    async def work(answer: int) -> int:
        seen.append(here())
        await trio.lowlevel.checkpoint()
        seen.append(here())
        with trio.CancelScope() as scope:
            scope.cancel()
            await trio.sleep_forever()
        seen.append(here())
        return answer

    with Namespace("a") as a:
        with trio.CancelScope():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep, 0)
                assert await placed(a, work(7)) == 7
                assert here() == home
        with a.entered():
            there = here()
        assert seen == [there] * 3
        assert here() == home


KILLED = """
import os, time
from tests.lab.nat_types import NatType
from tests.lab.switch import LinkProfile
from tests.lab.topology import Lab
lab = Lab(LinkProfile(delay_ms=1))
home = lab.home(NatType.DOUBLE)
child = home.host.namespace.popen("sleep", "1000")
place = os.fstat(home.host.namespace.fd).st_ino
print(child.pid, lab.forwarder._process.pid, place, flush=True)
time.sleep(1000)
"""


def test_a_killed_lab_leaves_nothing():
    lab = subprocess.Popen(
        [sys.executable, "-P", "-c", KILLED],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert lab.stdout is not None
    *pids, inside = (int(text) for text in lab.stdout.readline().split())
    assert len(pids) == 2
    handles = [os.pidfd_open(pid) for pid in pids]
    os.kill(lab.pid, signal.SIGKILL)
    lab.wait()
    lab.stdout.close()
    for handle in handles:
        assert select.select([handle], [], [], 10.0)[0]  # it has ended
        os.close(handle)
    assert inside not in in_use()


async def joined(lab: Lab, *, tries: int = 1) -> tuple[RawStream, RawStream, float]:
    """Two public hosts, a connection between them, and how long the handshake took."""
    a, b = lab.public(), lab.public()
    listener = await PlacedNetwork(b.namespace).listen(Address(b.ip, 5000))
    start = trio.current_time()
    stream = await PlacedNetwork(a.namespace).connect(Address(b.ip, 5000))
    took_s = trio.current_time() - start
    other = await listener.accept()
    await listener.aclose()
    return stream, other, took_s


async def test_the_segment_delays_and_loses_as_told():
    with Lab(LinkProfile(delay_ms=50)) as lab:
        assert lab.forwarder is not None
        a, b, took_s = await joined(lab)
        assert took_s >= 0.2  # neighbour discovery, then the handshake: a round trip each
        lab.forwarder.change(LinkProfile())
        payload = bytes(200_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.send_all, payload)
            got = 0
            while got < len(payload):
                got += await b.receive_into(memoryview(bytearray(65536)))
        lab.forwarder.change(LinkProfile(loss=1.0))
        before = lab.forwarder.counters()["forwarded"]
        await a.send_all(b"never")
        with trio.move_on_after(0.3) as scope:
            await b.receive_into(memoryview(bytearray(16)))
        assert scope.cancelled_caught
        counters = lab.forwarder.counters()
        assert counters["lost"] >= 1
        assert counters["forwarded"] == before
        a.abort()
        b.abort()


async def test_an_uplink_has_the_bandwidth_it_was_given():
    with Lab(LinkProfile(rate_mbit=80)) as lab:
        a, b, _ = await joined(lab)
        payload = bytes(3_000_000)
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.send_all, payload)
            got, buffer = 0, memoryview(bytearray(1 << 20))
            while got < len(payload):
                got += await b.receive_into(buffer)
        assert trio.current_time() - start >= 0.28  # 3 MB at 10 MB/s, less a few frames
        a.abort()
        b.abort()


async def test_homes_come_and_go():
    with Lab() as lab:
        point = lab.public()
        listener = await PlacedNetwork(point.namespace).listen(Address(point.ip, 5000))
        homes = [lab.home(kind) for kind in (NatType.PORT, NatType.DOUBLE, NatType.SYMMETRIC)]
        for home in homes:
            stream = await PlacedNetwork(home.host.namespace).connect(Address(point.ip, 5000))
            other = await listener.accept()
            assert other.remote.host == home.host.public_ip != home.host.ip
            stream.abort()
            other.abort()
            home.close()
        assert len(lab.homes) == 1
        with trio.move_on_after(0.2) as scope:
            with pytest.raises(ConnectFailed):
                await PlacedNetwork(point.namespace).connect(Address(homes[0].host.public_ip, 1))
            scope.cancel()
        await listener.aclose()


def test_the_forwarder_ends_with_its_socket():
    forwarder = Forwarder(LinkProfile())
    assert forwarder.counters() == {"forwarded": 0, "lost": 0, "overflowed": 0}
    forwarder.close()
    assert forwarder._process.returncode == 0
