"""The supervised trainer: a fresh interpreter that the daemon starts, `python -P -m node.training.worker`.

It builds the task that the run's manifest names and trains it in a `Session`. See `node.run.launch`
for the command line, the environment and the exit codes.

How it ends:

* all steps done: last evaluation, checkpoint, a sample, `Finished`, exit code 0;
* `Stop` from the daemon, SIGTERM or SIGINT: the step in progress is completed, a wait is broken
  off, the last round's state is saved, exit code 0. A second signal ends it at once;
* the daemon goes away: exit code 3. The closed socket says so; should training hang in a C call, a
  watcher thread on the parent's pidfd ends the process a little later, so that no trainer stays
  behind. (A parent-death signal would fire when the *thread* that started us ends.)
"""

from __future__ import annotations

import argparse
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Final

import torch

from gossip.decentralized.protocol import LocalRule
from node.errors import DaemonNotRunning, ExitCode, NodedError
from node.run.manifest import MAX_MANIFEST_BYTES, InvalidManifest, RunManifest
from node.task import Evaluation
from node.training.daemon_link import DaemonLink, DaemonLost
from node.training.leg import local_step, take_gradients
from node.training.legs import Legs
from node.training.session import Session
from node.training.task_loop import TaskLoop

__all__ = ["main"]

PARENT_GRACE_S: Final = 2.0
"""From the parent's end to ours, if the closed socket has not ended us before."""


class _Signals:
    """Turns the first SIGTERM or SIGINT into a request, the second into the end."""

    def __init__(self) -> None:
        self.session: Session | None = None
        self._count = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self._count += 1
        if self._count > 1:
            os._exit(ExitCode.FAILED)
        if self.session is None:
            os._exit(ExitCode.OK)  # nothing has been done yet
        self.session.interrupt()


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the command line says; returns the exit code."""
    options = _parse(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    signals = _Signals()
    _watch_parent(options.parent)
    torch.set_num_threads(options.threads)
    try:
        _train(options, signals)
    except (DaemonLost, DaemonNotRunning) as error:
        _complain(error)
        return ExitCode.NOT_RUNNING
    except InvalidManifest as error:
        _complain(error)
        return ExitCode.BAD_CONFIG
    except NodedError as error:
        _complain(error)
        return error.exit_code
    return ExitCode.OK


def _train(options: argparse.Namespace, signals: _Signals) -> None:
    manifest = _read_manifest(options.manifest)
    loop = TaskLoop(
        manifest,
        data=options.data,
        part=options.part,
        device=options.device,
        allowed_task=options.task,
        user_path=options.user_path,
        approved=options.approved,
    )
    _say(loop.task.describe())
    session = Session(
        manifest.name,
        loop.model,
        loop.optimizer,
        link=DaemonLink.connect(options.socket),
        every=manifest.every,
        supervised=True,
        expected=manifest,
        examiner=_Examiner(loop),
    )
    with session as run:
        signals.session = run
        loop.set_node(run.node)
        if run.legs is not None:
            _train_legs(run, run.legs, loop)
            return
        while not run.wait_synced(3600.0) and run.stop_reason is None:
            continue
        _loop(run, loop, options)


class _Examiner:
    """What a decentralized run has looked at between and in legs."""

    def __init__(self, loop: TaskLoop) -> None:
        self._loop = loop

    def evaluate(self) -> Evaluation:
        return self._loop.task.evaluate(self._loop.model)

    def sample(self) -> str:
        return self._loop.task.sample(self._loop.model)


def _train_legs(run: Session, legs: Legs, loop: TaskLoop) -> None:
    """Legs for as long as the daemon has any; evaluations and checkpoints are its wish, too."""
    while (leg := legs.next_leg()) is not None:
        rule = LocalRule(leg.kind, leg.rho)
        if rule.kind == "gradient":
            batches = take_gradients(loop, run.global_step, leg.steps, legs.gradients())
        else:
            batches = _steps(run, loop, rule, leg.steps)
        for loss, tokens in batches:
            run.log(loss=loss, tokens=tokens)
            legs.step_done()
            if legs.cancelled or run.finished or run.stop_reason is not None:
                break
        if run.finished or run.stop_reason is not None:
            return
        legs.finish_leg()


def _steps(
    run: Session, loop: TaskLoop, rule: LocalRule, steps: int
) -> Iterator[tuple[float, int]]:
    for _ in range(steps):
        yield local_step(loop, rule, run.global_step)


def _loop(run: Session, loop: TaskLoop, options: argparse.Namespace) -> None:
    """Local steps until the run is finished or somebody wants us to stop."""
    if run.stop_reason is None:
        _evaluate(run, loop)
    seen = run.round
    while not run.finished and run.stop_reason is None:
        index = run.cursor.get("batch", 0)
        loss, tokens = loop.backward(index, run.global_step)
        # Before the step: its hook may save, and the cursor must be past the batch by then.
        run.cursor["batch"] = index + 1
        run.log(loss=loss, tokens=tokens)
        loop.optimizer.step()
        if run.round != seen and not run.finished:
            seen = run.round
            if _due(seen, options.evaluate_every):
                _evaluate(run, loop)
            if _due(seen, options.checkpoint_every):
                run.save()
    if run.finished and run.stop_reason is None:
        _evaluate(run, loop)
    if run.round and not run.saved:
        run.save()
    if run.finished:
        run.sample(loop.task.sample(loop.model))


def _due(rounds: int, every: int) -> bool:
    return bool(every) and rounds % every == 0


def _evaluate(run: Session, loop: TaskLoop) -> None:
    evaluation = loop.task.evaluate(loop.model)
    run.evaluated(evaluation.loss, evaluation.tokens, evaluation.accuracy)


def _read_manifest(path: Path) -> RunManifest:
    try:
        with path.open("rb") as file:
            return RunManifest.from_json(file.read(MAX_MANIFEST_BYTES + 1))
    except OSError as error:
        raise InvalidManifest(
            f"the run's manifest {path} cannot be read: {error.strerror or error}",
            hint="the daemon writes it before it starts a trainer; start the daemon again",
        ) from None


def _watch_parent(parent: int) -> None:
    """End this process when the process `parent` has ended; 0 watches nobody."""
    if not parent:
        return
    if os.getppid() != parent:
        os._exit(ExitCode.NOT_RUNNING)
    pidfd = os.pidfd_open(parent)
    if os.getppid() != parent:  # it ended in between, and the number may be somebody else's now
        os._exit(ExitCode.NOT_RUNNING)

    def wait() -> None:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll()
        threading.Event().wait(PARENT_GRACE_S)
        os._exit(ExitCode.NOT_RUNNING)

    threading.Thread(target=wait, name="parent-watch", daemon=True).start()


def _complain(error: NodedError) -> None:
    _say(str(error))
    if error.hint:
        _say(f"  {error.hint}")


def _say(text: str) -> None:
    sys.stderr.write(f"noded trainer: {text}\n")


def _part(text: str) -> tuple[int, int]:
    """As people count: "3/8" is the third of eight, whose index is 2."""
    number, _, count = text.partition("/")
    return int(number) - 1, int(count)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -P -m node.training.worker", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", default="")
    parser.add_argument("--part", type=_part, default=None)
    parser.add_argument("--task", default="")
    parser.add_argument("--user-path", default="")
    parser.add_argument("--approved", default="")
    parser.add_argument("--checkpoint-every", type=int, default=10)
    parser.add_argument("--evaluate-every", type=int, default=5)
    parser.add_argument("--parent", type=int, default=0)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
