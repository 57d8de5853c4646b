"""A disk that fills up costs checkpoints, never the last good one, and not the daemon."""

import contextlib
import json
import os
import subprocess

import pytest

from node.run.checkpoint import verify
from tests.real.cluster import Cluster, at_round

pytestmark = pytest.mark.real

MIB = 2


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own with very little room."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={MIB}m,mode=0700", "tmpfs", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_is_said_and_survived(small_disk):
    with Cluster(small_disk / "swarm") as cluster:
        values = cluster.creates(run__steps=0, trainer__keep_checkpoints=2)
        node = cluster.node("one", **values).start()
        good = node.until(lambda s: s["checkpoint"], "a checkpoint")["checkpoint"]
        filler = small_disk / "filler"

        def failed(status):
            # Again and again: a half-written file that was given up has made room once more.
            fill(filler)
            return "checkpoint-failed" in [warning["code"] for warning in status["health"]]

        status = node.until(failed, "the warning")
        assert status["verdict"] == "failing"
        assert status["node"]["pid"] == node.pid
        # The best of what was there is still whole, and training goes on.
        kept = status["checkpoint"]
        assert kept["step"] >= good["step"]
        assert (
            verify(node.file("checkpoints") / f"step-{kept['step']:08d}").manifest.sha256
            == (kept["sha256"])
        )
        status = node.until(at_round(status["run"]["round"] + 3), "more rounds")
        assert status["trainer"]["restarts"] == 0
        filler.unlink()
        node.until(
            lambda s: s["checkpoint"]["step"] > kept["step"] and s["verdict"] == "ok",
            "the next checkpoint, and good health",
        )
        lines = node.file("metrics.jsonl").read_text().splitlines()
        assert {type(json.loads(line)) for line in lines} == {dict}  # none is torn
        assert node.log_text().count("metrics not written") < 10
        assert node.stop() < 10


def fill(path):
    """Take every block that is left."""
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
