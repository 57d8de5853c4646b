"""Loading a configuration: TOML file, environment and flags become one validated, frozen `Config`.

Problem: a misspelt key that is silently ignored costs an evening, and a wrong value should fail at
once, at its path, with what to do next, rather than an hour later inside a run.

Idea: four layers, the later ones win: defaults, the file, `NODED_<TABLE>_<KEY>` variables, flags
(`--set table.key=value`). Every key is looked up in the schema *before* anything is converted, so an
unknown one is refused with its full path and the nearest known name. Then msgspec checks types and
bounds, and last come the checks that need more than one value or another room's parser.

`knobs` knows the keys, `overrides` the variables and flags, `config_checks` those last checks.

Invariants: `load_config` returns absolute paths, or raises `ConfigError` and nothing else; the
provenance of every effective value is known (`LoadedConfig.sources`); nothing is written.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, get_args

import attrs
import msgspec

from node.config_checks import check_values
from node.errors import ConfigError
from node.knobs import SECTIONS, Knob, knobs, unknown_key
from node.overrides import assign, from_environ, from_flags, toml_type
from node.paths import CONFIG_NAME, default_data_dir
from node.schema import Config

__all__ = ["Config", "LoadedConfig", "find_config", "load_config", "parse_config"]

MAX_CONFIG_BYTES: Final = 1024 * 1024

_PATHS: Final = ("node.data_dir", "run.data", "trainer.user_path")
"""Keys that hold a path; made absolute here, so nobody below has to know where the file lies."""


@attrs.frozen
class LoadedConfig:
    """A valid configuration and where its values came from."""

    config: Config
    path: Path | None
    """The file that was read, None for defaults alone."""
    sources: Mapping[str, str]
    """For each key that something set: the file's path, the variable's or the flag's name."""

    def source(self, key: str) -> str:
        """Where the value of `key` came from; "default" if nobody set it."""
        return self.sources.get(key, "default")


def find_config(flag: Path | None, environ: Mapping[str, str] | None = None) -> Path:
    """The file to read: the flag's, else `NODED_CONFIG`'s, else the default one; may not exist."""
    environ = os.environ if environ is None else environ
    if flag is not None:
        return flag
    if named := environ.get("NODED_CONFIG"):
        return Path(named)
    base = environ.get("NODED_NODE_DATA_DIR")
    return (Path(base) if base else default_data_dir(environ)) / CONFIG_NAME


def load_config(
    path: Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, str] | None = None,
) -> LoadedConfig:
    """Read, merge and check a configuration.

    Args:
        path: the file named on the command line; None looks for it (`find_config`).
        environ: the environment; None takes this process's.
        overrides: flags, as `{"run.every": "16"}`; they win over everything.

    Raises:
        ConfigError: no such file, not TOML, an unknown key, a wrong value.
    """
    environ = os.environ if environ is None else environ
    path = find_config(path, environ)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(
            f"there is no configuration at {path}",
            hint="make one with:  noded init      or name it:  noded --config FILE ...",
        ) from None
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration {path}: {error.strerror or error}",
            hint="it should be a file that this user can read",
        ) from None
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path} is too large for a configuration", hint="is it the right file?")
    return parse_config(data, path=path, environ=environ, overrides=overrides or {})


def parse_config(
    data: bytes,
    *,
    path: Path | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, str] | None = None,
) -> LoadedConfig:
    """`load_config` on the bytes of a file; `path` is where relative paths in it start.

    Without `environ` no variable is looked at.
    """
    where = str(path) if path is not None else "the configuration"
    try:
        document = tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise ConfigError(f"{where} is not text in UTF-8", hint="is it the right file?") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(
            f"{where} is not valid TOML: {error}",
            hint="look at the line it names; see:  noded init",
        ) from None
    known = {entry.key: entry for entry in knobs()}
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for key, value in _flatten(document, known):
        values[key], sources[key] = value, where
    base = path.absolute().parent if path is not None else Path.cwd()
    for key in _PATHS:
        if isinstance(values.get(key), str) and values[key]:
            values[key] = os.path.abspath(base / Path(values[key]).expanduser())  # noqa: PTH100
    for key, text, source in (*from_environ(environ or {}, known), *from_flags(overrides, known)):
        sources[assign(values, key, text, source)] = source
        if key in _PATHS and values[key]:
            values[key] = os.path.abspath(Path(values[key]).expanduser())  # noqa: PTH100 (keeps links)
    if not values.get("node.data_dir"):
        values["node.data_dir"] = str(base)
    config = _convert(values, document, sources)
    check_values(config)
    return LoadedConfig(config=config, path=path, sources=sources)


def _flatten(document: Mapping[str, Any], known: Mapping[str, Knob]) -> Iterator[tuple[str, Any]]:
    """The `table.key` values of a file; refuses tables and keys that the schema does not have."""
    sections = sorted({key.partition(".")[0] for key in known})
    for section, table in document.items():
        if section not in sections:
            raise unknown_key(section, [*sections, *known])
        if not isinstance(table, Mapping):
            raise ConfigError(
                f"{section}: expected a table, got {toml_type(table)}",
                key=section,
                hint=f"write it as a line of its own:  [{section}]",
            )
        for name, value in table.items():
            key = f"{section}.{name}"
            if key not in known:
                raise unknown_key(key, list(known))
            yield key, value


def _convert(
    values: Mapping[str, Any], document: Mapping[str, Any], sources: Mapping[str, str]
) -> Config:
    tree: dict[str, Any] = {section: {} for section in SECTIONS if section in document}
    for key, value in values.items():
        section, _, name = key.partition(".")
        tree.setdefault(section, {})[name] = value
    try:
        return msgspec.convert(tree, Config, strict=True)
    except msgspec.ValidationError as error:
        # From the right: the value itself may hold this text.
        text, found, tail = str(error).rpartition(" - at `$")
        if not found:
            text, tail = tail, ""
        key = re.split(r"[\[`]", tail.lstrip("."), maxsplit=1)[0]
        if text.startswith("Object missing required field"):
            name = text.split("`")[1]
            key = f"{key}.{name}" if key else name
            raise ConfigError(
                f"{key} is missing, and it has no default",
                key=key,
                hint=f"see:  noded config explain {key}",
            ) from None
        source = sources.get(key)
        raise ConfigError(
            f"{key}: {_readable(text, key)}" + (f" (from {source})" if source else ""),
            key=key,
            hint=f"see:  noded config explain {key}",
        ) from None


_WORDS: Final[Mapping[str, str]] = {
    "`int`": "a whole number",
    "`float`": "a number",
    "`str`": "text",
    "`bool`": "true or false",
    "`array`": "a list",
    "`object`": "a table",
    "`null`": "nothing",
}


def _readable(text: str, key: str) -> str:
    """Msgspec's sentence in the words of a configuration file."""
    if text.startswith("Invalid enum value"):
        choices = next((get_args(entry.type) for entry in knobs() if entry.key == key), ())
        return f"{text.partition('value ')[2]} is none of {', '.join(map(str, choices))}"
    for word, plain in _WORDS.items():
        text = text.replace(word, plain)
    return text[0].lower() + text[1:]
