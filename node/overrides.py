"""Values that are written as text: `NODED_<TABLE>_<KEY>` variables and flags (`--set table.key=value`).

Lists are separated by commas, tables are written in JSON. A flag may also set one entry of a table and leave its others:
`--set run.protocol_settings.graph=ring`. `NODED_CONFIG`, `NODED_SOCKET` and `NODED_RUN` are not settings (they name files and a
run). Variables that start with `NODED_` but with no table's name are left alone: container platforms inject such names for services
called noded.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any, Final, get_origin

from node.errors import ConfigError
from node.knobs import Knob, knob, knobs, unknown_key

__all__ = ["assign", "from_environ", "from_flags", "parse_text", "plain_value", "toml_type"]

# What Kubernetes and old Docker links put into every container beside a service of that name.
_INJECTED: Final = re.compile(r"NODED_(.*_)?(SERVICE_HOST|SERVICE_PORT.*|PORT(_\d+_.*)?)")


def from_environ(
    environ: Mapping[str, str], known: Mapping[str, Knob]
) -> Iterator[tuple[str, str, str]]:
    """What variables set: (key, text, the variable's name); raises `ConfigError` for one that sets nothing."""
    by_name = {entry.env: entry.key for entry in known.values()}
    prefixes = {f"NODED_{key.partition('.')[0].upper()}_" for key in known}
    for name in sorted(environ):
        if name in by_name:
            yield by_name[name], environ[name], name
        elif name.startswith(tuple(prefixes)) and not _INJECTED.fullmatch(name):
            near = difflib.get_close_matches(name, by_name, n=1)
            raise ConfigError(
                f"the environment variable {name} sets nothing",
                key=name,
                hint=f"did you mean {near[0]}?" if near else "unset it; see:  noded config explain",
            )


def from_flags(
    overrides: Mapping[str, str] | None, known: Mapping[str, Knob]
) -> Iterator[tuple[str, str, str]]:
    """What flags set: (key, text, "--set"); raises `ConfigError` for a key that does not exist."""
    for key, text in (overrides or {}).items():
        if key not in known and _entry(key) is None:
            raise unknown_key(key, list(known), flag=True)
        yield key, text, "--set"


def assign(values: dict[str, Any], key: str, text: str, source: str) -> str:
    """Set a key, or one entry of a table, to what a variable or a flag (`source`) writes as `text`.

    An entry (`run.protocol_settings.graph`) is what TOML reads in the text, or else the text itself; the
    table's other entries stay.

    Returns:
        The key of the schema that was set: the table's for an entry.

    Raises:
        ConfigError: there is no such key, or the text is not of its type.
    """
    if (found := _entry(key)) is None:
        values[key] = parse_text(knob(key), text, source)
        return key
    table, name = found
    others = values.get(table, {})
    if not isinstance(others, Mapping):
        raise ConfigError(f"{table}: expected a table, got {toml_type(others)}", key=table)
    values[table] = {**others, name: plain_value(text)}
    return table


def plain_value(text: str) -> Any:
    """What TOML reads in the text of an option, or the text itself where that is no TOML."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def _entry(key: str) -> tuple[str, str] | None:
    """The table of the schema and the name in it that a key is made of; None if it is no such key."""
    table, _, name = key.rpartition(".")
    is_table = any(
        one.key == table and (get_origin(one.type) or one.type) is dict for one in knobs()
    )
    return (table, name) if name and is_table else None


def parse_text(entry: Knob, text: str, source: str) -> Any:
    """The value that a variable or a flag (`source`) writes as `text`.

    Raises:
        ConfigError: the text is not of the key's type.
    """
    origin = get_origin(entry.type) or entry.type
    if origin is str or not isinstance(origin, type):  # Literal: text as well
        return text
    if origin is tuple:
        return [part for item in text.split(",") if (part := item.strip())]
    try:
        if origin is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.strip().lower()]
        if origin in {int, float}:
            return origin(text)
        if origin is dict:
            value = json.loads(text)
            if isinstance(value, dict):
                return value
    except (ValueError, KeyError, RecursionError):
        pass
    raise ConfigError(
        f"{entry.key}: {text[:80]!r} (from {source}) is not {_wanted(origin)}", key=entry.key
    )


def _wanted(origin: Any) -> str:
    return {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        dict: "a JSON object",
    }.get(origin, "valid")


def toml_type(value: object) -> str:
    """What a value of a file is, in words."""
    return {str: "a string", bool: "a boolean", int: "a number", float: "a number"}.get(
        type(value), "a list" if isinstance(value, list) else "something else"
    )
