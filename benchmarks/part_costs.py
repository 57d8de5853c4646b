"""What the parts of an encrypted all-reduce cost on this machine, in CPU seconds per GiB, for `benchmarks/allreduce.py`.

    python benchmarks/part_costs.py                  one JSON line

A plaintext socket (by this program and by iperf3), the cipher of long records (AEGIS-256X4 where it is installed), AES-256-GCM beside it,
BLAKE3 and the addition. With N members, a GiB of payload moves
2(N-1) GiB, each sealed and opened once, adds N-1 GiB and hashes one. Their sum is the floor of an encrypted all-reduce.
"""

from __future__ import annotations

import json
import resource
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
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
    command = [sys.executable, __file__, str(total), *map(str, ports)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        one, other = (listener.accept()[0] for listener in listeners)
        for sock in (*listeners, one, other):
            no_delay(sock)
        before = cpu_seconds()
        move_plain(one, other, total)
        used = cpu_seconds() - before
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
    before = cpu_seconds()
    move_plain(one, other, total)
    print(cpu_seconds() - before)


def part_costs() -> dict[str, float | None]:
    """CPU seconds per GiB of each part, best of five, in buffers that stay in the cache."""
    import numpy as np
    from blake3 import blake3

    from transport.secure.processor import can_use_aegis
    from transport.secure.record import OVERHEAD_BYTES, RecordKind, Sealer

    size = 1 << 18
    plain, sealed = bytearray(size), memoryview(bytearray(size + OVERHEAD_BYTES))
    ours, aes = Sealer(bytes(32), aegis=can_use_aegis()), Sealer(bytes(32))
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
        "cipher": cost(lambda: ours.seal_into(RecordKind.BULK_DATA, plain, sealed)),
        "aes_gcm": cost(lambda: aes.seal_into(RecordKind.BULK_DATA, plain, sealed)),
        "blake3": cost(lambda: blake3(plain).digest()),
        "add": cost(lambda: np.add(one, two, out=two)),
    }


def floor(costs: dict[str, Any], world: int, path: str) -> float:
    """CPU seconds per GiB of payload that the parts alone cost, all members together."""
    moved = 2 * (world - 1)
    crossing = costs["socket"] if path != "shared" else 0.0
    return moved * (crossing + 2 * costs["cipher"]) + (world - 1) * costs["add"] + costs["blake3"]


if __name__ == "__main__":
    if sys.argv[1:]:
        total, *ports = map(int, sys.argv[1:])
        plain_main(ports, total)
    else:
        print(json.dumps(part_costs()))
