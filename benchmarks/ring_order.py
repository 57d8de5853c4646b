"""What measuring links costs, how right it is, and what a ring around the slow ones gains.

    python benchmarks/ring_order.py [--members 5] [--fast 400] [--slow 40] [--mib 8] [--repeats 7]

Members are processes in network namespaces, each pair joined by a wire of its own whose two directions are limited by
the kernel (tc tbf): `--fast` Mbit/s, except some directed links of `--slow`, chosen so that the ring in the order of the ids
has one. Needs root. The members enter an epoch that begins with measuring all links, tell each other what they measured (in a
daemon the run's document does that), reduce, form the epoch that the measurements ask for, and reduce again.

One JSON line on stdout, a table on stderr: seconds and bytes of the measuring, the largest relative error of a link's rate,
and the median all-reduce before and after, with the best that any order could give.
"""
# ruff: noqa: E402  (the path comes first)

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import trio
from collective_rank import open_member
from netpath import ip

from gossip.collective.group import Group
from gossip.collective.placing.probing import TURN_S
from gossip.collective.placing.rhythm import Measure
from gossip.collective.placing.ring_order import ring_order, slowest_link
from transport.address import Address
from transport.errors import TransportError
from transport.identity import Identity

SEED = b"benchmark of ring order"
RUN = hashlib.sha256(SEED).digest()
STATE = hashlib.sha256(b"state").digest()
PORT = 21500
PATIENCE_S = 240.0
MIB = 1 << 20


def identity(index: int) -> Identity:
    return Identity.from_seed(hashlib.sha256(SEED + b"%d" % index).digest())


def sorted_identities(members: int) -> list[Identity]:
    """Rank r of an epoch is the r-th of these."""
    return sorted((identity(index) for index in range(members)), key=lambda one: one.node_id)


def namespace(rank: int) -> str:
    return f"nring-{rank}"


def address(rank: int, other: int) -> str:
    """Of a rank on the wire that it shares with another one."""
    low, high = sorted((rank, other))
    return f"10.78.{low * 16 + high}.{1 if rank == low else 2}"


# ---- the wires ---------------------------------------------------------------------------------


@contextlib.contextmanager
def wires(members: int, rates: dict[tuple[int, int], int]) -> Iterator[None]:
    """Namespaces and a limited wire for each pair; rates in bit/s by (from, to)."""
    names = [namespace(rank) for rank in range(members)]
    try:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        for low, high in itertools.combinations(range(members), 2):
            ends = (f"r{low}t{high}", f"r{high}t{low}")
            ip(
                *("link", "add", ends[0], "netns", names[low], "type", "veth"),
                *("peer", "name", ends[1], "netns", names[high]),
            )
            for rank, other, device in ((low, high, ends[0]), (high, low, ends[1])):
                ip("-n", names[rank], "addr", "add", f"{address(rank, other)}/30", "dev", device)
                ip("-n", names[rank], "link", "set", device, "up")
                subprocess.run(
                    [
                        *("tc", "-n", names[rank], "qdisc", "add", "dev", device, "root", "tbf"),
                        *("rate", str(rates[rank, other]), "burst", "64kb", "latency", "50ms"),
                    ],
                    check=True,
                )
        yield
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


# ---- one member ----------------------------------------------------------------------------------


async def member(rank: int, members: int, mib: int, repeats: int) -> None:
    identities = sorted_identities(members)
    at = Address("0.0.0.0", PORT)
    async with open_member(
        identities[rank], SEED, RUN, at, count=members, rank=rank, probing=True
    ) as (endpoint, group):
        with trio.fail_after(PATIENCE_S):
            for other in range(rank):
                at = Address(address(other, rank), PORT)
                while identities[other].node_id not in endpoint.peers:
                    with contextlib.suppress(TransportError):  # it may not listen yet
                        await endpoint.connect([at], expected=identities[other].node_id)
            while len(endpoint.peers) < members - 1:  # noqa: ASYNC110 (a benchmark)
                await trio.sleep(0.01)
            print(json.dumps(await measure(group, members, mib, repeats)), flush=True)


async def measure(group: Group, members: int, mib: int, repeats: int) -> dict[str, object]:
    group.set_position(0, STATE)
    await group.wait_entered()
    assert group.epoch is not None
    first = group.epoch
    names = first.members
    me = names.index(group._me)
    sent = sum(peer.bytes_sent for peer in group._endpoint.peers.values())
    began = trio.current_time()
    while sum(pair[0] == group._me for pair in group.rhythm.rates()) < members - 1:  # noqa: ASYNC110
        await trio.sleep(0.01)
    measured_s = trio.current_time() - began
    # The last turn of the others may still be under way.
    await trio.sleep_until(began + members * TURN_S)
    probe_bytes = sum(peer.bytes_sent for peer in group._endpoint.peers.values()) - sent
    own = np.array([group.rhythm.rates().get((group._me, other), 0.0) for other in names])
    everybody = np.empty(members * members)
    await group.all_gather(b"rates", own, everybody, tag=1)
    matrix = everybody.reshape(members, members)  # [source][destination]
    for source, destination in itertools.permutations(range(members), 2):
        if source != me:
            rate = matrix[source][destination]
            group.rhythm.measured(Measure(names[source], names[destination], MIB / rate, MIB))
    before = await reduce(group, mib, repeats)
    while True:
        if group.epoch is first and me == 0:
            group.rearrange()
        if group.epoch is not None and group.epoch is not first and group.machine.can_begin:
            break
        await trio.sleep(0.01)
    second = group.epoch
    after = await reduce(group, mib, repeats)
    return {
        "rank": me,
        "measured_s": measured_s,
        "probe_bytes": probe_bytes,
        "rates": matrix[me].tolist(),
        "before_ms": before,
        "after_ms": after,
        "order": list(second.layout.order),
        "order_before": list(first.layout.order),
    }


async def reduce(group: Group, mib: int, repeats: int) -> list[float]:
    source = np.ones(mib * MIB // 4, np.float32)
    out = np.empty_like(source)
    times = []
    for _ in range(repeats + 1):
        group.set_position(0, STATE)
        began = trio.current_time()
        await group.all_reduce(b"bench", source, out, algorithm="ring")
        times.append((trio.current_time() - began) * 1e3)
        group.set_position(0, STATE)
    return times[1:]


# ---- all of them -----------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--fast", type=float, default=400, help="Mbit/s")
    parser.add_argument("--slow", type=float, default=40, help="Mbit/s")
    parser.add_argument("--mib", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    count = options.members
    if options.rank is not None:
        trio.run(member, options.rank, count, options.mib, options.repeats)
        return
    rates = dict.fromkeys(itertools.permutations(range(count), 2), int(options.fast * 1e6))
    for link in ((0, 1), (2, 3), (3, 2)):
        rates[link] = int(options.slow * 1e6)
    arguments = [
        *("--members", str(count), "--mib", str(options.mib), "--repeats", str(options.repeats))
    ]
    with wires(count, rates):
        processes = [
            subprocess.Popen(
                [
                    *("ip", "netns", "exec", namespace(rank), sys.executable, __file__),
                    *("--rank", str(rank), *arguments),
                ],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            for rank in range(count)
        ]
        said = []
        try:
            for process in processes:
                out, _ = process.communicate(timeout=2 * PATIENCE_S)
                if process.returncode:
                    raise SystemExit(f"a member ended with {process.returncode}")
                said.append(json.loads(out))
        finally:
            for process in processes:
                process.kill()
                process.wait()
    report(said, rates, options)


def report(
    said: list[dict[str, list]], rates: dict[tuple[int, int], int], options: argparse.Namespace
) -> None:
    said.sort(key=lambda one: one["rank"])
    count = options.members
    names = [one.node_id for one in sorted_identities(count)]
    errors = [
        abs(said[a]["rates"][b] * 8 / rates[a, b] - 1)
        for a, b in itertools.permutations(range(count), 2)
    ]

    def rate(a, b):
        return rates[names.index(a), names.index(b)]

    best = slowest_link(ring_order(names, rate), rate)
    ring = [names[rank] for rank in said[0]["order"]] or names
    before, after = (
        statistics.median(max(each) for each in zip(*(one[key] for one in said), strict=True))
        for key in ("before_ms", "after_ms")
    )
    line = {
        "benchmark": "ring_order",
        "members": count,
        "fast_mbit": options.fast,
        "slow_mbit": options.slow,
        "bytes": options.mib * MIB,
        "measured_s": round(max(one["measured_s"] for one in said), 3),
        "probe_bytes": max(one["probe_bytes"] for one in said),
        "rate_error_median": round(statistics.median(errors), 3),
        "rate_error_max": round(max(errors), 3),
        "before_ms": round(before, 1),
        "after_ms": round(after, 1),
        "gain": round(before / after, 2),
        "order": said[0]["order"],
        "slowest_link_of_best": slowest_link(ring, rate) / best,
        "line_ms": round(2 * (count - 1) / count * options.mib * MIB * 8 / best * 1e3, 1),
        "load": os.getloadavg(),
    }
    print(json.dumps(line))
    print(
        f"{count} members, {options.fast:g} Mbit/s, three links of {options.slow:g}:"
        f" measured in {line['measured_s']} s with {line['probe_bytes'] / MIB:.1f} MiB per member,"
        f" rates off by {line['rate_error_median']:.1%} (median), {line['rate_error_max']:.1%} (worst)\n"
        f"all-reduce of {options.mib} MiB: {before:.0f} ms in the order of the ids, {after:.0f} ms in the ring"
        f" {said[0]['order']} ({line['gain']}x); the line itself needs {line['line_ms']:.0f} ms",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
