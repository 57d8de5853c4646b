"""What the setting-up verbs print, and the values that their options spell.

Idea: these need the configuration's schema, so they live apart from `node.cli.main`, whose imports every
health check pays for.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

import msgspec

from node.config import Knob, LoadedConfig, knob, knobs, parse_text
from node.config_text import toml_value
from node.initialise import Initialised, private_host

__all__ = ["effective", "initialised_text", "knob_json", "parse_assignments"]


def parse_assignments(assignments: Mapping[str, str]) -> dict[str, Any]:
    """The typed values of `--set key=value` options.

    Raises:
        ConfigError: an unknown key, or a text that is not of its type.
    """
    return {key: parse_text(knob(key), text, "--set") for key, text in assignments.items()}


def effective(loaded: LoadedConfig) -> list[tuple[str, Any, str, str]]:
    """(key, JSON value, text, source) of every key; the run's only if there is one."""
    rows = []
    for entry in knobs():
        section, _, name = entry.key.partition(".")
        struct = getattr(loaded.config, section)
        if struct is None:
            continue
        value = msgspec.to_builtins(getattr(struct, name))
        rows.append((entry.key, value, toml_value(value), loaded.source(entry.key)))
    return rows


def knob_json(entry: Knob) -> dict[str, Any]:
    """One key for `config explain --json`."""
    return {
        "key": entry.key,
        "default": None if entry.required else msgspec.to_builtins(entry.default),
        "required": entry.required,
        "text": entry.text,
        "variable": entry.env,
        "bounds": dict(entry.bounds),
    }


def initialised_text(made: Initialised, *, default_config: bool) -> str:
    """What `noded init` tells a person."""
    flag = "" if default_config else f" --config {shlex.quote(str(made.config))}"
    kept = f", kept {', '.join(made.kept)}" if made.kept else ""
    lines = [
        f"node      {made.node_id}",
        f"files     {made.config.parent}  (wrote {', '.join(made.created)}{kept})",
        f"start     noded{flag} run",
        "",
        "To join from another machine, run there (the key admits to the swarm: keep it private):",
        f"  {made.join_line}",
    ]
    if not made.join_address:
        lines.append("Put an address of this machine that others can reach in place of HOST.")
    elif made.join_address.startswith(("127.", "[::1]")):
        lines.append(f"{made.join_address} is for nodes on this machine only.")
    elif private_host(made.join_address):
        lines.append(
            f"{made.join_address} works inside this network; from outside use the public address, "
            "with the port forwarded."
        )
    return "\n".join(lines)
