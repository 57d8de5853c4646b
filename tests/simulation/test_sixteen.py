"""Sixteen whole nodes with kills, restarts, resets and a partition, in virtual time."""

from __future__ import annotations

import json

import pytest

from tests.hash_seeds import outputs


@pytest.fixture(scope="module")
def runs() -> list[dict[str, object]]:
    """One seed under two hash seeds."""
    return [json.loads(output) for output in outputs("-m", "tests.simulation.sixteen", "1")]


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
