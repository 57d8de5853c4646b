"""The two secret files of a node: its identity and the key of its swarm.

Problem: whoever can read these files *is* the node, or is in the swarm. They have to be written once,
whole, and readable by their owner alone, whatever the umask, a crash, or a planted symbolic link does.

Idea: a new file is written under a temporary name with mode 0600, made durable, and then *linked* to
its real name: link(2) fails if the name exists, so a key is never overwritten and never seen half
written. Reading opens without following a link and looks at the opened file (not at the name, which
could change in between): a regular file, ours, and closed to group and world.

The node key is one line, `noded-node-key-1 <64 hexadecimal digits> <8 digits of check>`; the check
(of SHA-256) tells a damaged file from a valid other identity. The swarm key is the printable form of
`transport.swarm.Swarm`, the same text that is handed to another machine.

Invariants: a secret never appears in an error, a log line or a `repr`; nothing here overwrites.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from node.errors import NodedError, Refused

if TYPE_CHECKING:
    from transport.identity import Identity
    from transport.swarm import Swarm

__all__ = [
    "KeyExists",
    "create_identity",
    "create_secret",
    "create_swarm",
    "load_identity",
    "load_or_create_identity",
    "load_swarm",
    "read_secret",
]

MAX_SECRET_BYTES: Final = 4096
"""A key file is a line of text; whatever is longer is something else."""

_NODE_KEY_PREFIX: Final = "noded-node-key-1"


class KeyExists(NodedError):
    """There is a key file already, and keys are never overwritten."""


def load_identity(path: Path) -> Identity:
    """The node's identity from its key file.

    Raises:
        NodedError: no such file, or damaged.
        Refused: others can read it, or it is not a plain file of ours.
    """
    from transport.identity import Identity

    return Identity.from_seed(_parse_seed(read_secret(path), path))


def create_identity(path: Path, random_bytes: Callable[[int], bytes] = os.urandom) -> Identity:
    """Make a new identity and write it to `path`.

    Raises:
        KeyExists: there is one.
    """
    from transport.identity import Identity

    identity = Identity.generate(random_bytes)
    seed = identity.seed
    create_secret(path, f"{_NODE_KEY_PREFIX} {seed.hex()} {_check(seed)}\n".encode())
    return identity


def load_or_create_identity(
    path: Path, random_bytes: Callable[[int], bytes] = os.urandom
) -> Identity:
    """The identity in `path`, a new one if there is none yet."""
    if not os.path.lexists(path):
        # Somebody else creating it first is fine: then theirs is loaded.
        with contextlib.suppress(KeyExists):
            return create_identity(path, random_bytes)
    return load_identity(path)


def load_swarm(path: Path) -> Swarm:
    """The swarm whose key lies in `path`; raises as `load_identity` does."""
    from transport.errors import TransportError
    from transport.swarm import Swarm

    text = read_secret(path)
    try:
        return Swarm.parse(text.decode("ascii").strip())
    except (TransportError, UnicodeDecodeError):
        raise _damaged(path, "a swarm key") from None


def create_swarm(path: Path, swarm: Swarm) -> None:
    """Write `swarm`'s key to `path`; raises `KeyExists` if there is one."""
    create_secret(path, f"{swarm.key_text}\n".encode("ascii"))


def read_secret(path: Path) -> bytes:
    """The contents of a secret file, after checking that it is one.

    Raises:
        NodedError: no such file, or it cannot be read.
        Refused: a symbolic link, not a plain file, of another user, or open to group or world.
    """
    try:
        # Without O_NONBLOCK, opening a planted FIFO would wait for ever.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise NodedError(f"there is no key at {path}", hint="make one with:  noded init") from None
    except OSError as error:
        if path.is_symlink():
            raise Refused(
                f"{path} is a symbolic link, and keys are not read through links",
                hint=f"put the key itself there, with mode 0600:  rm {path}, then copy it",
            ) from None
        raise NodedError(
            f"cannot read the key {path}: {error.strerror or error}",
            hint="run as the user who owns it",
            exit_code=Refused.exit_code if isinstance(error, PermissionError) else None,
        ) from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise Refused(f"{path} is not a plain file", hint="move it away")
        if status.st_uid not in {os.geteuid(), 0}:
            raise Refused(
                f"the key {path} belongs to user {status.st_uid}, and this is user {os.geteuid()}",
                hint=f"run as its owner, or:  chown {os.geteuid()} {path}",
            )
        mode = stat.S_IMODE(status.st_mode)
        if mode & 0o077:
            raise Refused(
                f"the key {path} can be read by others (mode {mode:04o})",
                hint=f"close it:  chmod 600 {path}   "
                "(and make a new key if somebody may have read it)",
            )
        data = os.read(fd, MAX_SECRET_BYTES + 1)
    finally:
        os.close(fd)
    if len(data) > MAX_SECRET_BYTES:
        raise _damaged(path, "a key")
    return data


def create_secret(path: Path, data: bytes) -> None:
    """Write a new 0600 file whole and durably; it is either there in full or not at all.

    Raises:
        KeyExists: the name is taken (also by a broken symbolic link).
        NodedError: the directory cannot be written to, the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(temporary, flags, 0o600)
        try:
            with open(fd, "wb") as file:  # noqa: PTH123 (a file descriptor)
                os.fchmod(file.fileno(), 0o600)  # a umask of 0777 would have left nothing
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)  # unlike rename(2), it never replaces
        finally:
            temporary.unlink()
        _sync_directory(path.parent)
    except FileExistsError:
        raise KeyExists(
            f"there is a key at {path} already, and keys are never overwritten",
            hint=f"to start over, move it away yourself:  mv {path} {path}.old",
        ) from None
    except OSError as error:
        raise NodedError(
            f"cannot write the key {path}: {error.strerror or error}",
            hint="check the permissions and the free space of its directory",
        ) from error


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _parse_seed(text: bytes, path: Path) -> bytes:
    try:
        prefix, seed_hex, check = text.decode("ascii").split()
        seed = bytes.fromhex(seed_hex)
    except ValueError:  # UnicodeDecodeError is one, too
        raise _damaged(path, "a node key") from None
    if prefix != _NODE_KEY_PREFIX or len(seed) != 32 or check != _check(seed):
        raise _damaged(path, "a node key")
    return seed


def _check(seed: bytes) -> str:
    return hashlib.sha256(b"noded node key check 1" + seed).hexdigest()[:8]


def _damaged(path: Path, what: str) -> NodedError:
    return NodedError(
        f"{path} does not hold {what}, or it is damaged",
        hint="restore it from a copy, or move it away and run:  noded init",
    )
