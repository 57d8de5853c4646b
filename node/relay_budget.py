"""What a relay has given away of its traffic budget, remembered over restarts.

Problem: a budget of 30 days that begins anew with every start is none for a node that restarts often.
Idea: a small file in the data directory says how much was spent when; what has come back since then is
reckoned at the next start. A crash forgets what was carried since the last save, a few minutes' worth.

Invariants: the file is there whole or not at all; one that is damaged counts as nothing spent, with a line
in the log, and never keeps the daemon from starting.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import trio

from transport.durable import read_plain, replace_file
from transport.relay.settings import RelaySettings

SAVE_S: Final = 300.0
"""Pause between two saves while the relay carries something; at full rate 5 GiB of 128."""
MAX_FILE_BYTES: Final = 1024

_log = logging.getLogger(__name__)


class Spending(msgspec.Struct, frozen=True):
    """The file's content."""

    spent_bytes: int
    """Of the budget, at that moment."""
    at: float
    """Seconds since 1970."""

    def left_after(self, settings: RelaySettings, now: float) -> int:
        """What is still spent at `now`: the budget comes back evenly. A clock set back brings nothing back."""
        back = max(0.0, now - self.at) * settings.budget_bytes / settings.budget_s
        return int(min(max(0.0, self.spent_bytes - back), settings.budget_bytes))


def load_spent(path: Path, settings: RelaySettings, *, now: float | None = None) -> int:
    """Bytes of the budget that count as spent at this start.

    Args:
        path: of the file, which need not be there.
        settings: how fast the budget comes back.
        now: seconds since 1970; the clock's by default.
    """
    try:
        spending = msgspec.json.decode(read_plain(path, MAX_FILE_BYTES), type=Spending)
    except FileNotFoundError:
        return 0
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        _log.warning("what this relay has spent is not known, %s: %s", path, error)
        return 0
    return spending.left_after(settings, time.time() if now is None else now)


def store_spent(path: Path, spent_bytes: int, *, now: float | None = None) -> None:
    """Write the file; raises OSError and leaves the old one then."""
    at = round(time.time() if now is None else now)
    replace_file(path, msgspec.json.encode(Spending(spent_bytes, at)))


async def keep_spent(
    path: Path,
    spent: Callable[[], int],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Save every few minutes, and when cancelled; a node that never relayed anything gets no file."""
    saved = spent()
    failing = False
    task_status.started()
    try:
        while True:
            await trio.sleep(SAVE_S)
            if (now_spent := spent()) == saved:
                continue
            try:
                await trio.to_thread.run_sync(store_spent, path, now_spent)
            except OSError as error:
                if not failing:
                    _log.warning("what this relay has spent cannot be saved: %s", error)
                failing = True
            else:
                saved, failing = now_spent, False
    finally:
        if (last := spent()) != saved:
            try:
                store_spent(path, last)  # 40 bytes; this daemon is ending
            except OSError as error:
                if not failing:
                    _log.warning("what this relay has spent cannot be saved: %s", error)


__all__ = ["Spending", "keep_spent", "load_spent", "store_spent"]
