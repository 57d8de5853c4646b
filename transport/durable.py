"""A small file that a crash leaves whole: the old one or the new one, on the disk, and for the owner's eyes only.

It is written beside its place, flushed to the disk and renamed, and the rename is flushed as well (rename(2) alone promises an
order in memory, not on the disk: https://lwn.net/Articles/457667/). It lives here because every room above may keep such a file.
"""

from __future__ import annotations

import os
from pathlib import Path

import trio

__all__ = ["replace_file", "replace_file_in_thread"]

_limiter = trio.CapacityLimiter(2)  # small files, now and then


def replace_file(path: Path, data: bytes) -> None:
    """Put `data` in the file's place, mode 0600; blocks for as long as the disk takes.

    One writer for each path: a second one at the same time would take the first one's unfinished file for a leftover.

    Raises:
        OSError: the disk is full, or the like; the old file is still there, and nothing beside it.
    """
    temporary = path.with_name(path.name + ".new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    temporary.unlink(missing_ok=True)  # left by a crash
    try:
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


async def replace_file_in_thread(path: Path, data: bytes) -> None:
    """As `replace_file`, with the event loop going on. Cancelling leaves the thread to end by itself: the old file or the new one."""
    await trio.to_thread.run_sync(
        replace_file, path, data, limiter=_limiter, abandon_on_cancel=True
    )
