"""How this process is doing: loop lag, descriptors, memory, threads.

The lag probe sleeps a short time again and again and notes how late it woke: everything that holds
the loop up, our own code or the garbage collector, shows there. It is always on, because a loop
that stalls makes this node doubt others for its own fault.
"""

from __future__ import annotations

import os
import resource
import threading
from collections import deque
from pathlib import Path
from typing import Any, Final

import trio

INTERVAL_S: Final = 0.05
WINDOW: Final = 1200
"""One minute of samples."""
START_UP_S: Final = 10.0
"""Importing, binding and the first handshakes of all peers at once."""


class LagProbe:
    """Latest minute of event-loop lag, in milliseconds."""

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=WINDOW)

    async def run(self) -> None:
        """Measure until cancelled, once the start is over: what stalls then says nothing of how the node will be."""
        await trio.sleep(START_UP_S)
        while True:
            due = trio.current_time() + INTERVAL_S
            await trio.sleep_until(due)
            self._samples.append(max(0.0, trio.current_time() - due) * 1000)

    @property
    def max_ms(self) -> float:
        """Longest lag in the window; 0 before the first sample."""
        return max(self._samples, default=0.0)

    @property
    def p99_ms(self) -> float:
        """99th percentile of the window."""
        if not self._samples:
            return 0.0
        ordered = sorted(self._samples)
        return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]


def open_descriptors() -> int | None:
    """Open file descriptors of this process, or None where /proc is missing."""
    try:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count, no paths wanted
    except OSError:
        return None


def descriptor_limit() -> int:
    """The soft limit of open files."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def resident_bytes() -> int | None:
    """Resident memory of this process, or None where /proc is missing."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * resource.getpagesize()


def process_snapshot(lag: LagProbe) -> dict[str, Any]:
    """The `process` object of the status document."""
    return {
        "fds": open_descriptors(),
        "tasks": trio.lowlevel.current_statistics().tasks_living,
        "threads": threading.active_count(),
        "rss_bytes": resident_bytes(),
        "loop_lag_max_ms": round(lag.max_ms, 1),
        "loop_lag_p99_ms": round(lag.p99_ms, 1),
    }
