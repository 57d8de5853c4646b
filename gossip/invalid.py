"""What is wrong with a table of settings, in the words of the person who wrote it.

Problem: msgspec says "Invalid enum value 'star' - at `$.graph`", which names neither what would have been right nor what comes
next. Idea: the struct that refused the value knows both, so the sentence is made from it.
"""

from __future__ import annotations

import difflib
import re
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import attrs
import msgspec

__all__ = ["Complaint", "complaint"]

_UNKNOWN = "Object contains unknown field `"
_MISSING = "Object missing required field `"
_WORDS = {
    "`int`": "a whole number",
    "`float`": "a number",
    "`str`": "text",
    "`bool`": "true or false",
    "`array`": "a list",
    "`object`": "a table",
    "`null`": "nothing",
}


@attrs.frozen
class Complaint:
    """One sentence, and what to do next."""

    key: str
    """The key it is about, dotted ("" for the table itself)."""
    text: str
    hint: str
    """"" where the sentence says it all."""
    unknown: str = ""
    """Name of the key that does not exist, without its table; "" for another fault."""

    def __str__(self) -> str:
        return f"{self.key}: {self.text}" if self.key else self.text


def complaint(error: msgspec.ValidationError, struct: type[msgspec.Struct]) -> Complaint:
    """The error that `msgspec.convert(..., struct)` raised, readable."""
    message, found, tail = str(error).rpartition(" - at `$")  # the value itself may hold this text
    if not found:
        message, tail = tail, ""
    key = tail.removesuffix("`").lstrip(".")
    if message.startswith(_UNKNOWN):
        name = message.removeprefix(_UNKNOWN).removesuffix("`")
        known = _keys(struct, key)
        near = difflib.get_close_matches(name, known, n=1)
        dotted = f"{key}." if key else ""
        what = ", ".join(known) or "none"
        hint = f"did you mean {dotted}{near[0]}?" if near else f"its settings are: {what}"
        return Complaint("", f"there is no setting {dotted + name!r}", hint, unknown=name)
    if message.startswith(_MISSING):
        name = message.removeprefix(_MISSING).removesuffix("`")
        return Complaint(f"{key}.{name}" if key else name, "has to be set", "")
    if message.startswith("Invalid enum value ") and (choices := _choices(struct, key)):
        wrong = message.removeprefix("Invalid enum value ")
        near = difflib.get_close_matches(wrong.strip("'"), choices, n=1)
        text = f"{wrong} is none of {', '.join(choices)}"
        return Complaint(key, text, f"did you mean {near[0]}?" if near else "")
    for word, plain in _WORDS.items():
        message = message.replace(word, plain)
    return Complaint(key, message[0].lower() + message[1:], "")


def _keys(struct: type[msgspec.Struct], path: str) -> tuple[str, ...]:
    """Names in the table at a dotted path; () where there is none."""
    for candidate in _at(struct, path):
        if isinstance(candidate, type) and issubclass(candidate, msgspec.Struct):
            return candidate.__struct_encode_fields__
    return ()


def _choices(struct: type[msgspec.Struct], path: str) -> tuple[str, ...]:
    """What a value at a dotted path may be; () where it is no choice."""
    literals = [one for one in _at(struct, path) if get_origin(one) is Literal]
    return tuple(str(value) for one in literals for value in get_args(one))


def _at(struct: type[msgspec.Struct], path: str) -> tuple[Any, ...]:
    """The types that a value at a dotted path may have: `a.b[0].c` as msgspec writes it."""
    types: tuple[Any, ...] = (struct,)
    for name, item in re.findall(r"([^.\[\]]+)|(\[[^\]]*\])", path):
        found: list[Any] = []
        for one in types:
            if item:
                found += [of for of in get_args(one) if of is not Ellipsis]
            elif isinstance(one, type) and issubclass(one, msgspec.Struct):
                found += [hint] if (hint := get_type_hints(one).get(name)) is not None else []
        types = tuple(part for one in found for part in _alternatives(one))
    return types


def _alternatives(type_: Any) -> tuple[Any, ...]:
    return get_args(type_) if get_origin(type_) in {Union, UnionType} else (type_,)
