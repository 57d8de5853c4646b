"""How the daemon starts a supervised trainer: argument vector and environment, nothing else.

Problem: the trainer must be a fresh interpreter (a fork of a process that has threads, or of one
that has used torch, hangs), must not import a user's `node.py` instead of ours, and must not
inherit settings by accident.

Idea: one pure function that both the supervisor and the tests call; `python -P` keeps the working
directory off `sys.path`, and the user's folder is appended by the worker itself.

What the parent has to do:

* pass no descriptors (the default of `subprocess`), stdin closed or null, and a session of its own
  (`start_new_session=True`), so that Ctrl-C in a terminal reaches the daemon alone;
* *not* use a parent-death signal: it fires when the creating *thread* ends, and trio starts
  processes from short-lived threads. The worker watches its parent through a pidfd instead.

Exit codes of the worker: 0 finished, or stopped as asked; 1 failed; 3 the daemon went away; 7 the
manifest, task or settings are wrong (starting it again will not help).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import attrs

__all__ = ["SOCKET_VARIABLE", "WorkerOptions", "worker_command", "worker_environment"]

SOCKET_VARIABLE = "NODED_TRAINER_SOCKET"
"""Environment variable with the path of the trainer socket, for user scripts and workers."""


@attrs.frozen(kw_only=True)
class WorkerOptions:
    """What a supervised trainer is told on its command line."""

    socket: Path
    """Path of the trainer socket."""
    manifest: Path
    """File holding `RunManifest.canonical()`; must equal the one in `Attached`."""
    threads: int = 1
    """torch threads."""
    device: str = "cpu"
    data: str = ""
    """Corpus folder or file; "" is the task's default."""
    part: str = ""
    """Which part of the data, as "3/8" (the third of eight); "" for all of it."""
    task: str = ""
    """Task the operator allows, if it is `module:Class`; "" allows installed tasks only."""
    user_path: str = ""
    """Folder appended to `sys.path` for tasks of the operator's own."""
    approved: str = ""
    """Hash of approved code: the run's task is `task` from `user_path`, whatever its manifest calls it, and from nowhere else."""
    checkpoint_every: int = 10
    """Rounds between checkpoints; 0 saves only at the end and on request."""
    evaluate_every: int = 5
    """Rounds between evaluations; 0 evaluates at start and end only."""


def worker_command(options: WorkerOptions, python: str = sys.executable) -> list[str]:
    """The argument vector of a supervised trainer."""
    command = [python, "-P", "-m", "node.training.worker"]
    command += ["--socket", str(options.socket), "--manifest", str(options.manifest)]
    command += ["--threads", str(options.threads), "--device", options.device]
    command += ["--checkpoint-every", str(options.checkpoint_every)]
    command += ["--evaluate-every", str(options.evaluate_every)]
    for flag, value in (
        ("--data", options.data),
        ("--part", options.part),
        ("--task", options.task),
        ("--user-path", options.user_path),
        ("--approved", options.approved),
    ):
        if value:
            command += [flag, value]
    # Supervisor and worker must mean the same process even if the parent dies during start-up.
    return [*command, "--parent", str(os.getpid())]


def worker_environment(base: Mapping[str, str], options: WorkerOptions) -> dict[str, str]:
    """The environment of a supervised trainer: the parent's, with threads limited before import."""
    threads = str(options.threads)
    return {
        **base,
        # OpenMP and MKL read these once, when torch is loaded: torch.set_num_threads comes later
        # and leaves their pools spinning beside the other trainers of the machine.
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        SOCKET_VARIABLE: str(options.socket),
        "PYTHONUNBUFFERED": "1",
    }
