"""What a protocol's settings are, as text: `noded config explain PROTOCOL`.

Problem: every protocol has settings of its own, installed by whoever wrote it, and none of them is in the configuration's
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
from gossip.protocol import Plugin, installed_protocols, load_plugin
from node.config_text import toml_value

__all__ = ["ProtocolText", "SettingText", "all_protocols", "protocol_text"]

KEY = "run.protocol_settings"


@attrs.frozen
class SettingText:
    """One setting of a protocol."""

    name: str
    kind: str
    """Type and bounds, in words."""
    default: Any
    required: bool
    text: str

    @property
    def key(self) -> str:
        """In the configuration."""
        return f"{KEY}.{self.name}"

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
class ProtocolText:
    """A protocol and its settings."""

    name: str
    kind: str
    """"collective" (certified rounds) or "decentralized" (no agreement)."""
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
        lines = [f'run.protocol = "{self.name}"  ({self.kind})', *_wrapped(self.summary)]
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


def protocol_text(name: str) -> ProtocolText:
    """All about one protocol; raises `UnknownProtocol`."""
    protocol = load_plugin(name)
    return ProtocolText(
        name,
        "decentralized" if issubclass(protocol, DecentralizedProtocol) else "collective",
        _first_paragraph(protocol.__doc__),
        tuple(_settings(protocol)),
    )


def _settings(protocol: type[Plugin]) -> list[SettingText]:
    info = described.type_info(protocol.Settings)
    assert isinstance(info, described.StructType)
    texts = _docstrings(protocol.Settings)
    found = []
    for field in info.fields:
        default = field.default
        if field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        found.append(
            SettingText(
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
