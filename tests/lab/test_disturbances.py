"""Real daemons whose routers, relays and addresses change under them find each other again by themselves.

Members of one run without trainers: what the run does about its members' connections is what is
looked at here, not the training. Rows of `noded peers` tell how they are connected.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from node.cli.client import Client
from tests.lab.daemons import Json, LabCluster, LabNode
from tests.lab.marks import slow
from tests.lab.nat_types import NatType
from tests.lab.switch import LinkProfile
from tests.lab.topology import Home, Lab

pytestmark = pytest.mark.real

DIRECT = {"direct", "reversed", "punched"}
HALF = LinkProfile(delay_ms=20)
PATIENCE_S = 60.0
SOON_S = 30.0
"""What a person would bear; four seconds of silence and the next look at the members are in it."""


class Swarm:
    """Public nodes, and members of one run in homes."""

    def __init__(self, lab: Lab, cluster: LabCluster, public: int, *kinds: NatType) -> None:
        self.cluster = cluster
        self.public: list[LabNode] = []
        for number in range(public):
            node = cluster.on(lab.public(), f"public-{number}", *self.public[:1])
            self.public.append(node.start().ready())
        self.homes: list[Home] = []
        self.members: list[LabNode] = []
        values = {"trainer__auto": False}
        creates = cluster.creates(run__min_members=len(kinds), **values)
        for number, kind in enumerate(kinds):
            self.homes.append(lab.home(kind))
            host, name = self.homes[-1].host, f"member-{number}"
            chosen = cluster.joins(**values) if number else creates
            self.members.append(cluster.on(host, name, *self.public, **chosen).start())
        for member in self.members:
            member.ready()
        self.connected(PATIENCE_S)

    def row(self, of: LabNode, about: LabNode) -> Json:
        """What the one says of its connection with the other."""
        found = (row for row in self.rows(of) if row["name"] == about.name)
        return next(found, {"path": None})

    @staticmethod
    def rows(of: LabNode) -> list[Json]:
        """All that a node says of its connections."""
        rows: list[Json] = Client(of.paths.control_socket, timeout_s=5).get("/v1/peers")["peers"]
        return rows

    def until(
        self, wanted: Callable[[Json], Any], of: LabNode, about: LabNode, patience_s: float
    ) -> float:
        """Wait for a row that `wanted` likes; returns how long it took."""
        begun, last = time.monotonic(), {}

        def look() -> bool:
            nonlocal last
            last = self.row(of, about)
            return bool(wanted(last))

        what = f"the row of {about.name} at {of.name}"
        self.cluster.wait(look, what, patience_s=patience_s, last=lambda: last)
        return time.monotonic() - begun

    def connected(self, patience_s: float = SOON_S) -> None:
        """Everybody in a home is connected with everybody else in one, and with all public nodes."""
        for member in self.members:
            for other in [*self.public, *self.members]:
                if other is not member and other.process is not None:
                    self.until(lambda row: row["path"], member, other, patience_s)

    def ends(self) -> list[list[tuple[str, str, str]]]:
        """Each member's connections: with whom, how, and where the other end is."""
        return [
            [(row["name"], row["path"], row["address"]) for row in self.rows(member)]
            for member in self.members
        ]

    def direct(self, of: int = 0, about: int = 1, patience_s: float = SOON_S) -> float:
        """Two members are connected directly."""
        one, other = self.members[of], self.members[about]
        return self.until(lambda row: row["path"] in DIRECT, one, other, patience_s)


@contextmanager
def swarm_of(folder: Path, public: int, *kinds: NatType) -> Iterator[Swarm]:
    with Lab(HALF) as lab, LabCluster(folder) as cluster:
        yield Swarm(lab, cluster, public, *kinds)


@slow
def test_a_router_that_starts_anew_costs_its_connections_and_no_more(tmp_path):
    with swarm_of(tmp_path, 1, NatType.PORT, NatType.PORT) as swarm:
        swarm.direct()
        swarm.homes[0].cut()
        for other in (swarm.members[1], swarm.public[0]):
            swarm.until(lambda row: not row["path"], swarm.members[0], other, SOON_S)
        swarm.homes[0].restart()
        swarm.connected()
        swarm.direct()


@slow
def test_mappings_are_kept_alive_and_come_back_when_they_are_lost(tmp_path):
    with swarm_of(tmp_path, 1, NatType.PORT, NatType.SYMMETRIC) as swarm:
        for home in swarm.homes:
            for router in home.routers:
                router.sysctl("net/netfilter/nf_conntrack_tcp_timeout_established", 3)
        before = swarm.ends()
        started = swarm.members[0].status()["uptime_s"]
        # Several lifetimes of a mapping, in which little more than heartbeats is sent.
        swarm.members[0].until(lambda status: status["uptime_s"] > started + 10, "some seconds")
        assert swarm.ends() == before
        for home in swarm.homes:
            home.restart()  # both at once, and without a word
        for member in swarm.members:
            swarm.until(lambda row: not row["path"], member, swarm.public[0], SOON_S)
        swarm.connected()


@slow
def test_when_their_relay_is_killed_two_symmetric_nodes_meet_over_another(tmp_path):
    with swarm_of(tmp_path, 2, NatType.SYMMETRIC, NatType.SYMMETRIC) as swarm:
        one, other = swarm.members
        relay_id = swarm.row(one, other)["relay"]
        relay = next(node for node in swarm.public if node.node_id == relay_id)
        relay.kill()
        for of, about in ((one, other), (other, one)):
            took_s = swarm.until(
                lambda row: row["path"] == "relayed" and row["relay"] != relay_id,
                *(of, about),
                patience_s=SOON_S,
            )
            assert took_s < SOON_S


@slow
def test_a_host_with_another_address_connects_anew(tmp_path):
    with swarm_of(tmp_path, 1, NatType.PORT, NatType.PORT) as swarm:
        swarm.direct()
        host = swarm.homes[0].host
        host.namespace.ip(
            "link set eth0 down",
            f"addr del {host.ip}/24 dev eth0",
            "addr add 192.168.1.77/24 dev eth0",
            "link set eth0 up",
            "route add default via 192.168.1.1",
        )
        for other in (swarm.public[0], swarm.members[1]):
            swarm.until(lambda row: not row["path"], other, swarm.members[0], SOON_S)
        swarm.connected()
        swarm.direct()
        netcheck = swarm.members[0].asked("netcheck")
        assert netcheck["interfaces"] == ["192.168.1.77"]
