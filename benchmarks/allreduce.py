"""Certified encrypted all-reduce against torch's gloo (plaintext), in one run on loopback.

    python benchmarks/allreduce.py [--world 2 4] [--sizes 1024 ...] [--json FILE]

Every rank is a process that holds both: a noded endpoint with its collective group, and a gloo
process group. Iterations alternate, each starts from a barrier, and the time of an iteration is
that of its slowest rank, so that whatever else the machine does meets both alike. Quote the ratio.

One JSON line per case on stdout (median over the iterations), a table on stderr.

What is compared: fp32 sum. Ours is encrypted, authenticated, certified by all members' signatures,
and keeps its input for a retry (out of place); gloo's is plaintext, in place, and does none of that.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SIZES = (1 << 10, 1 << 16, 1 << 20, 1 << 24, 1 << 26, 1 << 28)
SEED = b"benchmark"


def iterations(size: int) -> int:
    return {1 << 10: 60, 1 << 16: 60, 1 << 20: 60, 1 << 24: 21, 1 << 26: 11}.get(size, 7)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


# ---- one rank ----------------------------------------------------------------------------------


def rank_main(rank: int, world: int, ports: list[int], sizes: list[int]) -> None:
    import hashlib
    import random

    import numpy as np
    import torch
    import torch.distributed as dist
    import trio

    from gossip.collective.epoch_events import EpochSettings
    from gossip.collective.group import open_group
    from transport.address import Address
    from transport.endpoint import open_endpoint
    from transport.identity import Identity
    from transport.swarm import Swarm
    from transport.tcp import TcpNetwork

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{ports[-1]}", rank=rank, world_size=world
    )

    def cpu() -> float:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime

    def gather(*figures: float) -> list[float]:
        """The slowest rank's two times, and the sum of all ranks' two CPU times."""
        slowest = torch.tensor(figures[:2], dtype=torch.float64)
        summed = torch.tensor(figures[2:], dtype=torch.float64)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        dist.all_reduce(summed)
        return [*slowest.tolist(), *summed.tolist()]

    async def main() -> None:
        identity = Identity.from_seed(hashlib.sha256(SEED + b"%d" % rank).digest())
        swarm = Swarm(key=hashlib.sha256(SEED).digest())
        run = hashlib.sha256(b"run" + SEED).digest()
        rng = random.Random(rank)
        async with (
            open_endpoint(
                identity, swarm, TcpNetwork(), [Address("127.0.0.1", ports[rank])], rng=rng
            ) as endpoint,
            open_group(endpoint, run, settings=EpochSettings(min_members=world), rng=rng) as group,
        ):
            await trio.to_thread.run_sync(dist.barrier)
            for other in range(rank):
                await endpoint.connect([Address("127.0.0.1", ports[other])])
            round_, state = 0, hashlib.sha256(b"start").digest()
            group.set_position(round_, state)
            await group.wait_entered()
            gc.collect()
            gc.freeze()  # as the daemon does: torch's objects are not to be looked at in every round
            for size in sizes:
                source = np.full(size // 4, rank + 1, np.float32)
                out = np.empty_like(source)
                tensor = torch.empty(size // 4)
                ours, theirs, our_cpu, their_cpu = [], [], [], []

                def gloo_once(tensor: torch.Tensor) -> tuple[float, float]:
                    tensor.fill_(float(rank + 1))
                    dist.barrier()
                    before, began = cpu(), time.perf_counter()
                    dist.all_reduce(tensor)
                    return time.perf_counter() - began, cpu() - before

                for number in range(iterations(size) + 2):
                    # gloo blocks, so it runs in a thread: the event loop stays free to talk.
                    await trio.to_thread.run_sync(dist.barrier)
                    before, began = cpu(), time.perf_counter()
                    reduced = await group.all_reduce(b"bench", source, out)
                    took, used = time.perf_counter() - began, cpu() - before
                    round_ += 1
                    state = hashlib.sha256(state + reduced.certificate.root).digest()
                    group.set_position(round_, state)
                    took_gloo, used_gloo = await trio.to_thread.run_sync(gloo_once, tensor)
                    figures = await trio.to_thread.run_sync(
                        gather, took, took_gloo, used, used_gloo
                    )
                    if number >= 2:
                        for values, figure in zip(
                            (ours, theirs, our_cpu, their_cpu), figures, strict=True
                        ):
                            values.append(figure)
                expected = world * (world + 1) / 2
                assert out[0] == out[-1] == expected == float(tensor[0]), "wrong sum"
                if rank == 0:
                    print(
                        json.dumps(
                            {
                                "benchmark": "allreduce",
                                "world": world,
                                "bytes": size,
                                "iterations": len(ours),
                                "noded_ms": round(statistics.median(ours) * 1e3, 3),
                                "noded_best_ms": round(min(ours) * 1e3, 3),
                                "gloo_ms": round(statistics.median(theirs) * 1e3, 3),
                                "gloo_best_ms": round(min(theirs) * 1e3, 3),
                                "bandwidth_ratio": round(
                                    statistics.median(theirs) / statistics.median(ours), 3
                                ),
                                "noded_cpu_s_per_gib": round(
                                    statistics.median(our_cpu) / size * 2**30, 3
                                ),
                                "gloo_cpu_s_per_gib": round(
                                    statistics.median(their_cpu) / size * 2**30, 3
                                ),
                                "max_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                                >> 10,
                            }
                        ),
                        flush=True,
                    )
            await trio.to_thread.run_sync(dist.barrier)

    trio.run(main)


# ---- the run -----------------------------------------------------------------------------------


def run_world(world: int, sizes: list[int]) -> list[dict[str, object]]:
    ports = [free_port() for _ in range(world + 1)]
    ranks = [
        subprocess.Popen(
            [
                *(sys.executable, __file__, "--rank", str(rank), "--world", str(world)),
                *("--ports", *map(str, ports), "--sizes", *map(str, sizes)),
            ],
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            text=True,
        )
        for rank in range(world)
    ]
    rows = []
    stdout = ranks[0].stdout
    assert stdout is not None
    for line in stdout:
        row = json.loads(line)
        rows.append(row)
        print(line, end="", flush=True)
    codes = [process.wait(timeout=60) for process in ranks]
    if any(codes):
        raise SystemExit(f"a rank failed: exit codes {codes}")
    return rows


def table(rows: list[dict[str, object]]) -> str:
    head = f"{'world':>5} {'size':>9} {'noded ms':>10} {'gloo ms':>10} {'ratio':>7} {'cpu/GiB':>8} {'gloo':>7}"
    lines = [head]
    for row in rows:
        size = int(str(row["bytes"]))
        text = f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"
        lines.append(
            f"{row['world']:>5} {text:>9} {row['noded_ms']:>10} {row['gloo_ms']:>10} "
            f"{row['bandwidth_ratio']:>6}x {row['noded_cpu_s_per_gib']:>8} {row['gloo_cpu_s_per_gib']:>7}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--world", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--rank", type=int)
    parser.add_argument("--ports", type=int, nargs="+")
    options = parser.parse_args()
    if options.rank is not None:
        rank_main(options.rank, options.world[0], options.ports, options.sizes)
        return
    rows = [row for world in options.world for row in run_world(world, options.sizes)]
    print(table(rows), file=sys.stderr)


if __name__ == "__main__":
    main()
