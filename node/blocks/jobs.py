"""What the daemon does on behalf of somebody who waits: a put or a get, with its progress.

A job lives as long as somebody asks about it: whoever started it looks again every second or so, and a job that nobody has looked at
for `FORGOTTEN_S` is cancelled, so that a closed terminal leaves no work behind. What has been done stays on the disk, and the next one goes on there.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import attrs
import trio

from node.errors import ExitCode, Refused, exit_code_of, first_error, hint_of

__all__ = ["Job", "Jobs"]

FORGOTTEN_S: Final = 15.0
MAX_JOBS: Final = 8
KEPT: Final = 64
"""Ended jobs whose outcome can still be asked for."""


@attrs.define(eq=False)
class Job:
    """One piece of work; its fields are the answer to who asks.

    Attributes:
        done_bytes: also read by others while a thread counts it up.
    """

    what: str
    size: int | None = None
    done_bytes: int = 0
    artefact: bytes | None = None
    """Once it is known."""
    further: Callable[[], dict[str, Any]] = dict
    """More fields, while it runs and at its end."""
    error: BaseException | None = None
    over: trio.Event = attrs.field(factory=trio.Event)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    begun: float = attrs.field(factory=time.monotonic)
    ended: float | None = None

    def document(self) -> dict[str, Any]:
        """The job as JSON."""
        failed = None if self.error is None else first_error(self.error)
        took = (self.ended or time.monotonic()) - self.begun
        return {
            "state": "running" if not self.over.is_set() else "failed" if failed else "done",
            "id": None if self.artefact is None else self.artefact.hex(),
            "size": self.size,
            "done_bytes": self.done_bytes,
            "seconds": round(took, 3),
            "error": "" if failed is None else str(failed) or type(failed).__name__,
            "hint": "" if self.error is None else hint_of(self.error),
            "exit_code": int(ExitCode.OK if self.error is None else exit_code_of(self.error)),
            **self.further(),
        }


class Jobs:
    """All jobs of one daemon.

    Args:
        nursery: in which they run.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._jobs: dict[str, Job] = {}

    @property
    def running(self) -> int:
        """How many are not over."""
        return sum(not job.over.is_set() for job in self._jobs.values())

    async def look(
        self, what: str, start: Callable[[Job], Awaitable[None]], *, wait_s: float, anew: bool
    ) -> dict[str, Any]:
        """Start the job called `what` unless it runs, wait for its end for at most `wait_s`, and say how it stands.

        Args:
            what: names the job.
            start: does it.
            wait_s: seconds.
            anew: whether one that is over is done again; if not, its outcome is told once more.

        Raises:
            Refused: too many run already.
        """
        job = self._jobs.get(what)
        if job is None or (anew and job.over.is_set()):
            if self.running >= MAX_JOBS:
                raise Refused(
                    f"{MAX_JOBS} transfers are under way", hint="wait until one of them is done"
                )
            job = self._jobs[what] = Job(what)
            self._nursery.start_soon(self._run, job, start)
            self._forget()
        job.scope.deadline = trio.current_time() + wait_s + FORGOTTEN_S
        with trio.move_on_after(wait_s):
            await job.over.wait()
        return job.document()

    async def _run(self, job: Job, start: Callable[[Job], Awaitable[None]]) -> None:
        try:
            with job.scope:
                await start(job)
            if job.scope.cancelled_caught:
                job.error = Refused("nobody asked about it any more", hint="start it again")
        except Exception as error:  # noqa: BLE001 (told to who asks)
            job.error = error
        finally:
            job.ended = time.monotonic()
            job.over.set()

    def _forget(self) -> None:
        over = [what for what, job in self._jobs.items() if job.over.is_set()]
        for what in over[: max(0, len(self._jobs) - KEPT)]:
            del self._jobs[what]
