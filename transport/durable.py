"""Files that a crash leaves whole, on the disk, and for the owner's eyes only.

A file is written beside its place, flushed to the disk and renamed, and the rename is flushed as well (rename(2) alone promises an
order in memory, not on the disk: https://lwn.net/Articles/457667/). `replace_file` is all of that for a small file; who renames a whole folder, or
many files at once, does it in the same order with `write_new` and `sync_folder`. Everything here blocks. It lives here because every room
above may keep such files.
"""

from __future__ import annotations

import os
from pathlib import Path

from transport.buffer import Buffer

__all__ = ["replace_file", "sync_folder", "write_new"]


def replace_file(path: Path, data: bytes) -> None:
    """Put `data` in the file's place, mode 0600.

    One writer for each path: a second one at the same time would take the first one's unfinished file for a leftover.

    Raises:
        OSError: the disk is full, or the like; the old file is still there, and nothing beside it.
    """
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)  # left by a crash
    try:
        write_new(temporary, data)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_new(path: Path, data: Buffer) -> None:
    """Write a file that is not there yet, mode 0600, and flush it.

    Raises:
        FileExistsError: something has that name, be it a broken link.
        OSError: the disk is full, or the like; an unfinished file may be left.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    try:
        view = memoryview(data).cast("B")
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_folder(path: Path) -> None:
    """Flush which names a folder holds; raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
