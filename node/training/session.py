"""The training API: `with node.join("run", model, optimizer, every=32) as run:` around a loop.

Problem: an existing PyTorch loop should take part in a swarm without being rewritten, and a swarm
must never be able to lose that loop's work.

Idea: the optimizer tells when a step is done (`register_step_post_hook`), so the loop stays as it
is. After `every` steps the session computes this node's contribution into shared memory, tells the
daemon, waits until the round has an outcome and applies it. All arithmetic is the protocol's
averager; everything that touches the network is the daemon's.

    local steps  ->  Contribute  ->  (daemon: all-reduce, certificate)  ->  Outcome  ->  apply
        ^                                                                                 |
        '---------------------------------------------------------------------------------'

Invariants:
- Alone, a loop trains bit for bit as it would without the session: parameters are aligned views,
  and an outcome without other members changes none of them.
- A lost daemon costs the swarm, never the loop: training goes on locally and says so once
  (`strict=True` raises `DaemonLost` instead).
- A contribution with NaN or infinity in it never leaves the node: the round is rolled back to the
  consensus state and joined with weight 0.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import torch

from gossip.errors import GossipError
from gossip.protocol import Averager, load_protocol
from node.errors import ExitCode, NodedError, TimedOut
from node.paths import default_data_dir, node_paths
from node.run.checkpoint import TEMPORARY_PREFIX
from node.run.launch import SOCKET_VARIABLE
from node.run.manifest import RunManifest
from node.run.tensor_file import BadTensorFile
from node.shared_buffer import SharedBuffer, Vector
from node.trainer_messages import (
    MAX_SAMPLE_CHARACTERS,
    VERSION,
    Applied,
    Attach,
    Attached,
    Contribute,
    DaemonMessage,
    Evaluated,
    Failed,
    Finished,
    Hurry,
    Outcome,
    Ready,
    Report,
    Resync,
    Sample,
    Saved,
    SaveFailed,
    SaveNow,
    Start,
    Stop,
)
from node.training.binding import Binding
from node.training.daemon_link import DaemonLink, DaemonLost
from node.training.snapshot import Loop, Position, read_snapshot, write_snapshot

__all__ = ["JoinRefused", "Session", "join"]

_log = logging.getLogger("noded")

REPORT_INTERVAL_S: Final = 0.5
ATTACH_TIMEOUT_S: Final = 60.0
"""The daemon answers `Attach` at once; more than this means that it hangs."""


class JoinRefused(NodedError):
    """The daemon does not take this trainer; the message says why."""

    exit_code = ExitCode.REFUSED


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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run_name = run
        self._model = model
        self._optimizer = optimizer
        self._link: DaemonLink | None = link
        self._strict = strict
        self._supervised = supervised
        self._clock = clock
        self._binding = Binding(model)
        self._round = 0
        self._steps = 0
        self._tokens = 0
        self._tokens_contributed = 0
        self._loss_sum: Any = 0.0
        self._loss_count = 0
        self._last_loss: Any = None
        self._members = 1
        self._digest = b""
        self._views: Mapping[str, Vector] = {}
        self._started = False
        self._hurry = False
        self._save_wanted = False
        self._saved_step = -1
        self._report_at = -math.inf
        self._reported: tuple[float, int] = (clock(), 0)
        self._stop_reason: str | None = None
        self.cursor: dict[str, int] = {}
        """Small counters of the loop's own (a data cursor), saved with every checkpoint."""
        self.save_seconds = 0.0
        """Spent in writing checkpoints."""
        self.wait_seconds = 0.0
        """Spent in waiting for outcomes."""
        self._buffer: SharedBuffer | None = None
        try:
            self._attached = self._attach(every, protocol, expected)
            self._open_state()
        except BaseException as error:
            self._fail(error)
            self._close()
            raise

    # ---- what a loop may ask and tell ----

    @property
    def manifest(self) -> RunManifest:
        """The run's settings."""
        return self._attached.manifest

    @property
    def node(self) -> str:
        """Printed id of the node this loop is attached to."""
        return self._attached.node

    @property
    def peers(self) -> int:
        """Other members in the last round."""
        return self._members - 1

    @property
    def round(self) -> int:
        """Completed rounds of the run."""
        return self._round

    @property
    def global_step(self) -> int:
        """Local steps per node since the run began; learning-rate schedules follow this one."""
        return self.manifest.step_after(self._round) + self._steps

    @property
    def tokens(self) -> int:
        """Tokens logged by this node since the run began."""
        return self._tokens

    @property
    def finished(self) -> bool:
        """Whether all rounds of the run are done."""
        return bool(self.manifest.rounds) and self._round >= self.manifest.rounds

    @property
    def attached(self) -> bool:
        """Whether the daemon is still there."""
        return self._link is not None

    @property
    def stop_reason(self) -> str | None:
        """Why the daemon wants the loop to end; None while it does not."""
        return self._stop_reason

    def log(self, *, loss: torch.Tensor | float | None = None, tokens: int = 0) -> None:
        """Tell the loss of a step and the tokens it saw; costs no synchronisation with a device."""
        self._tokens += tokens
        if loss is not None:
            value = loss.detach() if isinstance(loss, torch.Tensor) else loss
            self._last_loss = value
            self._loss_sum = self._loss_sum + value
            self._loss_count += 1

    def wait_synced(self, timeout_s: float) -> bool:
        """Wait until this loop holds the run's state; False if that took too long."""
        deadline = self._clock() + timeout_s
        while not self._started and self._link is not None:
            left_s = deadline - self._clock()
            if left_s <= 0 or self._stop_reason is not None:
                return False
            with self._guarded():
                message = self._link.receive(left_s)
                if message is None and self._clock() < deadline:
                    return False  # interrupted
                if message is not None:
                    self._handle(message)
        return self._started

    def evaluated(self, loss: float, tokens: int) -> None:
        """Tell the validation loss of the consensus parameters (right after a round)."""
        self._send(Evaluated(self._round, self.manifest.step_after(self._round), loss, tokens))

    def sample(self, text: str) -> None:
        """Tell a specimen of what the model does."""
        self._send(Sample(text[:MAX_SAMPLE_CHARACTERS]))

    def interrupt(self) -> None:
        """End the wait for an outcome; for signal handlers."""
        self._stop_reason = self._stop_reason or "interrupted"
        if self._link is not None:
            self._link.interrupt()

    def save(self) -> bool:
        """Write a checkpoint's tensors and hand it to the daemon; False if it cannot be written.

        Holds the consensus state of the last completed round and this node's private state.
        """
        step, begun = self.manifest.step_after(self._round), self._clock()
        self._save_wanted = False
        if self._link is None:
            return False
        path = Path(self._attached.data_dir) / (
            f"{TEMPORARY_PREFIX}{step:08d}-{os.getpid()}.safetensors"
        )
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            position = Position(self._round, step, self._tokens, dict(self.cursor))
            written = write_snapshot(path, self._loop(), position)
            if self._averager.state_digest(self._views) != self._digest:
                # Stopped in the middle of a round: the daemon is writing a peer's state there.
                path.unlink(missing_ok=True)
                return False
        except (OSError, BadTensorFile) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self._send(SaveFailed(step, f"{path.parent}: {reason or error}"[:1024]))
            return False
        self._saved_step = step
        self._send(Saved(str(path), self._round, step, written.size, written.sha256, self._digest))
        self.save_seconds += self._clock() - begun
        return True

    @property
    def saved(self) -> bool:
        """Whether the state of the last completed round was saved by this process."""
        return self._saved_step == self.manifest.step_after(self._round)

    # ---- life ----

    def __enter__(self) -> Self:
        self._hook = self._optimizer.register_step_post_hook(self._after_step)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._hook.remove()
        try:
            if isinstance(exc, Exception) and not isinstance(exc, DaemonLost):
                self._fail(exc)
            elif exc is None and self.finished:
                self._report(force=True)
                self._send(Finished(self._round, self.manifest.step_after(self._round)))
        finally:
            self._close()

    def _close(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()
        self._binding.detach()
        self._views = {}
        if self._buffer is not None:
            self._buffer.close()

    # ---- attaching ----

    def _attach(self, every: int, protocol: str | None, expected: RunManifest | None) -> Attached:
        assert self._link is not None
        link, layout = self._link, self._binding.layout
        link.send(
            Attach(
                version=VERSION,
                run=self._run_name,
                pid=os.getpid(),
                numel=layout.numel,
                model=layout.model,
                every=every,
                supervised=self._supervised,
                protocol=protocol,
            )
        )
        message = link.receive(ATTACH_TIMEOUT_S)
        if isinstance(message, Stop):
            raise JoinRefused(
                f"the daemon refused: {message.reason}",
                hint="a daemon that is to wait for a script needs `auto = false` in [trainer], and "
                "its [run] must have the name that the script joins",
            )
        if message is None:
            raise TimedOut("the daemon did not answer", hint="look at its log: it may hang")
        fd = link.take_fd()
        if not isinstance(message, Attached) or fd is None:
            if fd is not None:
                os.close(fd)
            raise JoinRefused("the daemon's answer is no acceptance: is it of another version?")
        self._buffer = SharedBuffer.attach(fd, message.numel, message.vectors)
        if message.numel != layout.numel:
            raise JoinRefused(f"the daemon shares {message.numel} values, not {layout.numel}")
        if expected is not None and message.manifest.hash != expected.hash:
            raise JoinRefused("the daemon trains another run than this process was started for")
        self._views = self._buffer.views
        return message

    def _open_state(self) -> None:
        attached = self._attached
        try:
            self._averager: Averager = load_protocol(attached.manifest.protocol).averager(
                attached.manifest.protocol_settings
            )
        except GossipError as error:
            raise JoinRefused(str(error), hint=error.hint) from error
        missing = [name for name in self._averager.vectors if name not in self._views]
        if missing:
            raise JoinRefused(f"the daemon shares no vectors {missing}: is it of another version?")
        self._binding.attach(self._views["params"])
        if attached.checkpoint is not None:
            self._resume(read_snapshot(Path(attached.checkpoint), self.manifest.hash, self._loop()))
        else:
            self._averager.start(self._views)
        self._digest = self._averager.state_digest(self._views)
        self._send(Ready(self._round, self.manifest.step_after(self._round), self._digest))

    def _resume(self, position: Position) -> None:
        self._round = position.round
        self._tokens = self._tokens_contributed = position.tokens
        self._reported = (self._clock(), position.tokens)
        self.cursor = dict(position.cursor)
        self._saved_step = position.step

    def _loop(self) -> Loop:
        return Loop(self._model, self._optimizer, self._binding, self._averager, self._views)

    # ---- rounds ----

    def _after_step(self, *_: object) -> None:
        """The optimizer's post-hook."""
        self._steps += 1
        with self._guarded():
            self._drain()
            if not self.attached:
                return
            if self._started and not self.finished and self._stop_reason is None:
                quota = self.manifest.step_after(self._round + 1)
                quota -= self.manifest.step_after(self._round)
                if self._hurry or self._steps >= quota:
                    self._exchange()
            self._report()
            if self._save_wanted:
                self.save()

    def _drain(self) -> None:
        while self._link is not None:
            message = self._link.poll()
            if message is None:
                return
            self._handle(message)

    def _exchange(self) -> None:
        """One round: contribute, wait, apply."""
        assert self._link is not None
        self._hurry = False
        self._binding.store()
        weight = float(self._tokens - self._tokens_contributed) or float(self._steps)
        params = self._views["params"]
        if not math.isfinite(float(np.dot(params, params))):
            _log.warning(
                "noded: the local parameters are not finite after step %d;"
                " this node goes back to the run's state and sits the round out",
                self.global_step,
            )
            self._averager.resume(self._views)
            self._binding.fetch()
            # Moments that saw the infinity would bring it back with the next step.
            self._optimizer.state.clear()
            weight = 0.0
        self._averager.contribute(self._views)
        mean_loss = self._take_mean_loss()
        self._link.send(Contribute(self._round, self._steps, weight, mean_loss, self._digest))
        begun = self._clock()
        # Ends with the round (no steps are left in it), the link, or the wish to stop. In the last
        # case the contribution may or may not have counted; the daemon tells the next process.
        while self._steps and self._link is not None and self._stop_reason is None:
            message = self._link.receive()
            if isinstance(message, Outcome):
                self._apply(message)
            elif message is not None:
                self._handle(message)
        self.wait_seconds += self._clock() - begun

    def _apply(self, outcome: Outcome) -> None:
        assert self._link is not None
        if outcome.round != self._round:
            raise DaemonLost(f"the daemon settled round {outcome.round}, not {self._round}")
        self._averager.apply(
            self._views, members=outcome.members, weight=outcome.weight, alone=outcome.alone
        )
        if not outcome.alone:
            self._binding.fetch()
        self._members = outcome.members
        self._enter_round(self._round + 1)
        self._link.send(Applied(self._round, self.manifest.step_after(self._round), self._digest))

    def _enter_round(self, number: int) -> None:
        self._round = number
        self._steps = 0
        self._hurry = False
        self._tokens_contributed = self._tokens
        self._digest = self._averager.state_digest(self._views)

    def _handle(self, message: DaemonMessage) -> None:
        match message:
            case Start(round=number, source=source):
                if source == "synced":
                    self._adopt(number)
                self._started = True
            case Resync(round=number):
                self._adopt(number)
                self._started = True
                self._send(Applied(number, self.manifest.step_after(number), self._digest))
            case Hurry(round=number):
                self._hurry = number == self._round
            case SaveNow():
                self._save_wanted = True
            case Stop(reason=reason):
                self._stop_reason = reason or "the daemon stops"
                if not self._supervised:
                    if self._save_wanted:
                        self.save()  # after this there is nobody to publish it
                    self._lose(DaemonLost(f"the daemon ended the session: {reason}"))
            case _:
                raise DaemonLost(f"the daemon sent {type(message).__name__} out of turn")

    def _adopt(self, number: int) -> None:
        """The consensus vectors hold a peer's state: go on from there."""
        self._averager.resume(self._views)
        self._binding.fetch()
        self._enter_round(number)

    # ---- telling ----

    def _report(self, *, force: bool = False) -> None:
        now = self._clock()
        if now < self._report_at and not force:
            return
        self._report_at = now + REPORT_INTERVAL_S
        since, tokens = self._reported
        rate = max(self._tokens - tokens, 0) / (now - since) if now > since else 0.0
        if now - since >= 5.0:  # a window of 5 to 10 s: steady, and still shows a slow-down
            self._reported = (now, self._tokens)
        loss = math.nan if self._last_loss is None else float(self._last_loss)
        self._send(Report(self.global_step, _finite(loss), self._tokens, rate))

    def _take_mean_loss(self) -> float | None:
        if not self._loss_count:
            return None
        mean = float(self._loss_sum) / self._loss_count
        self._loss_sum, self._loss_count = 0.0, 0
        return _finite(mean)

    def _send(self, message: Any) -> None:
        if self._link is not None:
            with self._guarded():
                self._link.send(message)

    def _fail(self, error: BaseException) -> None:
        """Tell the daemon why this process ends; best effort."""
        if self._link is not None and isinstance(error, Exception):
            try:
                self._link.send(Failed(f"{type(error).__name__}: {error}"[:1024]))
            except NodedError:
                return

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """A lost daemon raises when strict or supervised; otherwise the loop goes on alone."""
        try:
            yield
        except DaemonLost as error:
            self._lose(error)

    def _lose(self, error: DaemonLost) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()
        if self._strict or self._supervised:
            raise error
        if link is not None:
            _log.warning("noded: %s; training goes on locally, without the swarm", error)


def _finite(value: float) -> float | None:
    """`value`, or None for what JSON cannot say."""
    return value if math.isfinite(value) else None


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
