"""Daemons that train without agreement, for real: D-PSGD on digits, each node with its own part of the data."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from node.run.checkpoint import Trust, verify
from tests.real.cluster import Cluster, at_round, finished

pytestmark = pytest.mark.real

ROUNDS = 12


def creates(count: int, **more: Any) -> dict[str, Any]:
    """Values of the node that creates a run of D-PSGD for `count` nodes."""
    return {
        "run__name": "demo",
        "run__create": True,
        "run__task": "digits",
        "run__protocol": "dpsgd",
        "run__protocol_settings": {"graph": "full"},
        "run__every": 10,
        "run__steps": 10 * ROUNDS,
        "run__min_members": count,
        "run__part": f"1/{count}",
        "network__port_mapping": False,
        "trainer__evaluate_every": 4,
        "trainer__checkpoint_every": 4,
        **more,
    }


def joins(number: int, count: int, **more: Any) -> dict[str, Any]:
    return {
        "run__name": "demo",
        "run__part": f"{number}/{count}",
        "network__port_mapping": False,
        "trainer__evaluate_every": 4,
        "trainer__checkpoint_every": 4,
        **more,
    }


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """(cluster, nodes), finished; one trainer was killed on the way."""
    with Cluster(tmp_path_factory.mktemp("three")) as cluster:
        first = cluster.node("one", **creates(3)).start()
        others = [
            cluster.node(name, bootstrap=first, **joins(number, 3)).start()
            for number, name in ((2, "two"), (3, "three"))
        ]
        nodes = [first, *others]
        victim = others[0].until(at_round(2), "its second round")
        assert victim["trainer"]["pid"]
        os.kill(victim["trainer"]["pid"], signal.SIGKILL)
        cluster.until_all(finished, "end of the run")
        yield cluster, nodes


def test_all_come_to_the_end_and_learn(three):
    _, nodes = three
    for node in nodes:
        run = node.status()["run"]
        assert (run["round"], run["rounds_total"]) == (ROUNDS, ROUNDS)
        assert run["epoch"] is None
        assert run["accuracy"] > 0.8
        assert len(run["gossip"]["neighbours"]) == 2
        assert run["gossip"]["core"]["round"] == ROUNDS
        assert run["gossip"]["bytes_received"] > 0
        assert len(run["state_sha256"]) == 64


def test_a_killed_trainer_cost_a_leg_and_not_the_run(three):
    _, (_, victim, _) = three
    status = victim.until(lambda s: s["trainer"]["state"] == "exited", "end of the trainer")
    assert status["trainer"]["restarts"] == 1
    assert status["verdict"] == "ok", status["health"]


def test_the_checkpoint_is_the_model_of_the_last_round(three):
    _, nodes = three
    for node in nodes:
        status = node.status()
        saved = status["checkpoint"]
        assert saved["round"] == ROUNDS
        found = verify(Path(saved["path"]), Trust(run_id=bytes.fromhex(status["run"]["id"])))
        assert found.manifest.state_sha256 == status["run"]["state_sha256"]


def test_everybody_sees_everybodys_progress(three):
    _, nodes = three
    for node in nodes:
        rows = node.status()["peers"]
        assert [row["round"] for row in rows] == [ROUNDS, ROUNDS]


def test_a_node_that_comes_back_goes_on_from_its_checkpoint(three):
    """Last of this file's order: it changes the cluster."""
    _, (one, two, three_) = three
    before = two.status()["run"]
    two.stop()
    three_.until(lambda s: len(s["run"]["gossip"]["neighbours"]) == 1, "the goodbye of a neighbour")
    two.start()
    status = two.until(finished, "end of the run, again")
    assert status["run"]["round"] == ROUNDS
    assert status["run"]["state_sha256"] == before["state_sha256"]
    one.until(lambda s: len(s["run"]["gossip"]["neighbours"]) == 2, "its neighbour again")
