"""The numbers of this node's training: the latest for its status, all of them for a file."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import attrs

__all__ = ["Figures", "MetricsFile"]

HISTORY_POINTS: Final = 600
USUAL_SHARE: Final = 0.2
"""How much the latest round counts in what is usual."""

_log = logging.getLogger(__name__)


@attrs.define
class Figures:
    """Latest numbers of this node's training."""

    round: int = 0
    step: int = 0
    loss: float | None = None
    val_loss: float | None = None
    accuracy: float | None = None
    """Of the last evaluation, for tasks that have right answers."""
    tokens: int = 0
    tokens_per_s: float = 0.0
    members_last_round: int | None = None
    round_seconds: float | None = None
    """From begin to certificate of the last all-reduce."""
    round_ended_at: float | None = None
    """By the event loop's clock."""
    usual_round_s: float | None = None
    """From the end of one round to that of the next, a moving average."""
    rounds_alone: int = 0
    state: bytes = b""
    phase: str = "joining"
    """joining, syncing, training, waiting, finished or failed."""

    def round_ended(self, members: int, seconds: float | None, now: float) -> None:
        """Count a round that has just ended, at `now`, with so many members."""
        if self.round_ended_at is not None:
            took, usual = now - self.round_ended_at, self.usual_round_s
            self.usual_round_s = (
                took if usual is None else (1 - USUAL_SHARE) * usual + USUAL_SHARE * took
            )
        self.members_last_round, self.round_seconds = members, seconds
        self.round_ended_at = now
        self.rounds_alone = self.rounds_alone + 1 if members == 1 else 0


class MetricsFile:
    """Appends JSON lines; a full disk costs lines, whole ones, and never the run."""

    def __init__(self, path: Path) -> None:
        self.latest: deque[dict[str, Any]] = deque(maxlen=HISTORY_POINTS)
        self._path = path
        self._file: io.FileIO | None = None
        self._size = 0
        self._complained = False

    def write(self, kind: str, **fields: object) -> None:
        """Append a point with the wall clock's time."""
        point = {"kind": kind, "t": round(time.time(), 3), **fields}
        self.latest.append(point)
        line = json.dumps(point).encode() + b"\n"
        try:
            if self._file is None:
                # Unbuffered: what a buffer holds back on a full disk comes out as half a line later.
                self._file = io.FileIO(self._path, "a")
                self._size = self._file.seek(0, os.SEEK_END)
            if self._file.write(line) != len(line):
                self._file.truncate(self._size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if not self._complained:
                _log.warning("metrics not written, lines will be missing: %s", error.strerror)
            self._complained = True
        else:
            self._size += len(line)
            self._complained = False

    def close(self) -> None:
        """Close the file; a later `write` opens it again."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None
