"""The secret files of a node: its identity, the key of its swarm, and on one node the swarm's root key; with them its certificate.

Problem: whoever can read these files *is* the node, or is in the swarm. They have to be written once,
whole, and readable by their owner alone, whatever the umask, a crash, or a planted symbolic link does.

Idea: a new file is written under a temporary name with mode 0600, made durable, and then *linked* to
its real name: link(2) fails if the name exists, so a key is never overwritten and never seen half
written. Reading opens without following a link and looks at the opened file (not at the name, which
could change in between): a regular file, ours, and closed to group and world.

The node key is one line, `noded-node-key-1 <64 hexadecimal digits> <8 digits of check>`; the check
(of SHA-256) tells a damaged file from a valid other identity. The swarm key is the printable form of
`transport.swarm.Swarm`. The root key is a line like the node key's: it makes members and nothing else, the daemon never reads it, and
it may be moved to a drawer. The certificate is no secret; it lies here because it is worth nothing without the node key.

Invariants: a secret never appears in an error, a log line or a `repr`; nothing here overwrites a key. A certificate is
replaced when it is renewed, whole or not at all.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from node.errors import NodedError, Refused
from node.wall_clock import wall_ms
from transport.durable import replace_file, sync_folder

if TYPE_CHECKING:
    from node.paths import NodePaths
    from transport.identity import Identity
    from transport.swarm import Swarm
    from transport.trust.chain import Chain

__all__ = [
    "KeyExists",
    "certify_directly",
    "create_identity",
    "create_root",
    "create_secret",
    "create_swarm",
    "load_chain",
    "load_identity",
    "load_or_create_identity",
    "load_root",
    "load_swarm",
    "read_secret",
    "replace_swarm",
    "store_chain",
]

MAX_SECRET_BYTES: Final = 4096
"""A key file is a line of text; whatever is longer is something else."""

_NODE_KEY_PREFIX: Final = "noded-node-key-1"
_ROOT_KEY_PREFIX: Final = "noded-swarm-root-1"
_CHAIN_PREFIX: Final = "noded-certificate-1"


class KeyExists(NodedError):
    """There is a key file already, and keys are never overwritten."""


def load_identity(path: Path) -> Identity:
    """The node's identity from its key file.

    Raises:
        NodedError: no such file, or damaged.
        Refused: others can read it, or it is not a plain file of ours.
    """
    from transport.identity import Identity

    return Identity.from_seed(_parse_seed(read_secret(path), path, _NODE_KEY_PREFIX, "a node key"))


def create_identity(path: Path, random_bytes: Callable[[int], bytes] = os.urandom) -> Identity:
    """Make a new identity and write it to `path`.

    Raises:
        KeyExists: there is one.
    """
    from transport.identity import Identity

    identity = Identity.generate(random_bytes)
    create_secret(path, _seed_line(_NODE_KEY_PREFIX, identity.seed))
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


def replace_swarm(path: Path, swarm: Swarm) -> None:
    """Write `swarm`'s key to `path`, in place of the one that the swarm had before; whole and durably.

    Raises:
        NodedError: the disk is full, or the like; the old one is still there.
    """
    _replace(path, f"{swarm.key_text}\n".encode("ascii"), "swarm key")


def load_root(path: Path) -> Identity:
    """The swarm's root key; raises as `load_identity` does."""
    from transport.identity import Identity

    seed = _parse_seed(read_secret(path), path, _ROOT_KEY_PREFIX, "a swarm's root key")
    return Identity.from_seed(seed)


def create_root(path: Path, random_bytes: Callable[[int], bytes] = os.urandom) -> Identity:
    """Make a new swarm's root key and write it to `path`.

    Raises:
        KeyExists: there is one.
    """
    from transport.identity import Identity

    root = Identity.generate(random_bytes)
    create_secret(path, _seed_line(_ROOT_KEY_PREFIX, root.seed))
    return root


def load_chain(path: Path) -> Chain:
    """The node's certificate with those above it; not verified.

    Raises:
        NodedError: there is none, or it is damaged.
        Refused: it is not a plain file of ours.
    """
    from transport.errors import TransportError
    from transport.trust.chain import parse_chain

    if not os.path.lexists(path):
        raise NodedError(
            f"this node has no certificate at {path}: it is a member of no swarm",
            hint="join one:  noded join CODE      or make one:  noded init",
        )
    try:
        prefix, text = read_secret(path).decode("ascii").split()
        if prefix != _CHAIN_PREFIX:
            raise _damaged(path, "a certificate")
        return parse_chain(base64.b64decode(text, validate=True))
    except (ValueError, TransportError):  # UnicodeDecodeError is one, too
        raise _damaged(path, "a certificate") from None


def store_chain(path: Path, chain: Chain) -> None:
    """Write a node's certificate in place of the one before, whole and durably.

    Raises:
        NodedError: the disk is full, or the like; the old one is still there.
    """
    text = base64.b64encode(chain.raw).decode("ascii")
    _replace(path, f"{_CHAIN_PREFIX} {text}\n".encode("ascii"), "certificate")


def certify_directly(
    paths: NodePaths,
    root: Identity,
    *,
    may_invite: bool = False,
    is_open: bool = False,
    random_bytes: Callable[[int], bytes] = os.urandom,
    now_ms: int | None = None,
) -> Chain:
    """Make the node of these paths a trainer by the root key itself, with no invite; its node key is there or made.

    A certificate by this root that is there already stays.

    Args:
        paths: of the node.
        root: the swarm's root key.
        may_invite: whether the node may make members itself.
        is_open: whether the swarm is an open one.
        random_bytes: source of keys and serials.
        now_ms: milliseconds since 1970; the clock's by default.

    Raises:
        Refused: the node has a certificate of another swarm.
        NodedError: a file cannot be written or read.
    """
    from transport.trust.chain import certify_by_root

    identity = load_or_create_identity(paths.node_key, random_bytes)
    if os.path.lexists(paths.certificate):
        known = load_chain(paths.certificate)
        if known.leaf.subject == identity.public_key and known.issuers[0] == root.public_key:
            return known
        raise Refused(
            f"{paths.certificate} is of another swarm, or of another node",
            hint="a node is in one swarm: leave that one first (noded leave), "
            "or use another --config folder",
        )
    chain = certify_by_root(
        root,
        subject=identity.public_key,
        role="trainer",
        may_invite=may_invite,
        is_open=is_open,
        serial=random_bytes(16),
        now_ms=wall_ms() if now_ms is None else now_ms,
    )
    store_chain(paths.certificate, chain)
    return chain


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
        sync_folder(path.parent)
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


def _replace(path: Path, data: bytes, what: str) -> None:
    try:
        replace_file(path, data)
    except OSError as error:
        raise NodedError(
            f"cannot write the {what} {path}: {error.strerror or error}",
            hint="check the permissions and the free space of its directory",
        ) from error


def _seed_line(prefix: str, seed: bytes) -> bytes:
    return f"{prefix} {seed.hex()} {_check(seed)}\n".encode("ascii")


def _parse_seed(text: bytes, path: Path, prefix: str, what: str) -> bytes:
    try:
        found, seed_hex, check = text.decode("ascii").split()
        seed = bytes.fromhex(seed_hex)
    except ValueError:  # UnicodeDecodeError is one, too
        raise _damaged(path, what) from None
    if found != prefix or len(seed) != 32 or check != _check(seed):
        raise _damaged(path, what)
    return seed


def _check(seed: bytes) -> str:
    return hashlib.sha256(b"noded node key check 1" + seed).hexdigest()[:8]


def _damaged(path: Path, what: str) -> NodedError:
    return NodedError(
        f"{path} does not hold {what}, or it is damaged",
        hint="restore it from a copy, or move it away and run:  noded init",
    )
