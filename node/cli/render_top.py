"""What `noded top` shows: two statuses a moment apart, as rates, one row for each member, the slow ones named.

Pure functions; like `node.cli.render`, text never shows a fact that the JSON (`figures`) lacks, and no status, however odd,
makes them raise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from node.cli.render import (
    UNKNOWN,
    Style,
    duration,
    human_bytes,
    number,
    printable,
    rtt,
    short_id,
    table,
)

__all__ = ["figures", "top_text"]

SCHEMA: Final = "noded.top/1"
_NAME: Final = 16
_LOUD: Final = 5
"""Findings shown; the rest is counted."""


def figures(
    status: Mapping[str, Any], before: Mapping[str, Any] | None, elapsed_s: float
) -> dict[str, Any]:
    """What one refresh says, as `noded top --json` prints it.

    Args:
        status: a `noded.status/1` object.
        before: the one of the refresh before; None at first, then there are no rates yet.
        elapsed_s: between the two.
    """
    earlier = {} if before is None else _by_id(before)
    run, node = _map(status.get("run")), _map(status.get("node"))
    rhythm = _map(run.get("rhythm"))
    late = {str(row.get("id")): row.get("late_s") for row in _rows(rhythm.get("members"))}
    links = _rows(rhythm.get("links"))
    me = str(node.get("id"))
    gossip = run.get("gossip")
    near = {str(row.get("id")): row for row in _rows(_map(gossip).get("peers"))}
    process = _map(status.get("process"))
    traffic, traffic_before = _map(status.get("traffic")), _map((before or {}).get("traffic"))
    return {
        "schema": SCHEMA,
        "node": {key: node.get(key) for key in ("id", "name", "uptime_s")},
        "state": status.get("state"),
        "run": {
            key: run.get(key)
            for key in (
                "name",
                "protocol",
                "round",
                "rounds_total",
                "step",
                "loss",
                "tokens_per_s",
                "round_seconds",
                "members_last_round",
                "phase",
                "aborted_operations",
            )
        },
        "agreement": not isinstance(gossip, Mapping),
        "alone": _map(gossip).get("alone"),
        "sent_per_s": _rate(traffic, traffic_before, "bytes_sent", elapsed_s),
        "received_per_s": _rate(traffic, traffic_before, "bytes_received", elapsed_s),
        "rss_bytes": process.get("rss_bytes"),
        "loop_lag_max_ms": process.get("loop_lag_max_ms"),
        "late_s": late.get(me),
        "members": [
            {
                **{key: row.get(key) for key in ("id", "name", "state", "path", "rtt_s", "round")},
                "loss": row.get("loss"),
                "tokens_per_s": row.get("tokens_per_s"),
                "sent_per_s": _rate(row, earlier.get(str(row.get("id"))), "bytes_sent", elapsed_s),
                "received_per_s": _rate(
                    row, earlier.get(str(row.get("id"))), "bytes_received", elapsed_s
                ),
                "late_s": late.get(str(row.get("id"))),
                "link_in": _link(links, str(row.get("id")), me),
                "link_out": _link(links, me, str(row.get("id"))),
                "gossip": near.get(str(row.get("id"))),
            }
            for row in _rows(status.get("peers"))
            if row.get("state") not in {"lost", "left"}
        ],
        "findings": [dict(row) for row in _rows(rhythm.get("findings"))],
        "health": [dict(row) for row in _rows(status.get("health"))],
    }


def top_text(shown: Mapping[str, Any], style: Style | None = None, *, height: int = 0) -> str:
    """A screen of what `figures` gave; rows that do not fit into `height` lines are counted (0: no limit)."""
    style = style or Style()
    node, run = _map(shown.get("node")), _map(shown.get("run"))
    names = {str(row.get("id")): row.get("name") for row in _rows(shown.get("members"))}
    names[str(node.get("id"))] = node.get("name") or "this node"
    state = _text(shown.get("state"))
    head = [
        style.word("noded top", "bold"),
        _who(node.get("id"), names),
        style.word(state),
        f"up {duration(node.get('uptime_s'))}",
    ]
    net = [
        f"net   sent {_per_s(shown.get('sent_per_s'))}",
        f"received {_per_s(shown.get('received_per_s'))}",
        f"rss {human_bytes(shown.get('rss_bytes'))}",
        f"loop lag {number(shown.get('loop_lag_max_ms'), 1)} ms",
    ]
    lines = ["  ".join(head), "  ".join(net), _run_line(run, shown)]
    lines += _findings(shown, names, style)
    lines += _alone(shown, style)
    members = _rows(shown.get("members"))
    columns = _TOGETHER if shown.get("agreement") is not False else _GOSSIP
    rows = [
        [_who(row.get("id"), names), *(cell(row) for cell in columns.values())] for row in members
    ]
    room = max(1, height - len(lines) - 3) if height else len(rows)
    lines += ["", table(["MEMBER", *columns], rows[:room], style)]
    if len(rows) > room:
        lines.append(f"and {len(rows) - room} more: noded peers")
    return "\n".join(lines)


Column = Callable[[Mapping[str, Any]], str]

_WHERE: Final[Mapping[str, Column]] = {
    "STATE": lambda row: _text(row.get("state")),
    "PATH": lambda row: _text(row.get("path")),
    "RTT": lambda row: rtt(row.get("rtt_s")),
    "SENT": lambda row: _per_s(row.get("sent_per_s")),
    "RECEIVED": lambda row: _per_s(row.get("received_per_s")),
}
_TRAINS: Final[Mapping[str, Column]] = {
    "ROUND": lambda row: number(row.get("round")),
    "LOSS": lambda row: number(row.get("loss"), 3),
    "TOK/S": lambda row: number(row.get("tokens_per_s"), 0),
}
_TOGETHER: Final[Mapping[str, Column]] = {
    **_WHERE,
    "LATE": lambda row: _late(row.get("late_s")),
    "LINK IN": lambda row: _per_s(row.get("link_in")),
    "LINK OUT": lambda row: _per_s(row.get("link_out")),
    **_TRAINS,
}
"""Of a protocol whose members wait for each other in operations."""
_GOSSIP: Final[Mapping[str, Column]] = {
    **_WHERE,
    "LAST MODEL": lambda row: _last_model(row.get("gossip")),
    "MODELS IN": lambda row: _count(row.get("gossip"), "models_received", "bytes_received"),
    "MODELS OUT": lambda row: _count(row.get("gossip"), "models_sent", "bytes_sent"),
    **_TRAINS,
}
"""Of one without agreement: there are no operations to be late in, and no links to measure in them."""


def _last_model(gossip: object) -> str:
    if not isinstance(gossip, Mapping):
        return "no neighbour"
    age_s = gossip.get("last_model_s")
    return "none yet" if age_s is None else f"{duration(age_s)} ago"


def _count(gossip: object, models: str, size: str) -> str:
    if not isinstance(gossip, Mapping):
        return "none"
    return f"{number(gossip.get(models))} ({human_bytes(gossip.get(size))})"


def _alone(shown: Mapping[str, Any], style: Style) -> list[str]:
    """A line where this node learns alone though it should not."""
    alone = _map(shown.get("alone"))
    if not alone:
        return []
    reason = f": {_text(alone.get('reason'))}" if alone.get("reason") else ""
    words = f"no other node's model in the last {number(alone.get('rounds'))} rounds{reason}"
    return [f"{style.word('alone', 'warning')} {words}"]


def _run_line(run: Mapping[str, Any], shown: Mapping[str, Any]) -> str:
    if not run.get("name"):
        return "run   none"
    total = f" of {number(run.get('rounds_total'))}" if run.get("rounds_total") else ""
    seconds = run.get("round_seconds")
    took = "" if seconds is None else f" ({duration(seconds)})"
    line = (
        f"run   {_text(run.get('name'))} by {_text(run.get('protocol'))}"
        f"  round {number(run.get('round'))}{total}{took}"
        f"  loss {number(run.get('loss'), 3)}  {number(run.get('tokens_per_s'), 0)} tokens/s"
    )
    if shown.get("agreement") is False:
        return f"{line}  {number(run.get('members_last_round'))} joined last round"
    return f"{line}  late {_late(shown.get('late_s'))}  aborted {number(run.get('aborted_operations'))}"


def _findings(shown: Mapping[str, Any], names: Mapping[str, Any], style: Style) -> list[str]:
    found = [_sentence(row, names) for row in _rows(shown.get("findings"))]
    lines = [f"{style.word('slow', 'warning')}  {sentence}" for sentence in found[:_LOUD]]
    if len(found) > _LOUD:
        lines.append(f"      and {len(found) - _LOUD} more")
    return lines


def _sentence(finding: Mapping[str, Any], names: Mapping[str, Any]) -> str:
    who, factor = (
        _who(finding.get("member"), names),
        f"{number(finding.get('factor'), 1)}x slower than usual",
    )
    match finding.get("ailment"):
        case "late":
            return (
                f"{who} begins operations late: {number(finding.get('factor'), 1)}x its usual delay"
            )
        case "uplink":
            return f"what {who} sends, to most members: {factor}"
        case "downlink":
            return f"what {who} receives, from most members: {factor}"
        case "link":
            return f"the link from {who} to {_who(finding.get('other'), names)}: {factor}"
        case other:
            return f"{_text(other)} {who} {factor}"


def _link(links: Sequence[Mapping[str, Any]], source: str, destination: str) -> Any:
    ends = (source, destination)
    return next(
        (
            row.get("bytes_per_s")
            for row in links
            if (str(row.get("source")), str(row.get("destination"))) == ends
        ),
        None,
    )


def _rate(
    now: Mapping[str, Any], before: Mapping[str, Any] | None, key: str, elapsed_s: float
) -> float | None:
    if before is None or elapsed_s <= 0:
        return None
    after, earlier = now.get(key), before.get(key)
    if not isinstance(after, int | float) or not isinstance(earlier, int | float):
        return None
    # A connection that was replaced counts from zero again.
    return max(0.0, after - earlier) / elapsed_s


def _per_s(value: object) -> str:
    return f"{human_bytes(value)}/s" if isinstance(value, int | float) else UNKNOWN


def _late(value: object) -> str:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return UNKNOWN
    return f"{value * 1000:.0f} ms" if value < 1 else duration(value)


def _who(node: object, names: Mapping[str, Any]) -> str:
    name = printable(str(names.get(str(node)) or ""), _NAME)
    return name or short_id(node)


def _text(value: object) -> str:
    return UNKNOWN if value is None else printable(str(value), 80)


def _by_id(status: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {str(row.get("id")): row for row in _rows(status.get("peers"))}


def _map(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _rows(value: object) -> list[Mapping[str, Any]]:
    return (
        [row for row in value if isinstance(row, Mapping)]
        if isinstance(value, list | tuple)
        else []
    )
