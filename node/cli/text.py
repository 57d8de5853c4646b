"""What the setting-up verbs print, and the values that their options spell.

Idea: these need the configuration's schema, so they live apart from `node.cli.main`, whose imports every
health check pays for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from node.cli.render import printable
from node.config import LoadedConfig
from node.config_text import toml_value
from node.initialise import Initialised
from node.knobs import Knob, knobs
from node.overrides import assign

__all__ = ["effective", "initialised_text", "knob_json", "parse_assignments"]


def parse_assignments(
    assignments: Mapping[str, str], base: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The typed values of `--set key=value` options, over those in `base`.

    Raises:
        ConfigError: an unknown key, or a text that is not of its type.
    """
    values = dict(base or {})
    for key, text in assignments.items():
        assign(values, key, text, "--set")
    return values


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


def initialised_text(made: Initialised, aim: Callable[[str], str]) -> str:
    """What `noded init` tells a person.

    Args:
        made: what there is now.
        aim: puts into a command the options that name this node (`Settings.aim`).
    """
    wrote = f"wrote {', '.join(made.created)}" if made.created else "wrote nothing new"
    kept = f", kept {', '.join(made.kept)}" if made.kept else ""
    lines = [
        f"node      {made.node_id}",
        f"swarm     {printable(made.swarm_name or made.open_name, 64)}",
        f"files     {made.config.parent}  ({wrote}{kept})",
        aim("start     noded run"),
    ]
    if made.may_invite:
        lines += [
            "",
            "When it runs, this prints a code with which another machine joins:",
            aim("  noded invite"),
        ]
    if made.open_name:
        lines += [
            "",
            "The swarm is open. Who knows its name and an address of a node in it enters as a stranger:",
            f"  noded init --enter {made.open_name} --bootstrap HOST:PORT",
        ]
    if made.has_root:
        lines += [
            "",
            "swarm-root.key makes members without an invite: keep a copy in a safe place.",
        ]
    return "\n".join(lines)
