"""A user's own script attaches to a running daemon: alone it trains as without it, and in rounds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.real.cluster import Cluster, at_round, finished

pytestmark = pytest.mark.real

SCRIPT = Path(__file__).with_name("scripted.py")
STEPS = 40


@pytest.fixture
def cluster(tmp_path):
    with Cluster(tmp_path / "script") as cluster:
        yield cluster


def script(cluster, node, result, steps=STEPS, stream=0):
    return subprocess.Popen(
        [
            *[sys.executable, str(SCRIPT), str(result), str(steps)],
            *[str(node.paths.trainer_socket), str(stream)],
        ],
        env=cluster.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def result_of(process, path):
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return json.loads(path.read_text())


def values(cluster, **more):
    return cluster.creates(run__task="mine", run__steps=STEPS, trainer__auto=False, **more)


def test_alone_it_trains_bit_for_bit_as_plain_torch(cluster, tmp_path):
    node = cluster.node("one", **values(cluster)).start()
    node.until(lambda s: s["run"]["id"], "the run")
    assert node.status()["trainer"]["state"] == "none"
    path = tmp_path / "alone.json"
    alone = result_of(script(cluster, node, path), path)
    assert (alone["round"], alone["peers"]) == (10, 0)
    assert alone["joined"] == alone["plain"] != alone["fresh"]
    status = node.until(finished, "end of the run")
    assert alone["node"] == status["node"]["id"]
    assert (status["run"]["round"], status["run"]["step"]) == (10, STEPS)
    assert status["verdict"] == "ok", status["health"]


def test_two_scripts_on_two_nodes_train_one_model(cluster, tmp_path):
    one = cluster.node("one", **values(cluster, run__min_members=2)).start()
    two = cluster.node("two", bootstrap=one, **cluster.joins(trainer__auto=False)).start()
    for node in (one, two):
        node.until(lambda s: s["run"]["id"], "the run")
    paths = [tmp_path / "one.json", tmp_path / "two.json"]
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


def test_a_script_that_is_killed_is_missed_but_nobody_starts_it_again(cluster, tmp_path):
    node = cluster.node("one", **{**values(cluster), "run__steps": 0}).start()
    node.until(lambda s: s["run"]["id"], "the run")
    doomed = script(cluster, node, tmp_path / "never.json", steps=10**9)
    status = node.until(at_round(1), "a round")
    assert (status["trainer"]["state"], status["trainer"]["pid"]) == ("attached", doomed.pid)
    doomed.kill()
    doomed.communicate()
    status = node.until(lambda s: s["trainer"]["state"] == "none", "its absence")
    assert (status["trainer"]["pid"], status["trainer"]["restarts"]) == (None, 0)
    assert status["state"] == "joining"
    assert status["verdict"] == "ok", status["health"]
    assert node.stop() < 10
