"""Daemons that train without agreement, for real: D-PSGD on digits, each node with its own part of the data."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from node.run.checkpoint import Trust, verify
from node.simulation.records import Completion, Record
from node.simulation.run import Simulation
from node.simulation.scenario import Scenario
from tests.real.cluster import Cluster, Node, at_round, finished, training
from tests.real.swarm import slow
from tests.real.test_user_script import result_of, script

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


def rounds_of(node: Node) -> dict[int, str]:
    """The digest of a node's model after each of its rounds."""
    lines = node.file("metrics.jsonl").read_text().splitlines()
    points = [json.loads(line) for line in lines]
    return {each["round"]: each["state_sha256"] for each in points if each["kind"] == "round"}


def test_two_scripts_train_in_legs(tmp_path):
    """`node.join` around an unchanged loop; at the end both hold the model of the last round."""
    with Cluster(tmp_path / "scripts") as cluster:
        values = creates(2, run__task="mine", run__part="", trainer__auto=False)
        one = cluster.node("one", **{**values, "run__steps": 40, "run__every": 4}).start()
        two = cluster.node(
            "two", bootstrap=one, **joins(2, 2, run__part="", trainer__auto=False)
        ).start()
        paths = [tmp_path / "one.json", tmp_path / "two.json"]
        for node in (one, two):
            node.until(lambda s: s["trainer"]["socket"], "the run")
        scripts = [
            script(cluster, node, path, stream=stream)
            for stream, (node, path) in enumerate(zip((one, two), paths, strict=True))
        ]
        first, second = [result_of(*pair) for pair in zip(scripts, paths, strict=True)]
        assert (first["round"], first["peers"]) == (second["round"], second["peers"]) == (10, 1)
        assert first["plain"] != second["plain"]
        assert first["joined"] == second["joined"]
        ends = cluster.until_all(finished, "end of the run")
        assert len({status["run"]["state_sha256"] for status in ends}) == 1


@slow
@pytest.mark.parametrize(
    ("protocol", "settings"),
    [
        ("dpsgd", {"graph": "ring"}),
        ("modest", {"sample_size": 4, "success_fraction": 1.0}),
        ("dfedsam", {"graph": "ring", "rho": 0.05}),
    ],
)
def test_the_simulator_computes_the_same_models(tmp_path, protocol, settings):
    """Four daemons, then the same run on a virtual clock: after each round each node has the same model, to the last bit.

    Where all four take part in every round, timing decides nothing.
    """
    count, rounds = 4, 6
    with Cluster(tmp_path) as cluster:
        values = creates(
            count,
            run__protocol=protocol,
            run__protocol_settings=settings,
            run__steps=10 * rounds,
            run__seed=5,
        )
        first = cluster.node("n1", **values).start()
        nodes = [first] + [
            cluster.node(f"n{number}", bootstrap=first, **joins(number, count)).start()
            for number in range(2, count + 1)
        ]
        statuses = cluster.until_all(finished, "end of the run")
        real = [rounds_of(node) for node in nodes]
    found: list[dict[int, str]] = [{} for _ in nodes]

    def note(record: Record) -> None:
        if isinstance(record, Completion):
            found[record.node][record.round] = record.sha256

    scenario = Scenario(
        protocol=protocol,
        protocol_settings=settings,
        nodes=count,
        rounds=rounds,
        every=10,
        seed=5,
        engine="exact",
        ids=tuple(status["node"]["id"] for status in statuses),
        run_id=statuses[0]["run"]["id"],
    )
    Simulation(scenario, write=note, hashes=True).run()
    assert all(set(each) == set(range(1, rounds + 1)) for each in found)
    assert real == found
    if protocol == "dpsgd":
        assert len({each[rounds] for each in real}) == count


def best(nodes: list[Node]) -> float:
    """The highest accuracy on the held-out data that a node has told of its model."""
    told = [node.status()["run"]["accuracy"] for node in nodes if node.process is not None]
    return max((accuracy for accuracy in told if accuracy is not None), default=0.0)


@slow
def test_eight_daemons_with_modest_while_nodes_join_leave_and_are_killed(tmp_path):
    """Each with an eighth of the data: the line of models goes on through all of it, and gets better."""
    settings = {
        "sample_size": 3,
        "aggregators": 2,
        "success_fraction": 0.6,
        "ping_timeout": 1.0,
        "inactivity_window": 20,
    }
    with Cluster(tmp_path) as cluster:
        values = creates(
            5,
            run__protocol="modest",
            run__protocol_settings=settings,
            run__steps=0,
            run__every=5,
            run__part="1/8",
        )
        first = cluster.node("n1", **values).start()
        nodes = [first] + [
            cluster.node(f"n{number}", bootstrap=first, **joins(number, 8)).start()
            for number in range(2, 6)
        ]
        before = {node.name: node for node in nodes}

        def goes_on(what: str, rounds: int = 5) -> None:
            """All that are there have completed so many rounds more than anybody had."""
            reached = max(status["run"]["round"] for status in cluster.until_all(training, what))
            for node in nodes:
                if node.process is not None:
                    node.until(at_round(reached + rounds), f"rounds after {what}")

        goes_on("the start")
        for number in range(6, 9):
            nodes.append(cluster.node(f"n{number}", bootstrap=first, **joins(number, 8)).start())
            goes_on(f"n{number} joined")
        before["n2"].kill()
        before["n3"].kill()
        goes_on("two were killed")
        assert before["n4"].cli("stop").returncode == 0
        before["n4"].wait()
        goes_on("one left")
        first.kill()  # the one that made the run
        goes_on("its maker was killed")
        before["n2"].values["network.bootstrap"] = [nodes[-1].address()]
        before["n2"].write_config()
        before["n2"].start()
        goes_on("one came back")
        cluster.wait(lambda: best(nodes) > 0.9, "a good model", last=lambda: best(nodes))
        for node in nodes:
            if node.process is not None:
                node.stop()


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
