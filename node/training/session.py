"""The training API: `with node.join("run", model, optimizer, every=32) as run:` around a loop.

Problem: an existing PyTorch loop should take part in a swarm without being rewritten, and a swarm
must never be able to lose that loop's work.

Idea: the optimizer tells when a step is done (`register_step_post_hook`), so the loop stays as it
is. What happens between steps depends on the run's protocol: rounds with a certified outcome
(`node.training.rounds`), or legs from where the daemon says (`node.training.legs`).

Invariant: a lost daemon costs the swarm, never the loop: training goes on locally and says so once
(`strict=True` raises `DaemonLost` instead).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from gossip.decentralized.protocol import DecentralizedProtocol
from gossip.errors import GossipError
from gossip.protocol import Protocol, load_plugin
from node.errors import NodedError
from node.paths import default_data_dir, node_paths
from node.run.launch import SOCKET_VARIABLE
from node.run.manifest import RunManifest
from node.trainer_messages import MAX_SAMPLE_CHARACTERS, Evaluated, Finished, Sample
from node.training.attachment import Attachment, JoinRefused, Wishes
from node.training.daemon_link import DaemonLink, DaemonLost
from node.training.legs import Examiner, Legs
from node.training.rounds import Rounds
from node.training.work import Work

__all__ = ["JoinRefused", "Session", "join"]


class Session:
    """Membership of one training loop in a run; made by `join`.

    All methods belong to the thread that trains. None of them is a coroutine; those that wait end
    when the daemon answers or its connection ends, and `interrupt` may be called from a signal
    handler.
    """

    def __init__(
        self,
        run: str,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        link: DaemonLink,
        every: int = 32,
        protocol: str | None = None,
        strict: bool = False,
        supervised: bool = False,
        expected: RunManifest | None = None,
        examiner: Examiner | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        wishes = Wishes(
            run=run,
            every=every,
            protocol=protocol,
            strict=strict,
            supervised=supervised,
            expected=expected,
        )
        self._attachment = Attachment(model, optimizer, link, wishes, clock)
        try:
            self._work = _work_of(self._attachment, examiner)
            self._work.open()
        except BaseException as error:
            self._attachment.fail(error)
            self._attachment.close()
            raise

    # ---- what a loop may ask and tell ----

    @property
    def manifest(self) -> RunManifest:
        """The run's settings."""
        return self._attachment.manifest

    @property
    def node(self) -> str:
        """Printed id of the node this loop is attached to."""
        return self._attachment.attached.node

    @property
    def peers(self) -> int:
        """Other members in the last round."""
        return self._work.peers

    @property
    def round(self) -> int:
        """Completed rounds of the run."""
        return self._work.round

    @property
    def global_step(self) -> int:
        """The local step that learning-rate schedules follow.

        Of a collective protocol: local steps per node since the run began; of a decentralized one: this node's own.
        """
        return self._work.global_step

    @property
    def tokens(self) -> int:
        """Tokens logged by this node since the run began."""
        return self._attachment.meter.tokens

    @property
    def cursor(self) -> dict[str, int]:
        """Small counters of the loop's own (a data cursor), saved with every checkpoint."""
        return self._attachment.cursor

    @property
    def finished(self) -> bool:
        """Whether all rounds of the run are done."""
        return self._work.finished

    @property
    def attached(self) -> bool:
        """Whether the daemon is still there."""
        return self._attachment.link is not None

    @property
    def stop_reason(self) -> str | None:
        """Why the daemon wants the loop to end; None while it does not."""
        return self._attachment.stop_reason

    @property
    def save_seconds(self) -> float:
        """Spent in writing checkpoints."""
        return self._attachment.save_seconds

    @property
    def wait_seconds(self) -> float:
        """Spent in waiting for the daemon."""
        return self._work.wait_seconds

    @property
    def legs(self) -> Legs | None:
        """Of a run with a decentralized protocol: for the supervised trainer, which asks for them itself."""
        return self._work if isinstance(self._work, Legs) else None

    def log(self, *, loss: torch.Tensor | float | None = None, tokens: int = 0) -> None:
        """Tell the loss of a step and the tokens it saw; costs no synchronisation with a device."""
        self._attachment.meter.log(loss, tokens)

    def wait_synced(self, timeout_s: float) -> bool:
        """Wait until this loop holds the run's state; False if that took too long."""
        work, attachment = self._work, self._attachment
        deadline = attachment.clock() + timeout_s
        while not work.started and attachment.link is not None:
            if attachment.clock() >= deadline or attachment.stop_reason is not None:
                return False
            if not work.receive_until(deadline) and attachment.clock() < deadline:
                return False  # interrupted
        return work.started

    def evaluated(self, loss: float, tokens: int, accuracy: float | None = None) -> None:
        """Tell the validation loss of the model (right after a round)."""
        step = self.manifest.step_after(self.round)
        self._attachment.send(Evaluated(self.round, step, loss, tokens, accuracy))

    def sample(self, text: str) -> None:
        """Tell a specimen of what the model does."""
        self._attachment.send(Sample(text[:MAX_SAMPLE_CHARACTERS]))

    def interrupt(self) -> None:
        """End the wait for an outcome; for signal handlers."""
        self._attachment.interrupt()

    def save(self) -> bool:
        """Write a checkpoint's tensors and hand it to the daemon; False if it cannot be written."""
        return self._work.save()

    @property
    def saved(self) -> bool:
        """Whether the state of the last completed round was saved by this process."""
        return self._work.saved

    # ---- life ----

    def __enter__(self) -> Self:
        self._hook = None
        if self.legs is None or not self._attachment.wishes.supervised:
            self._hook = self._attachment.optimizer.register_step_post_hook(self._after_step)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._hook is not None:
            self._hook.remove()
        attachment = self._attachment
        try:
            if isinstance(exc, Exception) and not isinstance(exc, DaemonLost):
                attachment.fail(exc)
            elif exc is None and self.finished:
                attachment.report(self.global_step, force=True)
                attachment.send(Finished(self.round, self.manifest.step_after(self.round)))
        finally:
            attachment.close()

    def _after_step(self, *_: object) -> None:
        """The optimizer's post-hook."""
        self._work.step_done()


def _work_of(attachment: Attachment, examiner: Examiner | None) -> Work:
    """What the run's protocol asks of a trainer; raises `JoinRefused`."""
    manifest = attachment.manifest
    try:
        protocol = load_plugin(manifest.protocol)
        if issubclass(protocol, DecentralizedProtocol):
            return Legs(attachment, examiner)
        assert issubclass(protocol, Protocol), f"{protocol} is of no known kind"
        return Rounds(attachment, protocol.averager(manifest.protocol_settings))
    except GossipError as error:
        raise JoinRefused(str(error), hint=error.hint) from error


def trainer_socket(path: str | Path | None = None) -> Path:
    """The trainer socket: `path`, else `$NODED_TRAINER_SOCKET`, else the default node's."""
    if path:
        return Path(path)
    if named := os.environ.get(SOCKET_VARIABLE):
        return Path(named)
    return node_paths(default_data_dir()).trainer_socket


@contextmanager
def join(
    run: str,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    every: int = 32,
    protocol: str | None = None,
    strict: bool = False,
    timeout_s: float = 60.0,
    socket: str | Path | None = None,
) -> Iterator[Session]:
    """Take part in the run `run` with an unchanged training loop.

    Inside the block the parameters live in memory shared with the daemon; afterwards they are the
    model's own again. Returns as soon as the daemon says to start: at once when this node is alone.

    Args:
        run: name of the run, as the daemon's configuration has it.
        model: its trainable parameters take part; buffers stay private.
        optimizer: counts the steps; one that skips a step (a gradient scaler) is counted right.
        every: local steps per round, if this node is the one to create the run.
        protocol: name of the protocol, if this node is the one to create the run.
        strict: raise `DaemonLost` when the daemon goes away, instead of training on alone.
        timeout_s: longest wait for the run's state; afterwards the loop starts on its own and
            adopts the state when it comes.
        socket: path of the trainer socket; default `$NODED_TRAINER_SOCKET`, then the usual place.

    Raises:
        DaemonNotRunning: nothing answers at the socket.
        JoinRefused: the daemon does not take this model or run.
        CheckpointCorrupt: the checkpoint to resume from is damaged or of another model.
    """
    try:
        link = DaemonLink.connect(trainer_socket(socket))
        session = Session(
            run, model, optimizer, link=link, every=every, protocol=protocol, strict=strict
        )
    except NodedError as error:
        if error.hint:
            error.add_note(error.hint)  # a script shows it below its traceback
        raise
    with session:
        session.wait_synced(timeout_s)
        yield session
