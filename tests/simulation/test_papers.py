"""The reproductions of papers, in their quick form: each one command, and its claim in direction.

    NODED_SLOW=1 python -m pytest tests/simulation/test_papers.py

What they find in full is in docs/results; here no figure is a gate, only which of two is the larger.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PAPERS = Path(__file__).resolve().parents[2] / "benchmarks" / "papers"
SLOW = os.environ.get("NODED_SLOW") == "1"

pytestmark = pytest.mark.skipif(not SLOW, reason="up to 20 s of CPU each; NODED_SLOW=1 runs them")


def quick(name, out):
    done = subprocess.run(
        [sys.executable, str(PAPERS / f"{name}.py"), "--quick", "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((out / f"{name}.json").read_text())
    assert found["quick"]
    return {
        key: value["mean"] if isinstance(value, dict) else value
        for key, value in found["findings"].items()
    }


def test_variance_collapses_and_is_cured(tmp_path):
    found = quick("variance", tmp_path)
    key = "n * variance at the end / at the start"
    assert found[f"plain, independent: {key}"] == pytest.approx(1, abs=0.1)
    assert found["plain, independent: accuracy at the end"] < 0.2
    assert found["corrected, independent: accuracy at the end"] > 0.8
    assert found["plain, common: accuracy at the end"] > 0.8


def test_modest_needs_less_communication_and_survives(tmp_path):
    found = quick("modest", tmp_path)
    assert found["alpha 0.3: bytes of D-SGD, exponential / of MoDeST"] > 3
    label = "80 silenced, window 20, pings 1 s"
    assert found[f"{label}: round reached of 60"] == [60]
    assert found[f"{label}: accuracy at the end"] > found[f"{label}: accuracy before"] - 0.05


def test_connections_matter_more_than_data(tmp_path):
    found = quick("disaster", tmp_path)
    hub, leaf, relay, rewired, none = (
        found[f"{label}: mean accuracy of the survivors"]
        for label in (
            "hub-data 30%",
            "leaf 30%",
            "hub-relay 30%",
            "hub-data 30%, re-wired",
            "no loss",
        )
    )
    assert hub < relay < leaf
    assert none - leaf < none - relay
    assert rewired > hub


def test_shunning_where_it_has_been_pays(tmp_path):
    found = quick("token_walk", tmp_path)
    assert found["small-world: error of alpha 0 / of alpha 5"] > 2
    distance = "visits' distance from even"
    assert found[f"small-world, alpha 5: {distance}"] < found[f"small-world, alpha 0: {distance}"]


def test_more_gossip_helps_per_round_and_not_per_byte(tmp_path):
    found = quick("dfedsam", tmp_path)
    plain, more = "alpha 0.1, rho 0, Q 1", "alpha 0.1, rho 0, Q 4"
    assert found[f"{more}: accuracy, last rounds"] > found[f"{plain}: accuracy, last rounds"]
    far = "distance from consensus at the end"
    assert found[f"{more}: {far}"] < found[f"{plain}: {far}"]


def test_acceleration_is_exact_where_plain_gossip_stalls(tmp_path):
    found = quick("acceleration", tmp_path)
    after = "squared distance after 120 gradients a node"
    assert (
        found[f"convex, ring, DADAO: {after}"] < found[f"convex, ring, plain, step 0.2/L: {after}"]
    )
    assert found["averaging, ring of 16, 60 meetings a node: plain / A2CiD2"] > 2
