"""Two daemons train for real: one creates the run, the other knows nothing but its name."""

import json
import math
import os
import socket
import stat
import subprocess
import sys

import psutil
import pytest

from node import keys
from node.cli.client import Client
from node.run.checkpoint import Trust, verify
from tests.real.cluster import Cluster, finished

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(cluster, one, two), finished; the daemons were started under a careless umask."""
    with Cluster(tmp_path_factory.mktemp("pair")) as cluster:
        one = cluster.node("one", **cluster.creates(run__min_members=2)).start(umask=0)
        # No name: the machine's own is shown.
        two = cluster.node("two", bootstrap=one, **cluster.joins(node__name="")).start(umask=0)
        cluster.until_all(finished, "end of the run")
        yield cluster, one, two


def test_both_end_with_the_same_parameters_and_the_same_validation_loss(pair):
    _, one, two = pair
    first, second = one.status(), two.status()
    for status in (first, second):
        assert (status["run"]["round"], status["run"]["rounds_total"]) == (10, 10)
        assert (status["run"]["step"], status["run"]["steps_total"]) == (40, 40)
        assert len(status["run"]["epoch"]["members"]) == 2
        assert status["run"]["members_last_round"] == 2
    assert first["run"]["state_sha256"] == second["run"]["state_sha256"]
    assert len(first["run"]["state_sha256"]) == 64
    assert first["run"]["id"] == second["run"]["id"]
    # Not the tokens: each node counts its own.
    assert first["run"]["val_loss"] == second["run"]["val_loss"]
    assert first["run"]["val_loss"] < math.log(256)


def test_a_finished_run_is_healthy_though_its_trainer_is_gone(pair):
    cluster, one, two = pair
    for node in (one, two):
        status = node.until(lambda s: s["trainer"]["state"] == "exited", "end of the trainer")
        assert status["state"] == "finished"
        assert status["verdict"] == "ok", status["health"]
        assert [warning["code"] for warning in status["health"]] == []
        cluster.wait(
            lambda node=node: [process.pid for process in node.processes()] == [node.pid],
            "end of the trainer's process",
        )
        assert node.cli("status", "--check").returncode == 0


def test_the_checkpoints_verify_and_hold_the_final_state(pair):
    _, one, two = pair
    for node in (one, two):
        status = node.until(lambda s: s["checkpoint"]["step"] == 40, "last checkpoint")
        run_id = bytes.fromhex(status["run"]["id"])
        key = keys.load_identity(node.paths.node_key).public_key
        path = node.file("checkpoints", "step-00000040")
        assert status["checkpoint"]["path"] == str(path)
        found = verify(path, Trust(run_id=run_id, public_keys=[key]))
        assert found.manifest.state_sha256 == status["run"]["state_sha256"]
        assert found.manifest.sha256 == status["checkpoint"]["sha256"]
        kept = sorted(folder.name for folder in node.file("checkpoints").iterdir())
        assert kept == ["step-00000024", "step-00000032", "step-00000040"]


def test_metrics_and_sample_are_written(pair):
    _, one, two = pair
    for node in (one, two):
        lines = node.file("metrics.jsonl").read_text().splitlines()
        points = [json.loads(line) for line in lines]
        rounds = [point["round"] for point in points if point["kind"] == "round"]
        assert rounds == list(range(1, 11))
        losses = [point["loss"] for point in points if point["kind"] == "eval"]
        assert losses[-1] < losses[0]
        history = Client(node.paths.control_socket).get("/v1/metrics-history")
        assert history["points"] == points
        assert node.file("sample.txt").read_text()


def test_the_command_line_says_the_same_as_json(pair):
    _, one, two = pair
    status = json.loads(one.cli("status", "--json").stdout)
    assert status["schema"] == "noded.status/1"
    assert status["node"]["name"] == "one"
    [row] = json.loads(one.cli("peers", "--json").stdout)["peers"]
    assert (row["state"], row["path"], row["round"]) == ("active", "direct", 10)
    assert row["name"] == os.uname().nodename == two.status()["node"]["name"]
    assert row["state_sha256"] == status["run"]["state_sha256"]
    assert row["bytes_sent"] > 0
    assert row["bytes_received"] > 0
    shown = json.loads(two.cli("id", "--json").stdout)
    assert (shown["schema"], shown["id"]) == ("noded.id/1", row["id"])

    ponged = one.cli("ping", row["id"][:12], "-c", "2", "--interval", "0", "--json")
    answer = json.loads(ponged.stdout)
    assert (ponged.returncode, answer["schema"], answer["peer"]) == (0, "noded.ping/1", row["id"])
    assert [reply["path"] for reply in answer["replies"]] == ["direct", "direct"]
    nobody = one.cli("ping", "nobody", "--json")
    assert nobody.returncode == 6
    assert json.loads(nobody.stdout)["error"]
    assert two.cli("ping", "one", "-c", "1").returncode == 0
    text = one.cli("status").stdout
    assert "demo" in text
    assert status["run"]["state_sha256"][:8] in text or "10" in text


def test_one_tcp_port_is_the_whole_network_surface(pair):
    _, one, two = pair
    for node in (one, two):
        sockets = psutil.Process(node.pid).net_connections("inet")
        listening = [entry for entry in sockets if entry.status == psutil.CONN_LISTEN]
        assert [f"{at.laddr.ip}:{at.laddr.port}" for at in listening] == [node.address()]
        assert [entry for entry in sockets if entry.type == socket.SOCK_DGRAM] == []


def test_sockets_and_keys_are_the_owners_alone_under_a_careless_umask(pair):
    _, one, two = pair
    for node in (one, two):
        for socket_path in (node.paths.control_socket, node.paths.trainer_socket):
            mode = os.lstat(socket_path).st_mode
            assert stat.S_ISSOCK(mode)
            assert stat.S_IMODE(mode) == 0o600
            assert stat.S_IMODE(socket_path.parent.stat().st_mode) == 0o700
        for path in (node.paths.node_key, node.paths.swarm_key, node.paths.lock):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(node.home.stat().st_mode) == 0o700


def test_no_secret_leaves_its_file(pair):
    cluster, one, two = pair
    for node in (one, two):
        seed = keys.load_identity(node.paths.node_key).seed
        secrets = [seed, cluster.swarm.key]
        process = psutil.Process(node.pid)
        places = {
            "argv": "\0".join(process.cmdline()).encode(),
            "environ": str(process.environ()).encode(),
            "status": json.dumps(node.status()).encode(),
        }
        for path in sorted(node.home.rglob("*")):
            if path.is_file() and path not in {node.paths.node_key, node.paths.swarm_key}:
                places[str(path)] = path.read_bytes()
        assert str(node.file("trainer.log")) in places
        printed = cluster.swarm.key_text.split()[0].encode()
        for place, content in places.items():
            for secret in secrets:
                assert secret not in content, place
                assert secret.hex().encode() not in content.lower(), place
            assert printed not in content, place


def test_the_daemons_have_not_loaded_torch(pair):
    _, one, _ = pair
    maps = psutil.Process(one.pid).memory_maps()
    assert [entry.path for entry in maps if "torch" in entry.path] == []


def test_a_wrong_question_on_the_control_socket_harms_nobody(pair):
    _, one, _ = pair
    for nonsense in (
        b"\0" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/stop HTTP/1.1\r\nOrigin: x\r\n\r\n",
    ):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(30)
            sock.connect(str(one.paths.control_socket))
            sock.sendall(nonsense)
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(64).startswith(b"HTTP/1.1 4")
    assert one.status()["state"] == "finished"


def test_one_that_comes_late_gets_the_final_state_and_those_that_leave_are_no_warning(pair):
    cluster, one, two = pair
    late = cluster.node("late", bootstrap=two, **cluster.joins()).start()
    status = late.until(finished, "final state at the late one")
    assert status["run"]["state_sha256"] == one.status()["run"]["state_sha256"]
    assert late.stop() < 10
    status = one.until(
        lambda s: [row["state"] for row in s["peers"] if row["name"] == "late"] == ["left"],
        "the late one as left",
    )
    assert status["verdict"] == "ok", status["health"]


def test_a_user_script_can_read_the_result_without_the_daemon(pair):
    _, one, _ = pair
    path = one.file("checkpoints", "step-00000040", "model.safetensors")
    code = (
        "import sys; from safetensors.numpy import load_file; t = load_file(sys.argv[1]); "
        "print(sum(v.size for v in t.values()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 0
