"""The lab: an internet of one segment, and homes behind routers on it.

    lab = Lab(LinkProfile(delay_ms=20))
    server = lab.public()                 a host with a public address
    home = lab.home(NatType.SYMMETRIC)    a router, and one host (or more) behind it

Every home has the same private network, 192.168.1.0/24, and its first host has the address .2, as
homes have it: an address of the LAN means somebody else in every home. Public addresses only look
public (11.0.0.0/8 and 2a0e::/16): no packet leaves the namespaces, which know no other network.

The segment is the kernel's bridge when the round trip may be next to nothing, else the process of
`tests.lab.forwarder`. IPv6 hosts of a home are on the segment by their router's word (proxy
neighbour discovery), so nobody needs to learn routes when a home comes or goes.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Self

from tests.lab import nat_types
from tests.lab.forwarder import Forwarder
from tests.lab.namespaces import PATH, LabError, Namespace, tool
from tests.lab.nat_types import NatType
from tests.lab.switch import LinkProfile

WAN, LAN = nat_types.WAN, nat_types.LAN
LAN_NETWORK = "192.168.1"
CARRIER_NETWORK = "100.64.0"
LIFT_OFF_S = 10.0
FOLDER_PREFIX = "noded-lab-"


def has_upnp_daemon() -> bool:
    return shutil.which("miniupnpd", path=PATH) is not None


class Host:
    """A machine that nodes run on."""

    def __init__(self, namespace: Namespace, ip: str, public_ip: str, ip6: str = "") -> None:
        self.namespace = namespace
        self.ip = ip
        self.public_ip = public_ip
        """What it is seen as from outside; its own address if nothing translates."""
        self.ip6 = ip6

    def __repr__(self) -> str:
        return f"<Host {self.namespace.name} {self.ip}>"


class Home:
    """Some hosts behind a router, or one host with a public address."""

    def __init__(self, lab: "Lab", kind: NatType) -> None:
        self.lab = lab
        self.kind = kind
        self.hosts: list[Host] = []
        self.routers: list[Namespace] = []
        self.cleanup = contextlib.ExitStack()

    @property
    def host(self) -> Host:
        return self.hosts[0]

    def cut(self) -> None:
        """The router forwards nothing any more, as if it had no power."""
        for router in self.routers:
            router.run(tool("nft"), "-f", "-", text=nat_types.NOTHING_PASSES)

    def restart(self) -> None:
        """The router is back, and knows of no connection that was before, nor takes one up midway."""
        for router in self.routers:
            router.sysctl("net/netfilter/nf_conntrack_tcp_loose", 0)
            router.forget_connections()
            router.run(tool("nft"), "-f", "-", text=nat_types.ALL_PASSES)

    def close(self) -> None:
        self.lab.homes.discard(self)
        self.cleanup.close()


class Lab:
    """All of it; a context manager. The kernel clears up after a process that cannot."""

    def __init__(self, profile: LinkProfile | None = None, seed: int = 0) -> None:
        """Without a profile the segment is a bridge: no delay and no loss."""
        self.homes: set[Home] = set()
        self.cleanup = contextlib.ExitStack()
        self.forwarder: Forwarder | None = None
        self._bridge: Namespace | None = None
        self._count = 0
        _collect()
        try:
            if profile is not None:
                self.forwarder = Forwarder(profile, seed)
                self.cleanup.callback(self.forwarder.close)
            else:
                self._bridge = self._namespace("bridge", self.cleanup)
                self._bridge.ip("link add br0 type bridge", "link set br0 up")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for home in list(self.homes):
            home.close()
        self.cleanup.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def public(self) -> Host:
        """One more host with a public address of its own, IPv4 and IPv6."""
        return self.home(NatType.OPEN).host

    def home(
        self,
        kind: NatType,
        *,
        hosts: int = 1,
        isolated: bool = False,
    ) -> Home:
        """One more home.

        Args:
            kind: of its router.
            hosts: how many are behind it.
            isolated: give each host a network of its own that cannot reach the others'.
        """
        home = Home(self, kind)
        self.homes.add(home)
        try:
            self._count += 1
            number = self._count
            if kind == NatType.OPEN:
                namespace = self._namespace(f"open{number}", home.cleanup)
                ip, ip6 = self._connect(namespace, number, home.cleanup)
                home.hosts.append(Host(namespace, ip, ip, ip6))
            else:
                self._build(home, number, hosts, isolated=isolated)
        except BaseException:
            home.close()
            raise
        return home

    def _namespace(self, name: str, stack: contextlib.ExitStack) -> Namespace:
        return stack.enter_context(Namespace(name))

    def _connect(
        self, namespace: Namespace, number: int, stack: contextlib.ExitStack
    ) -> tuple[str, str]:
        """Give a namespace the interface `wan` on the segment, with addresses."""
        ip, ip6 = f"11.1.{number >> 8}.{number & 255}", f"2a0e:aa::{number:x}"
        if self.forwarder is not None:
            plug = self.forwarder.plug(namespace, WAN)
            stack.callback(self._unplug, plug)
        else:
            assert self._bridge is not None
            port = f"port{number}"
            namespace.link(WAN, self._bridge, port)
            self._bridge.ip(f"link set {port} master br0 up")
        namespace.sysctl(f"net/ipv6/neigh/{WAN}/proxy_delay", 0)
        namespace.ip(
            f"addr add {ip}/8 dev {WAN}",
            f"addr add {ip6}/64 dev {WAN} nodad",
            f"link set {WAN} up",
            f"route add default dev {WAN}",
            f"route add 2a0e::/16 dev {WAN}",
        )
        return ip, ip6

    def _unplug(self, plug: int) -> None:
        assert self.forwarder is not None
        with contextlib.suppress(OSError):  # the process may be gone, as all is about to be
            self.forwarder.unplug(plug)

    def _build(self, home: Home, number: int, hosts: int, *, isolated: bool) -> None:
        router = self._namespace(f"router{number}", home.cleanup)
        home.routers.append(router)
        router.sysctl("net/ipv4/ip_forward", 1)
        kind = NatType.PORT if home.kind == NatType.DOUBLE else home.kind
        public_ip, _ = self._connect(router, number, home.cleanup)
        router.run(tool("nft"), "-f", "-", text=nat_types.rules(kind, public_ip, isolated=isolated))
        inner = router
        if home.kind == NatType.DOUBLE:
            inner = self._namespace(f"inner{number}", home.cleanup)
            home.routers.append(inner)
            inner.sysctl("net/ipv4/ip_forward", 1)
            carrier_ip = f"{CARRIER_NETWORK}.2"
            _cable(router, LAN, f"{CARRIER_NETWORK}.1/24", inner, WAN, f"{carrier_ip}/24")
            inner.run(tool("nft"), "-f", "-", text=nat_types.rules(kind, carrier_ip))
        if not isolated:
            inner.ip(f"link add {LAN} type bridge", f"link set {LAN} up")
            inner.ip(f"addr add {LAN_NETWORK}.1/24 dev {LAN}")
        for index in range(hosts):
            host = self._namespace(f"host{number}.{index}", home.cleanup)
            lan = f"{LAN}{index}"
            if isolated:
                network = f"192.168.{index + 1}"
                _cable(inner, lan, f"{network}.1/24", host, "eth0", f"{network}.2/24")
                ip = f"{network}.2"
            else:
                ip = f"{LAN_NETWORK}.{index + 2}"
                inner.link(f"at{index}", host, "eth0")
                inner.ip(f"link set at{index} master {LAN} up")
                host.ip(
                    f"addr add {ip}/24 dev eth0",
                    "link set eth0 up",
                    f"route add default via {LAN_NETWORK}.1",
                )
            ip6 = self._ipv6(inner, host, number, index) if home.kind == NatType.IPV6 else ""
            if not ip6:
                host.sysctl("net/ipv6/conf/eth0/disable_ipv6", 1)
            home.hosts.append(Host(host, ip, public_ip, ip6))
        if home.kind == NatType.UPNP:
            self._start_upnp(home, router)

    def _ipv6(self, router: Namespace, host: Namespace, number: int, index: int) -> str:
        gateway, ip6 = f"2a0e:bb:{number:x}::1", f"2a0e:bb:{number:x}::{index + 2}"
        router.sysctl("net/ipv6/conf/all/forwarding", 1)
        router.sysctl(f"net/ipv6/conf/{WAN}/proxy_ndp", 1)
        if index == 0:
            router.ip(f"addr add {gateway}/64 dev {LAN} nodad")
        router.ip(f"neigh add proxy {ip6} dev {WAN}")
        host.ip(f"addr add {ip6}/64 dev eth0 nodad", f"route add default via {gateway}")
        return ip6

    def _start_upnp(self, home: Home, router: Namespace) -> None:
        folder = Path(
            home.cleanup.enter_context(
                tempfile.TemporaryDirectory(prefix=f"{FOLDER_PREFIX}{os.getpid()}-")
            )
        )
        config = folder / "miniupnpd.conf"
        config.write_text(nat_types.UPNP_CONFIG.format(wan=WAN, lan=LAN, folder=folder))
        with (folder / "log").open("wb") as log:
            daemon = router.popen(
                tool("miniupnpd"),
                *("-d", "-f", str(config), "-P", str(folder / "pid")),
                stderr=log,
            )
        home.cleanup.callback(stop, daemon)
        _wait_for_udp(router, 5351, daemon, folder / "log")


def _collect() -> None:
    """Remove the folders of labs that were killed: files are all that can be left of them."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*"):
        pid = folder.name.removeprefix(FOLDER_PREFIX).partition("-")[0]
        if pid.isdecimal() and not Path("/proc", pid).exists():
            shutil.rmtree(folder, ignore_errors=True)


def _cable(a: Namespace, a_name: str, a_ip: str, b: Namespace, b_name: str, b_ip: str) -> None:
    """A link with an address at each end; `b`'s way to the world is over `a`."""
    a.link(a_name, b, b_name)
    a.ip(f"addr add {a_ip} dev {a_name}", f"link set {a_name} up")
    b.ip(
        f"addr add {b_ip} dev {b_name}",
        f"link set {b_name} up",
        f"route add default via {a_ip.partition('/')[0]}",
    )


def _wait_for_udp(
    namespace: Namespace, port: int, daemon: subprocess.Popen[Any], log: Path
) -> None:
    """Until somebody there listens on a UDP port: a daemon that says nothing when it is ready."""
    wanted = f":{port:04X} "
    for _ in range(int(LIFT_OFF_S * 20)):
        with namespace.entered():
            table = Path("/proc/thread-self/net/udp").read_text()
        if any(wanted in line for line in table.splitlines()):
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            daemon.wait(0.05)
            break
    raise LabError(f"miniupnpd did not come up:\n{log.read_text(errors='replace')}")


def stop(process: subprocess.Popen[Any]) -> None:
    """Kill a process of the lab: nothing of it is to be kept."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
