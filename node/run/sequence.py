"""The one number of a run that this node must never forget: how far it has numbered its entries.

An entry's number used twice convicts its writer (`crdt.evidence`). A process begins at its wall clock
and reserves a thousand numbers at a time here before it uses any, so that not even a clock that was
set back makes the next one begin below them.

A power cut may lose the latest reservation (the file is not forced to the disk: the clock moves on
by more than a thousand milliseconds before a machine is up again). A file that cannot be written is
a warning, not the end of the run.
"""

from __future__ import annotations

import logging
from pathlib import Path

__all__ = ["next_start", "reserve"]

_log = logging.getLogger(__name__)


def next_start(path: Path) -> int:
    """The least number that may be used; 0 if nothing (readable) is stored."""
    try:
        number = int(path.read_text(encoding="ascii")[:20])
    except FileNotFoundError:
        return 0
    except (OSError, ValueError) as error:
        _log.warning("%s is not used: %s", path, error)
        return 0
    return number + 1 if 0 < number < 2**62 else 0


def reserve(path: Path, number: int) -> None:
    """Note that numbers up to this one may be used."""
    fresh = path.with_suffix(".new")
    try:
        fresh.write_text(f"{number}\n", encoding="ascii")
        fresh.replace(path)
    except OSError as error:
        _log.warning("%s cannot be written: %s", path, error.strerror)
