"""A loop's tie to its daemon: the socket, the shared vectors, the model bound to them, and what is told over it.

`node.training.session` is the API above it; what the daemon and the loop do with each other depends on the run's protocol, and is
`node.training.rounds` or `node.training.legs`.

Invariant: a lost daemon costs the swarm, never the loop. Whatever is sent inside `guarded` ends quietly with the link
(`strict` and supervised loops get `DaemonLost` instead), and is said once.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import torch

from node.errors import ExitCode, NodedError, TimedOut
from node.run.checkpoint import TEMPORARY_PREFIX
from node.run.manifest import RunManifest
from node.run.tensor_file import BadTensorFile
from node.shared_buffer import SharedBuffer, Vector
from node.trainer_messages import (
    VERSION,
    Attach,
    Attached,
    Failed,
    Report,
    Saved,
    SaveFailed,
    Stop,
)
from node.training.binding import Binding
from node.training.daemon_link import DaemonLink, DaemonLost
from node.training.meter import Meter
from node.training.snapshot import Loop, Position, write_snapshot

__all__ = ["Attachment", "JoinRefused", "Wishes"]

_log = logging.getLogger("noded")

REPORT_INTERVAL_S: Final = 0.5
ATTACH_TIMEOUT_S: Final = 60.0
"""The daemon answers `Attach` at once; more than this means that it hangs."""


class JoinRefused(NodedError):
    """The daemon does not take this trainer; the message says why."""

    exit_code = ExitCode.REFUSED


@attrs.frozen(kw_only=True)
class Wishes:
    """How a loop wants to be attached; see `node.training.session.join`."""

    run: str
    every: int = 32
    protocol: str | None = None
    strict: bool = False
    supervised: bool = False
    expected: RunManifest | None = None
    """The daemon has to train exactly this run."""


class Attachment:
    """One attached loop. All methods belong to the thread that trains, but for `interrupt`."""

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        link: DaemonLink,
        wishes: Wishes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Attach; raises `JoinRefused`, `TimedOut`, `DaemonLost`, and then the link is closed."""
        self.model, self.optimizer = model, optimizer
        self.wishes = wishes
        self.clock = clock
        self.link: DaemonLink | None = link
        self.meter = Meter(clock)
        self.binding = Binding(model)
        self.views: Mapping[str, Vector] = {}
        self.cursor: dict[str, int] = {}
        """Small counters of the loop's own, saved with every checkpoint."""
        self.save_seconds = 0.0
        self.stop_reason: str | None = None
        self._buffer: SharedBuffer | None = None
        self._report_at = -math.inf
        try:
            self.attached = self._attach(link)
        except BaseException as error:
            self.fail(error)
            self.close()
            raise

    @property
    def manifest(self) -> RunManifest:
        """The run's settings."""
        return self.attached.manifest

    def _attach(self, link: DaemonLink) -> Attached:
        wishes, layout = self.wishes, self.binding.layout
        link.send(
            Attach(
                version=VERSION,
                run=wishes.run,
                pid=os.getpid(),
                numel=layout.numel,
                model=layout.model,
                every=wishes.every,
                supervised=wishes.supervised,
                protocol=wishes.protocol,
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
        if wishes.expected is not None and message.manifest.hash != wishes.expected.hash:
            raise JoinRefused("the daemon trains another run than this process was started for")
        self.views = self._buffer.views
        return message

    def bind(self, vectors: tuple[str, ...]) -> None:
        """Make the model's parameters those of "params"; raises `JoinRefused` if a vector is missing."""
        missing = [name for name in vectors if name not in self.views]
        if missing:
            raise JoinRefused(f"the daemon shares no vectors {missing}: is it of another version?")
        self.binding.attach(self.views["params"])

    # ---- telling ----

    def send(self, message: Any) -> None:
        """Tell the daemon something, if it is still there."""
        if self.link is not None:
            with self.guarded():
                self.link.send(message)

    def report(self, step: int, *, force: bool = False) -> None:
        """Tell how the loop gets on, twice a second at most."""
        now = self.clock()
        if now < self._report_at and not force:
            return
        self._report_at = now + REPORT_INTERVAL_S
        self.send(Report(step, self.meter.last_loss, self.meter.tokens, self.meter.rate()))

    def fail(self, error: BaseException) -> None:
        """Tell the daemon why this process ends; best effort."""
        if self.link is not None and isinstance(error, Exception):
            try:
                self.link.send(Failed(f"{type(error).__name__}: {error}"[:1024]))
            except NodedError:
                return

    def save(
        self, loop: Loop, position: Position, digest: bytes, valid: Callable[[], bool]
    ) -> bool:
        """Write a checkpoint's tensors and hand them to the daemon.

        Args:
            loop: what to save.
            position: where it stands.
            digest: of the consensus vectors.
            valid: asked after the writing, whether they still are what they were.

        Returns:
            False if it could not be written (the daemon is told), or is not valid.
        """
        begun = self.clock()
        if self.link is None:
            return False
        folder = Path(self.attached.data_dir)
        path = folder / f"{TEMPORARY_PREFIX}{position.step:08d}-{os.getpid()}.safetensors"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            written = write_snapshot(path, loop, position)
            if not valid():
                path.unlink(missing_ok=True)
                return False
        except (OSError, BadTensorFile) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self.send(SaveFailed(position.step, f"{folder}: {reason or error}"[:1024]))
            return False
        self.send(
            Saved(str(path), position.round, position.step, written.size, written.sha256, digest)
        )
        self.save_seconds += self.clock() - begun
        return True

    # ---- ending ----

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """A lost daemon raises when strict or supervised; otherwise the loop goes on alone."""
        try:
            yield
        except DaemonLost as error:
            self.lose(error)

    def lose(self, error: DaemonLost) -> None:
        """The daemon is gone."""
        link, self.link = self.link, None
        if link is not None:
            link.close()
        if self.wishes.strict or self.wishes.supervised:
            raise error
        if link is not None:
            _log.warning("noded: %s; training goes on locally, without the swarm", error)

    def interrupt(self) -> None:
        """End every wait for the daemon; safe in a signal handler."""
        self.stop_reason = self.stop_reason or "interrupted"
        if self.link is not None:
            self.link.interrupt()

    def close(self) -> None:
        """Give the model its own memory back and the vectors up; idempotent."""
        link, self.link = self.link, None
        if link is not None:
            link.close()
        self.binding.detach()
        self.views = {}
        if self._buffer is not None:
            self._buffer.close()
