"""The node: the daemon, its command line, and the training API.

What it is for: everything that a person or a training script touches. The only room that may import
all the others.

Two processes make a node. The *daemon* (`node.daemon`, trio, never torch) holds the connections and the
run's state; the *trainer* (`node.training.worker`, or a script of yours with `node.join`) computes. The command
line (`node.cli.main`) is a third, short-lived one that imports neither.

Folders:
    run        one run, the daemon's side; `training` is the trainer's, `tasks` what can be trained
    joining    invites and newcomers; `trust` is what this node shows and whom it refuses
    blocks     artefacts: kept, given, fetched, approved
    data       data sets: read, checked, split among nodes; `simulation` trains on them in one process
    cli        the `noded` command; `local` is `noded local`, a swarm on one machine

Beside them:
    schema, knobs, config, overrides, config_checks      the configuration: its keys, how it is loaded, and what is wrong with it
    config_text, plugin_text                             it and the settings of protocols and tasks as text
    paths, keys, initialise, private_socket              what is in the data directory, and for nobody else's eyes
    daemon, control, systemd, log, status, health        the daemon, and how it can be asked how it is
    wall_clock, probe, traffic, pinging, netcheck, reach_report, punch_trial, relay_budget    what it knows of itself and of the network
    trainer_messages, collective_messages, shared_buffer, task    what daemon and trainer share

Errors: `node.errors.NodedError` and the frozen exit codes.

Importing this package imports nothing but the standard library's `importlib`: the names below are loaded
when they are first used, so `import node` is instant and pulls in neither trio nor torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from node.config import Config, load_config
    from node.errors import ExitCode, NodedError
    from node.training.collectives import collectives
    from node.training.session import join

__all__ = [
    "Config",
    "ExitCode",
    "NodedError",
    "__version__",
    "collectives",
    "join",
    "load_config",
]

__version__ = "0.1.0"

_HOMES = {
    "Config": "node.config",
    "load_config": "node.config",
    "ExitCode": "node.errors",
    "NodedError": "node.errors",
    "collectives": "node.training.collectives",
    "join": "node.training.session",
}


def __getattr__(name: str) -> object:
    """Load a public name from the module it lives in (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'node' has no attribute {name!r}")
    import importlib

    value: object = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
