"""Members, their history and invites as text.

Invariants: as `node.cli.render`: pure functions of the JSON; nothing in it, however odd, makes them raise; what others chose is escaped.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from node.cli.render import Style, printable, short_id, table

__all__ = ["history_text", "invites_text", "members_text"]

UNKNOWN = "n/a"


def members_text(answer: Mapping[str, Any], style: Style | None = None) -> str:
    """The members, and those that are out, with who invited them."""
    names = _names(answer)
    cells = [
        [
            short_id(row.get("id")),
            names.get(str(row.get("id")), "-"),
            _text(row.get("state")),
            _text(row.get("role")) + (", may invite" if row.get("may_invite") else ""),
            _who(row.get("inviter"), names),
            when(row.get("joined_ms")),
            when(row.get("expires_ms")),
        ]
        for row in _rows(answer, "members")
    ]
    header = ["ID", "NAME", "STATE", "ROLE", "INVITED BY", "SINCE", "UNTIL"]
    return table(header, cells, style)


def history_text(answer: Mapping[str, Any], style: Style | None = None) -> str:
    """What was signed about membership, oldest first."""
    names = _names(answer)
    cells = [
        [
            when(row.get("at_ms")),
            _text(row.get("event")),
            _who(row.get("node"), names),
            _who(row.get("by"), names),
            _text(row.get("detail")) or "-",
        ]
        for row in _rows(answer, "history")
    ]
    return table(["WHEN", "WHAT", "NODE", "BY", "DETAIL"], cells, style)


def invites_text(answer: Mapping[str, Any], style: Style | None = None) -> str:
    """The invites of a node."""
    cells = []
    for row in _rows(answer, "invites"):
        used = row.get("used")
        nodes = [short_id(use.get("node")) for use in _dicts(used)]
        cells.append(
            [
                _text(row.get("id"))[:8],
                _text(row.get("state")),
                f"{len(nodes)} of {_text(row.get('uses'))}",
                _text(row.get("role")) + (", may invite" if row.get("may_invite") else ""),
                when(row.get("expires_ms")),
                " ".join(nodes[:4]) + (" ..." if len(nodes) > 4 else "") or "-",
            ]
        )
    return table(["ID", "STATE", "USED", "ROLE", "UNTIL", "BY"], cells, style)


def when(value: object) -> str:
    """Milliseconds since 1970 in local time."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return UNKNOWN
    try:
        moment = dt.datetime.fromtimestamp(value / 1000, tz=dt.UTC).astimezone()
    except (OverflowError, OSError, ValueError):
        return UNKNOWN
    return moment.strftime("%Y-%m-%d %H:%M")


def _rows(answer: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    return _dicts(answer.get(key))


def _dicts(rows: object) -> list[dict[str, Any]]:
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _names(answer: Mapping[str, Any]) -> dict[str, str]:
    return {
        str(row.get("id")): printable(str(row["name"]), 32)
        for row in _rows(answer, "members")
        if row.get("name")
    }


def _who(node: object, names: Mapping[str, str]) -> str:
    if node is None or node == "":
        return "-"
    if node == "root":
        return "root"
    name = names.get(str(node))
    return f"{name} ({short_id(node)})" if name else short_id(node)


def _text(value: object) -> str:
    return UNKNOWN if value is None else printable(str(value), 120)
