"""Bulk data and an all-reduce over a long path: 100 ms of round trip, 1 Gbit/s. Needs root and iperf3.

    python benchmarks/wan.py [--rate 1000] [--rtt 100] [--mib 64] [--rounds 3]

The path is a Python process between two TUN devices, each in a network namespace of its own
(`benchmarks/netpath.py`): a queue of 100 ms at the rate asked for, then the delay. It hands on whole runs of
segments, as network cards do, but competes for the same processors, so every round measures the link with
iperf3 first: 8 connections, and 1. What follows is told as a share of the 8 connections of the same round: a
bulk pool held to one link, to eight, and with as many links as it finds worth it, and an all-reduce of two
members, whose payload crosses the path once in each direction at the same time (the directions have a rate
each).

`first` is the first transfer, slow start included; `steady` the median of those after it, over the connections that are
there. One JSON line per figure on stdout, a table of medians on stderr.
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
"""Of each contender and round: the first, and those that find everything in place."""
PATIENCE_S = 120
POOLS = {
    "bulk pool, 1 link": "bulk pool 1",
    "bulk pool, 8 links": "bulk pool 8",
    "bulk pool, as many as pay": "bulk pool",
}
WAYS: dict[str, list[str]] = {
    "iperf3, 8 connections": ["-P", "8"],
    "iperf3, 1 connection": ["-P", "1"],
}


def benchmark_of_transport() -> Any:
    """`benchmarks/transport.py`, which is called like a package."""
    spec = importlib.util.spec_from_file_location("transport_benchmark", HERE / "transport.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def iperf3(words: list[str], seconds: int) -> float:
    """Mbit/s of what has arrived, without the first 3 s."""
    server, client = (netpath.inside(name) for name in netpath.NAMES)
    with subprocess.Popen(
        [*server, "iperf3", "-s", "-1", "-p", str(PORT)], stdout=subprocess.DEVNULL
    ) as listening:
        for _ in range(100):
            command = ["iperf3", "-c", netpath.ADDRESSES[0], "-p", str(PORT), "-J", "-O", "3"]
            done = subprocess.run(
                [*client, *command, "-t", str(seconds), *words],
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
    return float(result["end"]["sum_received"]["bits_per_second"]) / 1e6


class Run:
    """The figures so far."""

    def __init__(self, rate_mbit: int, rtt_ms: float) -> None:
        self._path = {"rate_mbit": rate_mbit, "rtt_ms": rtt_ms}
        self.rows: list[dict[str, Any]] = []

    def add(self, name: str, steady: float, link: float, **more: Any) -> None:
        row = {
            "benchmark": "wan",
            **self._path,
            "name": name,
            "mbit_per_s": round(steady, 1),
            "of_link": round(steady / link, 3),
            **more,
            "load": [round(load, 1) for load in os.getloadavg()],
        }
        self.rows.append(row)
        print(json.dumps(row), flush=True)
        print(f"{name}: {row['mbit_per_s']} Mbit/s", file=sys.stderr, flush=True)

    def table(self) -> str:
        path = f"{self._path['rate_mbit']} Mbit/s, RTT {self._path['rtt_ms']:g} ms"
        lines = [f"{path:<34} {'Mbit/s':>8} {'of link':>8} {'first':>8} {'links':>6}"]
        for name in dict.fromkeys(row["name"] for row in self.rows):
            rows = [row for row in self.rows if row["name"] == name]

            def median(key: str, rows: list[dict[str, Any]] = rows) -> str:
                values = [row[key] for row in rows if key in row]
                return f"{statistics.median(values):.3g}" if values else ""

            lines.append(
                f"{name:<34} {median('mbit_per_s'):>8} {median('of_link'):>8}"
                f" {median('first_mbit_per_s'):>8} {median('links'):>6}"
            )
        return "\n".join(lines)


def mbit(size: int, seconds: float) -> float:
    return size * 8 / seconds / 1e6


def one_round(run: Run, size: int, seconds: int, rate_bit: int, rtt_s: float) -> None:
    transport = benchmark_of_transport()
    links: dict[str, float] = {}
    for name, words in WAYS.items():
        with netpath.long_path(rate_bit, rtt_s, 0.0, offload=True):
            links[name] = iperf3(words, seconds)
        run.add(name, links[name], links["iperf3, 8 connections"])
    link = links["iperf3, 8 connections"]
    for name, kind in POOLS.items():
        with (
            netpath.long_path(rate_bit, rtt_s, 0.0, offload=True),
            contextlib.closing(transport.between(kind)) as pair,
        ):
            sides = [pair.once(size)[1] for _ in range(TRANSFERS)]
        rates = [mbit(size, side["s"]) for side in sides]
        steady = statistics.median(rates[1:])
        first = round(rates[0], 1)
        run.add(name, steady, link, first_mbit_per_s=first, links=sides[-1]["extra"]["links"])
    with netpath.long_path(rate_bit, rtt_s, 0.0, offload=True):
        addresses = [(address, PORT + 1) for address in netpath.ADDRESSES]
        prefixes = [netpath.inside(name) for name in netpath.NAMES]
        with members(addresses, prefixes=prefixes) as ranks:
            rates = []
            for operation in range(TRANSFERS):
                reduce_all(ranks, operation, size)
                answers = [each.hear("answer") for each in ranks]
                began = min(answer["began"] for answer in answers)
                rates.append(mbit(size, max(answer["ended"] for answer in answers) - began))
            for each in ranks:
                each.tell(do="check", numbers=True)
            checks = [each.hear("answer") for each in ranks]
    if len({check["digest"] for check in checks}) != 1 or checks[0]["error"] > 1.0:
        raise SystemExit(f"wrong sum: {checks}")
    steady = statistics.median(rates[1:])
    run.add("all-reduce of two", steady, link, first_mbit_per_s=round(rates[0], 1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rate", type=int, default=1000, help="Mbit/s each way")
    parser.add_argument("--rtt", type=float, default=100, help="ms")
    parser.add_argument("--mib", type=int, default=64, help="per transfer")
    parser.add_argument("--seconds", type=int, default=8, help="of each iperf3 measurement")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    run = Run(options.rate, options.rtt)
    for _ in range(options.rounds):
        one_round(run, options.mib * MIB, options.seconds, options.rate * 10**6, options.rtt / 1e3)
    print(run.table(), file=sys.stderr)


if __name__ == "__main__":
    main()
