"""Blocks from one and from four holders over loopback, one process each: MiB/s, and CPU seconds per GiB of fetcher and holders.

    python benchmarks/blocks.py [--mib 256] [--holders 1 4] [--repeat 5]

* `memory`: into memory, as a member that joins late takes the state (target: at least 500 MiB/s from 4 holders);
* `store`: into the store on the disk, each block flushed, as `noded get` does;
* `link`: the same bytes from the first holder over one bulk link without any hashes: what the network and encryption alone cost.

Content and places alternate within each repetition; medians. One JSON line per row, then a table. The holders share the machine's
cores with the fetcher: on a small machine it is the CPU that bounds all of it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gossip.blocks import bitmap as bits
from gossip.blocks.bitmap import Bitmap
from gossip.blocks.fetch import Fetch
from gossip.blocks.library import Library, MemorySink, Sink, Vectors
from gossip.blocks.manifest import Manifest
from gossip.blocks.serve import open_block_server
from node.blocks.store import BlockStore
from transport.address import Address
from transport.buffer import Buffer
from transport.bulk.link import MAX_PAYLOAD_BYTES
from transport.endpoint import Endpoint, open_endpoint
from transport.identity import Identity
from transport.peer import Peer
from transport.swarm import Swarm
from transport.tcp import TcpNetwork
from transport.trust.chain import certify_by_root
from transport.trust.trust import Trust

MIB = 1 << 20
ROOT = Identity.from_seed(hashlib.sha256(b"root").digest())
SWARM = Swarm(hashlib.sha256(b"benchmark").digest(), ROOT.public_key)
MODES = ("memory", "store", "link")


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def endpoint(name: str, listen: list[Address]) -> Any:
    identity = Identity.from_seed(hashlib.sha256(name.encode()).digest())
    chain = certify_by_root(
        ROOT,
        subject=identity.public_key,
        role="trainer",
        serial=bytes(16),
        now_ms=int(time.time() * 1000),
    )
    trust = Trust(SWARM.id, chain.raw)
    return open_endpoint(identity, SWARM, TcpNetwork(), listen, trust=trust)


class Memory(Library):
    blocking = False

    def __init__(self, data: np.ndarray) -> None:
        self.vectors = Vectors("state", "state", [memoryview(data)])
        for _ in self.vectors.hashing():
            pass

    def manifest(self, artefact: bytes) -> Manifest | None:
        return self.vectors.manifest if artefact == self.vectors.manifest.id else None

    def page(self, _artefact: bytes, page: int) -> bytes | None:
        return self.vectors.page(page)

    def have(self, _artefact: bytes) -> Bitmap | None:
        return bits.full(self.vectors.manifest.blocks)

    def read(self, _artefact: bytes, block: int) -> Buffer | None:
        return self.vectors.read(block)


def content(mib: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, mib * MIB, np.uint8)


async def hold(number: int, mib: int) -> None:
    data = content(mib)
    library = Memory(data)
    async with (
        endpoint(f"holder {number}", [Address("127.0.0.1", 0)]) as own,
        open_block_server(own, library),
        trio.open_nursery() as nursery,
    ):

        async def cpu(_peer: Peer, _request: bytes) -> bytes:
            return repr(cpu_s()).encode()

        async def plain(peer: Peer, _request: bytes) -> bytes:
            async def send() -> None:
                link = await own.accept_bulk(peer.node_id, b"plain")
                view = memoryview(data)
                for start in range(0, len(view), MAX_PAYLOAD_BYTES):
                    await link.send(b"", view[start : start + MAX_PAYLOAD_BYTES])
                await link.aclose()

            nursery.start_soon(send)
            return b""

        own.serve_calls("cpu", cpu)
        own.serve_calls("plain", plain)
        print(own.addresses[0].port, library.vectors.manifest.id.hex(), flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)  # until the run closes it
        nursery.cancel_scope.cancel()


async def fetch_once(
    own: Endpoint,
    peers: list[Peer],
    artefact: bytes,
    mode: str,
    mib: int,
    place: Path,
    into_memory: np.ndarray,
) -> None:
    if mode == "link":
        await peers[0].call("plain", b"")
        link = await peers[0].open_bulk(b"plain")
        into = memoryview(bytearray(MAX_PAYLOAD_BYTES))
        for _ in range(mib):
            await link.receive(lambda _header, size: into[:size])
        link.abort()
        return
    memory = MemorySink([memoryview(into_memory)])
    store = BlockStore(place / os.urandom(4).hex(), quota_bytes=1 << 40)

    async def prepare(manifest: Manifest, leaves: list[bytes]) -> Sink:
        return memory if mode == "memory" else store.add(manifest, leaves)

    async def seek() -> list[Peer]:
        return peers

    fetch = Fetch(own, artefact, prepare, seek, rng=random.Random(1), random_bytes=os.urandom)
    await fetch.run()


async def measure(ports: list[int], artefact: bytes, options: argparse.Namespace) -> None:
    rows: dict[tuple[str, int], list[tuple[float, float, float]]] = {}
    memory = np.zeros(options.mib * MIB, np.uint8)
    memory[:] = 1  # as a training process's memory: there already
    with tempfile.TemporaryDirectory() as place:
        async with endpoint("fetcher", [Address("127.0.0.1", 0)]) as own:
            peers = [await own.connect([Address("127.0.0.1", port)]) for port in ports]
            for repetition in range(options.repeat + 1):
                for mode in MODES:
                    for count in [1] if mode == "link" else options.holders:
                        used = peers[:count]

                        async def theirs(used: list[Peer] = used) -> float:
                            return sum([float(await peer.call("cpu", b"")) for peer in used])

                        holders_cpu, own_cpu, begun = await theirs(), cpu_s(), time.perf_counter()
                        await fetch_once(
                            own, used, artefact, mode, options.mib, Path(place), memory
                        )
                        took = time.perf_counter() - begun
                        own_cpu, holders_cpu = cpu_s() - own_cpu, await theirs() - holders_cpu
                        if repetition:  # the first one warms up
                            rows.setdefault((mode, count), []).append((took, own_cpu, holders_cpu))
    gib = options.mib / 1024
    print(
        f"{'':8} {'holders':>7} {'MiB/s':>8} {'best':>8} {'fetcher CPU-s/GiB':>18} {'holders CPU-s/GiB':>18}"
    )
    for (mode, count), taken in rows.items():
        took, own_cpu, holders_cpu = (
            statistics.median(column) for column in zip(*taken, strict=True)
        )
        best = options.mib / min(took for took, _, _ in taken)
        row = {
            "mode": mode,
            "holders": count,
            "mib_per_s": round(options.mib / took, 1),
            "best_mib_per_s": round(best, 1),
            "fetcher_cpu_s_per_gib": round(own_cpu / gib, 3),
            "holders_cpu_s_per_gib": round(holders_cpu / gib, 3),
        }
        print(json.dumps(row), file=sys.stderr)
        print(
            f"{mode:8} {count:7d} {row['mib_per_s']:8.0f} {best:8.0f} {own_cpu / gib:18.2f} {holders_cpu / gib:18.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--holders", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--hold", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.hold is not None:
        trio.run(hold, options.hold, options.mib)
        return
    command = [sys.executable, __file__, "--mib", str(options.mib), "--hold"]
    holders = [
        subprocess.Popen(
            [*command, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for n in range(max(options.holders))
    ]
    try:
        told = [holder.stdout.readline().split() for holder in holders if holder.stdout]
        trio.run(measure, [int(port) for port, _ in told], bytes.fromhex(told[0][1]), options)
    finally:
        for holder in holders:
            assert holder.stdin
            holder.stdin.close()
            holder.wait(10)


if __name__ == "__main__":
    main()
