"""A real router, Debian's miniupnpd, in network namespaces: every method opens a port, and leaving closes it.

    remote 11.1.1.10 ---- wan 11.1.1.2 [gateway, NAT, miniupnpd] lan 10.1.0.1 ---- host 10.1.0.2

The outside addresses look public, because miniupnpd refuses to work with documentation blocks and so do we.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from time import monotonic, sleep

import pytest

from tests.transport.nat.namespaces import Namespace, cable, missing, namespaces

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
PORT = 47470
DAEMON = next(
    (found for name in ("miniupnpd-nftables", "miniupnpd") if (found := shutil.which(name))), ""
)
REASON = missing("nft", "miniupnpd") if sys.platform == "linux" else "needs Linux"

pytestmark = [pytest.mark.real, pytest.mark.skipif(bool(REASON), reason=REASON)]

FIREWALL = """
table inet filter {
    chain forward {
        type filter hook forward priority 0; policy drop;
        ct state established,related accept
        iifname "lan" oifname "wan" accept
        ct status dnat accept
        jump miniupnpd
    }
    chain input {
        type filter hook input priority 0; policy accept;
        iifname "wan" ct state new drop
    }
    chain miniupnpd { }
    chain prerouting {
        type nat hook prerouting priority -100; policy accept;
        jump prerouting_miniupnpd
    }
    chain postrouting {
        type nat hook postrouting priority 100; policy accept;
        jump postrouting_miniupnpd
        oifname "wan" masquerade
    }
    chain prerouting_miniupnpd { }
    chain postrouting_miniupnpd { }
}
"""
SETTINGS = """
ext_ifname=wan
listening_ip=lan
enable_natpmp={natpmp}
enable_upnp={upnp}
secure_mode=yes
system_uptime=no
uuid=5da9dd08-8b86-4fc3-a778-6accc1ff5667
allow 1024-65535 0.0.0.0/0 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
"""


@contextmanager
def router(gateway: Namespace, folder: Path, *, natpmp: bool, upnp: bool) -> Iterator[None]:
    settings = folder / "miniupnpd.conf"
    yes = {True: "yes", False: "no"}
    text = SETTINGS.format(natpmp=yes[natpmp], upnp=yes[upnp])
    settings.write_text(text)
    log = folder / "miniupnpd.log"
    command = gateway.command(
        DAEMON, "-d", "-f", str(settings), "-P", str(folder / "miniupnpd.pid")
    )
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out) as daemon:
        try:
            wait_for_router(gateway, daemon, log, natpmp=natpmp)
            yield
        finally:
            daemon.terminate()


def wait_for_router(
    gateway: Namespace, daemon: subprocess.Popen[bytes], log: Path, *, natpmp: bool
) -> None:
    """Until its socket is there, as the kernel lists it."""
    wanted = ":14E7 " if natpmp else ":076C "  # 5351, 1900
    end = monotonic() + 10
    while monotonic() < end:
        if daemon.poll() is not None:
            pytest.fail(f"miniupnpd ended: {log.read_text()}")
        if wanted in gateway.exec("cat", "/proc/net/udp"):
            return
        sleep(0.05)
    pytest.fail(f"miniupnpd does not listen: {log.read_text()}")


class Mapper:
    """The program of mapper_process.py, and what it says."""

    def __init__(self, host: Namespace, *methods: str, family: int = 4) -> None:
        command = host.command(
            sys.executable, str(HERE / "mapper_process.py"), str(PORT), str(family), *methods
        )
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/usr/sbin:/bin:/sbin"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.lines: Queue[dict[str, object]] = Queue()
        self.reader = Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(json.loads(line))

    def wait(self, key: str, seconds: float = 30) -> object:
        end = monotonic() + seconds
        seen = []
        while (left := end - monotonic()) > 0:
            with suppress(Empty):
                line = self.lines.get(timeout=left)
                seen.append(line)
                if line.get(key):
                    return line[key]
        pytest.fail(f"no {key}; it said {seen}")

    def leave(self) -> float:
        """End it in order; how long that took."""
        assert self.process.stdin is not None
        begin = monotonic()
        self.process.stdin.close()
        self.process.wait(20)
        return monotonic() - begin

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(20)
        self.reader.join(20)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@contextmanager
def mapper(host: Namespace, *methods: str, family: int = 4) -> Iterator[Mapper]:
    one = Mapper(host, *methods, family=family)
    try:
        yield one
    finally:
        one.close()


def reach(remote: Namespace, external: str) -> str:
    """What a stranger reads from the mapped port; "" if it cannot connect within a second."""
    host, _, port = external.rpartition(":")
    host = host.strip("[]")
    script = (
        "import socket,sys\n"
        f"s=socket.create_connection(({host!r},{port}),1)\n"
        "sys.stdout.write(s.makefile().readline())"
    )
    return remote.exec(sys.executable, "-c", script, check=False).strip()


@pytest.fixture
def lab() -> Iterator[tuple[Namespace, Namespace, Namespace]]:
    with namespaces("rem", "gw", "host") as (remote, gateway, host):
        cable(remote, "eth0", "11.1.1.10/24", gateway, "wan", "11.1.1.2/24")
        cable(gateway, "lan", "10.1.0.1/24", host, "eth0", "10.1.0.2/24")
        host.ip("route add default via 10.1.0.1")
        gateway.ip("route add default via 11.1.1.10")
        gateway.exec("sysctl", "-qw", "net.ipv4.ip_forward=1")
        done = subprocess.run(
            gateway.command("nft", "-f", "-"),
            check=False,
            input=FIREWALL,
            text=True,
            capture_output=True,
        )
        if done.returncode:
            pytest.skip(f"nftables does not work here: {done.stderr.strip()}")
        yield remote, gateway, host


@pytest.mark.parametrize("method", ["pcp", "natpmp", "upnp"])
def test_each_method_opens_a_port_that_a_stranger_reaches_and_closes_it(lab, tmp_path, method):
    if method == "upnp":
        pytest.importorskip("miniupnpc", reason="needs miniupnpc (no wheel for this Python)")
    remote, gateway, host = lab
    with router(gateway, tmp_path, natpmp=True, upnp=True), mapper(host, method) as one:
        external = one.wait("external")
        assert str(external).startswith("11.1.1.2:")
        assert reach(remote, str(external)) == "reached"
        assert one.leave() < 3
        assert reach(remote, str(external)) == ""


def test_a_port_is_opened_in_the_firewall_of_ipv6(lab, tmp_path):
    remote, gateway, host = lab
    for space, name, address in (
        (remote, "eth0", "2a00:1::10/64"),
        (gateway, "wan", "2a00:1::2/64"),
        (gateway, "lan", "2a00:2::1/64"),
        (gateway, "lan", "fe80::1/64"),
        (host, "eth0", "2a00:2::2/64"),
    ):
        space.ip(f"addr add {address} dev {name} nodad")
    host.ip("-6 route add default via fe80::1 dev eth0")
    remote.ip("-6 route add default via 2a00:1::2")
    gateway.ip("-6 route add default via 2a00:1::10")
    gateway.exec("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
    external = f"[2a00:2::2]:{PORT}"
    with (
        router(gateway, tmp_path, natpmp=True, upnp=False),
        mapper(host, "pcp", family=6) as one,
    ):
        assert one.wait("external") == external
        assert reach(remote, external) == "reached"
        assert one.leave() < 3
        assert reach(remote, external) == ""


def test_a_gateway_without_pcp_and_natpmp_is_asked_by_upnp(lab, tmp_path):
    pytest.importorskip("miniupnpc", reason="needs miniupnpc (no wheel for this Python)")
    remote, gateway, host = lab
    with (
        router(gateway, tmp_path, natpmp=False, upnp=True),
        mapper(host, "pcp", "natpmp", "upnp") as one,
    ):
        external = one.wait("external")
        assert reach(remote, str(external)) == "reached"


def test_a_gateway_without_port_mapping_is_told_with_reasons(lab):
    _, _, host = lab
    with mapper(host, "pcp", "natpmp") as one:
        failures = one.wait("failures")
        assert isinstance(failures, dict)
        assert "port closed" in failures["pcp"]


def grow_old(host: Namespace, *, seconds: int) -> None:
    """Until the router's epoch is so great that starting again at 0 is beyond the slack of the rule."""
    script = (
        "import socket\n"
        "s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);s.settimeout(1)\n"
        "s.connect(('10.1.0.1',5351));s.send(b'\\0\\0')\n"
        "print(int.from_bytes(s.recv(100)[4:8],'big'))"
    )
    while int(host.exec(sys.executable, "-c", script)) < seconds:
        sleep(0.5)


@pytest.mark.slow
def test_a_restarted_router_is_asked_again(lab, tmp_path):
    remote, gateway, host = lab
    with mapper(host, "natpmp") as one:
        with router(gateway, tmp_path, natpmp=True, upnp=False):
            external = str(one.wait("external", 60))
            assert reach(remote, external) == "reached"
            grow_old(host, seconds=8)
        gateway.exec("nft", "flush", "chain", "inet", "filter", "prerouting_miniupnpd")
        assert reach(remote, external) == ""
        # It announces itself when it starts; the mapping comes back long before its half life.
        with router(gateway, tmp_path, natpmp=True, upnp=False):
            end = monotonic() + 30
            while reach(remote, external) != "reached":
                assert monotonic() < end, "the mapping did not come back"
