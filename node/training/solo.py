"""Training alone: the same task in one process, to compare a swarm with.

    python -m node.training.solo --manifest manifest.json --nodes 4

takes as many local steps as four nodes together, so that it sees the same number of tokens, and
prints one JSON line per evaluation::

    {"step": 640, "tokens": 327680, "loss": 2.31, "val_loss": 2.25, "seconds": 12.1}

No daemon, no socket, no swarm: what is left is `TaskLoop` and a clock.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypedDict

import msgspec
import torch

from node.errors import NodedError
from node.run.manifest import RunManifest
from node.training.task_loop import TaskLoop

__all__ = ["Progress", "main", "train_alone"]


class Progress(TypedDict):
    """One line of output."""

    step: int
    tokens: int
    loss: float
    """Mean training loss since the line before."""
    val_loss: float
    seconds: float
    """Since the first step, evaluations left out."""


def train_alone(
    manifest: RunManifest,
    *,
    data: str = "",
    nodes: int = 1,
    evaluate_every: int = 200,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Progress]:
    """Train with the token budget of `nodes` nodes and yield the progress, starting at step 0.

    The learning-rate schedule is stretched over all the steps. Raises what building the task does.
    """
    manifest = msgspec.structs.replace(manifest, steps=manifest.steps * nodes)
    loop = TaskLoop(manifest, node="solo", data=data)
    yield Progress(
        step=0, tokens=0, loss=0.0, val_loss=loop.task.evaluate(loop.model).loss, seconds=0.0
    )
    total, losses, seconds, begun = 0, 0.0, 0.0, clock()
    since = 0
    for step in range(manifest.steps):
        loss, tokens = loop.backward(step, step)
        loop.optimizer.step()
        total += tokens
        losses += float(loss)
        if (step + 1) % evaluate_every == 0 or step + 1 == manifest.steps:
            seconds += clock() - begun
            yield Progress(
                step=step + 1,
                tokens=total,
                loss=losses / (step + 1 - since),
                val_loss=loop.task.evaluate(loop.model).loss,
                seconds=seconds,
            )
            since, losses, begun = step + 1, 0.0, clock()


def main(argv: Sequence[str] | None = None) -> int:
    """Print progress as JSON lines; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m node.training.solo")
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--data", default="")
    parser.add_argument("--nodes", type=int, default=1, help="use the token budget of N nodes")
    parser.add_argument("--evaluate-every", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    try:
        manifest = RunManifest.from_json(options.manifest.read_bytes())
        for progress in train_alone(
            manifest,
            data=options.data,
            nodes=options.nodes,
            evaluate_every=options.evaluate_every,
        ):
            sys.stdout.write(json.dumps(progress) + "\n")
            sys.stdout.flush()
    except NodedError as error:
        sys.stderr.write(f"{error}\n  {error.hint}".rstrip() + "\n")
        return error.exit_code
    except OSError as error:
        sys.stderr.write(f"{options.manifest}: {error.strerror or error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
