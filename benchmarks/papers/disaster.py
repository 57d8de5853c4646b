"""Disaster: what hurts more, losing data or losing connections, and what finding new neighbours repairs.

    python benchmarks/papers/disaster.py [--quick]

50 nodes on a Barabasi-Albert graph (a few hubs, many leaves) share 600 digits and train by D-PSGD. At one moment some nodes
are gone for good, without a word: the hubs with their data, hubs that held none and only passed models on, leaves, or random
ones; at once or after 20 rounds. Those left behind go on over the edges they still have, or ("re-wired") hear of the loss,
as failure detection and discovery would tell them, and derive the graph anew among themselves (arXiv 2310.02986).
"""

from __future__ import annotations

from typing import Any

from common import band, curve, main, run, summary

NODES = 50


def experiment(quick: bool, seeds: list[int]) -> dict[str, Any]:
    rounds = 40 if quick else 80
    grid = list(range(0, rounds + 1, 4))
    variants: dict[str, dict[str, Any]] = {"no loss": {}}
    shares = (0.3,) if quick else (0.1, 0.3)
    for share in shares:
        for case in ("hub-data", "hub-relay", "leaf", "random"):
            variants[f"{case} {share:.0%}"] = {"case": case, "share": share, "at_round": 0}
        for case in ("hub-data", "hub-relay"):
            variants[f"{case} {share:.0%}, re-wired"] = {
                "case": case, "share": share, "at_round": 0, "rewire": True,
            }  # fmt: skip
        if not quick:
            variants[f"hub-data {share:.0%}, after 20 rounds"] = {
                "case": "hub-data", "share": share, "at_round": 20,
            }  # fmt: skip
            variants[f"relays {share:.0%}, no loss"] = {"case": "hub-relay", "share": share}
    curves: dict[str, Any] = {}
    findings: dict[str, Any] = {}
    for label, blow in variants.items():
        rewire = blow.get("rewire", False)
        trials = [
            run(
                label,
                seed,
                protocol="dpsgd",
                protocol_settings={"graph": "barabasi-albert", "degree": 2},
                nodes=NODES,
                rounds=rounds,
                every=2,
                task_settings={"examples": 600, "batch": 16, "learning_rate": 0.05},
                evaluate_every=4,
                disruption={key: value for key, value in blow.items() if key != "rewire"},
                discovery={"rewire": rewire},
            )
            for seed in seeds
        ]
        curves[label] = curve(trials, "round_mean", "accuracy.mean", grid)
        findings[f"{label}: mean accuracy of the survivors"] = summary(
            t.column("accuracy.mean")[-1] for t in trials
        )
        findings[f"{label}: worst survivor"] = summary(
            t.column("accuracy.worst")[-1] for t in trials
        )
        if blow.get("at_round") is not None:
            findings[f"{label}: nodes in the largest part, alone"] = [
                [t.points[len(t.points) // 2].largest for t in trials],
                [t.points[len(t.points) // 2].alone for t in trials],
            ]
    return {
        "settings": {
            "nodes": NODES, "graph": "Barabasi-Albert, 2 links for each new node", "examples": 600, "split": "iid",
            "local steps": 2, "batch": 16, "learning rate": 0.05, "rounds": rounds,
        },
        "findings": findings,
        "curves": curves,
    }  # fmt: skip


def draw(found: Any, plt: Any) -> None:
    shares = sorted({label.split()[1].rstrip(",") for label in found["curves"] if "%" in label})
    _, panels = plt.subplots(
        1, len(shares), figsize=(5 * len(shares), 4), sharey=True, squeeze=False
    )
    for axes, share in zip(panels[0], shares, strict=True):
        for label, data in found["curves"].items():
            if label == "no loss" or share in label:
                band(
                    axes,
                    data,
                    label.replace(f" {share}", ""),
                    linestyle="--" if "re-wired" in label else "-",
                )
        axes.set(xlabel="round", title=f"{share} of {NODES} nodes lost", ylim=(0, 1))
        axes.legend(fontsize=7, loc="lower right")
    panels[0][0].set_ylabel("mean accuracy of the survivors")


if __name__ == "__main__":
    main("disaster", __doc__ or "", experiment, draw, seeds=4)
