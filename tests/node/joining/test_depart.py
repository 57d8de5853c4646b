"""`noded leave` without a daemon: what goes, what stays, and what is said; and what stands in its way."""

import json

import pytest

from node.errors import DaemonNotRunning, NodedError
from node.joining.depart import depart
from node.paths import node_paths
from tests.node.fake_control import run


class Off:
    def post(self, _path):
        raise DaemonNotRunning("nobody")


class On:
    def post(self, path):
        assert path == "/v1/leave"
        return {"announced": True}


@pytest.fixture
def data(tmp_path, capsys):
    folder = tmp_path / "node"
    assert run(capsys, "init", "--config", str(folder / "noded.toml"))[0] == 0
    (folder / "runs").mkdir()
    (folder / "invites").mkdir()
    (folder / "invites" / ("a" * 32)).write_bytes(b"x")
    capsys.readouterr()
    return folder


def test_the_membership_goes_and_the_work_stays(data):
    left = depart(data, Off())
    assert list(left.removed) == ["certificate", "swarm.key", "node.key", "invites", "swarm.json"]
    assert list(left.kept) == ["noded.toml", "runs", "swarm-root.key"]
    assert left.announced is False
    assert left.node_id.startswith("nd-")
    with pytest.raises(NodedError, match="in no swarm"):
        depart(data, Off())


def test_a_daemon_is_asked_first(data):
    assert depart(data, On()).announced is True


def test_one_that_was_cut_short_is_finished_by_the_next(data):
    paths = node_paths(data, {})
    paths.certificate.unlink()
    assert "swarm.key" in depart(data, Off()).removed
    assert not paths.node_key.exists()


def test_the_command_says_what_it_did(data, capsys):
    config = ["--config", str(data / "noded.toml")]
    code, out, err = run(capsys, "leave", *config, "--yes")
    assert code == 0
    assert "removed   certificate, swarm.key, node.key" in out
    assert "kept      noded.toml, " in out
    assert "noded revoke" in err
    assert "swarm-root.key is the only way" in err
    code, out, _ = run(capsys, "leave", *config, "--yes", "--json")
    assert (code, json.loads(out)["exit_code"]) == (1, 1)


def test_nothing_goes_while_a_daemon_holds_the_folder(data, monkeypatch):
    import fcntl
    import os

    import node.joining.depart

    monkeypatch.setattr(node.joining.depart, "STOP_S", 0.1)
    fd = os.open(data / "noded.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(NodedError, match="nothing was removed"):
            depart(data, On())
    finally:
        os.close(fd)
    assert node_paths(data, {}).certificate.exists()
