"""Certified encrypted all-reduce against torch's gloo (plaintext), in one run on loopback.

    python benchmarks/allreduce.py [--world 2 4] [--sizes 1024 ...] [--paths shared tcp] [--ways auto auto/int8 ring ...]

Every rank is a process that holds both: a noded endpoint with its collective group, and a gloo
process group. Iterations alternate, each starts from a barrier of the same program, and the time of an iteration is
that of its slowest rank, so that whatever else the machine does meets both alike. Quote the ratio.

Two paths are measured, each beside gloo: `shared` is what members on one machine use (sealed records
in shared memory, notices over TCP), `tcp` is the same program with shared memory declined, as between
two machines. Gloo uses TCP over loopback in both.

A way is an algorithm and a wire format (`auto`: values as they are); all of them take turns with gloo in every iteration.

One JSON line per case on stdout (median over the iterations), a table on stderr. Below it, what the
parts cost on this machine in the same run: a plaintext socket (in CPU seconds per GiB that crosses it, by this
program and by iperf3), AES-256-GCM, BLAKE3 and the addition. With N members, a GiB of payload moves
2(N-1) GiB, each sealed and opened once, adds N-1 GiB and hashes one. Their sum is the floor of an
encrypted all-reduce, `rest` what is above it: Python, tasks, cache misses, the certificate. TCP's own floor, which
no all-reduce over sockets can go below, is 2(N-1) times what iperf3 needs per GiB.

What is compared: fp32 sum. Ours is encrypted, authenticated, certified by all members' signatures,
and keeps its input for a retry (out of place); gloo's is plaintext, in place, and does none of that.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import resource
import select
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SIZES = (1 << 10, 1 << 16, 1 << 20, 1 << 24, 1 << 26, 1 << 28)
SEED = b"benchmark"
PATHS = ("shared", "tcp")
PATIENCE_S = 120.0
"""For one operation: nobody dials again here, so one that is lost fails the run."""


def iterations(size: int, most: int) -> int:
    usual = {1 << 10: 60, 1 << 16: 60, 1 << 20: 60, 1 << 24: 21, 1 << 26: 11}.get(size, 7)
    return min(usual, most)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


# ---- what the parts cost ------------------------------------------------------------------------


def cpu_seconds(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def move_plain(out: socket.socket, into: socket.socket, total: int) -> None:
    """Send and receive `total` bytes at once, 1 MiB per call."""
    data, buffer = memoryview(bytearray(1 << 20)), memoryview(bytearray(1 << 20))
    sent = received = 0
    while sent < total or received < total:
        readable, writable, _ = select.select(
            [into] if received < total else [], [out] if sent < total else [], []
        )
        if writable:
            sent += out.send(data[: total - sent])
        if readable:
            received += into.recv_into(buffer)


def socket_cost(total: int = 128 << 20) -> float:
    """CPU seconds per GiB moved between two processes over plaintext TCP, both ways at once."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [listener.getsockname()[1] for listener in listeners]
    command = [sys.executable, __file__, "--plain", str(total), "--ports", *map(str, ports)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        one, other = (listener.accept()[0] for listener in listeners)
        for sock in (*listeners, one, other):
            no_delay(sock)
        before = cpu_seconds(resource.RUSAGE_SELF)
        move_plain(one, other, total)
        used = cpu_seconds(resource.RUSAGE_SELF) - before
        assert child.stdout is not None
        used += float(child.stdout.read())
    for sock in (*listeners, one, other):
        sock.close()
    return used / (2 * total) * 2**30


def iperf3_cost(seconds: int = 2) -> float | None:
    """CPU seconds per GiB over one TCP connection of loopback, both ends together; None without iperf3."""
    if shutil.which("iperf3") is None:
        return None
    port = str(free_port())
    with subprocess.Popen(
        ["iperf3", "-s", "-1", "-p", port], stdout=subprocess.DEVNULL
    ) as listening:
        for _ in range(100):
            done = subprocess.run(
                ["iperf3", "-c", "127.0.0.1", "-p", port, "-J", "-t", str(seconds)],
                capture_output=True,
                text=True,
                check=False,
            )
            result = json.loads(done.stdout)
            if "error" not in result:
                break
            time.sleep(0.05)  # the server is not there yet
        listening.terminate()
    used = result["end"]["cpu_utilization_percent"]
    share = (used["host_total"] + used["remote_total"]) / 100
    took = result["end"]["sum_received"]["seconds"]
    return float(share * took / result["end"]["sum_received"]["bytes"] * 2**30)


def no_delay(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setblocking(False)


def plain_main(ports: list[int], total: int) -> None:
    """The other process of `socket_cost`."""
    other, one = (socket.create_connection(("127.0.0.1", port)) for port in ports)
    for sock in (one, other):
        no_delay(sock)
    before = cpu_seconds(resource.RUSAGE_SELF)
    move_plain(one, other, total)
    print(cpu_seconds(resource.RUSAGE_SELF) - before)


def part_costs() -> dict[str, float | None]:
    """CPU seconds per GiB of each part, best of five, in buffers that stay in the cache."""
    import numpy as np
    from blake3 import blake3
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    size = 1 << 18
    plain, sealed = bytearray(size), bytearray(size + 16)
    cipher, nonce = AESGCM(bytes(32)), bytes(12)
    one, two = np.ones(size // 4, np.float32), np.ones(size // 4, np.float32)

    def cost(work: Callable[[], object]) -> float:
        def once() -> float:
            before = time.process_time()
            for _ in range(128):
                work()
            return (time.process_time() - before) / (128 * size) * 2**30

        return round(min(once() for _ in range(5)), 3)

    tcp = iperf3_cost()
    return {
        "iperf3": tcp if tcp is None else round(tcp, 3),
        "socket": round(min(socket_cost() for _ in range(5)), 3),
        "aes": cost(lambda: cipher.encrypt_into(nonce, plain, None, sealed)),
        "blake3": cost(lambda: blake3(plain).digest()),
        "add": cost(lambda: np.add(one, two, out=two)),
    }


def floor(costs: dict[str, Any], world: int, path: str) -> float:
    """CPU seconds per GiB of payload that the parts alone cost, all members together."""
    moved = 2 * (world - 1)
    crossing = costs["socket"] if path == "tcp" else 0.0
    return moved * (crossing + 2 * costs["aes"]) + (world - 1) * costs["add"] + costs["blake3"]


# ---- one rank ----------------------------------------------------------------------------------


def rank_main(
    rank: int,
    world: int,
    ports: list[int],
    sizes: list[int],
    path: str,
    ways: list[str],
    *,
    pin: bool,
    most: int,
) -> None:
    import hashlib
    import random

    import numpy as np
    import torch
    import torch.distributed as dist
    import trio

    from gossip.collective.agreement.epoch_events import EpochSettings
    from gossip.collective.group import open_group
    from transport.address import Address
    from transport.bulk import shared
    from transport.endpoint import open_endpoint
    from transport.identity import Identity
    from transport.swarm import Swarm
    from transport.tcp import TcpNetwork
    from transport.trust.chain import certify_by_root
    from transport.trust.trust import Trust

    if pin:
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cpus[rank % len(cpus)]})
    if path == "tcp":

        def declined() -> shared.Offer:
            raise shared.NotShared("this run measures TCP")

        shared.Offer = declined  # type: ignore[assignment,misc]

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{ports[-1]}", rank=rank, world_size=world
    )

    def cpu() -> float:
        return cpu_seconds(resource.RUSAGE_SELF)

    def gather(figures: list[tuple[float, float]]) -> list[tuple[float, float]]:
        """Of each way: the slowest rank's time, and the sum of all ranks' CPU times."""
        slowest = torch.tensor([took for took, _ in figures], dtype=torch.float64)
        summed = torch.tensor([used for _, used in figures], dtype=torch.float64)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        dist.all_reduce(summed)
        return list(zip(slowest.tolist(), summed.tolist(), strict=True))

    async def main() -> None:
        identity = Identity.from_seed(hashlib.sha256(SEED + b"%d" % rank).digest())
        root = Identity.from_seed(hashlib.sha256(b"root" + SEED).digest())
        swarm = Swarm(hashlib.sha256(SEED).digest(), root.public_key)
        chain = certify_by_root(
            root,
            subject=identity.public_key,
            role="trainer",
            serial=bytes(16),
            now_ms=int(time.time() * 1000),
        )
        run = hashlib.sha256(b"run" + SEED).digest()
        rng = random.Random(rank)
        async with (
            open_endpoint(
                identity,
                swarm,
                TcpNetwork(),
                [Address("127.0.0.1", ports[rank])],
                trust=Trust(swarm.id, chain.raw),
                rng=rng,
            ) as endpoint,
            open_group(endpoint, run, settings=EpochSettings(min_members=world), rng=rng) as group,
        ):
            await trio.to_thread.run_sync(dist.barrier)
            for other in range(rank):
                await endpoint.connect([Address("127.0.0.1", ports[other])])
            round_, state = 0, hashlib.sha256(b"start").digest()
            group.set_position(round_, state)
            await group.wait_entered()
            # At an epoch's beginning members measure their links, each in a turn of half a second.
            await trio.sleep(0.5 * world + 1)
            gc.collect()
            gc.freeze()  # as the daemon does: torch's objects are not to be looked at in every round
            for size in sizes:

                def buffers(size: int = size) -> tuple[Any, Any, torch.Tensor]:
                    source = np.full(size // 4, rank + 1, np.float32)
                    out = np.ones_like(source)  # its pages are the caller's, not the operation's
                    return source, out, torch.ones(size // 4)

                # New pages can take seconds, in which the loop has to say that it lives.
                source, out, tensor = await trio.to_thread.run_sync(buffers)
                rows: list[list[tuple[float, float]]] = []
                extras = dict.fromkeys(ways, 0.0)
                used_algorithm = dict.fromkeys(ways, "")

                def gloo_once(tensor: torch.Tensor) -> tuple[float, float]:
                    tensor.fill_(float(rank + 1))
                    dist.barrier()
                    before, began = cpu(), time.perf_counter()
                    dist.all_reduce(tensor)
                    return time.perf_counter() - began, cpu() - before

                for number in range(iterations(size, most) + 2):
                    figures = []
                    for way in ways:
                        algorithm, _, wire = way.partition("/")
                        # gloo blocks, so it runs in a thread: the event loop stays free to talk.
                        await trio.to_thread.run_sync(dist.barrier)
                        # Then one of its own, as gloo has: or coming back from the thread would be timed.
                        await group.barrier(
                            b"start", tag=1, deadline=trio.current_time() + PATIENCE_S
                        )
                        resident = reset_peak() if number == 0 else 0.0
                        before, began = cpu(), time.perf_counter()
                        reduced = await group.all_reduce(
                            b"bench",
                            source,
                            out,
                            algorithm=algorithm,
                            wire=wire or "exact",
                            deadline=trio.current_time() + PATIENCE_S,
                        )
                        figures.append((time.perf_counter() - began, cpu() - before))
                        if number == 0:
                            extras[way] = status_mib("VmHWM") - resident
                        used_algorithm[way] = reduced.algorithm
                        round_ += 1
                        state = hashlib.sha256(state + reduced.certificate.root).digest()
                        group.set_position(round_, state)
                        expected = world * (world + 1) / 2
                        allowed = 0.02 * expected if wire else 0.0
                        assert abs(out[0] - expected) <= allowed, "wrong sum"
                        assert abs(out[-1] - expected) <= allowed, "wrong sum"
                    figures.append(await trio.to_thread.run_sync(gloo_once, tensor))
                    assert float(tensor[0]) == expected, "wrong sum of gloo"
                    rows.append(await trio.to_thread.run_sync(gather, figures))
                # The first two warm up.
                *ours, gloo = zip(*rows[2:], strict=True)

                def middle(pairs: Sequence[tuple[float, float]], at: int) -> float:
                    return statistics.median(pair[at] for pair in pairs)

                for way, pairs in zip(ways, ours, strict=True):
                    if rank:
                        continue
                    per_gib = 2**30 / size
                    row = {
                        "benchmark": "allreduce",
                        "world": world,
                        "path": path,
                        "way": way,
                        "algorithm": used_algorithm[way],
                        "bytes": size,
                        "iterations": len(pairs),
                        "noded_ms": round(middle(pairs, 0) * 1e3, 3),
                        "noded_best_ms": round(min(pairs)[0] * 1e3, 3),
                        "gloo_ms": round(middle(gloo, 0) * 1e3, 3),
                        "gloo_best_ms": round(min(gloo)[0] * 1e3, 3),
                        "bandwidth_ratio": round(middle(gloo, 0) / middle(pairs, 0), 3),
                        "noded_cpu_ms": round(middle(pairs, 1) * 1e3, 3),
                        "gloo_cpu_ms": round(middle(gloo, 1) * 1e3, 3),
                        "noded_cpu_s_per_gib": round(middle(pairs, 1) * per_gib, 3),
                        "gloo_cpu_s_per_gib": round(middle(gloo, 1) * per_gib, 3),
                        # Over what was resident before, which includes both buffers.
                        "noded_extra_mib": round(extras[way], 1),
                    }
                    print(json.dumps(row), flush=True)
            await trio.to_thread.run_sync(dist.barrier)

    trio.run(main)


def status_mib(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"no {field} in /proc/self/status")


def reset_peak() -> float:
    """Let the peak start from now; returns the resident size, in MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return status_mib("VmRSS")


# ---- the run -----------------------------------------------------------------------------------


def run_world(
    world: int, sizes: list[int], path: str, ways: list[str], *, pin: bool, most: int
) -> Iterator[dict[str, Any]]:
    ports = [free_port() for _ in range(world + 1)]
    ranks = [
        subprocess.Popen(
            [
                *(sys.executable, __file__, "--rank", str(rank), "--world", str(world)),
                *("--ports", *map(str, ports), "--sizes", *map(str, sizes), "--paths", path),
                *("--ways", *ways, "--most", str(most)),
                *(["--pin"] if pin else []),
            ],
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            text=True,
        )
        for rank in range(world)
    ]
    stdout = ranks[0].stdout
    assert stdout is not None
    threading.Thread(target=end_together, args=(ranks,), daemon=True).start()
    for line in stdout:
        yield json.loads(line)
    codes = [process.wait(timeout=60) for process in ranks]
    if any(codes):
        raise SystemExit(f"a rank failed: exit codes {codes}")


def end_together(ranks: Sequence[subprocess.Popen[str]]) -> None:
    """One rank that fails leaves the others waiting for it: end them, too."""
    while any(process.poll() is None for process in ranks):
        if any(process.poll() for process in ranks):
            for process in ranks:
                process.kill()
        time.sleep(0.2)


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
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=list(PATHS))
    parser.add_argument("--ways", nargs="+", default=["auto"])
    parser.add_argument("--most", type=int, default=100, help="iterations of one size at most")
    parser.add_argument(
        "--pin",
        action="store_true",
        help="each rank, with all its threads, on one CPU: where other work would push two onto one",
    )
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--ports", type=int, nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--plain", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain is not None:
        plain_main(options.ports, options.plain)
        return
    if options.rank is not None:
        rank_main(
            options.rank,
            options.world[0],
            options.ports,
            options.sizes,
            options.paths[0],
            options.ways,
            pin=options.pin,
            most=options.most,
        )
        return
    costs = part_costs()
    rows: list[dict[str, Any]] = []
    for world, path in itertools.product(options.world, options.paths):
        for row in run_world(
            world, options.sizes, path, options.ways, pin=options.pin, most=options.most
        ):
            row["floor_cpu_s_per_gib"] = round(floor(costs, world, path), 3)
            rows.append(row)
            print(json.dumps(row), flush=True)
    print(json.dumps({"benchmark": "allreduce parts", "cpu_s_per_gib": costs}), flush=True)
    print(table(rows), file=sys.stderr)
    parts = ", ".join(
        f"{name} {cost} ({1.0737 / cost:.1f} GB/s)" for name, cost in costs.items() if cost
    )
    print(f"CPU seconds per GiB of each part: {parts}", file=sys.stderr)


if __name__ == "__main__":
    main()
