"""Bulk data and an all-reduce over a long path: 100 ms of round trip, 1 Gbit/s. Needs root and iperf3.

    chrt -r 5 python benchmarks/wan.py [--rate 1000] [--rtt 100] [--mib 64 256] [--rounds 1]

The path is a Python process between two TUN devices, each in a network namespace of its own
(`benchmarks/netpath.py`): a queue of 100 ms at the rate asked for, then the delay. It hands on whole runs of
segments, as network cards do. What it can carry is measured first in every round, with iperf3 and 8, 16 and 1
connections. What follows is told as a share of the line's rate and of the best that iperf3 had in the same round: a
bulk pool held to one link (the smallest size only), to eight, and with as many links as it finds worth it, and an
all-reduce of two members, whose payload crosses the path once in each direction at the same time (the directions
have a rate each). Beside the largest of these, both members send control round trips over the full line, one every
20 ms. `chrt` keeps the programs of others off these processes, where `nice` does not reach over sessions.

`first` is the first transfer, slow start included; `steady` the median of those after it, over the connections that are
there. A transfer is waited for before the next, so it cannot take less than its bytes at the line's rate and a round
trip: 0.84 of the line with 64 MiB, 0.96 with 256. One JSON line per figure on stdout, a table of medians on stderr.
"""
# ruff: noqa: E402  (the path comes first)

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import netpath
from collective_rank import members, reduce_all

MIB = 1 << 20
PORT = 21700
TRANSFERS = 4
"""Of each contender, size and round: the first, and those that find everything in place."""
PATIENCE_S = 120
ONE_LINK = "bulk pool, 1 link"
POOLS = {
    ONE_LINK: "bulk pool 1",
    "bulk pool, 8 links": "bulk pool 8",
    "bulk pool, as many as pay": "bulk pool",
}
CONNECTIONS = (8, 16, 1)
"""Of iperf3."""


def benchmark_of_transport() -> Any:
    """`benchmarks/transport.py`, which is called like a package."""
    spec = importlib.util.spec_from_file_location("transport_benchmark", HERE / "transport.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def iperf3(connections: int, seconds: int) -> tuple[float, int]:
    """Mbit/s of what has arrived, without the first 3 s, and how many segments were sent again."""
    server, client = (netpath.inside(name) for name in netpath.NAMES)
    with subprocess.Popen(
        [*server, "iperf3", "-s", "-1", "-p", str(PORT)], stdout=subprocess.DEVNULL
    ) as listening:
        for _ in range(100):
            command = ["iperf3", "-c", netpath.ADDRESSES[0], "-p", str(PORT), "-J", "-O", "3"]
            done = subprocess.run(
                [*client, *command, "-t", str(seconds), "-P", str(connections)],
                capture_output=True,
                text=True,
                check=False,
                timeout=PATIENCE_S,
            )
            result = json.loads(done.stdout)
            if "error" not in result:
                break
            time.sleep(0.05)  # the server is not there yet
        listening.wait(timeout=PATIENCE_S)
    end = result["end"]
    return end["sum_received"]["bits_per_second"] / 1e6, end["sum_sent"]["retransmits"]


class Run:
    """The figures so far."""

    def __init__(self, rate_mbit: int, rtt_ms: float) -> None:
        self._rate_mbit = rate_mbit
        self._path = {"rate_mbit": rate_mbit, "rtt_ms": rtt_ms}
        self.rows: list[dict[str, Any]] = []

    def add(self, name: str, **figures: Any) -> None:
        row = {
            "benchmark": "wan",
            **self._path,
            "name": name,
            **figures,
            "load": [round(load, 1) for load in os.getloadavg()],
        }
        self.rows.append(row)
        print(json.dumps(row), flush=True)

    def add_rate(self, name: str, mbit_per_s: float, of: float, **more: Any) -> None:
        """A rate; `of` is that of iperf3."""
        self.add(
            name,
            mbit_per_s=round(mbit_per_s, 1),
            of_line=round(mbit_per_s / self._rate_mbit, 3),
            of_iperf3=round(mbit_per_s / of, 3),
            **more,
        )

    def table(self) -> str:
        path = f"{self._path['rate_mbit']} Mbit/s, RTT {self._path['rtt_ms']:g} ms"
        columns = ("mbit_per_s", "of_line", "of_iperf3", "first_mbit_per_s", "links", "p99_ms")
        heads = ("Mbit/s", "of line", "of iperf3", "first", "links", "p99 ms")
        lines = [f"{path:<40}" + "".join(f" {head:>9}" for head in heads)]
        for name in dict.fromkeys(row["name"] for row in self.rows):
            rows = [row for row in self.rows if row["name"] == name]
            line = f"{name:<40}"
            for column in columns:
                values = [row[column] for row in rows if column in row]
                line += f" {f'{statistics.median(values):.3g}' if values else '':>9}"
            lines.append(line)
        return "\n".join(lines)


def mbit(size: int, seconds: float) -> float:
    return size * 8 / seconds / 1e6


def of_iperf3(run: Run, seconds: int, rate_bit: int, rtt_s: float) -> float:
    """Mbit/s of the best of them."""
    found = {}
    for connections in CONNECTIONS:
        with netpath.long_path(rate_bit, rtt_s, 0.0, offload=True):
            found[connections] = iperf3(connections, seconds)
    best = max(rate for rate, _ in found.values())
    for connections, (rate, again) in found.items():
        run.add_rate(f"iperf3, {connections} connections", rate, best, sent_again=again)
    return best


def of_pools(run: Run, sizes: list[int], link: float, rate_bit: int, rtt_s: float) -> None:
    transport = benchmark_of_transport()
    for name, kind in POOLS.items():
        for size in sizes[:1] if name == ONE_LINK else sizes:
            with (
                netpath.long_path(rate_bit, rtt_s, 0.0, offload=True),
                contextlib.closing(transport.between(kind)) as pair,
            ):
                sides = [pair.once(size)[1] for _ in range(TRANSFERS)]
            rates = [mbit(size, side["s"]) for side in sides]
            run.add_rate(
                f"{name}, {size // MIB} MiB",
                statistics.median(rates[1:]),
                link,
                first_mbit_per_s=round(rates[0], 1),
                links=sides[-1]["extra"]["links"],
            )


def of_all_reduce(
    run: Run, size: int, link: float, rate_bit: int, rtt_s: float, *, pings: bool
) -> None:
    """With `pings`, what control round trips take meanwhile."""
    with netpath.long_path(rate_bit, rtt_s, 0.0, offload=True):
        addresses = [(address, PORT + 1) for address in netpath.ADDRESSES]
        prefixes = [netpath.inside(name) for name in netpath.NAMES]
        with members(addresses, prefixes=prefixes) as ranks:
            rates, took = [], []
            for operation in range(TRANSFERS):
                reduce_all(ranks, operation, size, pings=pings)
                answers = [each.hear("answer") for each in ranks]
                began = min(answer["began"] for answer in answers)
                rates.append(mbit(size, max(answer["ended"] for answer in answers) - began))
                took += [seconds for answer in answers for seconds in answer["pings"]]
            for each in ranks:
                each.tell(do="check", numbers=True)
            checks = [each.hear("answer") for each in ranks]
    if len({check["digest"] for check in checks}) != 1 or checks[0]["error"] > 1.0:
        raise SystemExit(f"wrong sum: {checks}")
    steady, first = statistics.median(rates[1:]), round(rates[0], 1)
    name = f"all-reduce of two, {size // MIB} MiB"
    if not pings:
        run.add_rate(name, steady, link, first_mbit_per_s=first)
        return
    took.sort()
    run.add_rate(
        f"control beside {name}",
        steady,
        link,
        pings=len(took),
        p50_ms=round(took[len(took) // 2] * 1e3, 1),
        p99_ms=round(took[int(0.99 * len(took))] * 1e3, 1),
        most_ms=round(took[-1] * 1e3, 1),
    )


def one_round(run: Run, sizes: list[int], seconds: int, rate_bit: int, rtt_s: float) -> None:
    link = of_iperf3(run, seconds, rate_bit, rtt_s)
    of_pools(run, sizes, link, rate_bit, rtt_s)
    for size in sizes:
        of_all_reduce(run, size, link, rate_bit, rtt_s, pings=False)
    of_all_reduce(run, sizes[-1], link, rate_bit, rtt_s, pings=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rate", type=int, default=1000, help="Mbit/s each way")
    parser.add_argument("--rtt", type=float, default=100, help="ms")
    parser.add_argument("--mib", type=int, nargs="+", default=[64, 256], help="per transfer")
    parser.add_argument("--seconds", type=int, default=8, help="of each iperf3 measurement")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    run = Run(options.rate, options.rtt)
    sizes = [mib * MIB for mib in sorted(options.mib)]
    for _ in range(options.rounds):
        one_round(run, sizes, options.seconds, options.rate * 10**6, options.rtt / 1e3)
    print(run.table(), file=sys.stderr)


if __name__ == "__main__":
    main()
