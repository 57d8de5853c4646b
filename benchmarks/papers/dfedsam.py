"""DFedSAM and its multiple gossip steps: what they give for each round, and for each byte.

    python benchmarks/papers/dfedsam.py [--quick]

16 nodes on a ring share 600 digits, split unevenly (Dirichlet 0.1 and 0.5), and take 5 local steps with momentum 0.9 in each
round. Local steps are plain or sharpness-aware (radius rho), and models are exchanged Q times in a round (Q > 1 is DFedSAM-MGS,
arXiv 2302.04083). Q exchanges cost Q times the bytes, so the same runs are read twice: at the same round, and at the
same number of model transfers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import band, curve, main, run, summary, tidy

NODES = 16


def experiment(quick: bool, seeds: list[int]) -> dict[str, Any]:
    rounds = 24 if quick else 60
    budget = rounds * 2 * NODES  # transfers of the plain run: every node sends to two in each round
    variants = [(0.0, 1), (0.1, 1), (0.0, 4), (0.1, 4)]
    if not quick:
        variants[2:2] = [(0.05, 1), (0.3, 1)]
        variants += [(0.3, 4)]
    curves: dict[str, Any] = {}
    findings: dict[str, Any] = {}
    for alpha in (0.1,) if quick else (0.1, 0.5):
        for rho, steps in variants:
            label = f"alpha {alpha:g}, rho {rho:g}, Q {steps}"
            trials = [
                run(
                    label,
                    seed,
                    protocol="dfedsam",
                    protocol_settings={"graph": "ring", "rho": rho, "gossip_steps": steps},
                    nodes=NODES,
                    rounds=rounds,
                    every=5,
                    task_settings={
                        "examples": 600, "batch": 16, "learning_rate": 0.1, "momentum": 0.9,
                        "split": "dirichlet", "alpha": alpha, "minimum": 2,
                    },
                    evaluate_every=2,
                )
                for seed in seeds
            ]  # fmt: skip
            curves[label] = curve(trials, "round_mean", "accuracy.mean", range(0, rounds + 1, 2))
            grid = np.linspace(0, budget, 31).tolist()
            curves[f"{label}: by transfers"] = curve(trials, "transfers", "accuracy.mean", grid)
            late = [float(np.mean(t.column("accuracy.mean")[-4:])) for t in trials]
            findings[f"{label}: accuracy, last rounds"] = summary(late)
            for sent in (budget // 4, budget):
                findings[f"{label}: at {sent} transfers"] = summary(
                    _at(t, "transfers", sent) for t in trials
                )
            findings[f"{label}: distance from consensus at the end"] = summary(
                t.points[-1].consensus for t in trials
            )
    return {
        "settings": {
            "nodes": NODES, "graph": "ring", "examples": 600, "local steps": 5, "batch": 16,
            "learning rate": 0.1, "momentum": 0.9, "rounds": rounds,
        },
        "findings": findings,
        "curves": curves,
    }  # fmt: skip


def _at(trial: Any, x: str, where: float) -> float:
    return tidy(np.interp(where, trial.column(x), trial.column("accuracy.mean")))


def draw(found: Any, plt: Any) -> None:
    _, (left, right) = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for label, data in found["curves"].items():
        if not label.startswith("alpha 0.1"):
            continue
        style = {"linestyle": "--" if "Q 4" in label else "-"}
        if label.endswith(": by transfers"):
            band(
                right,
                data,
                label.removesuffix(": by transfers").removeprefix("alpha 0.1, "),
                **style,
            )
        else:
            band(left, data, label.removeprefix("alpha 0.1, "), **style)
    left.set(xlabel="round", ylabel="mean accuracy", ylim=(0, 1), title="per round")
    right.set(xlabel="model transfers of all nodes", title="per byte")
    right.legend(fontsize=7)


if __name__ == "__main__":
    main("dfedsam", __doc__ or "", experiment, draw)
