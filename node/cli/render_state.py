"""The text of `noded state`, from its document (`noded.state/1`).

One line for each entry: what it says, who signed it, when by the writer's clock, and how long it holds.
Everything here was written by others: it is cut to a length and made printable.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from node.cli.render import (
    UNKNOWN,
    Style,
    duration,
    human_bytes,
    number,
    printable,
    short_id,
    table,
)

__all__ = ["state_text"]

MOST: Final = 160
"""Characters of a value."""
NAME: Final = 24
_DIGEST: Final = 12
"""Hex digits of a hash that are shown."""


def state_text(document: Mapping[str, Any], style: Style | None = None) -> str:
    """The document, field by field; then who is not heard, and why."""
    style = style or Style()
    names = _map(document.get("names"))
    head = [
        style.word(printable(str(document.get("run") or UNKNOWN), NAME), "bold"),
        f"document {_hash(document.get('document'))}",
        f"digest {_hash(document.get('digest'))}",
        f"{number(document.get('writers'))} writer{'' if document.get('writers') == 1 else 's'}",
        human_bytes(document.get("bytes")),
    ]
    lines = ["  ".join(head), ""]
    entries = sorted(
        _rows(document, "entries"), key=lambda row: (str(row.get("key")), str(row.get("author")))
    )
    rows = [
        [
            printable(str(row.get("key")), NAME),
            _who(row.get("author"), names),
            _clock(row),
            _lease(row),
            _said(str(row.get("key")), row.get("value")),
        ]
        for row in entries
    ]
    lines.append(table(["KEY", "AUTHOR", "CLOCK (UTC)", "HOLDS FOR", "SAYS"], rows, style))
    checkpoint = document.get("checkpoint")
    if isinstance(checkpoint, Mapping):
        step, sha256 = number(checkpoint.get("step")), _hash(checkpoint.get("sha256"))
        held = _who(checkpoint.get("holder"), names)
        lines += ["", f"newest checkpoint  step {step}  sha256 {sha256}  held by {held}"]
    lines += [
        f"{style.word('revoked', 'failing')}  {_who(row.get('node'), names)}  {_text(row.get('reason'))}"
        for row in _rows(document, "revoked")
    ]
    lines += [
        f"{style.word('convicted', 'failing')}  {_who(row.get('node'), names)}  signed two stories: "
        f"{_text(row.get('reason'))}; nothing it says counts any more"
        for row in _rows(document, "convicted")
    ]
    lines += [
        f"{style.word('left out', 'warning')}  {_who(row.get('node'), names)}  its clock is "
        f"{duration(_seconds(row.get('ms')))} ahead of this node's"
        for row in _rows(document, "ahead")
    ]
    return "\n".join(lines)


def _said(key: str, value: object) -> str:
    """A value on one line; names where the field's form is known."""
    fields = _map(value)
    if key == "member" and fields:
        parts = [_text(fields.get("name")), _text(fields.get("role")), _text(fields.get("status"))]
        addresses = fields.get("addresses")
        if isinstance(addresses, list):
            parts += [_text(address) for address in addresses[:2]]
        return " ".join(parts + [_text(fields["reason"])] * bool(fields.get("reason")))
    if key == "run" and fields:
        settings = _map(fields.get("settings"))
        pairs = ", ".join(f"{name}={settings[name]}" for name in sorted(settings))
        pinned = f"manifest {_hash(fields.get('manifest_sha256'))}"
        return _text(f"{fields.get('task')} by {fields.get('protocol')}, {pinned}: {pairs}")
    if fields:
        return _text(", ".join(f"{name} {_short(fields[name])}" for name in fields))
    if isinstance(value, list):
        shown = [_said("", item) if isinstance(item, Mapping) else str(item) for item in value]
        return _text("; ".join(shown))
    return _text(value)


def _short(value: object) -> str:
    if isinstance(value, str) and len(value) == 64:
        return value[:_DIGEST]
    if isinstance(value, float):
        return f"{value:.6g}"
    return UNKNOWN if value is None or value == "" else str(value)


def _clock(row: Mapping[str, Any]) -> str:
    milliseconds, counter = row.get("time_ms"), row.get("counter")
    if not isinstance(milliseconds, int):
        return UNKNOWN
    try:
        at = datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return UNKNOWN
    return f"{at:%m-%d %H:%M:%S}.{milliseconds % 1000:03d}+{counter}"


def _lease(row: Mapping[str, Any]) -> str:
    left = row.get("lease_left_s")
    if left is None:
        return "ever"
    return duration(left) if isinstance(left, int | float) and left > 0 else "over"


def _who(node: object, names: Mapping[str, Any]) -> str:
    name = printable(str(names.get(str(node)) or ""), NAME)
    return f"{short_id(node)} ({name})" if name else short_id(node)


def _hash(value: object) -> str:
    return printable(str(value), 64)[:_DIGEST] if value else UNKNOWN


def _seconds(value: object) -> object:
    return value / 1000 if isinstance(value, int | float) else None


def _text(value: object) -> str:
    return printable(str(value), MOST) if value is not None else UNKNOWN


def _map(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _rows(document: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    value = document.get(key)
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list) else []
