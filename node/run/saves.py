"""From a file that the trainer wrote to a checkpoint of this node: verified, signed, in its place.

Problem: signing means hashing gigabytes, which must not stall the event loop; and a node that leaves waits for
what its trainer has just saved, but not for ever.

Idea: what the trainer reports goes through a queue of two to one thread. A disk that is slower than that loses
the newest file, and says so.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from node.run import checkpoint
from node.run.checkpoint import Checkpoint, CheckpointError, Trust
from node.run.manifest import RunManifest
from node.trainer_messages import Saved
from transport.identity import Identity

__all__ = ["Saves"]

QUEUE: Final = 2

_log = logging.getLogger(__name__)


class Saves:
    """This node's checkpoints of one run.

    Args:
        folder: where they lie.
        identity: signs them.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, identity: Identity, *, keep: int) -> None:
        self.folder = folder
        self.newest: Checkpoint | None = None
        self.artefact: bytes | None = None
        """Id under which others can fetch the newest one, once it has been hashed."""
        self.error = ""
        """Why the last one could not be written; empty if it was."""
        self.damaged = ""
        """What is wrong with the newest one, if it could not be used; until the next is made."""
        self._identity = identity
        self._keep = keep
        self._queue, self._to_publish = trio.open_memory_channel[Saved](QUEUE)
        self._waiting = 0
        self._settled = trio.Event()
        self._settled.set()

    @property
    def newest_path(self) -> str | None:
        """Where a trainer resumes from."""
        return None if self.newest is None else str(self.newest.path)

    def load(self, manifest: RunManifest) -> None:
        """Find the newest one that can be trusted, and sweep what a crash has left."""
        checkpoint.sweep(self.folder)
        found = checkpoint.newest(self.folder, Trust(run_id=manifest.hash))
        for skipped in found.skipped:
            _log.warning("checkpoint not used: %s", skipped)
            self.damaged = self.damaged or str(skipped)
        self.newest = found.checkpoint

    def take(self, saved: Saved) -> None:
        """The trainer has written a file; it becomes a checkpoint soon."""
        try:
            self._queue.send_nowait(saved)
        except trio.WouldBlock:
            self.error = "the disk is slower than the checkpoints come"
            Path(saved.file).unlink(missing_ok=True)
            return
        if not self._waiting:
            self._settled = trio.Event()
        self._waiting += 1

    def failed(self, step: int, error: str) -> None:
        """The trainer could not write one."""
        self.error = f"step {step}: {error}"
        _log.warning("the checkpoint of step %d was not written: %s", step, error)

    async def settled(self) -> None:
        """Wait until everything taken is a checkpoint, or has failed to become one."""
        await self._settled.wait()

    async def publish(
        self, manifest: RunManifest, on_checkpoint: Callable[[Saved, Checkpoint], None]
    ) -> None:
        """Make checkpoints of what is taken, one after the other, until cancelled."""
        limiter = trio.CapacityLimiter(1)
        async for saved in self._to_publish:
            try:
                self.newest = made = await trio.to_thread.run_sync(
                    self._publish, manifest, saved, limiter=limiter
                )
            except CheckpointError as error:
                self.error = str(error)
                _log.warning("%s", error)
            else:
                self.error = self.damaged = ""
                on_checkpoint(saved, made)
            finally:
                self._waiting -= 1
                if not self._waiting:
                    self._settled.set()

    def _publish(self, manifest: RunManifest, saved: Saved) -> Checkpoint:
        return checkpoint.publish(
            self.folder,
            Path(saved.file),
            run_id=manifest.hash,
            round=saved.round,
            step=saved.step,
            state_sha256=saved.state_sha256,
            sign=self._identity.sign,
            public_key=self._identity.public_key,
            sha256=saved.sha256,
            name=manifest.name,
            created_at=int(time.time()),
            keep=self._keep,
        )
