"""No process outlives the one that started it, however that one ends.

Problem: `noded local` may be ended by SIGKILL, which no handler sees, and its daemons and their trainers
must go with it. A process group does not help against SIGKILL of one process, and trainers have sessions
of their own.

Idea: two Linux features, see prctl(2). A daemon asks the kernel for SIGKILL when its parent dies
(PR_SET_PDEATHSIG); SIGTERM would be kinder, and would leave a daemon that hangs. It then looks whether
the parent is still the one it should be: that closes the gap before the request. And `noded local` makes
itself the reaper of all its descendants (PR_SET_CHILD_SUBREAPER): a trainer whose daemon was killed
becomes its child, so it can be found and ended.

Invariants: the parent-death signal fires when the *thread* that started the process ends, so daemons are
started from the main thread only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import Final

__all__ = ["become_subreaper", "children", "die_with_parent", "end_children"]

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36


def die_with_parent(parent_pid: int) -> None:
    """End this process when the process `parent_pid`, its parent, ends; at once if it has already."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        sys.stderr.write("noded: the process that started this daemon is gone\n")
        os._exit(1)


def become_subreaper() -> None:
    """Inherit the descendants whose own parents end."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def children(pid: int) -> list[int]:
    """The direct children of a process, ascending; none if it is gone."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):
            found.update(map(int, (task / "children").read_text().split()))
    return sorted(found)


def end_children(wait_s: float = 1.0) -> int:
    """Kill and reap whatever is still below this process; returns how many that were.

    For a process that has nothing else running: every child is taken for a leftover.
    """
    deadline = time.monotonic() + wait_s
    killed: set[int] = set()
    while time.monotonic() < deadline:
        below = children(os.getpid())
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                reaped, _ = os.waitpid(pid, os.WNOHANG)
                if reaped:
                    killed.add(pid)
        if not below:
            break
        time.sleep(0.02)  # a killed process's children come to us one generation at a time
    return len(killed)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    # prctl(2) is variadic, and its arguments are unsigned long.
    if libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")
