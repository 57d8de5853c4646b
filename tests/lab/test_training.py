"""Real daemons train together though three of four sit behind NATs, two of them symmetric ones.

A symmetric NAT meets neither another one nor a port-restricted one by punching, so half of the six
pairs are relayed here, by the one public node; whatever the ring's order, two of its links at least
lead through that relay. Variants that take longer run with NODED_LAB=all.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab.daemons import Json, LabCluster, LabNode
from tests.lab.marks import slow
from tests.lab.nat_types import NatType
from tests.lab.switch import LinkProfile
from tests.lab.topology import Lab
from tests.real.cluster import TINY, at_round, finished

pytestmark = pytest.mark.real

DIRECT = {"direct", "reversed", "punched"}
MODEL = {**TINY, "layers": 2, "width": 64, "context": 16}
"""Half a megabyte: ten rounds carry more over a circuit than the relay lets through at once."""

HALF = LinkProfile(delay_ms=10)
PATIENCE_S = 120.0


class Swarm:
    """Public nodes, and three nodes at home that train."""

    def __init__(self, lab: Lab, cluster: LabCluster) -> None:
        self.lab = lab
        self.cluster = cluster
        self.relays: list[LabNode] = []
        self.homes: list[LabNode] = []

    def add_homes(self, bootstrap: list[LabNode], creating: Json | None = None) -> None:
        """One behind a port-restricted NAT (which creates the run if told how) and two behind symmetric ones."""
        kinds = {"port": NatType.PORT, "left": NatType.SYMMETRIC, "right": NatType.SYMMETRIC}
        for name, kind in kinds.items():
            values = self.cluster.joins() if creating is None or self.homes else creating
            host = self.lab.home(kind).host
            self.homes.append(self.cluster.on(host, name, *bootstrap, **values).start())

    def by_name(self, name: str) -> LabNode:
        return next(node for node in self.homes if node.name == name)


@contextmanager
def swarm_in(folder: Path, profile: LinkProfile | None = None) -> Iterator[Swarm]:
    with Lab(profile) as lab, LabCluster(folder) as cluster:
        yield Swarm(lab, cluster)


def check_run(trainers: list[LabNode], rounds: int) -> None:
    """All took part to the end, in one epoch of all, and hold the same parameters."""
    statuses = [node.status() for node in trainers]
    for status in statuses:
        assert status["run"]["round"] == rounds
        assert status["run"]["members_last_round"] == len(trainers)
    assert len({status["run"]["state_sha256"] for status in statuses}) == 1
    assert len(statuses[0]["run"]["state_sha256"]) == 64
    epochs = [status["run"]["epoch"] for status in statuses]
    assert len({epoch["id"] for epoch in epochs}) == 1
    assert sorted(epochs[0]["members"]) == sorted(node.node_id for node in trainers)


def check_paths(trainers: list[LabNode], relays: list[LabNode]) -> None:
    """Between homes everything is relayed, with tensors in streams of that; the rest is direct."""
    tables = {node.name: node.peers() for node in trainers}
    public = {node.name for node in relays}
    relay_ids = {node.node_id for node in relays}
    for one, two in itertools.permutations(trainers, 2):
        row = tables[one.name][two.name]
        if {one.name, two.name} & public:
            assert row["path"] in DIRECT, row
            assert row["relay"] is None
        else:
            assert (row["path"], row["relay"] in relay_ids) == ("relayed", True), row
    members = trainers[0].status()["run"]["epoch"]["members"]
    names = {node.node_id: node.name for node in trainers}
    ring = [names[member] for member in members]
    relayed = 0
    for one, two in zip(ring, [*ring[1:], ring[0]], strict=True):
        if not {one, two} & public:
            relayed += 1
            assert "over-stream" in {tables[one][two]["bulk"], tables[two][one]["bulk"]}
            assert tables[one][two]["bytes_sent"] > 1_000_000
    assert relayed >= 2


def check_verdicts(homes: list[LabNode], relays: list[LabNode]) -> None:
    """Each node knows how it stands, and what it gives to others."""
    for node in relays:
        report, status = node.asked("netcheck"), node.status()
        assert (report["verdict"], report["relay_service"]) == ("direct", True)
        assert status["node"]["reach"] == "direct"
        assert status["relay"]["serving"]
    for node in homes:
        report, status = node.asked("netcheck"), node.status()
        assert report["verdict"] not in {"direct", "isolated", "local"}
        assert not status["relay"]["serving"]
        assert {row["node"] for row in report["relays"]} <= {relay.node_id for relay in relays}
        assert [at for at in report["advertised"] if "/via/" in at]
        assert status["verdict"] == "ok" or {warning["code"] for warning in status["health"]} == {
            "loop-lag"  # of a busy machine
        }


def test_four_nodes_of_which_three_are_behind_nats_train_one_model(tmp_path):
    with swarm_in(tmp_path) as swarm:
        values = swarm.cluster.creates(run__min_members=4, run__task_settings=MODEL)
        hub = swarm.cluster.on(swarm.lab.public(), "hub", **values).start().ready()
        swarm.add_homes([hub])
        swarm.cluster.until_all(finished, "end of the run", patience_s=PATIENCE_S)
        everybody = [hub, *swarm.homes]
        check_run(everybody, rounds=10)
        check_paths(everybody, [hub])
        check_verdicts(swarm.homes, [hub])
        given = hub.status()["relay"]
        assert given["circuits"] >= 3  # one for each pair of homes
        assert given["reservations"] == 3
        assert given["carried_bytes"] > 2_000_000
        assert given["budget_left_bytes"] < hub.status()["relay"]["budget_bytes"]

        left, port = swarm.by_name("left"), swarm.by_name("port")
        assert port.asked("ping", "hub", "--until-direct")["replies"][-1]["path"] in DIRECT
        ponged = left.cli("ping", "right", "--until-direct", "--timeout", "1")
        assert (ponged.returncode, "via relay hub" in ponged.stdout) == (5, True), ponged.stdout


def test_a_relay_that_does_not_train_carries_the_run_and_remembers_what_it_gave(tmp_path):
    with swarm_in(tmp_path, HALF) as swarm:
        hub = swarm.cluster.on(swarm.lab.public(), "hub").start().ready()
        creating = swarm.cluster.creates(run__min_members=3, run__task_settings=MODEL)
        swarm.add_homes([hub], creating)
        for node in swarm.homes:
            node.until(finished, "end of the run", patience_s=PATIENCE_S)
        check_run(swarm.homes, rounds=10)
        check_paths(swarm.homes, [hub])
        check_verdicts(swarm.homes, [hub])
        assert hub.status()["run"] is None

        before = hub.status()["relay"]
        assert before["carried_bytes"] > 3_000_000
        hub.stop()
        after = hub.start().ready().status()["relay"]
        spent = after["budget_bytes"] - after["budget_left_bytes"]
        assert after["carried_bytes"] < before["carried_bytes"]
        assert spent > before["carried_bytes"] / 2  # it comes back slowly, over thirty days


@slow
def test_rounds_that_take_long_at_the_relays_rate_break_nothing(tmp_path):
    """The rate of a circuit of a relay that is full twice over; each heartbeat waits behind tensors."""
    rate, rounds = 131_072, 6
    with swarm_in(tmp_path, HALF) as swarm:
        budgets = {"relay__circuit_bytes_per_s": rate, "relay__circuit_burst_bytes": 262_144}
        hub = swarm.cluster.on(swarm.lab.public(), "hub", **budgets).start().ready()
        more = {"run__min_members": 3, "run__task_settings": MODEL, "run__steps": 4 * rounds}
        swarm.add_homes([hub], swarm.cluster.creates(**more))
        seen: list[tuple[int, float]] = []
        for node in swarm.homes:
            node.until(at_round(2), "two rounds", patience_s=PATIENCE_S)
            run = node.status()["run"]
            seen.append((run["epoch"]["number"], run["round_seconds"]))
            rtts = [row["rtt_s"] for row in node.peers().values() if row["path"] == "relayed"]
            assert len(rtts) == 2
            assert max(rtts) < 4.0  # what a connection may be silent
        for node in swarm.homes:
            node.until(finished, "end of the run", patience_s=PATIENCE_S)
        check_run(swarm.homes, rounds)
        assert {number for number, _ in seen} == {swarm.homes[0].status()["run"]["epoch"]["number"]}
        assert max(took for _, took in seen) > 2.0  # the relay's rate was what it took so long for
        carried = hub.status()["relay"]
        assert (carried["circuits_opened"], carried["ended"]) == (3, {})


def check_a_death(
    swarm: Swarm, relays: list[LabNode], kill: Callable[[], None], rounds: int
) -> None:
    """Homes train over relays, one of which is killed meanwhile; the run ends as if nothing had been."""
    more = {"run__min_members": 3, "run__task_settings": MODEL, "run__steps": 4 * rounds}
    swarm.add_homes(relays, swarm.cluster.creates(**more))
    for node in swarm.homes:
        node.until(at_round(5), "some rounds", patience_s=PATIENCE_S)
    kill()
    for node in swarm.homes:
        node.until(finished, "end of the run", patience_s=PATIENCE_S)
    statuses = [node.status() for node in swarm.homes]
    assert len({status["run"]["state_sha256"] for status in statuses}) == 1
    assert {status["run"]["round"] for status in statuses} == {rounds}


@slow
def test_when_the_relay_is_killed_the_run_goes_on_over_another(tmp_path):
    with swarm_in(tmp_path, HALF) as swarm:
        one = swarm.cluster.on(swarm.lab.public(), "one").start().ready()
        two = swarm.cluster.on(swarm.lab.public(), "two", one).start().ready()
        check_a_death(swarm, [one, two], one.kill, rounds=40)
        for node in swarm.homes:
            others = [row for name, row in node.peers().items() if name not in {"one", "two"}]
            assert {row["relay"] for row in others} == {two.node_id}


@slow
def test_when_the_only_relay_is_killed_the_run_waits_until_it_is_back(tmp_path):
    with swarm_in(tmp_path, HALF) as swarm:
        hub = swarm.cluster.on(swarm.lab.public(), "hub").start().ready()

        def kill() -> None:
            hub.kill()
            for node in swarm.homes:
                status = node.until(lambda status: status["state"] == "waiting", "pause")
                codes = [warning["code"] for warning in status["health"]]
                assert "quorum-missing" in codes
                assert "peer-lost" not in codes
            hub.start().ready()

        check_a_death(swarm, [hub], kill, rounds=40)
