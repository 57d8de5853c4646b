"""`noded local`: a whole swarm on one machine, to see it work in minutes.

What it is for: a newcomer's first command, and the end-to-end test of everything else. It starts real
daemons as processes of their own, each with its own identity, data directory and trainer, connected over
loopback; nothing in them knows that this is a demonstration.

Files: `layout` (directories and configurations), `parent` (no process outlives this one), `fleet`
(processes: start, restart, end), `watch` (asking them how they are), `view` (what is shown meanwhile),
`summary` and `chart` (what is shown at the end), `swarm` (the order of all that).

Errors: `node.errors.NodedError`; the exit code is the daemon's where a daemon cannot start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["LocalOptions", "run_local"]


@dataclass(frozen=True, kw_only=True)
class LocalOptions:
    """The options of `noded local`."""

    peers: int = 4
    steps: int = 8000
    """Local steps of each peer."""
    every: int = 32
    """Local steps in a round."""
    protocol: str = "diloco"
    task: str = "byte-gpt"
    data: Path | None = None
    """A file or folder to train on; None is the task's own corpus."""
    seed: int = 0
    out: Path | None = None
    """Where everything goes; None makes a new `noded-demo` folder here."""
    overrides: Mapping[str, str] = field(default_factory=dict)
    """Further settings of every peer, as `--set` writes them."""
    json: bool = False
    """JSON lines instead of a view."""
    plain: bool = False
    """Plain lines instead of the live view."""
    no_color: bool = False
    verbosity: int = 0


def run_local(options: LocalOptions) -> int:
    """Run the swarm until its run is over; blocking.

    Returns:
        The exit code: 0 if every peer finished (with the same parameters, where the protocol says so), 130 if interrupted.

    Raises:
        NodedError: a daemon cannot start (with the tail of its log), or the options make no sense.
    """
    from node.local.swarm import LocalSwarm

    return LocalSwarm(options).run()
