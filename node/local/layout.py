"""The files of a local swarm: one folder, and in it one data directory for each peer.

Idea: each peer gets what `noded init --root` would make: its own identity, the common swarm key, a
certificate by the root key (which nobody keeps), and a configuration that a person could have written. Ports are not chosen here: a port that is free now may be
taken a moment later. The first peer listens on port 0, so the kernel chooses; its real address is read
from its status, and only then the others' configurations are written.

Invariants: a folder that holds something is never written into.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gossip.protocol import installed_protocols
from node import keys
from node.cli.text import parse_assignments
from node.config import parse_config
from node.config_checks import check_environment
from node.config_text import render_config
from node.errors import NodedError, UsageError
from node.local import LocalOptions
from node.paths import NodePaths, ensure_private_dir, node_paths
from node.task import installed_tasks
from transport.durable import replace_file
from transport.identity import Identity
from transport.swarm import Swarm

__all__ = [
    "RUN_NAME",
    "PeerFiles",
    "cannot_start",
    "check_options",
    "choose_out",
    "clean_environ",
    "peer_files",
    "tail",
    "write_config",
    "write_keys",
]

RUN_NAME: Final = "local"

# What a service manager or a surrounding noded left in the environment is not meant for these daemons.
_SCRUBBED: Final = (
    *("STATE_DIRECTORY", "RUNTIME_DIRECTORY", "CACHE_DIRECTORY", "LOGS_DIRECTORY"),
    *("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "JOURNAL_STREAM", "INVOCATION_ID"),
    *("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "CONFIGURATION_DIRECTORY"),
)


@dataclass(frozen=True)
class PeerFiles:
    """One peer's place in the folder."""

    number: int
    """1 is the bootstrap and starts the run."""
    name: str
    paths: NodePaths

    @property
    def config(self) -> Path:
        """Its configuration."""
        return self.paths.config_file

    @property
    def log(self) -> Path:
        """What it says on standard error, all its lives in one file."""
        return self.paths.log

    @property
    def run_dir(self) -> Path:
        """Its metrics, sample and checkpoints of the run."""
        return self.paths.run_dir(RUN_NAME)


def choose_out(out: Path | None) -> Path:
    """The folder to use, made and empty.

    Raises:
        UsageError: the named one holds something, or cannot be made.
    """
    try:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            if any(out.iterdir()):
                raise UsageError(
                    f"{out} holds something already, and nothing is overwritten",
                    hint=f"name another folder with --out, or:  rm -r {out}",
                )
            return out.absolute()
        for number in range(1, 1000):
            candidate = Path("noded-demo" if number == 1 else f"noded-demo-{number}")
            try:
                candidate.mkdir()
            except FileExistsError:
                continue
            return candidate.absolute()
    except OSError as error:
        raise UsageError(
            f"cannot make the folder {out or 'noded-demo'}: {error.strerror or error}",
            hint="name another one with --out",
        ) from None
    raise UsageError("there are a thousand noded-demo folders here", hint="remove some")


def clean_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for the daemons: the caller's, without what was meant for the caller alone."""
    clean = {
        name: value
        for name, value in environ.items()
        if not name.startswith(("NODED_", "_NODED_")) and name not in _SCRUBBED
    }
    # `python -P` keeps the working folder off sys.path; a source tree that is not installed has to
    # be named instead.
    root = str(Path(__file__).parents[2])
    others = [path for path in clean.get("PYTHONPATH", "").split(os.pathsep) if path]
    clean["PYTHONPATH"] = os.pathsep.join([root, *(path for path in others if path != root)])
    return clean


def peer_files(out: Path, count: int, environ: Mapping[str, str]) -> list[PeerFiles]:
    """Where the peers' files are; nothing is made."""
    return [
        PeerFiles(number, _name(number), node_paths(out / _name(number), environ))
        for number in range(1, count + 1)
    ]


def _name(number: int) -> str:
    return f"peer-{number}"


def write_keys(peer: PeerFiles, swarm: Swarm, root: Identity) -> None:
    """Make a peer's directory, identity, swarm key and certificate."""
    ensure_private_dir(peer.paths.data_dir)
    keys.create_identity(peer.paths.node_key)
    keys.create_swarm(peer.paths.swarm_key, swarm)
    # So that somebody who likes what they see can let another machine in.
    keys.certify_directly(peer.paths, root, may_invite=peer.number == 1)


LONG_RUN_ROUNDS: Final = 100
"""From so many rounds on DiLoCo's published outer momentum is better than its default here: 1.42
against 1.48 nats per byte after 150 rounds of the demonstration; after 40 rounds they are level."""


def config_text(
    number: int,
    options: LocalOptions,
    *,
    listen: str = "127.0.0.1:0",
    bootstrap: Sequence[str] = (),
) -> str:
    """The configuration of the peer `number`.

    Raises:
        ConfigError: one of the options is wrong.
    """
    values: dict[str, Any] = {
        "node.name": _name(number),
        "network.listen": [listen],
        "network.bootstrap": list(bootstrap),
        "run.name": RUN_NAME,
        "run.create": number == 1,
        "run.task": options.task,
        "run.protocol": options.protocol,
        "run.every": options.every,
        "run.steps": options.steps,
        "run.seed": options.seed,
        # Where the task's data can be cut, nobody else has what this one learns from.
        "run.part": f"{number}/{options.peers}",
        # Otherwise the first peer would run ahead while the others are still loading torch.
        "run.min_members": options.peers,
        "trainer.threads": max(1, len(os.sched_getaffinity(0)) // options.peers),
    }
    if options.protocol == "diloco" and options.steps // options.every >= LONG_RUN_ROUNDS:
        values["run.protocol_settings"] = {"outer_momentum": 0.9}
    if options.protocol == "modest":
        # With its default of 10 everybody would be in every round.
        values["run.protocol_settings"] = {"sample_size": (options.peers + 1) // 2}
    if options.data is not None:
        values["run.data"] = str(options.data.absolute())
    if options.verbosity:
        values["log.level"] = "debug" if options.verbosity > 0 else "warning"
    text = render_config(parse_assignments(options.overrides, values))
    check_environment(parse_config(text.encode()).config)
    return text


def write_config(
    peer: PeerFiles,
    options: LocalOptions,
    *,
    listen: str = "127.0.0.1:0",
    bootstrap: Sequence[str] = (),
) -> None:
    """Write (or, before a restart, write anew) a peer's configuration.

    Raises:
        ConfigError: one of the options is wrong.
    """
    text = config_text(peer.number, options, listen=listen, bootstrap=bootstrap)
    replace_file(peer.config, text.encode())


def check_options(options: LocalOptions) -> None:
    """Find what is wrong with the options before anything is made.

    Raises:
        UsageError: there is no such corpus, protocol or task.
        ConfigError: a `--set` names an unknown key, or an option has a wrong value.
    """
    if options.data is not None and not options.data.exists():
        raise UsageError(
            f"there is nothing to train on at {options.data}",
            hint="name a file or a folder of text with --data, "
            "or leave it out to train on Python's own source files",
        )
    _check_installed("protocol", options.protocol, installed_protocols())
    if ":" not in options.task:
        _check_installed("task", options.task, installed_tasks())
    config_text(1, options)


def _check_installed(kind: str, name: str, installed: Mapping[str, str]) -> None:
    if name not in installed:
        raise UsageError(
            f"no {kind} named {name!r}",
            hint=f"installed: {', '.join(sorted(installed)) or 'none'}",
        )


def tail(path: Path, lines: int = 20) -> str:
    """The last lines of a log, "" if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16384))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.rstrip("\n").split("\n")[-lines:])


def cannot_start(peer: PeerFiles, reason: str, exit_code: int | None) -> NodedError:
    """The error for a daemon that did not come up, with the end of its log."""
    from node.errors import ExitCode

    known = exit_code in set(ExitCode) and exit_code not in {ExitCode.OK, ExitCode.INTERRUPTED}
    code = ExitCode(exit_code) if known and exit_code is not None else ExitCode.FAILED
    text = tail(peer.log)
    said = f"its last words ({peer.log}):\n{text}" if text else f"it said nothing ({peer.log})"
    return NodedError(f"{peer.name} {reason}", hint=said, exit_code=code)
