"""What `noded leave` does: the daemon says goodbye and ends, then what made this node a member goes.

Problem: a key that was a member's must not stay usable, and what the person has worked for must not be lost. Idea: the running daemon
signs that this node has left (a revocation of its own key, which nobody can take back), and passes it on before it ends. Then the
membership goes: node key, certificate, swarm key, invites, what was learnt of the swarm. Configuration, runs, checkpoints and log
stay, and so does a swarm's root key, which may be the only one there is.

Invariants: nothing is removed while a daemon uses the folder; what is removed and what is kept is told by name.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import attrs

from node import keys
from node.errors import DaemonNotRunning, NodedError, Refused, TimedOut
from node.paths import NodePaths, node_paths

__all__ = ["Left", "depart"]

STOP_S: Final = 15.0
"""The daemon promises to be gone 10 s after it was asked."""


class Asks(Protocol):
    """What this needs of `node.cli.client.Client`."""

    def post(self, path: str) -> dict[str, Any]: ...


@attrs.frozen(kw_only=True)
class Left:
    """What was done, for the report."""

    node_id: str
    """Who has left; "" if that is not known."""
    announced: bool
    """Whether the other members were told."""
    removed: Sequence[str]
    kept: Sequence[str]


def depart(data_dir: Path, client: Asks) -> Left:
    """Leave the swarm; blocks until the daemon is gone, if there is one.

    Args:
        data_dir: of the node.
        client: asks its daemon.

    Raises:
        NodedError: this node is in no swarm; a file cannot be removed.
        TimedOut: the daemon does not end.
        Refused: the daemon is another user's.
    """
    paths = node_paths(data_dir)
    if not any(map(os.path.lexists, (paths.certificate, paths.swarm_key))):
        raise NodedError(
            f"the node in {data_dir} is in no swarm", hint="join one:  noded join CODE"
        )
    node_id = ""
    with contextlib.suppress(NodedError):
        node_id = str(keys.load_identity(paths.node_key).node_id)
    announced = False
    try:
        announced = bool(client.post("/v1/leave").get("announced"))
    except DaemonNotRunning:
        pass
    with _nobody_runs(paths):
        # Looked for only now: a daemon writes down whom it knows when it ends.
        removed = [path for path in _membership(paths) if os.path.lexists(path)]
        for path in removed:
            _remove(path)
    kept = sorted(entry.name for entry in paths.data_dir.iterdir() if entry != paths.lock)
    return Left(
        node_id=node_id,
        announced=announced,
        removed=[path.name for path in removed],
        kept=kept,
    )


def _membership(paths: NodePaths) -> tuple[Path, ...]:
    """The certificate first: without it, what is left is no member, wherever this is cut short."""
    return (
        paths.certificate,
        paths.swarm_key,
        paths.node_key,
        paths.invites,
        paths.swarm_facts,
        paths.trust_log,
        paths.data_dir / "dht-contacts",
    )


@contextlib.contextmanager
def _nobody_runs(paths: NodePaths) -> Iterator[None]:
    """Hold the lock that a daemon holds, once it is free."""
    fd = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    deadline = time.monotonic() + STOP_S
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise TimedOut(
                        f"the daemon in {paths.data_dir} is still there; nothing was removed",
                        hint="stop it:  noded stop      and leave again",
                    ) from None
                time.sleep(0.05)
        yield
    finally:
        os.close(fd)


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except PermissionError as error:
        raise Refused(f"cannot remove {path}", hint="run as its owner") from error
    except OSError as error:
        raise NodedError(f"cannot remove {path}: {error.strerror or error}") from error
