"""What the reproductions share: trials of the simulator over seeds, curves with their spread, a JSON result and a figure.

Every reproduction is `python benchmarks/papers/NAME.py [--quick] [--seeds N] [--out FOLDER]`. It runs the protocols' own classes
in the simulator (`node.simulation`), prints what it found as a table, and writes NAME.json and NAME.png. The full run writes to
docs/results, `--quick` (few rounds and seeds, seconds of CPU) only where `--out` says. docs/results.md says what it means.
"""

from __future__ import annotations

import os

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before numpy: small matrices, and the machine may be shared

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import node
from node.simulation.engine import Engine
from node.simulation.records import End, Header, Point, Record
from node.simulation.run import Simulation
from node.simulation.scenario import parse_scenario

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


@dataclass
class Trial:
    """One simulation: its points, its end, and what `measure` saw at each point."""

    label: str
    seed: int
    points: list[Point] = field(default_factory=list)
    measured: list[Any] = field(default_factory=list)
    end: End | None = None
    struck: list[int] = field(default_factory=list)

    def column(self, name: str) -> np.ndarray:
        """One figure of each point: "round_mean", "bytes", "accuracy.mean", "loss.worst"..."""
        outer, _, inner = name.partition(".")
        values = [getattr(point, outer) for point in self.points]
        if inner:
            values = [getattr(value, inner) for value in values]
        return np.array([np.nan if value is None else value for value in values], float)

    def first(self, x: str, y: str, goal: float) -> float | None:
        """The x at which y first reaches the goal, between two points by a straight line; None if it never does."""
        xs, ys = self.column(x), self.column(y)
        above = np.flatnonzero(ys >= goal)
        if not len(above):
            return None
        at = int(above[0])
        if at == 0:
            return float(xs[0])
        share = (goal - ys[at - 1]) / (ys[at] - ys[at - 1])
        return float(xs[at - 1] + share * (xs[at] - xs[at - 1]))


def run(
    label: str,
    seed: int,
    *,
    engine: Engine | None = None,
    measure: Callable[[Simulation], Any] | None = None,
    **scenario: Any,
) -> Trial:
    """Simulate one scenario (keys of `node.simulation.scenario.Scenario`) to its end."""
    trial = Trial(label, seed)

    def write(record: Record) -> None:
        if isinstance(record, Header):
            trial.struck = record.struck
        elif isinstance(record, Point):
            trial.points.append(record)
            if measure is not None:
                trial.measured.append(measure(simulation))

    simulation = Simulation(
        parse_scenario({**scenario, "seed": seed}),
        write=write,
        engine=engine,
    )
    trial.end = simulation.run()
    last = trial.points[-1]
    accuracy = last.accuracy.mean if last.accuracy is not None else None
    say(
        f"  {label}, seed {seed}: round {last.round_mean:g}, {trial.end.reason},"
        f" accuracy {accuracy if accuracy is None else round(accuracy, 4)}, {trial.end.cost.cpu_s:.1f} s of CPU"
    )
    return trial


def curve(trials: Sequence[Trial], x: str, y: str, grid: Sequence[float]) -> dict[str, list[float]]:
    """y over a common grid of x: mean, least and greatest over the seeds, rounded."""
    rows = np.array([np.interp(grid, t.column(x), t.column(y), right=np.nan) for t in trials])
    return {
        "x": [float(value) for value in grid],
        "mean": rounded(rows.mean(axis=0)),
        "least": rounded(rows.min(axis=0)),
        "greatest": rounded(rows.max(axis=0)),
    }


def summary(values: Iterable[float | None]) -> dict[str, Any]:
    """Mean, least and greatest of what was reached, and how often it was not."""
    every = list(values)
    known = [value for value in every if value is not None and np.isfinite(value)]
    if not known:
        return {"mean": None, "least": None, "greatest": None, "of": len(every), "reached": 0}
    return {
        "mean": tidy(np.mean(known)),
        "least": tidy(min(known)),
        "greatest": tidy(max(known)),
        "of": len(every),
        "reached": len(known),
    }


def tidy(value: float) -> float:
    """Four significant digits: what the seeds' spread leaves meaningful."""
    return float(f"{float(value):.4g}")


def rounded(values: Iterable[float]) -> list[float | None]:
    """The same for a curve; what is not finite is null in JSON."""
    return [tidy(value) if np.isfinite(value) else None for value in values]


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def main(
    name: str,
    about: str,
    experiment: Callable[[bool, list[int]], dict[str, Any]],
    draw: Callable[[Mapping[str, Any], Any], None],
    *,
    seeds: int = 3,
) -> None:
    """The command line of a reproduction.

    Args:
        name: of the result files.
        about: the script's docstring.
        experiment: (quick, seeds) -> result; a result has "settings", "findings" (figures by name) and "curves".
        draw: (result, matplotlib's pyplot) draws one figure.
        seeds: of a full run; a quick one takes one.
    """
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few rounds, one seed: seconds of CPU")
    parser.add_argument(
        "--seeds", type=int, help=f"how many, from 1 on; default {seeds}, with --quick 1"
    )
    parser.add_argument("--out", type=Path, help="folder for the JSON and the figure")
    options = parser.parse_args()
    if options.seeds is not None and options.seeds < 1:
        parser.error("--seeds wants 1 or more")
    count = options.seeds or (1 if options.quick else seeds)
    out = options.out or (None if options.quick else RESULTS)
    begun = time.process_time()
    found = {
        "name": name,
        "quick": options.quick,
        "seeds": list(range(1, count + 1)),
        **experiment(options.quick, list(range(1, count + 1))),
        "made_with": {
            "noded": node.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
        },
        "cpu_s": None,
    }
    found["cpu_s"] = round(time.process_time() - begun, 1)
    print(table(found["findings"]))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.json").write_text(_compact(found) + "\n")
        import matplotlib as mpl

        mpl.use("Agg")
        import matplotlib.pyplot as plt

        plt.rcParams.update(
            {"figure.dpi": 110, "axes.grid": True, "grid.alpha": 0.3, "font.size": 9}
        )
        draw(found, plt)
        plt.savefig(out / f"{name}.png", bbox_inches="tight", metadata={"Software": None})
        say(f"{out / name}.json and .png written, {found['cpu_s']} s of CPU")


def band(axes: Any, found: Mapping[str, Any], label: str, **style: Any) -> None:
    """Draw a curve of `curve` with the range over the seeds."""
    x = np.array(found["x"], float)
    mean, least, greatest = (np.array(found[key], float) for key in ("mean", "least", "greatest"))
    (line,) = axes.plot(x, mean, label=label, linewidth=1.4, **style)
    axes.fill_between(x, least, greatest, color=line.get_color(), alpha=0.15, linewidth=0)


def table(findings: Mapping[str, Any]) -> str:
    """Findings as aligned lines."""
    width = max(map(len, findings))
    return "\n".join(f"{key:<{width}}  {_plain(value)}" for key, value in findings.items())


def _plain(value: Any) -> str:
    if isinstance(value, dict) and "mean" in value:
        if value["mean"] is None:
            return f"never (0 of {value['of']})"
        reached = (
            ""
            if value["reached"] == value["of"]
            else f", {value['reached']} of {value['of']} seeds"
        )
        return f"{value['mean']:g}  ({value['least']:g} to {value['greatest']:g}{reached})"
    return json.dumps(value)


def _compact(found: Mapping[str, Any]) -> str:
    """Indented JSON with each list of numbers on one line, so that a diff can be read."""
    text = json.dumps(found, indent=1, sort_keys=False)
    out, depth = [], 0
    for line in text.split("\n"):
        stripped = line.strip()
        if depth:
            out[-1] += (
                stripped if stripped.startswith("]") or out[-1].endswith("[") else f" {stripped}"
            )
            depth -= stripped in {"]", "],"}
        else:
            out.append(line)
            depth += stripped.endswith("[")
    return "\n".join(out)
