"""What the settings of a protocol or a task are, as text: `noded config explain PROTOCOL`.

Problem: every protocol and task has settings of its own, installed by whoever wrote it, and none of them is in the configuration's
schema. Idea: the struct that validates them says all there is: types, bounds and defaults are its annotations, and the
text is the docstring below each field, which is read from the struct's source. So what is printed is what is enforced.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Mapping
from typing import Any

import attrs
import msgspec
from msgspec import inspect as described

from gossip.decentralized.protocol import DecentralizedProtocol
from gossip.protocol import installed_protocols, load_plugin
from node.config_text import toml_value
from node.task import installed_tasks, load_task

__all__ = [
    "PluginText",
    "SettingText",
    "all_protocols",
    "all_tasks",
    "protocol_text",
    "task_text",
    "with_setting",
]


@attrs.frozen
class SettingText:
    """One setting."""

    table: str
    """`run.protocol_settings` or `run.task_settings`."""
    name: str
    kind: str
    """Type and bounds, in words."""
    default: Any
    required: bool
    text: str

    @property
    def key(self) -> str:
        """In the configuration."""
        return f"{self.table}.{self.name}"

    def to_json(self) -> dict[str, Any]:
        """For `config explain --json`."""
        return {
            "key": self.key,
            "type": self.kind,
            "default": None if self.required else msgspec.to_builtins(self.default),
            "required": self.required,
            "text": self.text,
        }


@attrs.frozen
class PluginText:
    """A protocol or a task, and its settings."""

    name: str
    kind: str
    """"collective" (a protocol of certified rounds), "decentralized" (one without agreement) or "task"."""
    summary: str
    settings: tuple[SettingText, ...]

    def to_json(self) -> dict[str, Any]:
        """For `config explain --json`."""
        return {
            "name": self.name,
            "kind": self.kind,
            "text": self.summary,
            "settings": [setting.to_json() for setting in self.settings],
        }

    def __str__(self) -> str:
        head = "run.task" if self.kind == "task" else "run.protocol"
        lines = [f'{head} = "{self.name}"  ({self.kind})', *_wrapped(self.summary)]
        if not self.settings:
            lines += ["", "  It has no settings."]
        for setting in self.settings:
            default = "none: it has to be set" if setting.required else _default_text(setting)
            lines += ["", setting.key, *_wrapped(setting.text)]
            lines += [f"  type      {setting.kind}", f"  default   {default}"]
        return "\n".join(lines)


def all_protocols() -> list[str]:
    """Names of the installed ones."""
    return sorted(installed_protocols())


def all_tasks() -> list[str]:
    """Names of the installed ones; imports none of them."""
    return sorted(installed_tasks())


def protocol_text(name: str) -> PluginText:
    """All about one protocol; raises `UnknownProtocol`."""
    protocol = load_plugin(name)
    return PluginText(
        name,
        "decentralized" if issubclass(protocol, DecentralizedProtocol) else "collective",
        _first_paragraph(protocol.__doc__),
        tuple(_settings("run.protocol_settings", protocol.Settings)),
    )


def task_text(name: str) -> PluginText:
    """All about one task, which is imported for it, and torch with most; raises `UnknownTask`."""
    task = load_task(name)
    return PluginText(
        name,
        "task",
        _first_paragraph(task.__doc__),
        tuple(_settings("run.task_settings", task.Settings)),
    )


def with_setting(key: str) -> list[PluginText]:
    """The protocols that have a setting of that name (or of the key `run.protocol_settings.NAME`), with it alone."""
    found = []
    for name in all_protocols():
        whole = protocol_text(name)
        alike = tuple(one for one in whole.settings if key in {one.name, one.key})
        if alike:
            found.append(attrs.evolve(whole, settings=alike))
    return found


def _settings(table: str, struct: type[msgspec.Struct]) -> list[SettingText]:
    info = described.type_info(struct)
    assert isinstance(info, described.StructType)
    texts = _docstrings(struct)
    found = []
    for field in info.fields:
        default = field.default
        if field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        found.append(
            SettingText(
                table,
                field.encode_name,
                _type_words(field.type),
                default,
                field.required,
                texts.get(field.name, ""),
            )
        )
    return found


def _docstrings(struct: type[msgspec.Struct]) -> Mapping[str, str]:
    """The text below each field, of the struct and what it inherits."""
    found: dict[str, str] = {}
    for class_ in reversed(struct.__mro__):
        if class_ in {object, msgspec.Struct} or not issubclass(class_, msgspec.Struct):
            continue
        try:
            source = textwrap.dedent(inspect.getsource(class_))
        except (OSError, TypeError):
            continue  # made at run time: there is no source to read
        body = ast.parse(source).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, after in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            ):
                found[field.target.id] = " ".join(after.value.value.split())
    return found


def _type_words(type_: described.Type) -> str:
    match type_:
        case described.IntType(gt=gt, ge=ge, lt=lt, le=le):
            return "whole number" + _bounds(gt, ge, lt, le)
        case described.FloatType(gt=gt, ge=ge, lt=lt, le=le):
            return "number" + _bounds(gt, ge, lt, le)
        case described.BoolType():
            return "true or false"
        case described.StrType(max_length=longest):
            return "text" + ("" if longest is None else f", at most {longest} long")
        case described.LiteralType(values=values):
            return "one of " + ", ".join(map(str, values))
        case described.UnionType(types=types):
            words = [_type_words(one) for one in types if not isinstance(one, described.NoneType)]
            return " or ".join(words)
        case described.ListType(item_type=item) | described.VarTupleType(item_type=item):
            return f"list of {_type_words(item)}"
        case described.TupleType(item_types=items):
            return "list of: " + ", ".join(map(_type_words, items))
        case _:
            return type(type_).__name__.removesuffix("Type").lower()


def _bounds(gt: float | None, ge: float | None, lt: float | None, le: float | None) -> str:
    low = f"at least {ge}" if ge is not None else f"more than {gt}" if gt is not None else ""
    high = f"at most {le}" if le is not None else f"less than {lt}" if lt is not None else ""
    return "".join(f", {words}" for words in (low, high) if words)


def _default_text(setting: SettingText) -> str:
    return (
        "not set" if setting.default is None else toml_value(msgspec.to_builtins(setting.default))
    )


def _first_paragraph(text: str | None) -> str:
    return " ".join(inspect.cleandoc(text or "").partition("\n\n")[0].split())


def _wrapped(text: str) -> list[str]:
    return ["  " + line for line in textwrap.wrap(text, 90)]
