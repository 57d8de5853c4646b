"""The transport against iperf3, trio.SSLStream and plain trio sockets, in one run.

    python benchmarks/transport.py [--parts throughput handshakes calls control long] [--repeat 9]

Client and server are processes of their own. Everything on loopback is measured in turns, one
repetition of each contender after the other, so that whatever else the machine does meets all
alike: quote the ratios. On a machine that others use, `nice -n -15` (root) before the command
keeps them out of all contenders alike. `control` and `long` need root: they run between two network namespaces.

One JSON line per case on stdout (medians), tables on stderr. GB are 1e9 bytes.

What is compared: one connection, one way. iperf3 and the plain trio socket send unencrypted; TLS
is 1.3 with AES-256-GCM. `bulk link` is one connection of `transport.bulk.link` in transfers of 1 MiB,
`bulk pool` a region over as many of them as pay, `stream` a stream of the control connection.
"""
# ruff: noqa: E402  (this file is called like a package that its sides import: the path comes first)

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import netpath
from transport_sides import MIB, SIDES, side_main

PARTS = ("throughput", "handshakes", "calls", "control", "long")
CONTENDERS = {
    # name: bytes per repetition
    "iperf3": 512 * MIB,
    "raw trio": 512 * MIB,
    "trio.SSLStream": 128 * MIB,
    "bulk link": 512 * MIB,
    "bulk pool": 512 * MIB,
    "stream": 128 * MIB,
}
PATIENCE_S = 120


class Pair:
    """A server and a client process."""

    def __init__(
        self, kind: str, *, host: str = "127.0.0.1", prefixes: Sequence[list[str]] = ([], [])
    ) -> None:
        self._sides = [
            subprocess.Popen(
                [*prefix, sys.executable, __file__, "--side", side, "--kind", kind, "--host", host],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for side, prefix in zip(("server", "client"), prefixes, strict=True)
        ]
        port = self._read(0)
        self._write(1, port.strip())
        for index in (0, 1):
            assert self._read(index).strip() == "ready"

    def once(self, amount: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """One repetition: what the server and what the client say."""
        for index in (0, 1):
            self._write(index, str(amount))
        return json.loads(self._read(0)), json.loads(self._read(1))

    def _write(self, index: int, line: str) -> None:
        stdin = self._sides[index].stdin
        assert stdin is not None
        stdin.write(line + "\n")
        stdin.flush()

    def _read(self, index: int) -> str:
        stdout = self._sides[index].stdout
        assert stdout is not None
        line = stdout.readline()
        if not line:
            raise SystemExit(f"a side ended: exit code {self._sides[index].wait()}")
        return line

    def close(self) -> None:
        for process in reversed(self._sides):
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def iperf3(size: int, *options: str) -> tuple[float, float, float]:
    """Bytes per second, and CPU seconds of client and server."""
    with subprocess.Popen(
        ["iperf3", "-s", "-1", "-p", "5299"], stdout=subprocess.DEVNULL
    ) as server:
        for _ in range(100):
            done = subprocess.run(
                ["iperf3", "-c", "127.0.0.1", "-p", "5299", "-n", str(size), "-J", *options],
                capture_output=True,
                text=True,
                check=False,
            )
            result = json.loads(done.stdout)
            if "error" not in result:
                break
            time.sleep(0.05)  # the server is not there yet
        server.wait(timeout=PATIENCE_S)
    end = result["end"]
    seconds = end["sum_received"]["seconds"]
    usage = end["cpu_utilization_percent"]
    return (
        end["sum_received"]["bytes"] / seconds,
        usage["host_total"] / 100 * end["sum_sent"]["seconds"],
        usage["remote_total"] / 100 * end["sum_sent"]["seconds"],
    )


def emit(row: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps({"benchmark": "transport", **row}), flush=True)
    return row


def throughput(repeat: int) -> str:
    names = [name for name in CONTENDERS if name != "iperf3" or shutil.which("iperf3")]
    pairs = {name: Pair(name) for name in names if name != "iperf3"}
    figures: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
    for number in range(repeat + 1):
        for name in names:
            size = CONTENDERS[name]
            if name == "iperf3":
                figure = iperf3(size)
            else:
                server, client = pairs[name].once(size)
                figure = (size / client["s"], client["cpu"], server["cpu"])
            if number:  # the first warms up
                figures[name].append(figure)
    for pair in pairs.values():
        pair.close()
    ratio = {
        (name, other): statistics.median(
            one[0] / two[0] for one, two in zip(figures[name], figures[other], strict=True)
        )
        for name in names
        for other in names
    }
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)]
        for name, rows in figures.items()
    }
    head = (
        f"{'one connection, loopback':<26} {'MB/s':>7} {'of iperf3':>9} {'of raw':>7} {'of TLS':>7}"
    )
    lines = [f"{head} {'CPU s/GB':>9} {'receiver':>9}"]
    for name, (speed, sending, receiving) in medians.items():
        gigabytes = CONTENDERS[name] / 1e9
        ratios = {
            key: round(ratio[name, other], 2) if other in medians else None
            for key, other in (
                ("of_iperf3", "iperf3"),
                ("of_raw_trio", "raw trio"),
                ("of_sslstream", "trio.SSLStream"),
            )
        }
        row = emit(
            {
                "case": "throughput",
                "name": name,
                "mb_per_s": round(speed / 1e6),
                **ratios,
                "sender_cpu_s_per_gb": round(sending / gigabytes, 3),
                "receiver_cpu_s_per_gb": round(receiving / gigabytes, 3),
                "repetitions": repeat,
            }
        )
        lines.append(
            f"{name:<26} {row['mb_per_s']:>7} {row['of_iperf3'] or '':>9} {row['of_raw_trio']:>7}"
            f" {row['of_sslstream']:>7} {row['sender_cpu_s_per_gb']:>9}"
            f" {row['receiver_cpu_s_per_gb']:>9}"
        )
    return "\n".join(lines)


def handshake_rate(repeat: int) -> str:
    pair, count = Pair("handshakes"), 300
    took = []
    for number in range(repeat + 1):
        server, client = pair.once(count)
        if number:
            took.append((client["s"], client["cpu"], server["cpu"]))
    pair.close()
    seconds, client_cpu, server_cpu = (statistics.median(c) for c in zip(*took, strict=True))
    row = emit(
        {
            "case": "handshakes",
            "per_s": round(count / seconds),
            "client_cpu_ms": round(client_cpu / count * 1e3, 3),
            "server_cpu_ms": round(server_cpu / count * 1e3, 3),
        }
    )
    return (
        f"handshakes, one after the other: {row['per_s']} per second, CPU {row['client_cpu_ms']} ms"
        f" the dialer, {row['server_cpu_ms']} ms the listener"
    )


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def small_messages(repeat: int) -> str:
    lines = []
    pairs = {name: Pair(name) for name in ("calls", "raw calls")}
    took: dict[str, list[float]] = {name: [] for name in pairs}
    for _ in range(repeat):
        for name, pair in pairs.items():
            took[name] += pair.once(1000)[1]["extra"][100:]
    for name, pair in pairs.items():
        pair.close()
        row = emit(
            {
                "case": name,
                "bytes": 64,
                "p50_us": round(percentile(took[name], 0.5) * 1e6),
                "p99_us": round(percentile(took[name], 0.99) * 1e6),
            }
        )
        what = "call (open, request, answer, end)" if name == "calls" else "raw trio, no protocol"
        lines.append(
            f"64 bytes there and back, {what}: p50 {row['p50_us']} us, p99 {row['p99_us']} us"
        )
    return "\n".join(lines)


def between(kind: str) -> Pair:
    """A pair in the two namespaces of `netpath`; the server is in the first."""
    prefixes = [netpath.inside(name) for name in netpath.NAMES]
    return Pair(kind, host=netpath.ADDRESSES[0], prefixes=prefixes)


def control_latency(_repeat: int) -> str:
    rate, size = 200_000_000, 250 * MIB
    lines = []
    with netpath.veth_pair(rate), contextlib.closing(between("control")) as pair:
        _, client = pair.once(size)
    took = client["extra"]
    row = emit(
        {
            "case": "control beside bulk",
            "rate_mbit": rate / 1e6,
            "bulk_mbit": round(size * 8 / client["s"] / 1e6),
            "pings": len(took),
            "p50_ms": round(percentile(took, 0.5) * 1e3, 2),
            "p99_ms": round(percentile(took, 0.99) * 1e3, 2),
        }
    )
    lines.append(
        f"control round trip beside bulk at {row['bulk_mbit']} of 200 Mbit/s:"
        f" p50 {row['p50_ms']} ms, p99 {row['p99_ms']} ms ({row['pings']} pings)"
    )
    return "\n".join(lines)


def long_paths(_repeat: int) -> str:
    rate, rtt_s = 200_000_000, 0.1
    lines = [
        f"{'100 ms, 200 Mbit/s':<20} {'loss':>7} {'1 link':>10} {'8 links':>10} {'as pays':>10}"
    ]
    for congestion in ("", "reno"):
        for loss in (0.0, 0.0005, 0.01):
            cells = []
            for kind in ("bulk pool 1", "bulk pool 8", "bulk pool"):
                with netpath.long_path(rate, rtt_s, loss, congestion):
                    slow = congestion and loss >= 0.01
                    size = 16 * MIB if slow else 64 * MIB
                    with contextlib.closing(between(kind)) as pair:
                        _, client = pair.once(size)
                row = emit(
                    {
                        "case": "long path",
                        "congestion_control": congestion or "system",
                        "rtt_ms": rtt_s * 1e3,
                        "rate_mbit": rate / 1e6,
                        "loss": loss,
                        "name": kind,
                        "links": client["extra"]["links"],
                        "mb_per_s": round(size / client["s"] / 1e6, 2),
                    }
                )
                links = f" ({row['links']})" if kind == "bulk pool" else ""
                cells.append(f"{row['mb_per_s']}{links}")
            lines.append(
                f"{congestion or 'system default':<20} {loss:>7.2%}"
                + "".join(f" {cell:>10}" for cell in cells)
                + "  MB/s"
            )
    return "\n".join(lines)


PART_MAINS = dict(
    zip(
        PARTS,
        (throughput, handshake_rate, small_messages, control_latency, long_paths),
        strict=True,
    )
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--side", choices=("server", "client"))
    parser.add_argument("--kind", choices=list(SIDES))
    parser.add_argument("--host", default="127.0.0.1")
    options = parser.parse_args()
    if options.side:
        random.seed(options.side)
        side_main(options.kind, options.side, options.host)
        return
    for part in options.parts:
        print(PART_MAINS[part](options.repeat), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
