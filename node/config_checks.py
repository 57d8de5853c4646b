"""What is wrong with a configuration whose values all have the right types: alone, and on this machine.

`check_values` looks at the configuration alone, for whoever reads one. `check_environment` looks at what it names: a protocol, a task, a
corpus. No task is imported for that, and so no torch.
"""

from __future__ import annotations

import os
from pathlib import Path

from node.errors import ConfigError
from node.paths import valid_run_name
from node.schema import Config, RunSection

__all__ = ["check_environment", "check_values"]


def check_environment(config: Config) -> None:
    """Check what a configuration names on this machine: protocol, task and corpus have to exist.

    Raises:
        ConfigError: the protocol is not installed or takes other settings, the run to create has a
            task that is not installed or takes other settings, or `run.data` names nothing that can be read.
    """
    if config.run is None:
        return
    _check_protocol(config.run)
    if config.run.create and config.trainer.auto:
        _check_task(config.run)
    if config.run.data:
        _check_data(Path(config.run.data))


def _check_protocol(run: RunSection) -> None:
    from gossip.errors import GossipError, UnknownProtocol
    from gossip.protocol import load_plugin

    try:
        load_plugin(run.protocol).parse_settings(run.protocol_settings)
    except GossipError as error:
        key = "run.protocol" if isinstance(error, UnknownProtocol) else "run.protocol_settings"
        raise ConfigError(f"{key}: {error}", key=key, hint=error.hint) from None


def _check_task(run: RunSection) -> None:
    from node.task import TaskError, check_settings, installed_tasks

    task = run.task
    installed = sorted(installed_tasks())
    if ":" not in task and task not in installed:
        raise ConfigError(
            f"run.task: no task named {task!r} is installed",
            key="run.task",
            hint=f"installed: {', '.join(installed) or 'none'}; one of your own is module:Class, "
            "in the folder trainer.user_path",
        )
    try:
        check_settings(task, run.task_settings)
    except TaskError as error:
        key = "run.task_settings"
        raise ConfigError(f"{key}: {error}", key=key, hint=error.hint) from None


def _check_data(data: Path) -> None:
    if not data.exists():
        raise ConfigError(
            f"run.data: there is nothing at {data}",
            key="run.data",
            hint="name a file or a folder of text, or leave it empty for the task's own corpus",
        )
    if not os.access(data, os.R_OK | (os.X_OK if data.is_dir() else 0)):
        raise ConfigError(
            f"run.data: this user cannot read {data}",
            key="run.data",
            hint="change its permissions, or run as its owner",
        )


def check_values(config: Config) -> None:
    """Refuse what one value's type cannot: raises `ConfigError`."""
    if config.run is not None and not valid_run_name(config.run.name):
        raise ConfigError(
            f"run.name: {config.run.name!r} cannot name a run",
            key="run.name",
            hint="use 1 to 64 letters, digits, '.', '_' or '-', starting with a letter or digit",
        )
    if any(not character.isprintable() for character in config.node.site):
        raise ConfigError("node.site: control characters cannot be shown", key="node.site")
    if config.run is not None and config.run.part:
        index, count = map(int, config.run.part.split("/"))
        if index > count:
            raise ConfigError(
                f"run.part: there is no part {index} of {count}",
                key="run.part",
                hint=f'"{count}/{count}" is the last one',
            )
    if any(not character.isprintable() for character in config.node.name):
        raise ConfigError(
            "node.name: control characters cannot be shown in a table", key="node.name"
        )
    network = config.network
    for key, texts in (
        ("network.listen", network.listen),
        ("network.bootstrap", network.bootstrap),
        ("network.advertise", network.advertise),
        ("network.relays", network.relays),
    ):
        for text in texts:
            host, port = _check_address(key, text)
            if key != "network.listen" and (port == 0 or host in {"0.0.0.0", "::", ""}):  # noqa: S104
                raise ConfigError(
                    f"{key}: nobody can dial {text}",
                    key=key,
                    hint="name a host and a port that others can reach, as in 203.0.113.7:7447",
                )
            if (key == "network.relays") != ("/via/" in text):
                raise ConfigError(
                    f"{key}: {text} {'lacks' if key == 'network.relays' else 'has'} a relay's id",
                    key=key,
                    hint="relays are written host:port/via/NODE-ID, all other addresses host:port",
                )


def _check_address(key: str, text: str) -> tuple[str, int]:
    from transport.address import Address
    from transport.errors import TransportError

    try:
        address = Address.parse(text)
    except TransportError as error:
        raise ConfigError(
            f"{key}: {error}",
            key=key,
            hint="write host:port, as in 203.0.113.7:7447 or [2001:db8::7]:7447",
        ) from None
    return address.host, address.port
