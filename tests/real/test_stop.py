"""SIGTERM ends a daemon with 0, in every state, and nothing of it stays behind."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.real.cluster import TINY, Cluster, Place, at_round

pytestmark = pytest.mark.real

PROMISE_S = 10.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("stop")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def hub(cluster):
    """A node that takes part in no run: the others' bootstrap."""
    return cluster.node("hub").start()


def nothing_stays(node):
    node.cluster.wait(lambda: not node.processes(), "end of everything", patience_s=5)
    assert not node.paths.control_socket.exists()
    assert not node.paths.trainer_socket.exists()
    with node.paths.lock.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert "Traceback" not in node.log_text()


def state_of(status, name):
    return [row["state"] for row in status["peers"] if row["name"] == name]


HERE = (["active"], ["joining"], ["connected"])
"""How a node that is there stands in another one's list of peers."""


def ends_well(node, *, watcher):
    """SIGTERM; `watcher` lists it as having left, not as lost."""
    watcher.until(lambda s: state_of(s, node.name) in HERE, "the node")
    assert node.stop() < PROMISE_S
    nothing_stays(node)
    assert list(node.home.rglob(".saving-*")) == []
    status = watcher.until(lambda s: state_of(s, node.name) not in HERE, "end")
    assert state_of(status, node.name) == ["left"], status["peers"]
    assert "peer-lost" not in [warning["code"] for warning in status["health"]]


def test_idle(cluster, hub):
    node = cluster.node("idle", bootstrap=hub).start()
    assert node.ready().status()["state"] == "idle"
    ends_well(node, watcher=hub)


def test_looking_for_a_run_that_nobody_knows(cluster, hub):
    node = cluster.node("looking", bootstrap=hub, **cluster.joins(run__name="nowhere")).start()
    status = node.ready().status()
    assert (status["state"], status["trainer"]["state"]) == ("joining", "none")
    ends_well(node, watcher=hub)


def test_waiting_for_a_member_that_does_not_come(cluster, hub):
    values = cluster.creates(run__min_members=2)
    node = cluster.node("waiting", bootstrap=hub, **values).start()
    # Once while its trainer is still being loaded, once while it waits.
    node.until(lambda s: s["trainer"]["pid"], "a trainer's process")
    ends_well(node, watcher=hub)
    node.start()
    node.until(lambda s: s["trainer"]["state"] == "running", "the trainer")
    assert node.status()["run"]["epoch"] is None
    ends_well(node, watcher=hub)


def test_training_and_with_a_trainer_that_does_not_listen(cluster, hub):
    endless = cluster.creates(run__steps=0)
    hurried = cluster.node("hurried", bootstrap=hub, **{**endless, "run__name": "other"}).start()
    node = cluster.node("creator", bootstrap=hub, **endless).start()
    node.keep_port()
    other = cluster.node("other", bootstrap=node, **cluster.joins()).start()
    for each in (node, other):
        each.until(lambda s: s["run"]["members_last_round"] == 2, "a round of two")
    ends_well(other, watcher=node)
    # What was done is saved: its last round is in the newest checkpoint.
    rounds = [point for point in points(other) if point["kind"] == "round"]
    newest = max(other.file("checkpoints").glob("step-*"))
    manifest = json.loads((newest / "manifest.json").read_text())["manifest"]
    assert (manifest["round"], manifest["state_sha256"]) == (
        rounds[-1]["round"],
        rounds[-1]["state_sha256"],
    )

    # Trainers that hear nothing: one daemon is patient with it, the other is told to hurry.
    for each in (node, hurried):
        os.kill(each.until(at_round(1), "a round")["trainer"]["pid"], signal.SIGSTOP)
    begun = time.monotonic()
    hurried.send(signal.SIGTERM)
    node.send(signal.SIGTERM)
    hurried.until(lambda s: s["state"] == "stopping", "the stop")
    hurried.send(signal.SIGTERM)
    for each in (hurried, node):
        assert each.wait() == 0
        assert time.monotonic() - begun < PROMISE_S
        nothing_stays(each)


def test_noded_stop_ends_it_as_well(cluster, hub):
    node = cluster.node("asked", bootstrap=hub).start().ready()
    done = node.cli("stop", "--json")
    assert (done.returncode, json.loads(done.stdout)["stopped"]) == (0, True)
    assert node.wait() == 0
    nothing_stays(node)
    gone = node.cli("status")
    assert gone.returncode == 3
    assert "start it:" in gone.stderr


def test_noded_local_leaves_nothing_after_a_kill_and_ctrl_c(tmp_path):
    with Cluster(tmp_path) as cluster:
        out = tmp_path / "out"
        local = subprocess.Popen(
            [
                *[sys.executable, "-P", "-m", "node", "local", "--peers", "2", "--plain"],
                *["--steps", "100000", "--every", "4", "--out", str(out)],
                *["--data", str(cluster.corpus)],
                *["--set", f"run.task_settings={json.dumps(TINY)}"],
            ],
            env=cluster.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
        try:
            nodes = [Place(cluster, f"peer-{n}", out / f"peer-{n}") for n in (1, 2)]
            first = nodes[1].until(at_round(2), "a round")
            os.kill(first["node"]["pid"], signal.SIGKILL)
            again = nodes[1].until(
                lambda s: s["node"]["pid"] != first["node"]["pid"] and s["trainer"]["pid"],
                "the killed daemon again",
            )
            assert again["node"]["pid"] != first["node"]["pid"]
            # In the middle of the restart: its trainer is still being loaded.
            local.send_signal(signal.SIGINT)
            assert local.wait(30) == 130
            for node in nodes:
                nothing_stays(node)
        finally:
            local.kill()
            local.wait()


def points(node):
    return [json.loads(line) for line in node.file("metrics.jsonl").read_text().splitlines()]
