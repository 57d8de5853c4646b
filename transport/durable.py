"""Small files that a crash leaves whole, on the disk, and for the owner's eyes only; and reading them again, warily.

A file is written beside its place, flushed to the disk and renamed, and the rename is flushed as well (rename(2) alone promises an
order in memory, not on the disk: https://lwn.net/Articles/457667/). `replace_file` is all of that for a small file; who renames a whole folder, or
many files at once, does it in the same order with `write_new` and `sync_folder`. `read_plain` reads what may have been planted, damaged
or grown meanwhile. Everything here blocks. It lives here because every room
above may keep such files.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from transport.buffer import Buffer

__all__ = ["NotPlain", "read_plain", "replace_file", "sync_folder", "write_new"]


class NotPlain(OSError):
    """What has the name is a link, a folder, a pipe or a device, larger than it may be, or others' to write."""


def read_plain(path: Path, most: int, *, ours: bool = False) -> bytes:
    """The content of a plain file of at most `most` bytes; with `ours`, of one that nobody else could have written.

    Raises:
        NotPlain: see there.
        FileNotFoundError, OSError: it is not there, or cannot be read.
    """
    try:
        # Without O_NONBLOCK, opening a planted pipe would wait for ever.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotPlain(error.errno, "it is a symbolic link", str(path)) from None
        raise
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise NotPlain(errno.EINVAL, "it is not a plain file", str(path))
        if ours and (status.st_uid != os.geteuid() or status.st_mode & 0o022):
            raise NotPlain(errno.EPERM, "others can write to it", str(path))
        with os.fdopen(os.dup(fd), "rb") as file:
            data = file.read(most + 1)
    finally:
        os.close(fd)
    if len(data) > most:
        raise NotPlain(errno.EFBIG, f"it is larger than {most} bytes", str(path))
    return data


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
