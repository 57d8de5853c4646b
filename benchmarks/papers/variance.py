"""Variance collapse and its cure: averaging models that began apart shrinks their weights to nothing.

    python benchmarks/papers/variance.py [--quick]

32 nodes on a random 8-regular graph train perceptrons of four hidden layers on digits and average with their neighbours
after every step (D-PSGD). Uncorrelated entries that are averaged over n models keep 1/n of their variance; deep nets
with such weights have no gradient. Variance-corrected averaging (arXiv 2404.04616) rescales each tensor to the
measured variance of the incoming ones. Compared with independent initial models and with a common one, for deep and
shallow nets, and with uneven data.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import band, curve, main, rounded, run, summary

NODES = 32
PROBED = "layers.2.weight"


def variance(simulation: Any) -> float:
    """Mean over the nodes of the variance of one hidden layer's weights."""
    spec = next(t for t in simulation.engine.tensors if t.name == PROBED)
    models = [node.core.model for node in simulation.world.alive()]
    return float(np.mean([m[spec.offset : spec.offset + spec.numel].var(ddof=1) for m in models]))


def experiment(quick: bool, seeds: list[int]) -> dict[str, Any]:
    short, long = (50, 50) if quick else (100, 200)
    variants = {
        "plain, independent": ("mean", False, 4, {}, long),
        "corrected, independent": ("variance-corrected", False, 4, {}, short),
        "plain, common": ("mean", True, 4, {}, short),
    }
    if not quick:
        uneven = {"split": "dirichlet", "alpha": 0.3, "minimum": 4}
        variants |= {
            "corrected, common": ("variance-corrected", True, 4, {}, short),
            "plain, independent, 1 layer": ("mean", False, 1, {}, short),
            "corrected, independent, 1 layer": ("variance-corrected", False, 1, {}, short),
            "plain, independent, uneven": ("mean", False, 4, uneven, long),
            "corrected, independent, uneven": ("variance-corrected", False, 4, uneven, short),
        }
    curves: dict[str, Any] = {}
    findings: dict[str, Any] = {}
    for label, (mixing, common, depth, data, rounds) in variants.items():
        deep = depth > 2
        grid = list(range(0, rounds + 1, 5 if quick else 10))
        trials = [
            run(
                label,
                seed,
                protocol="dpsgd",
                protocol_settings={"graph": "random-regular", "degree": 8, "mixing": mixing},
                nodes=NODES,
                rounds=rounds,
                every=1,
                common_start=common,
                task_settings={
                    "hidden": 96, "depth": depth, "batch": 16, "learning_rate": 0.05, "momentum": 0.9, **data,
                },
                evaluate_every=grid[1],
                measure=variance if deep else None,
            )
            for seed in seeds
        ]  # fmt: skip
        curves[label] = curve(trials, "round_mean", "accuracy.mean", grid)
        findings[f"{label}: accuracy at the end"] = summary(
            t.column("accuracy.mean")[-1] for t in trials
        )
        findings[f"{label}: rounds to 0.9"] = summary(
            t.first("round_mean", "accuracy.mean", 0.9) for t in trials
        )
        if deep:
            spread = np.array([np.interp(grid, t.column("round_mean"), t.measured) for t in trials])
            curves[f"variance: {label}"] = {
                "x": grid,
                "mean": rounded(spread.mean(axis=0)),
                "least": rounded(spread.min(axis=0)),
                "greatest": rounded(spread.max(axis=0)),
            }
            findings[f"{label}: n * variance at the end / at the start"] = summary(
                NODES * row[-1] / row[0] for row in spread
            )
    return {
        "settings": {
            "nodes": NODES,
            "graph": "random 8-regular",
            "rounds": [short, long],
            "hidden": 96,
            "data": "digits",
        },
        "findings": findings,
        "curves": curves,
    }


def draw(found: Any, plt: Any) -> None:
    _, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for label, data in found["curves"].items():
        if label.startswith("variance: "):
            band(right, data, label.removeprefix("variance: "))
        else:
            band(left, data, label, linestyle="--" if "common" in label else "-")
    left.set(
        xlabel="round",
        ylabel="mean accuracy",
        ylim=(0, 1),
        title=f"{NODES} nodes, 4 hidden layers unless said",
    )
    left.legend(fontsize=7)
    right.set(
        xlabel="round",
        ylabel=f"variance of {PROBED}",
        yscale="log",
        title="What averaging does to the weights",
    )
    right.legend(fontsize=7)


if __name__ == "__main__":
    main("variance", __doc__ or "", experiment, draw)
