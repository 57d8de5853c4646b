"""One rank of one program as a process, for `benchmarks/allreduce.py`: a member of noded or a rank of torch's gloo.

    python benchmarks/allreduce_rank.py SPEC        what `Rank` starts

It takes commands as lines of JSON and answers each with one: `prepare` (buffers of a size), `fill` (bring this rank's values),
`reduce` (so many all-reduces in a row, from a given instant of CLOCK_MONOTONIC on, which is the same for all processes of a
machine). A member holds no torch, as a daemon holds none; neither program's threads, caches or interpreter lock are the other's.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import trio
from part_costs import cpu_seconds, free_port
from rank_process import RankProcess, say

PATIENCE_S = 120.0
"""For one operation: nobody dials again here, so one that is lost fails the run."""
EPOLL_S = 0.0015
"""How much earlier than asked for trio's sleep has to end, to end in time."""
SEED = b"benchmark"


def status_mib(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"no {field} in /proc/self/status")


def reset_peak() -> float:
    """Let the peak start from now; returns the resident size, in MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return status_mib("VmRSS")


def sum_of_ranks(world: int) -> float:
    """What every element must be when rank r has brought r + 1."""
    return world * (world + 1) / 2


# ---- gloo --------------------------------------------------------------------------------------


def gloo_main(rank: int, hosts: list[str], ports: list[int]) -> None:
    import torch
    import torch.distributed as dist

    world = len(hosts)
    torch.set_num_threads(1)
    meeting = f"tcp://{hosts[0]}:{ports[0]}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    tensor = torch.ones(0)
    say(ready=True)
    for line in sys.stdin:
        command = json.loads(line)
        match command.pop("do"):
            case "prepare":
                tensor = torch.ones(command["size"] // 4)
                say(answer=True)
            case "fill":
                tensor.fill_(float(rank + 1))
                say(answer=True)
            case "reduce":
                times = command["times"]
                time.sleep(max(0.0, command["at"] - time.monotonic()))
                before = cpu_seconds()
                for _ in range(times):
                    dist.all_reduce(tensor)
                took, used = time.monotonic() - command["at"], cpu_seconds() - before
                expected = sum_of_ranks(world) * float(world) ** (times - 1)  # in place
                assert abs(float(tensor[-1]) - expected) <= 1e-6 * expected, "wrong sum of gloo"
                say(answer={"took": took / times, "used": used / times})
    dist.destroy_process_group()


# ---- noded -------------------------------------------------------------------------------------


async def noded_main(rank: int, hosts: list[str], ports: list[int], path: str) -> None:
    import numpy as np
    from collective_rank import open_member, read_line

    from transport.address import Address
    from transport.bulk import shared
    from transport.identity import Identity

    if path == "tcp":

        def declined() -> shared.Offer:
            raise shared.NotShared("this run measures TCP")

        shared.Offer = declined  # type: ignore[assignment,misc]
    world = len(hosts)
    # In the order of their ids, which is the members': gloo's ranks are in theirs, too.
    seeds = [hashlib.sha256(SEED + b"%d" % number).digest() for number in range(world)]
    own = sorted(map(Identity.from_seed, seeds), key=lambda one: one.node_id)[rank]
    addresses = [Address(host, port) for host, port in zip(hosts, ports, strict=True)]
    run = hashlib.sha256(b"run" + SEED).digest()
    async with open_member(own, SEED, run, addresses[rank], count=world, rank=rank) as (
        endpoint,
        group,
    ):
        say(listening=True)
        await read_line()
        for address in addresses[:rank]:
            await endpoint.connect([address])
        round_, state = 0, hashlib.sha256(b"start").digest()
        group.set_position(round_, state)
        await group.wait_entered()
        # At an epoch's beginning members measure their links, each in a turn of half a second.
        await trio.sleep(0.5 * world + 1)
        gc.collect()
        gc.freeze()  # as the daemon does
        source = out = np.empty(0, np.float32)

        def buffers(size: int) -> tuple[Any, Any]:
            source = np.full(size // 4, rank + 1, np.float32)
            return source, np.ones_like(source)  # its pages are the caller's, not the operation's

        say(ready=True)
        while line := await read_line():
            command = json.loads(line)
            match command.pop("do"):
                case "prepare":
                    # New pages can take seconds, in which the loop has to say that it lives.
                    source, out = await trio.to_thread.run_sync(buffers, command["size"])
                    say(answer=True)
                case "fill":  # as gloo's tensor is; and of the result before nothing may stay
                    await trio.to_thread.run_sync(out.fill, np.nan)
                    await trio.to_thread.run_sync(source.fill, rank + 1)
                    say(answer=True)
                case "reduce":
                    resident = reset_peak()
                    algorithm, _, wire = command["way"].partition("/")
                    # The loop goes on for as long as it can, but epoll counts in milliseconds.
                    await trio.sleep(max(0.0, command["at"] - time.monotonic() - EPOLL_S))
                    time.sleep(max(0.0, command["at"] - time.monotonic()))  # noqa: ASYNC251
                    before = cpu_seconds()
                    for _ in range(command["times"]):
                        reduced = await group.all_reduce(
                            b"bench",
                            source,
                            out,
                            algorithm=algorithm,
                            wire=wire or "exact",
                            deadline=trio.current_time() + PATIENCE_S,
                        )
                        round_ += 1
                        state = hashlib.sha256(state + reduced.certificate.root).digest()
                        group.set_position(round_, state)
                    took, used = time.monotonic() - command["at"], cpu_seconds() - before
                    expected = sum_of_ranks(world)
                    allowed = 0.02 * expected if wire else 0.0
                    for at in (0, -1):
                        assert abs(out[at] - expected) <= allowed, "wrong sum"
                    say(
                        answer={
                            "took": took / command["times"],
                            "used": used / command["times"],
                            "algorithm": reduced.algorithm,
                            # Over what was resident before, which includes both buffers.
                            "extra_mib": status_mib("VmHWM") - resident,
                        }
                    )


# ---- seen by the run ---------------------------------------------------------------------------


class Place(NamedTuple):
    """Where the ranks are: their addresses and, in network namespaces, what enters those and the devices there."""

    hosts: Sequence[str]
    prefixes: Sequence[Sequence[str]] = ()
    devices: Sequence[str] = ()


class Rank(RankProcess):
    """A rank, seen by the run."""

    def __init__(self, program: str, rank: int, place: Place, path: str, **spec: Any) -> None:
        spec |= {"program": program, "rank": rank, "hosts": place.hosts, "path": path}
        super().__init__(
            f"rank {rank} of {program}",
            __file__,
            spec,
            prefix=place.prefixes[rank] if place.prefixes else (),
            environment={"GLOO_SOCKET_IFNAME": place.devices[rank]} if place.devices else None,
        )


@contextlib.contextmanager
def ranks(program: str, place: Place, path: str, *, pin: bool) -> Iterator[list[Rank]]:
    """All ranks of a program, connected with each other and at rest."""
    cpus = sorted(os.sched_getaffinity(0))
    ports = [free_port() for _ in place.hosts]
    started: list[Rank] = []
    try:
        for rank in range(len(place.hosts)):
            cpu = cpus[rank % len(cpus)] if pin else None
            started.append(Rank(program, rank, place, path, ports=ports, cpu=cpu))
        if program == "noded":
            for each in started:
                each.hear("listening")
            for each in started:
                each.tell()
        for each in started:
            each.hear("ready")
        yield started
    finally:
        for each in started:
            each.close()


def main() -> None:
    spec = json.loads(sys.argv[1])
    if spec["cpu"] is not None:
        os.sched_setaffinity(0, {spec["cpu"]})
    if spec["program"] == "gloo":
        gloo_main(spec["rank"], spec["hosts"], spec["ports"])
    else:
        trio.run(noded_main, spec["rank"], spec["hosts"], spec["ports"], spec["path"])


if __name__ == "__main__":
    main()
