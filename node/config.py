"""Loading a configuration: TOML file, environment and flags become one validated, frozen `Config`.

Problem: a misspelt key that is silently ignored costs an evening, and a wrong value should fail at
once, at its path, with what to do next, rather than an hour later inside a run.

Idea: four layers, the later ones win: defaults, the file, `NODED_<TABLE>_<KEY>` variables, flags
(`--set table.key=value`). Every key is looked up in the schema *before* anything is converted, so an
unknown one is refused with its full path and the nearest known name. Then msgspec checks types and
bounds, and last come the checks that need more than one value or another room's parser.

Environment variables and flags are text: lists are separated by commas, tables are written in JSON. A flag may also set one
entry of a table and leave its others: `--set run.protocol_settings.graph=ring`.
`NODED_CONFIG`, `NODED_SOCKET` and `NODED_RUN` are not settings (they name files and a run). Variables
that start with `NODED_` but with no table's name are left alone: container platforms inject such
names for services called noded.

Invariants: `load_config` returns absolute paths, or raises `ConfigError` and nothing else; the
provenance of every effective value is known (`LoadedConfig.sources`); nothing is written.
"""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
import itertools
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, get_args, get_origin, get_type_hints

import attrs
import msgspec

from node.errors import ConfigError
from node.paths import CONFIG_NAME, default_data_dir, valid_run_name
from node.schema import (
    PRESETS,
    BlocksSection,
    Config,
    LogSection,
    NetworkSection,
    NodeSection,
    RunSection,
    SwarmSection,
    TrainerSection,
)
from transport.limits import Limits
from transport.relay.settings import RelaySettings

__all__ = [
    "PRESETS",
    "Config",
    "Knob",
    "LoadedConfig",
    "LogSection",
    "NetworkSection",
    "NodeSection",
    "RunSection",
    "SwarmSection",
    "TrainerSection",
    "assign",
    "check_environment",
    "find_config",
    "knob",
    "knobs",
    "load_config",
    "parse_config",
    "parse_text",
    "plain_value",
]

MAX_CONFIG_BYTES: Final = 1024 * 1024

_PATHS: Final = ("node.data_dir", "run.data", "trainer.user_path")
"""Keys that hold a path; made absolute here, so nobody below has to know where the file lies."""

_SECTIONS: Final[Mapping[str, type[msgspec.Struct]]] = {
    "node": NodeSection,
    "network": NetworkSection,
    "swarm": SwarmSection,
    "limits": Limits,
    "relay": RelaySettings,
    "run": RunSection,
    "trainer": TrainerSection,
    "blocks": BlocksSection,
    "log": LogSection,
}

# What Kubernetes and old Docker links put into every container beside a service of that name.
_INJECTED: Final = re.compile(r"NODED_(.*_)?(SERVICE_HOST|SERVICE_PORT.*|PORT(_\d+_.*)?)")


@attrs.frozen
class Knob:
    """One configuration key, for people: what `noded config explain` shows."""

    key: str
    """Its path, `table.name`."""
    type: Any
    """Its type without bounds."""
    default: Any
    """What it is when nobody sets it; `msgspec.NODEFAULT` if it must be set."""
    text: str
    """What it does."""
    bounds: Mapping[str, Any] = attrs.field(factory=dict)
    """`ge`, `le`, `min_length`, `max_length` as they apply."""

    @property
    def env(self) -> str:
        """The environment variable that sets it."""
        return "NODED_" + self.key.replace(".", "_").upper()

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is msgspec.NODEFAULT


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


@functools.cache
def knobs() -> tuple[Knob, ...]:
    """Every key there is, in the order of the schema."""
    return tuple(_read_schema())


def _read_schema() -> Iterator[Knob]:
    for section, struct in _SECTIONS.items():
        hints = get_type_hints(struct, include_extras=True)
        texts = _docstrings(struct) if struct in {Limits, RelaySettings} else {}
        for field in msgspec.structs.fields(struct):
            meta, plain = _unannotated(hints[field.name])
            default = field.default
            if default is msgspec.NODEFAULT and field.default_factory is not msgspec.NODEFAULT:
                default = field.default_factory()
            yield Knob(
                key=f"{section}.{field.name}",
                type=plain,
                default=default,
                text=(meta and meta.description) or texts.get(field.name, ""),
                bounds={
                    name: value
                    for name in ("ge", "le", "min_length", "max_length")
                    if meta is not None and (value := getattr(meta, name)) is not None
                },
            )


def knob(key: str) -> Knob:
    """The knob named `key`.

    Raises:
        ConfigError: there is none; the hint names the nearest ones.
    """
    everything = {entry.key: entry for entry in knobs()}
    if key in everything:
        return everything[key]
    raise _unknown_key(key, list(everything), flag=True)


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
    for key, text, source in (*_from_environ(environ or {}, known), *_from_flags(overrides, known)):
        sources[assign(values, key, text, source)] = source
        if key in _PATHS and values[key]:
            values[key] = os.path.abspath(Path(values[key]).expanduser())  # noqa: PTH100 (keeps links)
    if not values.get("node.data_dir"):
        values["node.data_dir"] = str(base)
    config = _convert(values, document, sources)
    _check(config)
    return LoadedConfig(config=config, path=path, sources=sources)


def check_environment(config: Config) -> None:
    """Check what a configuration names on this machine: protocol, task and corpus have to exist.

    Raises:
        ConfigError: the protocol is not installed or takes other settings, the run to create has a
            task that is not installed, or `run.data` names nothing that can be read.
    """
    if config.run is None:
        return
    _check_protocol(config.run)
    if config.run.create and config.trainer.auto:
        _check_task(config.run.task)
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


def _check_task(task: str) -> None:
    from node.task import installed_tasks

    installed = sorted(installed_tasks())
    if ":" not in task and task not in installed:
        raise ConfigError(
            f"run.task: no task named {task!r} is installed",
            key="run.task",
            hint=f"installed: {', '.join(installed) or 'none'}; one of your own is module:Class, "
            "in the folder trainer.user_path",
        )


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


def _flatten(document: Mapping[str, Any], known: Mapping[str, Knob]) -> Iterator[tuple[str, Any]]:
    """The `table.key` values of a file; refuses tables and keys that the schema does not have."""
    sections = sorted({key.partition(".")[0] for key in known})
    for section, table in document.items():
        if section not in sections:
            raise _unknown_key(section, [*sections, *known])
        if not isinstance(table, Mapping):
            raise ConfigError(
                f"{section}: expected a table, got {_toml_type(table)}",
                key=section,
                hint=f"write it as a line of its own:  [{section}]",
            )
        for name, value in table.items():
            key = f"{section}.{name}"
            if key not in known:
                raise _unknown_key(key, list(known))
            yield key, value


def _from_environ(
    environ: Mapping[str, str], known: Mapping[str, Knob]
) -> Iterator[tuple[str, str, str]]:
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


def _from_flags(
    overrides: Mapping[str, str] | None, known: Mapping[str, Knob]
) -> Iterator[tuple[str, str, str]]:
    for key, text in (overrides or {}).items():
        if key not in known and _entry(key) is None:
            raise _unknown_key(key, list(known), flag=True)
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
        raise ConfigError(f"{table}: expected a table, got {_toml_type(others)}", key=table)
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


def _convert(
    values: Mapping[str, Any], document: Mapping[str, Any], sources: Mapping[str, str]
) -> Config:
    tree: dict[str, Any] = {section: {} for section in _SECTIONS if section in document}
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


def _check(config: Config) -> None:
    """What one value's type cannot say."""
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


def _docstrings(struct: type[msgspec.Struct]) -> dict[str, str]:
    """The docstrings below a struct's fields; Python does not keep them, so the source is read."""
    try:
        tree = ast.parse(inspect.getsource(struct))
    except (OSError, SyntaxError):  # no source installed: `explain` says less, nothing breaks
        return {}
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    texts = {}
    for statement, following in itertools.pairwise(body):
        match statement, following:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                texts[name] = " ".join(text.split())
    return texts


def _unannotated(hint: Any) -> tuple[msgspec.Meta | None, Any]:
    metadata = getattr(hint, "__metadata__", ())
    meta = next((item for item in metadata if isinstance(item, msgspec.Meta)), None)
    return meta, get_args(hint)[0] if metadata else hint


def _unknown_key(key: str, known: list[str], *, flag: bool = False) -> ConfigError:
    near = difflib.get_close_matches(key, known, n=1)
    named_alike = [entry for entry in known if entry.endswith("." + key.rpartition(".")[2])]
    if named_alike:  # the right name in the wrong table, or in none
        near = named_alike
    hint = f"did you mean {near[0]}?" if near else "see:  noded config explain"
    if flag and not near and "." not in key:  # short for what belongs to protocol or task
        hint = (
            f"a setting of the protocol is run.protocol_settings.{key}, one of the task "
            f"run.task_settings.{key}; all keys:  noded config explain"
        )
    return ConfigError(f"unknown key {key}", key=key, hint=hint)


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


def _wanted(origin: Any) -> str:
    return {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        dict: "a JSON object",
    }.get(origin, "valid")


def _toml_type(value: object) -> str:
    return {str: "a string", bool: "a boolean", int: "a number", float: "a number"}.get(
        type(value), "a list" if isinstance(value, list) else "something else"
    )
