"""Members are killed and frozen in the middle of a run: the others go on, and they come back.

One swarm of three serves all tests. It trains as far as its gate is open; each test opens the gate
for a stage, does its harm at full speed, and ends with all three at the stage's last round with
equal parameters.
"""

import json
import os
import signal

import pytest

from tests.real.cluster import Cluster, at_round, finished

pytestmark = pytest.mark.real

EVERY = 4
STAGE_ROUNDS = 60
STAGES = 5
"""More than there are tests: only the last test lets the run end."""
STEPS = EVERY * STAGE_ROUNDS * STAGES


class Three:
    """A run of three that is held at the end of a stage."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.last_round = 0
        values = cluster.gated(cluster.creates(run__steps=STEPS, run__min_members=3), 0)
        self.creator = cluster.node("creator", **values).start()
        self.creator.keep_port()
        joins = cluster.gated(cluster.joins(), 0)
        self.second = cluster.node("second", bootstrap=self.creator, **joins).start()
        self.third = cluster.node("third", bootstrap=self.creator, **joins).start()

    def next_stage(self):
        """All three at full speed; the gate is a stage away."""
        for node in self.cluster.nodes:
            if node.process is None:  # an earlier test has failed
                node.start()
        self.until_together()
        self.last_round += STAGE_ROUNDS
        self.cluster.open_gate(EVERY * self.last_round)
        for node in self.cluster.nodes:
            node.until(at_round(self.last_round - STAGE_ROUNDS + 2), "first rounds of the stage")

    def until_together(self):
        return self.cluster.until_all(
            lambda status: status["state"] == "training" and members(status) == 3,
            "an epoch of three",
        )

    def all_equal(self):
        """Everybody is back, at the end of the stage, with the same parameters."""
        self.until_together()
        ends = self.cluster.until_all(at_round(self.last_round), "end of the stage")
        assert {status["run"]["round"] for status in ends} == {self.last_round}
        assert len({status["run"]["state_sha256"] for status in ends}) == 1


@pytest.fixture(scope="module")
def swarm(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("three")) as cluster:
        yield Three(cluster)


@pytest.fixture
def three(swarm):
    swarm.next_stage()
    return swarm


def members(status):
    epoch = status["run"] and status["run"]["epoch"]
    return 0 if not epoch else len(epoch["members"])


def row_of(status, name):
    [row] = [row for row in status["peers"] if row["name"] == name]
    return row


def goes_on_without(name, *nodes):
    """The others complete a round as two, and know whom they have lost."""
    before = max(node.status()["run"]["round"] for node in nodes)
    for node in nodes:
        status = node.until(
            lambda s: s["run"]["members_last_round"] == 2 and s["run"]["round"] > before,
            f"a round without {name}",
            patience_s=30,
        )
        assert members(status) == 2
        assert row_of(status, name)["state"] == "lost"
        assert row_of(status, name)["reason"]
        assert "peer-lost" in [warning["code"] for warning in status["health"]]


def test_the_creator_and_bootstrap_is_killed_and_comes_back(three):
    three.creator.kill()
    goes_on_without("creator", three.second, three.third)
    three.cluster.wait(lambda: not three.creator.processes(), "end of the killed daemon's trainer")
    three.creator.start()
    three.until_together()
    for node in (three.second, three.third):
        assert row_of(node.status(), "creator")["state"] == "active"
        assert "peer-lost" not in [warning["code"] for warning in node.status()["health"]]
    three.all_equal()


def test_a_killed_trainer_is_started_again_and_its_node_stays(three):
    second = three.second
    before = second.status()
    assert before["checkpoint"]
    os.kill(before["trainer"]["pid"], signal.SIGKILL)
    status = second.until(
        lambda s: (
            s["trainer"]["restarts"] == before["trainer"]["restarts"] + 1
            and s["trainer"]["state"] == "running"
        ),
        "the trainer again",
    )
    assert status["trainer"]["pid"] != before["trainer"]["pid"]
    assert status["node"]["pid"] == before["node"]["pid"]
    assert "SIGKILL" in second.log_text()
    assert three.third.status()["trainer"]["restarts"] == 0
    three.all_equal()
    # From its checkpoint or from the others, but not from the beginning.
    evaluated = [point["round"] for point in points(second) if point["kind"] == "eval"]
    assert evaluated[-1] >= before["checkpoint"]["round"]


def test_a_frozen_daemon_is_left_out_and_comes_back(three):
    three.second.send(signal.SIGSTOP)
    try:
        goes_on_without("second", three.creator, three.third)
    finally:
        three.second.send(signal.SIGCONT)
    three.all_equal()


def test_a_swarm_that_was_killed_as_a_whole_goes_on_from_its_checkpoints(three):
    cluster = three.cluster
    three.all_equal()
    checkpoints = {
        node: node.until(lambda s: s["checkpoint"]["round"] == three.last_round, "checkpoint")
        for node in cluster.nodes
    }
    for node in cluster.nodes:
        node.kill()
    for node in cluster.nodes:
        cluster.wait(lambda node=node: not node.processes(), f"end of {node.name}'s trainer")
        # What a killed trainer left half-written is no checkpoint.
        (node.file("checkpoints") / ".saving-00009999-1.safetensors").write_bytes(b"half")
    for node in cluster.nodes:
        node.start()
    three.until_together()
    for node, before in checkpoints.items():
        assert node.status()["run"]["state_sha256"] == before["run"]["state_sha256"]
        assert list(node.file("checkpoints").glob(".saving-*")) == []
        assert [point["round"] for point in points(node) if point["kind"] == "eval"][-1] == (
            before["checkpoint"]["round"]
        )
    cluster.open_gate(STEPS)
    ends = cluster.until_all(finished, "end of the run")
    assert {status["run"]["step"] for status in ends} == {STEPS}
    assert len({status["run"]["state_sha256"] for status in ends}) == 1
    assert len({status["run"]["val_loss"] for status in ends}) == 1


def points(node):
    return [json.loads(line) for line in node.file("metrics.jsonl").read_text().splitlines()]
