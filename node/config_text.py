"""A configuration as text: the commented file that `noded init` writes, and `config explain`.

Problem: people learn the knobs from the file in front of them, so it must name all of them, say what
each does, and be right. Idea: it is rendered from the schema. A key that somebody chose is written as a
setting, every other one as a comment with its default; removing the `#` is how it is changed.

Invariants: the rendered file parses to exactly the chosen values (a test does so for every preset).
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping
from typing import Any, Final, get_args, get_origin

from node.errors import ConfigError
from node.knobs import Knob, knobs

__all__ = ["explain", "render_config", "toml_value"]

_TITLES: Final = {
    "node": "Who this node is and where it keeps its files.",
    "network": "How other nodes reach this one, and whom it asks first.",
    "swarm": "Who may be a member of the swarm.",
    "limits": "What anybody may cost this node. The defaults suit a local network.",
    "relay": "Being reached through other nodes, and what this node gives away as a relay itself.",
    "run": "The training run this node takes part in; without this table it only helps others.",
    "trainer": "The training process beside the daemon.",
    "blocks": "Artefacts (noded put, noded get): what is kept on the disk, and how fast it is given away.",
    "log": "What the daemon says on its standard error.",
}

_HEADER: Final = """\
# noded: configuration of one node.
# A key that is commented out has the value shown. An unknown key is refused.
# Environment (NODED_<TABLE>_<KEY>) and flags (--set table.key=value) win over this file.
# Check it with:  noded config check      What a key does:  noded config explain network.listen
"""


def render_config(values: Mapping[str, Any]) -> str:
    """A whole commented file with `values` (`{"network.listen": [...]}`) set.

    Raises:
        ConfigError: a value that TOML cannot write.
    """
    lines = [_HEADER]
    section = ""
    everything = knobs()
    for entry in everything:
        table, _, name = entry.key.partition(".")
        if table != section:
            section = table
            lines.append(f"\n# {_TITLES[table]}")
            # An empty [run] would be a run without a name: the whole table stays a comment.
            wanted = table != "run" or any(key.startswith("run.") for key in values)
            lines.append(f"[{table}]" if wanted else f"# [{table}]")
        lines += ["# " + line for line in textwrap.wrap(entry.text, 92)]
        if entry.key in values:
            lines.append(f"{name} = {toml_value(values[entry.key])}")
        else:
            default = '"..."' if entry.required else toml_value(entry.default)
            lines.append(f"# {name} = {default}")
    unknown = set(values) - {entry.key for entry in everything}
    if unknown:
        raise ConfigError(f"unknown key {min(unknown)}", key=min(unknown))
    return "\n".join(lines) + "\n"


def explain(entry: Knob) -> str:
    """All about one key, for a terminal."""
    lines = [entry.key, *("  " + line for line in textwrap.wrap(entry.text, 90)), ""]
    lines.append(f"  type      {_type_text(entry.type)}{_bounds_text(entry.bounds)}")
    default = "none: it has to be set" if entry.required else toml_value(entry.default)
    lines.append(f"  default   {default}")
    lines.append(f"  variable  {entry.env}")
    return "\n".join(lines)


def toml_value(value: Any) -> str:
    """`value` as TOML writes it.

    Raises:
        ConfigError: TOML has no such value (None, say).
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value)  # 1e+16, inf and nan are TOML as well
    if isinstance(value, str):
        # JSON's escapes are TOML's, except that JSON leaves DEL alone and splits astral characters.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if isinstance(value, Mapping):
        pairs = (f"{_toml_key(key)} = {toml_value(item)}" for key, item in value.items())
        return "{" + ", ".join(pairs) + "}"
    raise ConfigError(f"a configuration cannot hold {type(value).__name__} {value!r}")


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml_value(key)


def _type_text(type_: Any) -> str:
    origin = get_origin(type_) or type_
    words = {
        str: "text",
        int: "whole number",
        float: "number",
        bool: "true or false",
        tuple: "list of text (in a variable: separated by commas)",
        dict: "table (in a variable: a JSON object)",
    }
    if isinstance(origin, type) and origin in words:
        return words[origin]
    return "one of " + ", ".join(map(str, get_args(type_)))


def _bounds_text(bounds: Mapping[str, Any]) -> str:
    low, high = bounds.get("ge"), bounds.get("le")
    if low is not None and high is not None:
        return f", {low} to {high}"
    if (longest := bounds.get("max_length")) is not None:
        return f", at most {longest} long"
    return ""
