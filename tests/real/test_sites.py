"""examples/sites.py for real: sites of two processes each, FSDP in one and DDP in the other, one model between them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.cluster import Cluster, Node
from tests.real.swarm import slow

pytestmark = [pytest.mark.real, slow]

EXAMPLE = Path(__file__).parents[2] / "examples" / "sites.py"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path / "sites") as cluster:
        yield cluster


def torchrun(cluster: Cluster, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.Popen(
        [*command, "--nproc-per-node", "2", *words],
        env=cluster.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def site(
    cluster: Cluster, node: Node, inside: str, number: int, result: Path, rounds: int
) -> subprocess.Popen[str]:
    return torchrun(
        cluster,
        *[str(EXAMPLE), "demo", "--inside", inside, "--site", str(number)],
        *["--socket", str(node.paths.trainer_socket), "--result", str(result)],
        *["--rounds", str(rounds), "--every", "8"],
    )


def ended(process: subprocess.Popen[str], result: Path) -> dict[str, object]:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    found: dict[str, object] = json.loads(result.read_text())
    return found


def test_two_sites_train_one_model_whatever_is_inside_and_a_third_comes_late(
    cluster: Cluster, tmp_path: Path
) -> None:
    quiet = {"trainer__auto": False, "network__port_mapping": False}
    creates = cluster.creates(run__task="mine", run__min_members=2, **quiet)
    nodes = [cluster.node("one", **creates).start()]
    for name in ("two", "three"):
        joins = cluster.joins(**quiet)
        nodes.append(cluster.node(name, bootstrap=nodes[0], **joins).start())
    for node in nodes:
        node.until(lambda status: status["run"]["id"], "the run")
    results = [tmp_path / f"{number}.json" for number in range(3)]
    rounds = 60
    first = [
        site(cluster, nodes[number], inside, number, results[number], rounds)
        for number, inside in enumerate(("fsdp", "ddp"))
    ]
    nodes[0].until(lambda status: status["run"]["epoch"], "an epoch", patience_s=180)
    late = site(cluster, nodes[2], "fsdp", 2, results[2], rounds)
    one, two, three = [
        ended(process, result) for process, result in zip([*first, late], results, strict=True)
    ]
    assert one["digest"] == two["digest"] == three["digest"]
    assert one["sites"] == two["sites"] == three["sites"] == 3
    assert three["fetched"], "it came late, and took the state of the others"
    assert len(three["losses"]) < len(one["losses"])
    assert one["losses"][-1] < one["losses"][0] / 2


def test_the_hook_of_ddp_averages_gradients_over_all_processes_of_all_sites(
    cluster: Cluster, tmp_path: Path
) -> None:
    quiet = {"trainer__auto": False, "network__port_mapping": False}
    one = cluster.node("one", **cluster.creates(run__task="mine", run__min_members=2, **quiet))
    one.start()
    two = cluster.node("two", bootstrap=one, **cluster.joins(**quiet)).start()
    for node in (one, two):
        node.until(lambda status: status["run"]["id"], "the run")
    results = [tmp_path / f"{number}.json" for number in range(2)]
    script = str(Path(__file__).with_name("hooked.py"))
    sites = [
        torchrun(cluster, script, str(node.paths.trainer_socket), str(number), "12", str(result))
        for number, (node, result) in enumerate(zip((one, two), results, strict=True))
    ]
    found = [ended(process, result) for process, result in zip(sites, results, strict=True)]
    first = found[0]["found"][0]
    assert all(parameters == first for site in found for parameters in site["found"])
    assert max(site["worst"] for site in found) < 1e-5, "not the mean over all four"
