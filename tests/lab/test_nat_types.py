"""Each kind of NAT does what its name says: which port others see, whom it lets in, what strangers get."""

import os
import random
import socket
import struct
import subprocess
import tempfile

import pytest
import trio

from tests.lab.meeting import PORT, PlacedNetwork
from tests.lab.nat_types import NatType
from tests.lab.topology import Host, Lab, has_upnp_daemon
from transport.address import Address
from transport.errors import ConnectFailed
from transport.network import RawListener, RawStream

pytestmark = pytest.mark.real
HERE = Address("0.0.0.0", PORT)
SILENCE_S = 0.25
"""How long nothing must come to be called silence: every round trip here is below a millisecond."""
PATIENCE_S = 20.0


class Outside:
    """Two servers on the internet: what they see, and whether they get in."""

    def __init__(self, lab: Lab) -> None:
        self.known, self.stranger = lab.public(), lab.public()
        self.held: list[RawStream] = []
        self.listener: RawListener

    async def see(self, host: Host, *, port: int = 5000) -> Address:
        """How the known server sees the host's listening port, at one port of its own."""
        listener = await PlacedNetwork(self.known.namespace).listen(Address(self.known.ip, port))
        target = Address(self.known.ip, port)
        self.held.append(await PlacedNetwork(host.namespace).connect(target, source=HERE))
        stream = await listener.accept()
        self.held.append(stream)
        await listener.aclose()
        return stream.remote

    def close(self) -> None:
        for stream in self.held:
            stream.abort()


async def knock(host: Host, target: Address, expected: str) -> str:
    """What a dial meets: "in", "silence", or the error's words."""
    with trio.move_on_after(SILENCE_S if expected == "silence" else PATIENCE_S):
        try:
            (await PlacedNetwork(host.namespace).connect(target)).abort()
        except ConnectFailed as error:
            return str(error)
        return "in"
    return "silence"


REFUSED = "connection refused"
BEHAVIOUR = {
    # kind: (same port for all, known server from another port, stranger)
    NatType.OPEN: (True, "in", "in"),
    NatType.FULL: (True, "in", "in"),
    NatType.HAIRPIN: (True, "in", "in"),
    NatType.ADDRESS: (True, "in", "silence"),
    NatType.PORT: (True, "silence", "silence"),
    NatType.PORT_RST: (True, REFUSED, REFUSED),
    NatType.DOUBLE: (True, "silence", "silence"),
    NatType.SYMMETRIC: (False, "silence", "silence"),
    NatType.IPV6: (False, "silence", "silence"),
}


@pytest.mark.parametrize("kind", BEHAVIOUR)
async def test_mapping_and_filter(kind):
    same, known, stranger = BEHAVIOUR[kind]
    with Lab() as lab:
        home, outside = lab.home(kind), Outside(lab)
        listener = await PlacedNetwork(home.host.namespace).listen(HERE)
        if kind != NatType.OPEN:
            # Nobody gets in before the host has sent anything, whatever the kind.
            early = REFUSED if kind == NatType.PORT_RST else "silence"
            assert await knock(outside.stranger, Address(home.host.public_ip, PORT), early) == early
        seen = {await outside.see(home.host, port=port) for port in (5000, 5001, 5002)}
        assert (len(seen) == 1) == same
        public = min(seen, key=str)
        assert public.host == home.host.public_ip
        assert await knock(outside.known, public, known) == known
        assert await knock(outside.stranger, public, stranger) == stranger
        outside.close()
        await listener.aclose()


async def test_two_hosts_behind_one_nat_have_two_ports():
    with Lab() as lab:
        home, outside = lab.home(NatType.PORT, hosts=2), Outside(lab)
        seen = [await outside.see(host) for host in home.hosts]
        assert seen[0] != seen[1]
        assert {address.host for address in seen} == {home.host.public_ip}
        outside.close()


@pytest.mark.parametrize(("kind", "met"), [(NatType.HAIRPIN, "in"), (NatType.FULL, REFUSED)])
async def test_hairpin(kind, met):
    with Lab() as lab:
        home, outside = lab.home(kind, hosts=2, isolated=True), Outside(lab)
        a, b = home.hosts
        listener = await PlacedNetwork(b.namespace).listen(HERE)
        public = await outside.see(b)
        assert await knock(a, Address(b.ip, PORT), "silence") == "silence"  # kept apart inside
        assert await knock(a, public, met) == met
        assert await knock(outside.stranger, public, "in") == "in"
        outside.close()
        await listener.aclose()


async def test_hosts_of_one_home_reach_each_other_inside():
    with Lab() as lab:
        a, b = lab.home(NatType.SYMMETRIC, hosts=2).hosts
        listener = await PlacedNetwork(b.namespace).listen(HERE)
        assert await knock(a, Address(b.ip, PORT), "in") == "in"
        await listener.aclose()


async def test_the_ipv6_firewall_lets_answers_in_only():
    with Lab() as lab:
        host, server = lab.home(NatType.IPV6).host, lab.public()
        here = Address("::", PORT)
        inside = await PlacedNetwork(host.namespace).listen(here)
        door = await PlacedNetwork(server.namespace).listen(here)
        assert await knock(server, Address(host.ip6, PORT), "silence") == "silence"
        stream = await PlacedNetwork(host.namespace).connect(Address(server.ip6, PORT), source=here)
        other = await door.accept()
        assert other.remote == Address(host.ip6, PORT)  # no translation
        assert (
            await knock(server, Address(host.ip6, PORT), "silence") == "silence"
        )  # from another port
        for thing in (stream, other):
            thing.abort()
        await inside.aclose()
        await door.aclose()


@pytest.mark.skipif(not has_upnp_daemon(), reason="miniupnpd is not installed")
async def test_miniupnpd_opens_a_port_when_asked():
    with Lab() as lab:
        home, stranger = lab.home(NatType.UPNP), lab.public()
        public = Address(home.host.public_ip, 40_000 + random.Random(1).randrange(1000))
        listener = await PlacedNetwork(home.host.namespace).listen(HERE)
        assert await knock(stranger, public, "silence") == "silence"
        with home.host.namespace.entered():
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sock:  # NAT-PMP, RFC 6886, section 3.3
            sock.settimeout(10)
            sock.connect(("192.168.1.1", 5351))
            sock.send(struct.pack("!BBHHHI", 0, 2, 0, PORT, public.port, 600))
            answer = struct.unpack("!BBHIHHI", sock.recv(64))
        assert answer[:3] == (0, 130, 0)
        assert answer[4:6] == (PORT, public.port)
        assert await knock(stranger, public, "in") == "in"
        await listener.aclose()


def test_folders_of_dead_labs_are_collected(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = subprocess.Popen(["/bin/true"])
    dead.wait()
    names = [f"noded-lab-{dead.pid}-x", f"noded-lab-{os.getpid()}-x", "noded-lab-other"]
    for name in names:
        (tmp_path / name).mkdir()
    with Lab():
        assert {path.name for path in tmp_path.iterdir()} == set(names[1:])
