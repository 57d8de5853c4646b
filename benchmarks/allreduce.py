"""Certified encrypted all-reduce against torch's gloo (plaintext), in one run on loopback.

    python benchmarks/allreduce.py [--world 2 4] [--sizes 1024 ...] [--paths shared tcp] [--ways auto auto/int8 ring ...]

Each program has processes of its own: a member of noded holds no torch, as a daemon holds none. Their iterations alternate, so that
whatever else the machine does meets both alike; quote the ratio. An iteration begins for all ranks at one instant, some milliseconds
after all have come to rest, and ends with the last of them, so what is timed holds nothing of the barrier before. Of small vectors an iteration is
several operations in a row, as in gloo's, NCCL's and PCCL's own benchmarks, and its time their mean. `--burst 1` measures each one from rest, when
everything has left the caches, as after a step of training; with `--pin`, or it shows how the kernel wakes processes: in a virtual machine it takes a
CPU that has halted for one that is busy, and lets all ranks take turns on the other.

Three paths can be measured, each beside gloo: `shared` is what members on one machine use (sealed records
in shared memory, notices over TCP), `tcp` is the same program with shared memory declined, as between
two machines; gloo uses TCP over loopback in both. `line` is for two: each in a network namespace of its own, and
between them a wire that the kernel limits to `--line` Mbit/s each way (needs root).

A way is an algorithm and a wire format (`auto`: values as they are); all of them take turns with gloo in every iteration.

One JSON line per case on stdout (median over the iterations), a table on stderr. Below it, what the parts cost in the same
run (`benchmarks/part_costs.py`); their sum is the floor, `rest` what is above it: Python, tasks, cache misses, the certificate.
TCP's own floor, which no all-reduce over sockets can go below, is 2(N-1) times what iperf3 needs per GiB.

What is compared: fp32 sum. Ours is encrypted, authenticated, certified by all members' signatures,
and keeps its input for a retry (out of place); gloo's is plaintext, in place, and does none of that.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import netpath
from allreduce_rank import Place, Rank, ranks
from part_costs import floor, part_costs

SIZES = (1 << 10, 1 << 16, 1 << 20, 1 << 24, 1 << 26, 1 << 28)
PATHS = ("shared", "tcp", "line")
LINE_WORLD = 2
PAUSE_S = 0.005
"""From telling the ranks when to begin to the beginning: all have come to rest by then."""
WARM_UP = 2
MOST_BURST = 40
"""Gloo adds up in place: the values of more would be infinite."""
ROW, ROW_BYTES = 20, 1 << 24
"""Operations in a row at most, and bytes they reduce, where `--burst` says nothing."""


def in_a_row(size: int, asked: int | None) -> int:
    return asked or max(1, min(ROW, ROW_BYTES // size))


def iterations(size: int, times: int, most: int) -> int:
    usual = {1 << 10: 60, 1 << 16: 60, 1 << 20: 60, 1 << 24: 21, 1 << 26: 11}.get(size, 7)
    return min(usual if times == 1 else 21, most)


def together(program: Sequence[Rank], **command: Any) -> list[Any]:
    """Have all ranks do something; their answers."""
    for each in program:
        each.tell(**command)
    return [each.hear("answer") for each in program]


def iteration(program: Sequence[Rank], way: str, times: int) -> dict[str, Any]:
    """The slowest rank's time and the sum of the CPU times, in seconds and per operation."""
    together(program, do="fill")
    answers = together(program, do="reduce", way=way, times=times, at=time.monotonic() + PAUSE_S)
    return {
        "took": max(answer["took"] for answer in answers),
        "used": sum(answer["used"] for answer in answers),
        "first": answers[0],
    }


def case(
    noded: Sequence[Rank],
    gloo: Sequence[Rank],
    size: int,
    ways: Sequence[str],
    *,
    most: int,
    burst: int | None,
) -> Iterator[dict[str, Any]]:
    """One row for each way."""
    times = in_a_row(size, burst)
    for program in (noded, gloo):
        together(program, do="prepare", size=size)
    seen: dict[str, list[dict[str, Any]]] = {way: [] for way in (*ways, "gloo")}
    for _ in range(iterations(size, times, most) + WARM_UP):
        for way in ways:
            seen[way].append(iteration(noded, way, times))
        seen["gloo"].append(iteration(gloo, "", times))

    def figures(way: str, name: str, key: str) -> dict[str, float]:
        values = [each[key] * 1e3 for each in seen[way][WARM_UP:]]
        return {f"{name}_ms": statistics.median(values), f"{name}_best_ms": min(values)}

    per_gib = 2**30 / size / 1e3
    theirs = figures("gloo", "gloo", "took") | figures("gloo", "gloo_cpu", "used")
    for way in ways:
        ours = figures(way, "noded", "took") | figures(way, "noded_cpu", "used")
        numbers = {
            **ours,
            **theirs,
            "bandwidth_ratio": theirs["gloo_ms"] / ours["noded_ms"],
            "noded_cpu_s_per_gib": ours["noded_cpu_ms"] * per_gib,
            "gloo_cpu_s_per_gib": theirs["gloo_cpu_ms"] * per_gib,
            "noded_extra_mib": max(each["first"]["extra_mib"] for each in seen[way]),
        }
        yield {
            "benchmark": "allreduce",
            "way": way,
            "algorithm": seen[way][-1]["first"]["algorithm"],
            "bytes": size,
            "burst": times,
            "iterations": len(seen[way]) - WARM_UP,
            **{name: round(value, 3) for name, value in numbers.items()},
        }


@contextlib.contextmanager
def placed(world: int, path: str, line_mbit: int) -> Iterator[Place]:
    """Where the ranks of a path are."""
    if path != "line":
        yield Place(["127.0.0.1"] * world)
        return
    with netpath.veth_pair(line_mbit * 10**6):
        prefixes = [netpath.inside(name) for name in netpath.NAMES]
        yield Place(netpath.ADDRESSES, prefixes, ["nb0", "nb1"])


def run_world(
    world: int,
    path: str,
    sizes: Sequence[int],
    ways: Sequence[str],
    *,
    pin: bool,
    line_mbit: int,
    **options: Any,
) -> Iterator[dict[str, Any]]:
    with (
        placed(world, path, line_mbit) as place,
        ranks("noded", place, path, pin=pin) as noded,
        ranks("gloo", place, path, pin=pin) as gloo,
    ):
        for size in sizes:
            for row in case(noded, gloo, size, ways, **options):
                yield {"world": world, "path": path, **row}


def table(rows: list[dict[str, Any]]) -> str:
    head = (
        f"{'world':>5} {'path':>6} {'size':>9} {'way':>14} {'noded ms':>10} {'gloo ms':>10} {'ratio':>7} "
        f"{'cpu/GiB':>8} {'gloo':>7} {'of gloo':>8} {'floor':>7} {'rest':>7} {'extra':>8}"
    )
    lines = [head]
    for row in rows:
        size = int(row["bytes"])
        text = f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"
        line = (
            f"{row['world']:>5} {row['path']:>6} {text:>9} {row['way']:>14} {row['noded_ms']:>10} "
            f"{row['gloo_ms']:>10} {row['bandwidth_ratio']:>6}x "
        )
        if size < 1 << 20:  # a GiB would be a million operations
            line += f"{row['noded_cpu_ms']:>5} ms {row['gloo_cpu_ms']:>4} ms"
        else:
            used, other = row["noded_cpu_s_per_gib"], row["gloo_cpu_s_per_gib"]
            line += (
                f"{used:>8} {other:>7} {used / other:>7.2f}x {row['floor_cpu_s_per_gib']:>7} "
                f"{used - row['floor_cpu_s_per_gib']:>7.2f} {row['noded_extra_mib']:>4} MiB"
            )
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--world", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=["shared", "tcp"])
    parser.add_argument("--line", type=int, default=1000, help="Mbit/s each way of the path `line`")
    parser.add_argument("--ways", nargs="+", default=["auto"])
    parser.add_argument("--most", type=int, default=100, help="iterations of one size at most")
    parser.add_argument(
        "--burst",
        type=int,
        choices=range(1, MOST_BURST + 1),
        metavar="N",
        help=f"operations in a row, of which the mean is taken; at most {MOST_BURST} (default: {ROW}, of 1 MiB 16, from 16 MiB on 1)",
    )
    parser.add_argument(
        "--pin",
        action="store_true",
        help="each rank, with all its threads, on one CPU: where other work would push two onto one",
    )
    options = parser.parse_args()
    costs = part_costs()
    rows: list[dict[str, Any]] = []
    for world, path in itertools.product(options.world, options.paths):
        if path == "line" and world != LINE_WORLD:
            continue
        for row in run_world(
            world,
            path,
            options.sizes,
            options.ways,
            pin=options.pin,
            line_mbit=options.line,
            most=options.most,
            burst=options.burst,
        ):
            row["floor_cpu_s_per_gib"] = round(floor(costs, world, path), 3)
            rows.append(row)
            print(json.dumps(row), flush=True)
    parts = {"benchmark": "allreduce parts", "python": sys.version, "cpu_s_per_gib": costs}
    print(json.dumps(parts), flush=True)
    print(table(rows), file=sys.stderr)
    listed = ", ".join(
        f"{name} {cost} ({1.0737 / cost:.1f} GB/s)" for name, cost in costs.items() if cost
    )
    print(f"CPU seconds per GiB of each part: {listed}", file=sys.stderr)
    print(f"Python {sys.version}", file=sys.stderr)


if __name__ == "__main__":
    main()
