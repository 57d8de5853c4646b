"""Sixteen whole nodes with kills, restarts, resets and a partition, in virtual time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runs() -> list[dict[str, object]]:
    """One seed under two hash seeds: each in a fresh interpreter, side by side."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.simulation.sixteen", "1"],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for hash_seed in ("1", "2")
    ]
    results = []
    for process in processes:
        out, err = process.communicate(timeout=400)
        assert process.returncode == 0, err[-2000:]
        results.append(json.loads(out))
    return results


@pytest.mark.slow
def test_all_nodes_end_with_the_same_state(runs: list[dict[str, object]]) -> None:
    (result, _) = runs
    assert result["finished"] == 16
    assert result["rounds"] == [8]
    assert result["states"] == 1
    assert result["documents"] == 1, "the shared document is equal on all nodes"


@pytest.mark.slow
def test_the_faults_really_happened(runs: list[dict[str, object]]) -> None:
    (result, _) = runs
    assert result["lives"] == 19, "three nodes lived twice"
    assert result["aborted"] > 0
    assert result["fetched"] > 0
    assert result["fewest_members"] < 16
    assert result["most_members"] == 16


@pytest.mark.slow
def test_same_seed_gives_the_same_trace_under_another_hash_seed(
    runs: list[dict[str, object]],
) -> None:
    first, second = runs
    assert first == second
