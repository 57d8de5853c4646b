"""The keys of a configuration, read from its schema: for people (`noded config explain`) and for whoever reads a file.

Problem: a key that only the schema knows can be explained by nobody, and one that is listed twice gets out of step. Idea: the
structs of `node.schema` say it all, types, bounds, defaults and texts, and every other place asks here.
"""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Final, get_args, get_type_hints

import attrs
import msgspec

from node.errors import ConfigError
from node.schema import (
    BlocksSection,
    LogSection,
    NetworkSection,
    NodeSection,
    RunSection,
    SwarmSection,
    TrainerSection,
)
from transport.limits import Limits
from transport.relay.settings import RelaySettings

__all__ = ["SECTIONS", "Knob", "knob", "knobs", "unknown_key"]

SECTIONS: Final[Mapping[str, type[msgspec.Struct]]] = {
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
"""The tables of a configuration."""


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


@functools.cache
def knobs() -> tuple[Knob, ...]:
    """Every key there is, in the order of the schema."""
    return tuple(_read_schema())


def _read_schema() -> Iterator[Knob]:
    for section, struct in SECTIONS.items():
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
    raise unknown_key(key, list(everything), flag=True)


def unknown_key(key: str, known: list[str], *, flag: bool = False) -> ConfigError:
    """The error for a key that does not exist, with the nearest ones; `flag`: it was given as one."""
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
