"""A token that shuns where it has been: error of the model against alpha, on a graph that mixes slowly and on an expander.

    python benchmarks/papers/token_walk.py [--quick]

One token with the only model walks over 50 nodes and takes a gradient step at each, with the walk of Metropolis and
Hastings (alpha 0) or repelled by its past (SA-SRRW, ICLR 2024). Every node has a quadratic of its own, with optima set
against each other along the slowest mode of the walk: one side of the graph pulls up, the other down, and
a walk that stays long on one side is wrong for long. The claim is a variance that falls with 1/alpha^2, for a = 0.8 and b = 0.9.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import main, run, summary, tidy
from problems import Opposed

from gossip.decentralized.topology import graph
from node.simulation.run import identities, run_id_of
from node.simulation.scenario import parse_scenario

NODES = 50


def slow_mode(kind: str, seed: int) -> tuple[np.ndarray, float]:
    """The second eigenvector of the Metropolis-Hastings walk on that seed's graph, of variance 1, and the spectral gap."""
    scenario = parse_scenario({"nodes": NODES, "seed": seed})
    ids = identities(scenario)
    edges = graph(kind, ids, run_id_of(scenario), degree=4)  # type: ignore[arg-type]
    index = {id_: at for at, id_ in enumerate(ids)}
    walk = np.zeros((NODES, NODES))
    for id_, near in edges.items():
        for other in near:
            walk[index[id_], index[other]] = min(1 / len(near), 1 / len(edges[other]))
    walk += np.diag(1 - walk.sum(axis=1))
    values, vectors = np.linalg.eigh(walk)
    return vectors[:, -2] * np.sqrt(NODES), float(1 - values[-2])


def experiment(quick: bool, seeds: list[int]) -> dict[str, Any]:
    hops = 1000 if quick else 6000
    alphas = (0, 5) if quick else (0, 1, 5, 10, 20)
    findings: dict[str, Any] = {}
    curves: dict[str, Any] = {}
    for kind in ("small-world",) if quick else ("small-world", "random-regular"):
        modes = {seed: slow_mode(kind, seed) for seed in seeds}
        findings[f"{kind}: spectral gap"] = summary(gap for _, gap in modes.values())
        errors: dict[float, list[float]] = {}
        for alpha in alphas:
            label = f"{kind}, alpha {alpha}"
            rows, uneven = [], []
            for seed in seeds:
                engine = Opposed(modes[seed][0])
                trial = run(
                    label, seed, engine=engine, protocol="token-walk",
                    protocol_settings={"graph": kind, "degree": 4, "alpha": alpha},
                    nodes=NODES, rounds=hops, every=1, evaluate_every=hops // 100, evaluate_nodes=1,
                )  # fmt: skip
                rows.append(trial.column("newest_loss")[-60:].mean())
                visits = np.array([engine.visits[node] for node in range(NODES)])
                uneven.append(float(np.abs(visits / visits.sum() - 1 / NODES).sum() / 2))
                curves.setdefault(f"{label}: squared error", []).append(
                    [tidy(v) for v in trial.column("newest_loss")[::5]]
                )
            errors[alpha] = rows
            findings[f"{label}: mean squared error"] = summary(rows)
            findings[f"{label}: visits' distance from even"] = summary(uneven)
        for alpha in alphas[1:]:
            findings[f"{kind}: error of alpha 0 / of alpha {alpha}"] = tidy(
                np.mean(errors[0]) / np.mean(errors[alpha])
            )
    return {
        "settings": {
            "nodes": NODES, "degree": 4, "hops": hops, "a": 0.8, "b": 0.9,
            "error": "mean over the last 60 % of the hops",
        },
        "findings": findings,
        "curves": curves,
    }  # fmt: skip


def draw(found: Any, plt: Any) -> None:
    _, axes = plt.subplots(figsize=(5.5, 4))
    for kind in ("small-world", "random-regular"):
        rows = {
            float(key.partition("alpha ")[2].partition(":")[0]): value
            for key, value in found["findings"].items()
            if key.startswith(f"{kind}, alpha") and key.endswith("squared error")
        }
        if not rows:
            continue
        alphas = sorted(rows)
        mean, low, high = ([rows[a][key] for a in alphas] for key in ("mean", "least", "greatest"))
        gap = found["findings"][f"{kind}: spectral gap"]["mean"]
        (line,) = axes.plot(alphas, mean, "o-", label=f"{kind}, spectral gap {gap:.3f}")
        axes.fill_between(alphas, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel="alpha", ylabel="mean squared error of the token's model", yscale="log")
    axes.set_title(f"{NODES} nodes, {found['settings']['hops']:,} hops")
    axes.legend()


if __name__ == "__main__":
    main("token_walk", __doc__ or "", experiment, draw, seeds=4)
