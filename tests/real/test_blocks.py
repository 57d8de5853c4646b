"""Artefacts and code between real daemons, through the command line."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from node.blocks.tasks import find_task
from node.cli.client import Client
from tests.real.cluster import HERE, TINY, Cluster, Node, at_round, finished

pytestmark = pytest.mark.real

MIB = 1 << 20
SLOW = bool(os.environ.get("NODED_SLOW"))
SIZE_MIB = 256 if SLOW else 16


class Liar(Node):
    def command(self, *arguments: str) -> list[str]:
        config = ["--config", str(self.paths.config_file)]
        return [sys.executable, "-P", str(HERE / "lying.py"), *arguments, *config]


def ask(node: Node, path: str, body: dict | None = None) -> dict:
    client = Client(node.paths.control_socket, timeout_s=60)
    return client.get(path) if body is None else client.post(path, body)


def well(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def connected(count: int) -> Callable[[dict], bool]:
    return lambda status: sum(peer["state"] == "connected" for peer in status["peers"]) >= count


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


def test_four_holders_one_lies_one_dies_and_the_fetcher_is_killed(tmp_path: Path) -> None:
    """16 MiB, or with NODED_SLOW=1 256 MiB; each bad block is attributed to who gave it."""
    file = tmp_path / "artefact.bin"
    rng = random.Random(7)
    file.write_bytes(b"".join(rng.randbytes(MIB) for _ in range(SIZE_MIB)))
    cap = {"blocks__upload_bytes_per_s": SIZE_MIB * MIB // 12}
    with Cluster(tmp_path / "swarm") as cluster:
        first = cluster.node("honest", **cap).start()
        dies = cluster.node("dies", bootstrap=first, **cap).start()
        third = cluster.node("third", bootstrap=first, **cap).start()
        liar = cluster.node("liar", bootstrap=first, **cap)
        liar.__class__ = Liar
        liar.start()
        fetcher = cluster.node("fetcher", bootstrap=first).start()
        holders = [first, dies, third, liar]
        for node in (*holders, fetcher):
            node.ready()
        ids = {well(holder.cli("put", str(file), timeout_s=120)) for holder in holders}
        (artefact,) = ids
        names = {node.status()["node"]["id"]: node.name for node in holders}
        bad: dict[str, int] = {}

        def share(least: float) -> dict:
            """Look until that much is here."""

            def look() -> dict | None:
                told = ask(fetcher, "/v1/blocks/get", {"id": artefact, "wait_s": 0.05})
                assert told["state"] != "failed", told
                return told if told["done_bytes"] >= least * SIZE_MIB * MIB else None

            return cluster.wait(look, f"{least:.0%} of the artefact", patience_s=180)

        def blame(told: dict) -> None:
            for holder in told["holders"]:
                name = names[holder["id"]]
                assert holder["banned"] == (holder["bad"] > 0)
                bad[name] = bad.get(name, 0) + holder["bad"]

        blame(share(0.3))
        fetcher.kill()
        fetcher.start().ready()
        rows = ask(fetcher, "/v1/blocks")["artefacts"]
        assert [row["id"] for row in rows] == [artefact]
        missing = rows[0]["missing"]
        assert 0 < missing <= 0.75 * SIZE_MIB, "what had arrived is still there"
        share(0.6)
        dies.kill()
        told = share(1.0)
        told = cluster.wait(
            lambda: (
                told
                if (told := ask(fetcher, "/v1/blocks/get", {"id": artefact}))["state"] == "done"
                else None
            ),
            "the end",
        )
        blame(told)
        assert sum(holder["blocks"] for holder in told["holders"]) == missing
        assert bad.pop("liar") >= 1
        assert not any(bad.values()), "an honest holder was blamed"
        blamed = ask(fetcher, "/v1/blocks")["bad_blocks"]
        assert set(map(names.get, blamed)) <= {"liar"}
        out = tmp_path / "out.bin"
        well(fetcher.cli("get", artefact, "-o", str(out), timeout_s=120))
        assert out.read_bytes() == file.read_bytes()
        if SLOW:
            print(json.dumps(told, indent=1))


TASK = """
from node.tasks.byte_gpt import ByteGPT

class Own(ByteGPT):
    name = "own"
"""


def test_code_runs_only_where_it_is_installed_or_approved(tmp_path: Path) -> None:
    """Three nodes: one has the code, one has other code under that name, one has none."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "own_task.py").write_text(TASK)
    changed = tmp_path / "changed"
    shutil.copytree(code, changed)
    (changed / "own_task.py").write_text(TASK + "# not the same\n")
    with Cluster(tmp_path / "swarm") as cluster:
        own = {"run__task": "own_task:Own", "run__steps": 400}
        values = cluster.creates(**own, run__task_settings=TINY, trainer__user_path=str(code))
        one = cluster.node("one", **values).start()
        one.until(at_round(1), "a round")
        task = json.loads(one.file("run.json").read_text())["task_hash"]
        here = find_task("own_task:Own", str(code))
        assert here is not None
        assert task == here.id.hex()
        none = cluster.node("none", bootstrap=one, **cluster.joins()).start()
        other = cluster.node(
            "other",
            bootstrap=one,
            **cluster.joins(run__task="own_task:Own", trainer__user_path=str(changed)),
        ).start()
        for node, why in ((none, "not installed here"), (other, "differs from the one here")):
            status = node.until(lambda s: s["run"] and s["run"].get("failure"), "a refusal")
            assert why in status["run"]["failure"]
            assert f"noded trust {task}" in json.dumps(status)
            assert status["trainer"]["pid"] is None
        refused = none.cli("trust", task)
        assert refused.returncode == 8
        assert "class Own(ByteGPT)" in refused.stdout
        assert "nobody can be asked" in refused.stderr
        assert not (none.home / "tasks").exists()
        shown = json.loads(well(none.cli("trust", task, "--show", "--json")))
        assert [file["path"] for file in shown["files"]] == ["own_task.py"]
        assert not shown["approved"]
        well(none.cli("trust", task, "--yes"))
        none.until(lambda s: s["trainer"]["pid"], "its trainer")
        states = [node.until(finished, "the end", patience_s=180) for node in (one, none)]
        assert len({state["run"]["state_sha256"] for state in states}) == 1
        (kept,) = (none.home / "tasks").iterdir()
        assert kept.name == task
        assert [path.name for path in kept.iterdir()] == ["own_task.py"]
        assert other.status()["trainer"]["pid"] is None


def metrics(node: Node) -> list[dict]:
    file = node.file("metrics.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_who_joins_late_has_the_state_from_all_and_trains_in_the_next_round(tmp_path: Path) -> None:
    """Three members train; a fourth comes, is handed the state by all three, and ends with the same parameters."""
    with Cluster(tmp_path / "swarm") as cluster:
        values = cluster.gated(cluster.creates(run__steps=48), 12)
        first = cluster.node("first", **values).start()
        joins = cluster.gated(cluster.joins(), 12)
        members = [first, *(cluster.node(f"m{n}", bootstrap=first, **joins) for n in (1, 2))]
        for member in members[1:]:
            member.start()
        for member in members:
            member.until(at_round(2), "two rounds")
        late = cluster.node("late", bootstrap=first, **joins).start()
        synced = cluster.wait(
            lambda: next((p for p in metrics(late) if p["kind"] == "synced"), None), "the state"
        )
        assert synced["round"] >= 1
        cluster.open_gate(1000)
        states = [node.until(finished, "the end", patience_s=180) for node in (*members, late)]
        assert len({state["run"]["state_sha256"] for state in states}) == 1
        rounds = [point for point in metrics(late) if point["kind"] == "round"]
        # Training began with the state that came, not with one that was waited for after it.
        assert rounds[0]["round"] <= synced["round"] + 2
        assert rounds[0]["members"] >= 3
        print(f"training {rounds[0]['t'] - synced['t']:.1f} s after its state had come")
