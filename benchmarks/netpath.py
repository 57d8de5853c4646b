"""Paths to measure on: two network namespaces joined by a wire of a given rate, delay and loss.

    python benchmarks/netpath.py RATE_BIT DELAY_S LOSS FD FD      the process that carries the packets

`veth_pair` limits the rate with the kernel's token bucket (tc tbf). Delay and loss need netem,
which many kernels lack, so `long_path` puts a TUN device into each namespace and a Python process
between them: a queue of `QUEUE_S` at the given rate, then a fixed delay. What it can carry is
limited: at 1,500 bytes per packet about 400 Mbit/s on one core of this machine, shared with
the acknowledgements; asked for 200 Mbit/s, it is not what limits. With `offload` it carries 1 Gbit/s. It runs before
everything else where the system allows that (SCHED_FIFO): a wire does not wait for a processor. Needs root.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

QUEUE_S = 0.1
REALTIME_PRIORITY = 20
TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 1, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4 = 1, 2
READ_BYTES = 65536 + 10
"""One read: the largest packet and, with offload, the header in front that says how to cut it."""
NAMES = ("nbench-a", "nbench-b")
ADDRESSES = ("10.77.0.1", "10.77.0.2")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, stdout=subprocess.DEVNULL)


def inside(name: str) -> list[str]:
    """The words before a command that is to run in a namespace."""
    return ["ip", "netns", "exec", name]


@contextlib.contextmanager
def namespaces(congestion: str = "") -> Iterator[None]:
    """Two empty namespaces; the congestion control of both, where not the system's."""
    for name in NAMES:
        subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)
        ip("netns", "add", name)
        ip("-n", name, "link", "set", "lo", "up")
        for setting in (
            *([f"net.ipv4.tcp_congestion_control={congestion}"] if congestion else []),
            "net.ipv4.tcp_no_metrics_save=1",  # one measurement must not teach the next
        ):
            subprocess.run(
                [*inside(name), "sysctl", "-qw", setting], check=True, stdout=subprocess.DEVNULL
            )
    try:
        yield
    finally:
        for name in NAMES:
            ip("netns", "del", name)


@contextlib.contextmanager
def wire() -> Iterator[None]:
    """A wire as fast as the machine."""
    with namespaces():
        ends = ("nb0", "netns", NAMES[0], "type", "veth", "peer", "nb1", "netns", NAMES[1])
        ip("link", "add", *ends)
        for index, name in enumerate(NAMES):
            device = f"nb{index}"
            ip("-n", name, "addr", "add", f"{ADDRESSES[index]}/24", "dev", device)
            ip("-n", name, "link", "set", device, "up")
        yield


@contextlib.contextmanager
def veth_pair(rate_bit: int, queue_s: float = 0.05) -> Iterator[None]:
    """Both directions limited to `rate_bit`, a queue of `queue_s` in front."""
    with wire():
        for index, name in enumerate(NAMES):
            subprocess.run(
                [
                    *("tc", "-n", name, "qdisc", "add", "dev", f"nb{index}", "root", "tbf"),
                    *("rate", str(rate_bit), "burst", "64kb", "latency", f"{queue_s * 1e3:g}ms"),
                ],
                check=True,
            )
        yield


@contextlib.contextmanager
def long_path(
    rate_bit: int, rtt_s: float, loss: float, congestion: str = "", *, offload: bool = False
) -> Iterator[None]:
    """A path of `rate_bit` and `rtt_s` that loses each packet with probability `loss`, both ways.

    With `offload`, runs of segments cross it as one, as they pass a network card: it then carries more than
    a Gbit/s. What is lost is such a run as a whole, so it is for paths that lose nothing.
    """
    flags = IFF_TUN | IFF_NO_PI | (IFF_VNET_HDR if offload else 0)
    with namespaces(congestion):
        fds = []
        for index, name in enumerate(NAMES):
            device = f"nb{index}"
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", device.encode(), flags))
            if offload:
                fcntl.ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)
            ip("link", "set", device, "netns", name)
            ip("-n", name, "addr", "add", f"{ADDRESSES[index]}/24", "dev", device)
            ip("-n", name, "link", "set", device, "mtu", "1500", "txqueuelen", "5000", "up")
            fds.append(fd)
        process = subprocess.Popen(
            [
                *(sys.executable, __file__, str(rate_bit), str(rtt_s / 2), str(loss)),
                *map(str, fds),
            ],
            pass_fds=fds,
        )
        for fd in fds:
            os.close(fd)
        try:
            yield
        finally:
            process.terminate()
            process.wait()


def carry(rate_bit: float, delay_s: float, loss: float, fds: Sequence[int]) -> None:
    """Move packets between two TUN devices until killed."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(REALTIME_PRIORITY))
    rng, clock = random.Random(1), time.perf_counter
    lines: list[collections.deque[tuple[float, bytes]]] = [collections.deque(), collections.deque()]
    free_at = [0.0, 0.0]
    while True:
        now = clock()
        wait = min((line[0][0] for line in lines if line), default=now + 1.0) - now
        ready, _, _ = select.select(fds, [], [], max(0.0, wait))
        for fd in ready:
            way = 0 if fd == fds[0] else 1
            for _ in range(64):
                try:
                    packet = os.read(fd, READ_BYTES)
                except BlockingIOError:
                    break
                now = clock()
                start = max(now, free_at[way])
                if start - now > QUEUE_S or rng.random() < loss:
                    continue
                free_at[way] = start + len(packet) * 8 / rate_bit
                lines[way].append((free_at[way] + delay_s, packet))
        now = clock()
        for way in (0, 1):
            line, out = lines[way], fds[1 - way]
            while line and line[0][0] <= now:
                with contextlib.suppress(OSError):
                    os.write(out, line.popleft()[1])


if __name__ == "__main__":
    rate, delay, lost, *numbers = sys.argv[1:]
    with contextlib.suppress(KeyboardInterrupt):
        carry(float(rate), float(delay), float(lost), [int(number) for number in numbers])
