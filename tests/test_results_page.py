"""docs/results.md and docs/results: each reproduction has its command, its figures over three seeds or more, and its picture."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "results.md").read_text()
SCRIPTS = sorted(
    path.stem
    for path in (ROOT / "benchmarks" / "papers").glob("*.py")
    if path.stem not in {"common", "problems"}
)


def test_there_are_reproductions():
    assert len(SCRIPTS) == 6


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_reproduction_is_whole(name):
    found = json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text())
    assert found["name"] == name
    assert not found["quick"]
    assert len(found["seeds"]) >= 3
    assert f"python benchmarks/papers/{name}.py\n" in PAGE
    assert f"(results/{name}.png)" in PAGE
    assert (ROOT / "docs" / "results" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_tables_say_what_was_found():
    """The figures of MoDeST's table, as an example of one that has to be kept equal by hand."""
    findings = json.loads((ROOT / "docs" / "results" / "modest.json").read_text())["findings"]
    table = PAGE[PAGE.index("| | rounds | model transfers") :]
    rows = re.findall(r"^\| (?:Dirichlet [\d.]+: )?([^|]+?) \| ([\d.]+) \(", table, re.MULTILINE)[
        :8
    ]
    labels = {
        "MoDeST": "MoDeST",
        "FedAvg with a server": "FedAvg",
        "D-SGD, one-peer exponential graph": "D-SGD, exponential",
        "D-SGD, 7-regular graph": "D-SGD, 7-regular",
    }
    assert len(rows) == 8
    for at, (name, rounds) in enumerate(rows):
        alpha = 0.3 if at < 4 else 0.1
        mean = findings[f"alpha {alpha}, {labels[name]}: rounds to 0.9"]["mean"]
        assert float(rounds) == pytest.approx(mean, abs=0.06)
