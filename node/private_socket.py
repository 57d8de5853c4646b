"""Unix sockets that only this node's owner can use.

Linux gives a bound socket's file the mode of the socket's own inode, so fchmod(2) before bind(2)
makes it 0600 from its first moment, whatever the umask is. A file left by a killed daemon is
replaced; one that somebody answers on is not.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import trio

from node.errors import NodedError, Refused
from node.paths import MAX_SOCKET_PATH_BYTES, ensure_private_dir

_PEERCRED: Final = struct.Struct("3i")  # unix(7): pid, uid, gid


@contextmanager
def bound(path: Path, *, backlog: int) -> Iterator[socket.socket]:
    """A listening, non-blocking socket at `path`; its file is removed at the end.

    Its directory is made 0700 if need be. The caller closes the socket (or hands it to trio).

    Raises:
        Refused: another process answers on it, or something else lies there.
        NodedError: it cannot be made.
    """
    ensure_private_dir(path.parent)
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise NodedError(
            f"the path of the socket is too long to bind ({path})",
            hint="choose a shorter data directory",
        )
    _clear_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        os.fchmod(sock.fileno(), 0o600)
        sock.bind(str(path))
        status = os.lstat(path)
        if stat.S_IMODE(status.st_mode) != 0o600:  # not Linux: the directory has guarded it so far
            path.chmod(0o600)
        sock.setblocking(False)
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise NodedError(
            f"cannot make the socket {path}: {error.strerror or error}",
            hint="check the permissions and the free space of its directory",
        ) from error
    try:
        yield sock
    finally:
        sock.close()
        with suppress(OSError):
            now = os.lstat(path)
            if (now.st_dev, now.st_ino) == (status.st_dev, status.st_ino):
                path.unlink()  # ours, and not a successor's


def is_owner(connection: trio.socket.SocketType) -> bool:
    """Whether the process at the other end runs as this user, or as root (who could do anything)."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
    _, uid, _ = _PEERCRED.unpack(credentials)
    return uid in {os.geteuid(), 0}


def _clear_stale(path: Path) -> None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise Refused(f"{path} is in the way: it is not a socket", hint="move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            with suppress(FileNotFoundError):
                path.unlink()
            return
        except OSError:
            pass  # a full queue: somebody is there, and busy
    raise Refused(
        f"another daemon is running on {path}",
        hint="stop it first:  noded stop      or give this one a data directory of its own",
    )
