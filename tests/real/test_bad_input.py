"""Wrong configuration, wrong files, wrong neighbours: one clear error each, and nobody else suffers."""

import contextlib
import json
import os
import socket
import struct

import pytest

from node.trainer_messages import VERSION, Attach, encode
from tests.real.cluster import Cluster, at_round, finished, training
from transport.identity import Identity
from transport.swarm import Swarm

pytestmark = pytest.mark.real


# ---- what ends the start ----


@pytest.fixture
def cluster(tmp_path):
    with Cluster(tmp_path / "bad") as cluster:
        yield cluster


def refuses(node, code, *words):
    """Its daemon ends at once with `code`, naming `words`, and leaves no socket."""
    done = node.cli("run")
    assert done.returncode == code, done.stderr
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert not node.paths.control_socket.exists()
    assert not node.paths.trainer_socket.exists()


def test_a_wrong_key_is_named_with_its_path(cluster):
    node = cluster.node("wrong", **cluster.creates())
    node.write_config('[run]\nname = "demo"\nevry = 3\n')
    refuses(node, 7, "run.evry", "run.every")
    node.write_config('[run]\nname = "demo"\nevery = "x"\n')
    refuses(node, 7, "run.every")
    checked = node.cli("config", "check", "--json")
    assert checked.returncode == 7
    assert "run.every" in json.loads(checked.stdout)["error"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"run__protocol": "telepathy"}, ["telepathy", "diloco"]),
        ({"run__protocol_settings": {"outer_rate": 1}}, ["outer_rate"]),
        ({"run__task": "no-such-task"}, ["no-such-task", "byte-gpt"]),
        ({"run__task_settings": {"layerz": 1}}, ["layerz"]),
        ({"run__data": "/nowhere/at/all"}, ["/nowhere/at/all"]),
    ],
    ids=["protocol", "protocol-setting", "task", "task-setting", "corpus"],
)
def test_a_run_that_cannot_be_is_a_wrong_configuration(cluster, values, words):
    node = cluster.node("wrong", **{**cluster.creates(), **values})
    node.start()

    def outcome():
        """Either the daemon refused to start, or it is up and says what is wrong."""
        if node.process.poll() is not None:
            return node.process.returncode, node.log_text()
        with contextlib.suppress(Exception):
            status = node.status()
            failed = [warning for warning in status["health"] if warning["code"] == "run-failed"]
            if status["state"] == "degraded" and failed:
                assert status["verdict"] == "failing"
                assert failed[0]["hint"]
                return "degraded", failed[0]["text"]
        return None

    how, text = cluster.wait(outcome, "a refusal")
    assert how in {7, "degraded"}
    for word in words:
        assert word in text
    if how == "degraded":
        assert node.cli("status", "--check").returncode == 4
        assert node.stop() < 10


def test_a_run_whose_settings_were_changed_is_refused_with_what_to_do(cluster):
    values = cluster.creates(trainer__auto=False)
    node = cluster.node("changed", **values).start()
    run_id = node.until(lambda s: s["run"]["id"], "the run")["run"]["id"]
    assert node.stop() < 10
    node.values["run.every"] = 5
    node.write_config()
    node.start()
    status = node.until(lambda s: s["health"], "a warning")
    assert (status["state"], status["verdict"]) == ("degraded", "failing")
    [warning] = status["health"]
    assert warning["code"] == "run-failed"
    assert "other settings" in warning["text"]
    assert "another name" in warning["hint"]
    assert "other settings" in status["run"]["failure"]
    assert node.stop() < 10
    node.values["run.every"] = 4
    node.write_config()
    node.start()
    assert node.until(lambda s: s["run"]["id"], "the run again")["run"]["id"] == run_id


def test_a_port_in_use_is_named(cluster):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        node = cluster.node("late", network__listen=[f"127.0.0.1:{port}"])
        refuses(node, 1, str(port), "in use")


def test_one_data_directory_serves_one_daemon(cluster):
    node = cluster.node("first").start().ready()
    refused = node.cli("run")
    assert refused.returncode == 8
    assert str(node.home) in refused.stderr
    assert node.status()["node"]["pid"] == node.pid
    # The lock is the kernel's: what a killed daemon left is in nobody's way.
    node.kill()
    assert node.paths.control_socket.exists()
    node.start().ready()


def test_keys_that_others_can_read_or_that_are_not_there_are_refused(cluster):
    node = cluster.node("careless")
    node.paths.node_key.chmod(0o644)
    refuses(node, 8, f"chmod 600 {node.paths.node_key}")
    node.paths.node_key.chmod(0o600)
    node.paths.swarm_key.unlink()
    done = node.cli("run")
    assert done.returncode in {1, 7, 8}
    assert "init --force" in done.stderr


# ---- what a running node bears ----


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """(cluster, one, two): two that train without end."""
    with Cluster(tmp_path_factory.mktemp("running")) as cluster:
        values = cluster.creates(run__steps=0, run__min_members=2)
        one = cluster.node("one", **values).start()
        two = cluster.node("two", bootstrap=one, **cluster.joins()).start()
        cluster.until_all(at_round(2), "round 2")
        yield cluster, one, two


@pytest.fixture
def undisturbed(running):
    """The same; afterwards both have gone on, together, and nothing was aborted."""
    _, one, two = running
    before = {node: node.status() for node in (one, two)}
    yield running
    for node, status in before.items():
        now = node.until(
            lambda s, status=status: s["run"]["round"] >= status["run"]["round"] + 3, "more rounds"
        )
        assert now["run"]["epoch"] == status["run"]["epoch"]
        assert now["run"]["aborted_operations"] == status["run"]["aborted_operations"]
        assert now["trainer"] == status["trainer"]
        assert node.log_text().count("Traceback") == 0


def host_and_port(node):
    host, _, port = node.address().rpartition(":")
    return host, int(port)


def counted(node, name, before):
    return node.until(
        lambda s: s["counters"].get(name, 0) > before.get(name, 0), f"more of {name!r}"
    )


def test_garbage_on_the_port_is_counted_and_disturbs_nobody(undisturbed):
    _, one, _ = undisturbed
    before = one.status()["counters"]
    garbage = [
        b"GET / HTTP/1.1\r\nHost: noded\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # TLS
        b"SSH-2.0-OpenSSH_9.6\r\n",
        os.urandom(4096),
        bytes(4096),
        b"\xff" * 100,
    ]
    for data in garbage:
        with (
            socket.create_connection(host_and_port(one), timeout=30) as sock,
            contextlib.suppress(ConnectionError),
        ):
            sock.sendall(data)
            assert answer(sock) == b""  # no banner for strangers
    status = counted(one, "handshake-not-noded", before)
    refused = sum(status["counters"].values()) - sum(before.values())
    assert refused >= len(garbage)


def test_half_a_handshake_is_cut_off(undisturbed):
    _, one, two = undisturbed
    before = one.status()["counters"]
    with socket.create_connection(host_and_port(one), timeout=30) as sock:
        sock.sendall(b"noded"[:3])
        assert answer(sock) == b""
    # And one that resets in the middle.
    with socket.create_connection(host_and_port(one), timeout=30) as sock:
        sock.sendall(b"no")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    status = one.until(
        lambda s: sum(s["counters"].values()) > sum(before.values()), "the refusals counted"
    )
    assert len(status["peers"]) == 1
    assert status["peers"][0]["id"] == two.status()["node"]["id"]


def test_a_node_of_another_swarm_is_refused_and_told_why(undisturbed):
    cluster, one, _ = undisturbed
    before = one.status()["counters"]
    own = cluster.root, cluster.swarm
    cluster.root = Identity.generate(os.urandom)
    cluster.swarm = Swarm.generate(os.urandom, cluster.root.public_key)
    try:
        stranger = cluster.node("stranger", bootstrap=one, **cluster.joins())
    finally:
        cluster.root, cluster.swarm = own
    stranger.start()
    status = stranger.until(
        lambda s: any("swarm" in reason for reason in s["bootstrap"].values()), "the reason"
    )
    assert status["peers"] == []
    assert status["run"]["id"] is None
    warned = one.until(
        lambda s: "wrong-swarm" in [warning["code"] for warning in s["health"]], "the warning"
    )
    assert sum(warned["counters"].values()) > sum(before.values())
    assert "swarm" in stranger.log_text()
    assert stranger.stop() < 10


def test_nonsense_on_the_trainers_socket_disturbs_nobody(undisturbed):
    _, one, _ = undisturbed
    pid = one.status()["trainer"]["pid"]
    attach = {
        "run": "demo",
        "pid": 1,
        "numel": 10,
        "model": bytes(32),
        "every": 4,
        "supervised": True,
        "protocol": None,
    }
    frames = [
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(100),
        struct.pack(">I", 2**31) + b"x",
        encode(Attach(version=VERSION + 1, **attach)),
        encode(Attach(version=VERSION, **{**attach, "run": "other"})),
        encode(Attach(version=VERSION, **attach)),  # one is there already
        encode(Attach(version=VERSION, **{**attach, "numel": 2**40})),
    ]
    for frame in frames:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(30)
            sock.connect(str(one.paths.trainer_socket))
            sock.sendall(frame)
            sock.shutdown(socket.SHUT_WR)
            answer(sock)
    assert one.status()["trainer"]["pid"] == pid
    assert "turned away" in one.log_text()


def test_a_hostile_page_cannot_stop_a_node(undisturbed):
    _, one, _ = undisturbed
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect(str(one.paths.control_socket))
        sock.sendall(b"POST /v1/stop HTTP/1.1\r\nHost: x\r\nOrigin: http://evil\r\n\r\n")
        assert b" 403 " in answer(sock).split(b"\r\n")[0]


def answer(sock):
    data = b""
    with contextlib.suppress(ConnectionError):
        while chunk := sock.recv(65536):
            data += chunk
    return data


def test_a_damaged_checkpoint_is_passed_over_for_an_older_one(tmp_path):
    with Cluster(tmp_path / "damaged") as cluster:
        node = cluster.node("one", **cluster.gated(cluster.creates(), 24)).start()
        node.until(lambda s: (s["checkpoint"] or {}).get("step") == 24, "the checkpoint of step 24")
        node.kill()  # at its gate the trainer would not hear an orderly stop for some seconds
        newest = node.file("checkpoints", "step-00000024", "model.safetensors")
        data = bytearray(newest.read_bytes())
        data[-5] ^= 1
        newest.write_bytes(data)
        cluster.open_gate(17)  # or it would write the checkpoint of step 24 anew before we look
        node.start()
        status = node.until(training, "training")
        assert status["checkpoint"]["step"] == 16
        assert status["run"]["round"] >= 4
        [warning] = [w for w in status["health"] if w["code"] == "checkpoint-damaged"]
        for text in (warning["text"], node.log_text()):
            assert "step-00000024" in text
            assert "SHA-256" in text
        cluster.open_gate(41)
        node.until(finished, "end")
        node.until(lambda s: s["checkpoint"]["step"] == 40, "the last checkpoint")
        mended = node.until(
            lambda s: all(each["code"] != "checkpoint-damaged" for each in s["health"]),
            "good health again",
        )
        assert mended["verdict"] == "ok"
