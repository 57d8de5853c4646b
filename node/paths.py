"""Where a node keeps its files, and how it makes sure that nobody else reads them.

Problem: the same program runs for a person (XDG directories), as a service (directories that systemd
hands over in the environment), in a container and several times on one machine (`noded local`). Every
one of them must find the same socket from the command line and from the daemon, without either
parsing the whole configuration.

Idea: everything hangs from one *data directory*. It is, in this order: what `node.data_dir` says (flag,
environment, file), else the folder of the configuration file that was named, else systemd's state
directory, else `$XDG_STATE_HOME/noded`. That last one is also what a systemd *user* unit with
`StateDirectory=noded` gets, so the command line and the user service agree without a setting.

Invariants:
- Directories made here are 0700 and owned by us, whatever the umask says; one that belongs to
  somebody else is refused. Keys and sockets live below them.
- A socket path longer than Linux can bind (107 bytes) is moved to the runtime directory under a name
  derived from the data directory, so both sides compute the same one.
- This module imports the standard library only: `noded status` needs it.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from node.errors import ConfigError, NodedError, Refused

__all__ = [
    "CONFIG_NAME",
    "MAX_SOCKET_PATH_BYTES",
    "SYSTEM_SOCKET",
    "NodePaths",
    "default_data_dir",
    "ensure_private_dir",
    "node_paths",
    "runtime_dir",
    "socket_path",
    "valid_run_name",
]

CONFIG_NAME: Final = "noded.toml"

MAX_SOCKET_PATH_BYTES: Final = 107
"""`sun_path` holds 108 bytes including the terminating zero (unix(7)); longer paths cannot be bound."""

SYSTEM_SOCKET: Final = Path("/run/noded/control.sock")
"""Where the system service's socket lies; tried after the caller's own one."""

_RUN_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def valid_run_name(name: str) -> bool:
    """Whether `name` can name a run: 1 to 64 of A-Z a-z 0-9 . _ -, starting with a letter or digit.

    A run's name becomes a directory name on every member, so it never holds a slash or starts with
    a dot.
    """
    return _RUN_NAME.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class NodePaths:
    """The files of one node; computing them touches no disk."""

    data_dir: Path
    """Holds everything below; 0700."""
    control_socket: Path
    """The local control API; 0600, usually in `data_dir`."""
    trainer_socket: Path
    """Where trainers attach; 0600, beside the control socket."""

    @property
    def config_file(self) -> Path:
        """The configuration that `noded init` writes."""
        return self.data_dir / CONFIG_NAME

    @property
    def node_key(self) -> Path:
        """The node's identity (secret)."""
        return self.data_dir / "node.key"

    @property
    def swarm_key(self) -> Path:
        """The key that the swarm's nodes share (secret)."""
        return self.data_dir / "swarm.key"

    @property
    def certificate(self) -> Path:
        """What makes this node a member: its certificate with those above it."""
        return self.data_dir / "certificate"

    @property
    def swarm_root(self) -> Path:
        """The swarm's root key, on the node that made the swarm (secret; the daemon never reads it)."""
        return self.data_dir / "swarm-root.key"

    @property
    def swarm_facts(self) -> Path:
        """What this node was told when it joined: the swarm's name, and members to ask first."""
        return self.data_dir / "swarm.json"

    @property
    def trust_log(self) -> Path:
        """Who was certified and who was revoked, as far as this node has heard."""
        return self.data_dir / "trust-log"

    @property
    def invites(self) -> Path:
        """The invites that this node has issued, one file each (secret)."""
        return self.data_dir / "invites"

    @property
    def lock(self) -> Path:
        """Held by the daemon that owns this directory."""
        return self.data_dir / "noded.lock"

    @property
    def relay_budget(self) -> Path:
        """What this node has carried for others, as a relay."""
        return self.data_dir / "relay.json"

    @property
    def log(self) -> Path:
        """Where a launcher sends the daemon's messages."""
        return self.data_dir / "noded.log"

    @property
    def runs(self) -> Path:
        """One folder for each run."""
        return self.data_dir / "runs"

    def run_dir(self, name: str) -> Path:
        """The folder of the run `name`.

        Raises:
            ConfigError: the name could escape the folder or is too long.
        """
        if not valid_run_name(name):
            raise ConfigError(
                f"{name!r} cannot name a run",
                key="run.name",
                hint="use 1 to 64 letters, digits, '.', '_' or '-', starting with a letter or digit",
            )
        return self.runs / name


def node_paths(data_dir: Path, environ: Mapping[str, str] | None = None) -> NodePaths:
    """The paths below `data_dir`; sockets may lie elsewhere (see `socket_path`)."""
    environ = os.environ if environ is None else environ
    data_dir = Path(os.path.abspath(data_dir))  # noqa: PTH100 (resolve() would follow symbolic links)
    return NodePaths(
        data_dir=data_dir,
        control_socket=socket_path(data_dir, "control.sock", environ),
        trainer_socket=socket_path(data_dir, "trainer.sock", environ),
    )


def default_data_dir(environ: Mapping[str, str] | None = None) -> Path:
    """The data directory when neither a flag, nor the environment, nor a file names one."""
    environ = os.environ if environ is None else environ
    if service := _first_entry(environ.get("STATE_DIRECTORY")):
        return service
    base = _absolute(environ.get("XDG_STATE_HOME")) or _home(environ) / ".local" / "state"
    return base / "noded"


def runtime_dir(environ: Mapping[str, str] | None = None) -> Path:
    """A short directory for sockets that belongs to this user alone; not created here."""
    environ = os.environ if environ is None else environ
    if base := _absolute(environ.get("XDG_RUNTIME_DIR")):
        return base / "noded"
    # Without a login session there is no runtime directory. The name in the shared temporary folder
    # can be guessed, which is why `ensure_private_dir` refuses one that somebody else made first.
    return Path(tempfile.gettempdir()) / f"noded-{os.geteuid()}"


def socket_path(data_dir: Path, name: str, environ: Mapping[str, str] | None = None) -> Path:
    """Where the socket `name` of the node in `data_dir` lies.

    Normally in the data directory itself; in systemd's runtime directory for the service whose state
    directory this is; in the user's runtime directory when the path would be too long to bind.

    Raises:
        ConfigError: even the runtime directory's path is too long.
    """
    environ = os.environ if environ is None else environ
    service_state = _first_entry(environ.get("STATE_DIRECTORY"))
    service_runtime = _first_entry(environ.get("RUNTIME_DIRECTORY"))
    # Only for the service's own node: a process started *by* a service inherits these variables.
    if service_runtime and service_state == data_dir:
        return service_runtime / name
    path = data_dir / name
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
        return path
    digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    path = runtime_dir(environ) / digest / name
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise ConfigError(
            f"the path of the socket is too long to bind ({path})",
            key="node.data_dir",
            hint="choose a shorter node.data_dir, or set XDG_RUNTIME_DIR to a short directory",
        )
    return path


def ensure_private_dir(path: Path) -> Path:
    """Make `path` a directory that only this user can enter, creating it and its parents.

    A directory of our own that others could enter is tightened to 0700.

    Raises:
        Refused: it belongs to somebody else, or is a symbolic link.
        NodedError: it cannot be made (a file in the way, no permission, full disk).
    """
    try:
        _make_dirs(path)
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            status = path.stat()
            if os.lstat(path).st_uid not in {os.geteuid(), 0}:
                raise Refused(
                    f"{path} is a symbolic link made by somebody else",
                    hint="remove it, or name another directory with node.data_dir",
                )
        if status.st_uid != os.geteuid():
            raise Refused(
                f"{path} belongs to user {status.st_uid}, and this is user {os.geteuid()}",
                hint=f"run as its owner, or:  chown -R {os.geteuid()} {path}",
            )
        if stat.S_IMODE(status.st_mode) & 0o077:
            path.chmod(0o700)
    except FileExistsError:
        raise NodedError(
            f"{path} is in the way: a directory is wanted, and this is a file",
            hint="move it away, or name another directory with node.data_dir",
        ) from None
    except OSError as error:
        raise NodedError(
            f"cannot make the directory {path}: {error.strerror or error}",
            hint="name a directory that you can write to with node.data_dir",
        ) from error
    return path


def _make_dirs(path: Path) -> None:
    """`mkdir -p` whose parents are 0700 as well: with umask 000 the stdlib's would be 0777."""
    missing = []
    current = path
    while not os.path.lexists(current):
        missing.append(current)
        current = current.parent
    for directory in reversed(missing):
        directory.mkdir(mode=0o700, exist_ok=True)
        if stat.S_IMODE(directory.stat().st_mode) != 0o700:  # the umask took more than it should
            directory.chmod(0o700)
    if not path.is_dir():
        raise FileExistsError(path)


def _first_entry(value: str | None) -> Path | None:
    """The first of several directories: systemd separates them by colons, in order."""
    return _absolute((value or "").split(":")[0])


def _absolute(value: str | None) -> Path | None:
    """XDG: a relative value is to be ignored."""
    return Path(value) if value and value.startswith("/") else None


def _home(environ: Mapping[str, str]) -> Path:
    home = _absolute(environ.get("HOME"))
    if home is not None:
        return home
    try:
        return Path.home()
    except RuntimeError:
        raise NodedError(
            "this user has no home directory",
            hint="name a directory with --config, or set NODED_NODE_DATA_DIR",
        ) from None
