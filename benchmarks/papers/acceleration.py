"""DADAO and A2CiD2 against plain asynchronous gossip, on a ring and on an expander.

    python benchmarks/papers/acceleration.py [--quick]

1. Convex: 20 nodes with logistic regressions of their own (condition number 11.6). DADAO (arXiv 2208.00779) is to reach the
   optimum of their mean exactly; asynchronous gossip SGD (AD-PSGD) with a constant step, 1/L or 0.2/L, and as many
   meetings, stalls at a distance that the nodes' differences set.
2. Averaging alone: nodes with values of their own that learn nothing; what A2CiD2's second vector (arXiv 2306.08289) gives
   on rings, after as many meetings as AD-PSGD.
3. Deep: perceptrons on unevenly split digits, A2CiD2 against AD-PSGD with the same meetings.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import Trial, band, curve, main, rounded, run, summary, tidy
from problems import Idle, Logistic

from gossip.decentralized.asynchronous.graph_numbers import edges, numbers_of, uniform_rates
from gossip.decentralized.topology import graph
from node.simulation.run import identities, run_id_of
from node.simulation.scenario import parse_scenario

QUICK_LINKS = {"latency_s": 0.0005}
"""A step takes 0.1 s: meetings are over at once, as the papers assume."""


def meetings(kind: str, nodes: int, seed: int) -> float:
    """Meetings of DADAO for each node and gradient on that seed's graph: sqrt(2 chi1 chi2) / nodes."""
    scenario = parse_scenario({"nodes": nodes, "seed": seed})
    drawn = graph(kind, identities(scenario), run_id_of(scenario), degree=4)  # type: ignore[arg-type]
    found = numbers_of(drawn, uniform_rates(edges(drawn)))
    return float(np.sqrt(2 * found.chi1 * found.chi2) / nodes)


def convex(quick: bool, seeds: list[int], findings: dict[str, Any], curves: dict[str, Any]) -> None:
    nodes, legs = 20, 120 if quick else 400
    for kind in ("ring",) if quick else ("ring", "random-regular"):
        events = {seed: meetings(kind, nodes, seed) for seed in seeds}
        findings[f"convex, {kind}: meetings for each node and gradient"] = summary(events.values())
        for name, protocol, step in (
            ("DADAO", "dadao", 0.0),
            ("plain, step 1/L", "ad-psgd", 1.0),
            ("plain, step 0.2/L", "ad-psgd", 0.2),
        ):
            label = f"convex, {kind}, {name}"
            trials = []
            for seed in seeds:
                engine = Logistic(nodes, seed)
                engine.learning_rate = step / engine.smoothness
                settings: dict[str, Any] = {"graph": kind, "degree": 4}
                if protocol == "dadao":
                    settings |= {"smoothness": engine.smoothness, "convexity": engine.convexity}
                else:
                    settings |= {"exchanges": events[seed], "max_staleness": 1000}
                trials.append(
                    run(
                        label, seed, engine=engine, protocol=protocol, protocol_settings=settings, nodes=nodes,
                        rounds=legs, every=1, links=QUICK_LINKS, evaluate_every=legs // 20,
                    )
                )  # fmt: skip
            grid = np.linspace(0, legs, 21).tolist()
            rows = np.array(
                [
                    np.interp(grid, t.column("steps") / nodes, np.log10(t.column("loss.mean")))
                    for t in trials
                ]
            )
            curves[label] = {
                "x": grid,
                "mean": rounded(10 ** rows.mean(axis=0)),
                "least": rounded(10 ** rows.min(axis=0)),
                "greatest": rounded(10 ** rows.max(axis=0)),
            }
            findings[f"{label}: squared distance after {legs} gradients a node"] = summary(
                t.column("loss.mean")[-1] for t in trials
            )


def averaging(quick: bool, seeds: list[int], findings: dict[str, Any]) -> None:
    for nodes, legs in ((16, 60),) if quick else ((16, 60), (32, 200), (64, 20), (64, 200)):
        left: dict[str, list[float]] = {}
        met: dict[str, list[float]] = {}
        for name, protocol, settings in (
            ("plain", "ad-psgd", {"exchanges": 0.5, "max_staleness": 1000}),
            ("A2CiD2", "a2cid2", {"exchanges": 1.0}),
        ):
            label = f"averaging, ring of {nodes}, {legs} meetings a node, {name}"
            for seed in seeds:
                trial = run(
                    label, seed, engine=Idle(nodes, seed), protocol=protocol,
                    protocol_settings={"graph": "ring", **settings}, nodes=nodes, rounds=legs, every=1,
                    common_start=False, links=QUICK_LINKS, evaluate_every=max(1, legs // 10),
                )  # fmt: skip
                distance = trial.column("loss.mean")
                met.setdefault(name, []).append(trial.points[-1].transfers / nodes)
                left.setdefault(name, []).append(float(distance[-1] / distance[0]))
            findings[f"{label}: share of the variance left"] = summary(left[name])
            findings[f"{label}: models sent by each node"] = summary(met[name])
        findings[f"averaging, ring of {nodes}, {legs} meetings a node: plain / A2CiD2"] = tidy(
            np.mean(left["plain"]) / np.mean(left["A2CiD2"])
        )


def deep(quick: bool, seeds: list[int], findings: dict[str, Any], curves: dict[str, Any]) -> None:
    nodes, legs = 32, 60 if quick else 200
    grid = list(range(0, legs + 1, legs // 20))
    for kind in ("ring",) if quick else ("ring", "random-regular"):
        for name, protocol, settings in (
            ("plain", "ad-psgd", {"exchanges": 0.5, "max_staleness": 1000}),
            ("A2CiD2", "a2cid2", {"exchanges": 1.0}),
        ):
            label = f"deep, {kind}, {name}"
            trials: list[Trial] = [
                run(
                    label, seed, protocol=protocol, protocol_settings={"graph": kind, "degree": 4, **settings},
                    nodes=nodes, rounds=legs, every=1, links=QUICK_LINKS, evaluate_every=grid[1],
                    task_settings={
                        "batch": 16, "learning_rate": 0.05, "momentum": 0.9, "split": "dirichlet", "alpha": 0.1,
                    },
                )
                for seed in seeds
            ]  # fmt: skip
            curves[label] = curve(trials, "round_mean", "accuracy.mean", grid)
            findings[f"{label}: models sent by each node"] = summary(
                t.points[-1].transfers / nodes for t in trials
            )
            findings[f"{label}: mean accuracy, last quarter"] = summary(
                tidy(t.column("accuracy.mean")[-5:].mean()) for t in trials
            )
            findings[f"{label}: worst node, last quarter"] = summary(
                tidy(t.column("accuracy.worst")[-5:].mean()) for t in trials
            )
            findings[f"{label}: distance from consensus, last quarter"] = summary(
                tidy(t.column("consensus")[-5:].mean()) for t in trials
            )


def experiment(quick: bool, seeds: list[int]) -> dict[str, Any]:
    findings: dict[str, Any] = {}
    curves: dict[str, Any] = {}
    convex(quick, seeds, findings, curves)
    averaging(quick, seeds, findings)
    deep(quick, seeds, findings, curves)
    return {
        "settings": {
            "convex": "20 nodes, logistic regression, condition number 11.6",
            "deep": "32 nodes, digits, Dirichlet 0.1, rate 0.05, momentum 0.9, one meeting a node and step",
            "expander": "random 4-regular graph",
        },
        "findings": findings,
        "curves": curves,
    }


def draw(found: Any, plt: Any) -> None:
    _, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for label, data in found["curves"].items():
        kind, graph_, name = label.split(", ", 2)
        style = {"linestyle": "-" if graph_ == "ring" else "--"}
        band(left if kind == "convex" else right, data, f"{graph_}, {name}", **style)
    left.set(
        xlabel="gradients for each node",
        ylabel="squared distance from the optimum",
        yscale="log",
        title="convex",
    )
    right.set(xlabel="steps of each node", ylabel="mean accuracy", title="deep, uneven data")
    for axes in (left, right):
        axes.legend(fontsize=7)


if __name__ == "__main__":
    main("acceleration", __doc__ or "", experiment, draw)
