"""Searches in simulated swarms: success, hops, queries and virtual latency at rest, under churn and among liars.

    python benchmarks/dht.py [--nodes 10000] [--searches 1000] [--seed 1] [--only TEXT] [--plot docs/dht.png]
    python benchmarks/dht.py --draw ROWS.jsonl --plot docs/dht.png         the table and plot of rows that were printed before

Prints one JSON line per row as it is done, then the table of `docs/dht.md`. The nodes are the shipped ones (`dht/node.py`) on one event
heap; the network is a model: every message takes 10 to 120 ms, a dead node never answers, a query is given up after 3 s. Virtual figures
depend on the seed alone, so the machine's load changes nothing but `wall_s`. The situations are in `tests/dht/scenarios.py`.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.dht import scenarios
from tests.dht.scenarios import Figures
from tests.dht.world import SimNode, World

PATHS = (1, 2, 4, 8)
SHARES = (0.2, 0.4)
GROUND = ((20, 1), (20, 20), (60, 60))  # ids next to the key, networks they are spread over
GROUND_NODES = 2000  # each of these attacks changes the swarm for good
AT_REST = "at rest"
CHURN = "half replaced in an hour"
UPKEEP = "at rest, everybody refreshing"
Row = dict[str, object]
Measure = Callable[[], Figures]


def rows(nodes: int, searches: int, seed: int, only: str) -> Iterator[tuple[str, int, Measure]]:
    """Every situation wanted: its name, the number of paths, how to measure it. Swarms are filled once per situation."""
    if only in AT_REST:
        world, all_nodes = scenarios.filled(seed, nodes, 4, refresh_s=1e9)
        yield from _each(AT_REST, world, all_nodes, searches)
    if only in UPKEEP:
        yield UPKEEP, 4, lambda: scenarios.with_upkeep(seed, nodes, searches)
    for share in SHARES:
        name = f"{share:.0%} liars"
        if only in name:
            world, honest = scenarios.infiltrated(seed, nodes, share)
            yield from _each(name, world, honest, searches)
    if only in CHURN:
        yield CHURN, 4, lambda: scenarios.under_churn(seed, nodes, searches)
    for ids, networks in GROUND:
        name = f"{ids} ids ground next to the key, {networks} /16 (2,000 nodes)"
        if only in name:
            run = functools.partial(
                scenarios.with_ground_ids, seed, min(nodes, GROUND_NODES), searches // 4
            )
            yield name, 4, functools.partial(run, ids=ids, networks=networks)


def _each(
    name: str, world: World, nodes: list[SimNode], searches: int
) -> Iterator[tuple[str, int, Measure]]:
    def run(paths: int) -> Figures:
        scenarios.take_paths(world, paths)
        return scenarios.search(world, nodes, searches, max(10, searches // 10))

    for paths in PATHS:
        yield name, paths, functools.partial(run, paths)


def measure(name: str, paths: int, run: Measure, nodes: int) -> Row:
    """One row."""
    started = time.perf_counter()
    figures = run()
    return {
        "situation": name,
        "nodes": min(nodes, GROUND_NODES) if "ground" in name else nodes,
        "paths": paths,
        "searches": figures.searches,
        "success": round(figures.success, 5),
        "hops": figures.hops,
        "queries": figures.queries,
        "virtual_s": round(figures.seconds, 3),
        "virtual_s_99": round(figures.seconds_99, 3),
        "forged_offered": figures.forged_offered,
        "forged_accepted": figures.forged_accepted,
        "upkeep_per_node_s": round(figures.upkeep, 2),
        "wall_s": round(time.perf_counter() - started, 1),
    }


def table(found: list[Row]) -> str:
    """The rows as Markdown."""
    head = [
        "| situation | paths | searches | success | hops | queries | virtual s, median | 99 % | upkeep, queries per node and s | forged records offered | accepted |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    body = [
        f"| {row['situation']} | {row['paths']} | {row['searches']} | {100 * float(str(row['success'])):.2f} % "
        f"| {row['hops']:g} | {row['queries']:g} | {row['virtual_s']:.2f} | {row['virtual_s_99']:.2f} "
        f"| {row.get('upkeep_per_node_s') or 'off'} | {row['forged_offered']} | {row['forged_accepted']} |"
        for row in found
    ]
    return "\n".join(head + body)


def draw(found: list[Row], path: Path) -> None:
    """Success and queries over the number of paths."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    for name, mark in (("at rest", "o-"), ("20% liars", "s-"), ("40% liars", "^-")):
        mine = [row for row in found if row["situation"] == name]
        if not mine:
            continue
        xs = [row["paths"] for row in mine]
        left.plot(xs, [100 * float(str(row["success"])) for row in mine], mark, label=name)
        right.plot(xs, [row["queries"] for row in mine], mark, label=name)
    for axes, what in ((left, "searches that succeed, %"), (right, "queries of a search, median")):
        axes.set_xscale("log", base=2)
        axes.set_xticks(PATHS, [str(paths) for paths in PATHS])
        axes.set_xlabel("disjoint paths")
        axes.set_ylabel(what)
        axes.grid(alpha=0.3)
    left.axhline(99, color="grey", linewidth=0.8, linestyle="--")
    right.set_ylim(bottom=0)
    left.legend()
    figure.suptitle(f"{found[0]['nodes']} nodes, colluding liars")
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main() -> None:
    """Measure or draw, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--searches", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="situations whose name holds this text")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--draw", type=Path, help="rows of an earlier run, instead of measuring")
    options = parser.parse_args()
    found: list[Row] = []
    if options.draw:
        found = [
            json.loads(line) for line in options.draw.read_text().splitlines() if line[:1] == "{"
        ]
    else:
        for name, paths, run in rows(options.nodes, options.searches, options.seed, options.only):
            found.append(measure(name, paths, run, options.nodes))
            print(json.dumps(found[-1]), flush=True)
    print(table(found))
    if options.plot:
        draw(found, options.plot)


if __name__ == "__main__":
    main()
