"""Where files go, and that nobody else gets in."""

import os
import socket
import stat
import tempfile
from pathlib import Path

import pytest

from node.errors import ConfigError, NodedError, Refused
from node.paths import (
    MAX_SOCKET_PATH_BYTES,
    default_data_dir,
    ensure_private_dir,
    node_paths,
    runtime_dir,
    socket_path,
    valid_run_name,
)


def test_xdg_and_systemd_decide_where_a_node_lives(tmp_path):
    home = {"HOME": "/home/u"}
    assert str(default_data_dir(home)) == "/home/u/.local/state/noded"
    assert str(default_data_dir({**home, "XDG_STATE_HOME": "/x"})) == "/x/noded"
    assert str(default_data_dir({**home, "XDG_STATE_HOME": "relative"})).startswith("/home/u/")
    assert (
        str(default_data_dir({**home, "STATE_DIRECTORY": "/var/lib/a:/var/lib/b"})) == "/var/lib/a"
    )
    assert str(runtime_dir({"XDG_RUNTIME_DIR": "/run/user/7"})) == "/run/user/7/noded"
    assert str(os.geteuid()) in runtime_dir({}).name


def test_the_services_sockets_lie_in_its_runtime_directory_and_nobody_elses_do(tmp_path):
    service = {"STATE_DIRECTORY": str(tmp_path), "RUNTIME_DIRECTORY": "/run/noded"}
    assert str(node_paths(tmp_path, service).control_socket) == "/run/noded/control.sock"
    # A node that the service merely started (noded local) inherits the variables.
    other = node_paths(tmp_path / "peer-1", service)
    assert other.control_socket == tmp_path / "peer-1" / "control.sock"


@pytest.fixture
def short_path():
    """As a runtime directory is; pytest's own paths may be too long themselves."""
    with tempfile.TemporaryDirectory(prefix="nd") as path:
        yield Path(path)


def test_a_socket_path_that_is_too_long_moves_and_can_be_bound(tmp_path, short_path):
    deep = tmp_path / ("d" * 120)
    environ = {"XDG_RUNTIME_DIR": str(short_path)}
    paths = node_paths(deep, environ)
    assert len(os.fsencode(paths.control_socket)) <= MAX_SOCKET_PATH_BYTES
    assert paths.control_socket == node_paths(deep, environ).control_socket
    assert paths.control_socket != node_paths(tmp_path / ("e" * 120), environ).control_socket
    ensure_private_dir(paths.control_socket.parent)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(paths.control_socket))


def test_the_longest_path_that_fits_is_used_as_it_is(tmp_path):
    room = MAX_SOCKET_PATH_BYTES - len(os.fsencode(tmp_path / "x" / "control.sock")) + 1
    for length, inside in ((room, True), (room + 1, False)):
        path = socket_path(tmp_path / ("d" * length), "control.sock", {"XDG_RUNTIME_DIR": "/r"})
        assert path.is_relative_to(tmp_path) is inside


def test_a_runtime_directory_that_is_too_long_as_well_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError) as caught:
        socket_path(tmp_path / ("d" * 200), "control.sock", {"XDG_RUNTIME_DIR": "/" + "r" * 100})
    assert caught.value.key == "node.data_dir"


def test_directories_are_private_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        made = ensure_private_dir(tmp_path / "a" / "b")
        loose = tmp_path / "loose"
        loose.mkdir(mode=0o777)
        ensure_private_dir(loose)
    finally:
        os.umask(before)
    for path in (made, made.parent, loose):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_somebody_elses_directory_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "theirs"
    path.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    with pytest.raises(Refused, match="belongs to user"):
        ensure_private_dir(path)


def test_a_file_in_the_way_and_an_unwritable_parent_are_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NodedError, match="in the way") as caught:
        ensure_private_dir(tmp_path / "file")
    assert caught.value.hint
    with pytest.raises(NodedError):
        ensure_private_dir(tmp_path / "file" / "below")


@pytest.mark.parametrize("name", ["a", "demo-1", "A.b_c", "x" * 64])
def test_run_names(name, tmp_path):
    assert valid_run_name(name)
    assert node_paths(tmp_path).run_dir(name).parent == tmp_path / "runs"


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", ".hidden", "x" * 65, "a\n", "ä"])
def test_a_run_name_never_leaves_its_folder(name, tmp_path):
    assert not valid_run_name(name)
    with pytest.raises(ConfigError):
        node_paths(tmp_path).run_dir(name)
