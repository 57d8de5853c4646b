"""Artefacts and code between real daemons, through the command line."""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path

import pytest

from node.cli.client import Client
from tests.real.cluster import Cluster, Node

pytestmark = pytest.mark.real

MIB = 1 << 20
SLOW = bool(os.environ.get("NODED_SLOW"))
SIZE = (256 if SLOW else 12) * MIB


def ask(node: Node, path: str, body: dict | None = None) -> dict:
    client = Client(node.paths.control_socket, timeout_s=60)
    return client.get(path) if body is None else client.post(path, body)


def well(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def connected(count: int):
    return lambda status: (
        sum(peer["state"] == "connected" for peer in status["peers"]) >= count
    )


def test_put_here_get_there(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.bin").write_bytes(random.Random(1).randbytes(2 * MIB + 3))
    (folder / "b.txt").write_text("hello\n")
    with Cluster(tmp_path / "swarm") as cluster:
        one = cluster.node("one").start()
        other = cluster.node("other", bootstrap=one).start()
        other.until(connected(1), "a peer")
        artefact = well(one.cli("put", str(folder)))
        assert artefact == well(one.cli("put", str(folder)))
        out = tmp_path / "out"
        got = json.loads(well(other.cli("get", artefact, "-o", str(out), "--json")))
        assert got["state"] == "done"
        assert [holder["bad"] for holder in got["holders"]] == [0]
        assert (out / "a.bin").read_bytes() == (folder / "a.bin").read_bytes()
        assert (out / "b.txt").read_text() == "hello\n"
        again = other.cli("get", artefact, "-o", str(out))
        assert again.returncode == 2
        assert "there already" in again.stderr
        listing = json.loads(well(other.cli("get", "--json")))
        assert [row["id"] for row in listing["artefacts"]] == [artefact]
        assert "2.0 MiB" in well(other.cli("get"))
        bad = other.cli("get", "no hash")
        assert bad.returncode == 1
        assert "64 hexadecimal digits" in bad.stderr
        missing = other.cli("get", "ab" * 32, "--timeout", "2", "--json")
        assert missing.returncode == 5
        unreadable = one.cli("put", str(tmp_path / "nothing"))
        assert unreadable.returncode == 2
        assert one.stop() < 10
        assert other.stop() < 10
