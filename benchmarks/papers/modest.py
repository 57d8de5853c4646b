"""MoDeST against D-SGD and FedAvg: rounds, bytes and time to the same accuracy, and 80 of 100 nodes silenced in the middle.

    python benchmarks/papers/modest.py [--quick]

100 nodes hold digits split unevenly (Dirichlet 0.3 and 0.1) and take 5 local steps in a round. MoDeST draws 10 trainers and 1
aggregator in each round by a hash; D-SGD has every node train and send to all of 7 neighbours on a random regular graph, or to
one on the exponential graph, in every round; FedAvg has a server, which draws 10 nodes and is none of the 100 (it is
computed here directly, with the same engine: what MoDeST is to be as good as). The paper's claim for MoDeST is 3 to 14 times
less communication, and going on when 80 % are unresponsive (arXiv 2302.13837).

At round 40 of another run 80 random nodes hold their connections and answer nothing any more, and nobody is told.
"""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
from common import Trial, band, curve, main, run, say, summary, tidy

from node.simulation.engine import Job, open_engine
from node.simulation.run import identities
from node.simulation.scenario import parse_scenario

NODES, SAMPLE, STEPS = 100, 10, 5
GOAL = 0.9
KILL_ROUND = 40


def task(alpha: float) -> dict[str, Any]:
    return {"batch": 16, "learning_rate": 0.1, "split": "dirichlet", "alpha": alpha}


def fedavg(label: str, seed: int, alpha: float, rounds: int) -> Trial:
    """A server draws the nodes, averages what they send back, and is not counted as a node."""
    names = [str(id_) for id_ in identities(parse_scenario({"nodes": NODES, "seed": seed}))]
    engine = open_engine("batched", task="digits", settings=task(alpha), nodes=names, seed=seed)
    rng = random.Random(f"fedavg/{seed}")
    model = engine.initial(0, common=True)
    cursors = [0] * NODES
    trial = Trial(label, seed)
    for round_ in range(rounds + 1):
        score = engine.score([model])[0]
        transfers = 2 * SAMPLE * round_
        trial.points.append(
            SimpleNamespace(
                round=round_, round_mean=round_, transfers=transfers, bytes=transfers * 4 * engine.numel,
                newest_accuracy=score.accuracy, accuracy=SimpleNamespace(mean=score.accuracy),
            )  # type: ignore[arg-type]
        )  # fmt: skip
        drawn = sorted(rng.sample(range(NODES), SAMPLE))
        works = engine.train([Job(node, model, STEPS, cursor=cursors[node]) for node in drawn])
        for node in drawn:
            cursors[node] += STEPS
        model = np.mean([w.params for w in works], axis=0, dtype=np.float64).astype(np.float32)
    return trial


def compare(
    quick: bool, seeds: list[int], findings: dict[str, Any], curves: dict[str, Any]
) -> None:
    for alpha in (0.3,) if quick else (0.3, 0.1):
        trials: dict[str, list[Trial]] = {}
        rounds = {0.3: (40, 36, 72), 0.1: (44, 56, 110)}[alpha]
        for name, protocol, settings, count, y in (
            ("MoDeST", "modest", {"sample_size": SAMPLE, "aggregators": 1}, rounds[0], "newest_accuracy"),
            ("D-SGD, 7-regular", "dpsgd", {"graph": "random-regular", "degree": 7}, rounds[1], "accuracy.mean"),
            ("D-SGD, exponential", "dpsgd", {"graph": "one-peer-exponential"}, rounds[2], "accuracy.mean"),
            ("FedAvg", "", {}, rounds[0], "newest_accuracy"),
        ):  # fmt: skip
            label = f"alpha {alpha:g}, {name}"
            modest = protocol == "modest"
            trials[name] = [
                run(
                    label, seed, protocol=protocol, protocol_settings=settings, nodes=NODES, rounds=count, every=STEPS,
                    task_settings=task(alpha), evaluate_every=1 if modest else 2,
                    # One model line: which nodes are scored beside the newest model does not matter.
                    evaluate_nodes=1 if modest else 0,
                )
                if protocol
                else fedavg(label, seed, alpha, count)
                for seed in seeds
            ]  # fmt: skip
            x = "round" if modest else "round_mean"
            curves[f"{label}: by rounds"] = curve(trials[name], x, y, range(0, count + 1, 2))
            most = min(t.points[-1].transfers for t in trials[name])
            curves[f"{label}: by transfers"] = curve(
                trials[name], "transfers", y, np.linspace(0, most, 31).tolist()
            )
            for what in (x, "transfers", "bytes"):
                key = f"{label}: {'rounds' if what.startswith('round') else what} to {GOAL}"
                findings[key] = summary(t.first(what, y, GOAL) for t in trials[name])
        for name in ("D-SGD, 7-regular", "D-SGD, exponential"):
            findings[f"alpha {alpha:g}: bytes of {name} / of MoDeST"] = summary(
                _ratio(
                    other.first("bytes", "accuracy.mean", GOAL),
                    mine.first("bytes", "newest_accuracy", GOAL),
                )
                for mine, other in zip(trials["MoDeST"], trials[name], strict=True)
            )


def _ratio(other: float | None, mine: float | None) -> float | None:
    return None if other is None or mine is None else other / mine


def silence(
    quick: bool, seeds: list[int], findings: dict[str, Any], curves: dict[str, Any]
) -> None:
    rounds = 60 if quick else 120
    # (window, seconds to wait for the answer to a ping); 5 s is the default; these links' round trip takes 0.08 s
    variants = [(20, 1.0)] if quick else [(20, 1.0), (1000, 1.0), (5, 1.0), (20, 5.0)]
    for window, timeout_s in variants:
        label = f"80 silenced, window {window}, pings {timeout_s:g} s"
        trials = [
            run(
                label,
                seed,
                protocol="modest",
                protocol_settings={
                    "sample_size": SAMPLE, "aggregators": 2, "inactivity_window": window,
                    "ping_timeout": timeout_s, "ping_resend": timeout_s * 0.4,
                },
                nodes=NODES,
                rounds=rounds,
                every=STEPS,
                task_settings=task(0.3),
                evaluate_every=1,
                evaluate_nodes=1,
                disruption={"case": "random", "share": 0.8, "at_round": KILL_ROUND, "silent": True},
                discovery={"rewire": False},
            )
            for seed in seeds
        ]  # fmt: skip
        curves[label] = curve(trials, "round", "newest_accuracy", range(0, rounds + 1, 2))
        for name, first, last in (
            ("before", KILL_ROUND - 10, KILL_ROUND - 1),
            ("right after", KILL_ROUND + 2, KILL_ROUND + 12),
            ("at the end", rounds - 10, rounds),
        ):
            findings[f"{label}: accuracy {name}"] = summary(
                _between(t, "newest_accuracy", first, last) for t in trials
            )
            findings[f"{label}: messages in a round {name}"] = summary(
                _growth(t, "messages", first, last) for t in trials
            )
            findings[f"{label}: seconds for a round {name}"] = summary(
                _growth(t, "time_s", first, last) for t in trials
            )
        findings[f"{label}: round reached of {rounds}"] = [t.points[-1].round for t in trials]


def _between(trial: Trial, y: str, first: int, last: int) -> float | None:
    rounds, values = trial.column("round"), trial.column(y)
    chosen = values[(rounds >= first) & (rounds <= last)]
    return tidy(chosen.mean()) if len(chosen) else None


def _growth(trial: Trial, y: str, first: int, last: int) -> float | None:
    rounds, values = trial.column("round"), trial.column(y)
    if rounds[-1] < last:
        return None
    low, high = np.interp([first, last], rounds, values)
    return tidy((high - low) / (last - first))


def experiment(quick: bool, seeds: list[int]) -> dict[str, Any]:
    findings: dict[str, Any] = {}
    curves: dict[str, Any] = {}
    compare(quick, seeds, findings, curves)
    silence(quick, seeds, findings, curves)
    return {
        "settings": {
            "nodes": NODES, "sample": SAMPLE, "local steps": STEPS, "batch": 16, "learning rate": 0.1, "data": "digits",
            "goal": GOAL, "silenced": f"80 of {NODES} at round {KILL_ROUND}",
        },
        "findings": findings,
        "curves": curves,
    }  # fmt: skip


def draw(found: Any, plt: Any) -> None:
    _, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4), sharey=True)
    for label, data in found["curves"].items():
        if label.startswith("80 silenced"):
            band(right, data, label.removeprefix("80 silenced, "))
        elif label.startswith("alpha 0.3"):
            name = label.removeprefix("alpha 0.3, ").partition(": ")[0]
            axes = left if label.endswith("by rounds") else middle
            band(axes, data, name, linestyle="--" if name == "FedAvg" else "-")
    left.set(
        xlabel="round", ylabel="accuracy", ylim=(0.2, 1), title=f"{NODES} nodes, Dirichlet 0.3"
    )
    middle.set(
        xlabel="model transfers of all nodes", xscale="log", title="the same by what was sent"
    )
    right.set(xlabel="round", title=f"80 of {NODES} silenced at round {KILL_ROUND}")
    for axes in (left, middle, right):
        axes.axhline(GOAL, color="grey", linewidth=0.8, linestyle=":")
        axes.legend(fontsize=7, loc="lower right")


if __name__ == "__main__":
    say("MoDeST, D-SGD and FedAvg")
    main("modest", __doc__ or "", experiment, draw)
