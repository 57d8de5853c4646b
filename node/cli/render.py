"""Status and tables as text: aligned columns, no boxes, colour only where somebody sees it.

Problem: the output is read by people and by grep. Boxes break grep, a "0" for an unknown latency is a
lie, and names come from strangers.

Idea: pure functions from the JSON that `--json` prints to text, so text never shows a fact that the
JSON lacks. What is unknown is `n/a`; what a peer chose is escaped before it is shown.

Invariants: no input, however odd, makes these functions raise (a status from a newer daemon still
renders); the standard library only, and little of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TextIO

__all__ = [
    "Style",
    "duration",
    "human_bytes",
    "number",
    "peers_text",
    "printable",
    "rtt",
    "short_id",
    "status_text",
    "style_for",
    "table",
]

UNKNOWN: Final = "n/a"
MAX_TEXT_CHARS: Final = 4000
_NAME_CHARS: Final = 32

_ESCAPES: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: str, limit: int = MAX_TEXT_CHARS) -> str:
    r"""`text` safe to print: control, bidirectional and unpaired characters as `\x1b` or `\u202e`.

    Anything that could move a cursor, end a line, or reverse the order of what follows is escaped;
    what is longer than `limit` characters is cut before that.
    """
    if len(text) > limit:
        text = text[:limit] + "..."
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else _escape(character) for character in text
    )


def _escape(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class Style:
    """Paints words by what they mean, or leaves them alone.

    Args:
        colour: whether to paint at all; see `style_for`.
    """

    _CODES: Final = {
        **dict.fromkeys(("ok", "active", "training", "finished"), "32"),
        **dict.fromkeys(("warning", "joining", "syncing", "waiting", "degraded", "stopping"), "33"),
        **dict.fromkeys(("failing", "lost", "exited", "down"), "31"),
        **dict.fromkeys(("left", "idle", "info"), "2"),
        "bold": "1",
        "dim": "2",
    }

    def __init__(self, colour: bool = False) -> None:
        self.colour = colour

    def word(self, text: str, meaning: str = "") -> str:
        """`text` in the colour of `meaning` (of `text` itself by default)."""
        code = self._CODES.get(meaning or text)
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and code and text else text


def style_for(
    stream: TextIO, *, no_color: bool = False, environ: Mapping[str, str] | None = None
) -> Style:
    """Colour if `stream` is a terminal that has it and nobody said no (no-color.org)."""
    environ = os.environ if environ is None else environ
    wanted = not no_color and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
    return Style(colour=wanted and stream.isatty())


def table(header: Sequence[str], rows: Iterable[Sequence[str]], style: Style | None = None) -> str:
    """Aligned columns, two spaces apart; the last one is never padded. No rows: the header alone."""
    style = style or Style()
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = []
    for number_, row in enumerate(cells):
        painted = [
            (style.word(cell, "bold" if number_ == 0 else cell), width - len(cell))
            for cell, width in zip(row, widths, strict=True)
        ]
        lines.append("  ".join(text + " " * pad for text, pad in painted).rstrip())
    return "\n".join(lines)


def human_bytes(value: object) -> str:
    """`1.1 GiB`; bytes in, three significant digits out."""
    if not isinstance(value, int | float) or isinstance(value, bool) or value != value:  # noqa: PLR0124 (NaN)
        return UNKNOWN
    size = float(value)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" or abs(size) >= 100 else f"{size:.1f} {unit}"


def duration(value: object) -> str:
    """`3d 4h`, `12m 5s`, `4.2 s`: seconds in, two units out."""
    if not _is_number(value):
        return UNKNOWN
    seconds = float(value)  # type: ignore[arg-type]  # _is_number looked
    if seconds < 60:
        return f"{seconds:.1f} s" if 0 < seconds < 10 else f"{seconds:.0f} s"
    whole = int(seconds)
    units = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
    for position, (unit, size) in enumerate(units):
        if whole >= size:
            rest_unit, rest_size = units[position + 1] if position < 3 else ("", 1)
            rest = whole % size // rest_size
            return f"{whole // size}{unit}" + (f" {rest}{rest_unit}" if rest_unit and rest else "")
    return f"{whole}s"


def rtt(value: object) -> str:
    """A round-trip time: seconds in, `21 ms` or `0.3 ms` out."""
    if not _is_number(value):
        return UNKNOWN
    milliseconds = float(value) * 1000  # type: ignore[arg-type]  # _is_number looked
    return f"{milliseconds:.0f} ms" if milliseconds >= 10 else f"{milliseconds:.1f} ms"


def number(value: object, digits: int | None = None) -> str:
    """A count or, with `digits`, a measure; `n/a` if unknown."""
    if not _is_number(value):
        return UNKNOWN
    return f"{value}" if digits is None else f"{float(value):.{digits}f}"  # type: ignore[arg-type]


def short_id(value: object) -> str:
    """The first two groups of a printed id, enough for people: `nd-7kq2-m4xf`."""
    if not isinstance(value, str) or not value:
        return UNKNOWN
    return printable("-".join(value.split("-")[:3]), 40)


def status_text(
    status: Mapping[str, Any],
    style: Style | None = None,
    *,
    aim: Callable[[str], str] = str,
    usual_socket: str = "",
) -> str:
    """A `noded.status/1` object as the lines of `noded status`: verdict first, health last.

    Args:
        status: the object.
        style: colours.
        aim: rewrites commands in hints, see `node.cli.base.Settings.aim`.
        usual_socket: where a script looks for its daemon unless it is told; another place is shown.
    """
    style = style or Style()
    node = _map(status.get("node"))
    verdict = _text(status.get("verdict"))
    first = [style.word(verdict, verdict), f"noded {_text(status.get('version'))}"]
    first.append(f"id {short_id(node.get('id'))}" + _quoted(node.get("name")))
    first.append(_text(status.get("state")))
    first.append(f"up {duration(node.get('uptime_s'))}")
    lines = ["  ".join(first), _network_line(status, node)]
    lines += _run_lines(_map(status.get("run")))
    lines += _trainer_lines(status, usual_socket)
    if checkpoint := _map(status.get("checkpoint")):
        where = f"  {_text(checkpoint.get('path'), 400)}" if checkpoint.get("path") else ""
        lines.append(
            f"saved    step {number(checkpoint.get('step'))}"
            f"  round {number(checkpoint.get('round'))}{where}"
        )
    relay = _map(status.get("relay"))
    if relay.get("serving") or relay.get("carried_bytes"):
        lines.append(_relay_line(relay))
    traffic = _map(status.get("traffic"))
    lines.append(
        f"traffic  sent {human_bytes(traffic.get('bytes_sent'))}"
        f"  received {human_bytes(traffic.get('bytes_received'))}"
    )
    warnings = [warning for warning in _list(status.get("health")) if isinstance(warning, Mapping)]
    if warnings:
        lines.append(style.word("# Health", "dim"))
    for warning in warnings:
        severity = _text(warning.get("severity"))
        hint = aim(_text(warning.get("hint"), 400)) if warning.get("hint") else ""
        lines.append(
            f"#   {style.word(severity, severity)} {_text(warning.get('code'))}"
            f"  {_text(warning.get('text'), 400)}" + (f"; {hint}" if hint else "")
        )
    return "\n".join(lines)


def peers_text(
    peers: Sequence[object], style: Style | None = None, *, sort: str = "", everything: bool = True
) -> str:
    """The table of `noded peers`.

    Args:
        peers: the `peers` list of a status.
        style: colours.
        sort: "rtt", "name" or "seen"; empty keeps the daemon's order.
        everything: whether those that left on their own account are shown as well.
    """
    rows = []
    entries = [peer for peer in peers if isinstance(peer, Mapping)]
    names = {str(peer.get("id")): peer.get("name") for peer in entries}
    if not everything:
        entries = [peer for peer in entries if peer.get("state") != "left"]
    key = {"rtt": "rtt_s", "seen": "last_seen_s"}.get(sort)
    if key is not None:
        entries.sort(key=lambda peer: peer[key] if _is_number(peer.get(key)) else float("inf"))
    elif sort == "name":
        entries.sort(key=lambda peer: str(peer.get("name") or "~"))
    for peer in entries:
        state = _text(peer.get("state"))
        path = _text(peer.get("path")) if peer.get("path") else UNKNOWN
        if path == "relayed" and peer.get("relay"):
            relay = names.get(str(peer["relay"]))
            path += f" by {_text(relay, _NAME_CHARS) if relay else short_id(peer['relay'])}"
        elif peer.get("address"):
            path += f" {_text(peer.get('address'), 60)}"
        if state in {"lost", "left"}:
            path = f"({_text(peer.get('reason'), 44)})" if peer.get("reason") else "(no reason)"
        rows.append(
            [
                short_id(peer.get("id")),
                _text(peer.get("name"), _NAME_CHARS) if peer.get("name") else UNKNOWN,
                state,
                path,
                rtt(peer.get("rtt_s")),
                number(peer.get("round")),
                number(peer.get("loss"), 3),
                number(peer.get("tokens_per_s"), 0),
                human_bytes(peer.get("bytes_sent")),
                human_bytes(peer.get("bytes_received")),
                _seen(peer.get("last_seen_s")),
            ]
        )
    header = ["ID", "NAME", "STATE", "PATH", "RTT", "ROUND", "LOSS", "TOK/S", "UP", "DOWN", "SEEN"]
    return table(header, rows, style)


def _network_line(status: Mapping[str, Any], node: Mapping[str, Any]) -> str:
    peers = [peer for peer in _list(status.get("peers")) if isinstance(peer, Mapping)]
    names = {str(peer.get("id")): peer.get("name") for peer in peers}
    addresses, relays = [], []
    for address in map(str, _list(node.get("addresses"))):
        place, _, relay = address.partition("/via/")
        if relay:
            relays.append(_text(names.get(relay) or short_id(relay), _NAME_CHARS))
        else:
            addresses.append(_text(place, 60))
    where = "listening on " + ", ".join(addresses) if addresses else "not listening"
    if relays:
        where += f", relayed by {', '.join(dict.fromkeys(relays))}"
    states: dict[str, int] = {}
    for peer in peers:
        state = _text(peer.get("state"))
        states[state] = states.get(state, 0) + 1
    counts = ", ".join(f"{count} {state}" for state, count in states.items()) or "none"
    relayed = sum(peer.get("path") == "relayed" for peer in peers)
    over = f" ({relayed} over a relay)" if relayed else ""
    return f"network  {where}   peers {counts}{over}"


def _relay_line(relay: Mapping[str, Any]) -> str:
    counts = _map(relay.get("refused"))
    refused = sum(count for count in counts.values() if _is_number(count))
    reasons = ", ".join(_text(reason) for reason, count in counts.items() if count)
    parts = ["relay    not serving now"]
    if relay.get("serving"):
        parts = [
            f"relay    {number(relay.get('circuits'))} circuits",
            f"for {number(relay.get('reservations'))} nodes",
        ]
    budget, left = human_bytes(relay.get("budget_bytes")), relay.get("budget_left_bytes")
    parts.append(f"carried {human_bytes(relay.get('carried_bytes'))}")
    parts.append(f"budget {human_bytes(left)} of {budget} left")
    if refused:
        parts.append(f"refused {number(refused)} ({reasons})")
    return "  ".join(parts)


def _run_lines(run: Mapping[str, Any]) -> list[str]:
    if not run:
        return ["run      none (run.name in noded.toml names one)"]
    total = run.get("rounds_total")
    rounds = f"round {number(run.get('round'))}" + (f" of {number(total)}" if total else "")
    parts = [f"run      {_text(run.get('name'))}", rounds]
    epoch = _map(run.get("epoch"))
    joined: Any = run.get("members_last_round")
    if _is_number(joined):
        members = len(_list(epoch.get("members"))) if epoch else 0
        # The epoch may be a later, smaller one than that of the round.
        of = f" of {members}" if members >= joined else ""
        took = (
            f" ({duration(run['round_seconds'])})" if _is_number(run.get("round_seconds")) else ""
        )
        parts.append(f"{number(joined)}{of} joined last round{took}")
    gossip = _map(run.get("gossip"))
    if gossip:
        parts.append(f"{len(_list(gossip.get('neighbours')))} neighbours")
    steps = run.get("steps_total")
    parts.append(f"step {number(run.get('step'))}" + (f" of {number(steps)}" if steps else ""))
    parts.append(f"loss {number(run.get('loss'), 3)}")
    if _is_number(run.get("val_loss")):
        parts.append(f"validation {number(run.get('val_loss'), 3)}")
    accuracy: Any = run.get("accuracy")
    if _is_number(accuracy):
        parts.append(f"accuracy {100 * accuracy:.1f} %")
    parts.append(f"{number(run.get('tokens_per_s'), 0)} tokens/s")
    return ["  ".join(parts)]


def _trainer_lines(status: Mapping[str, Any], usual_socket: str) -> list[str]:
    trainer = _map(status.get("trainer"))
    state = _text(trainer.get("state"))
    if state in {"none", UNKNOWN}:
        if trainer.get("auto") is not False or _text(status.get("state")) not in {
            "joining",
            "idle",
        }:
            return []
        if not status.get("run"):
            return []
        role = _map(_map(status.get("swarm")).get("certificate")).get("role")
        if role in {"observer", "relay"}:
            return [f"trainer  none: this node's certificate makes it {role}"]
        name = _text(_map(status.get("run")).get("name"))
        lines = [f'trainer  waiting for a script on this machine with node.join("{name}", ...)']
        socket = _text(trainer.get("socket"), 200)
        if socket not in {usual_socket, UNKNOWN}:
            lines.append(f"         started with  NODED_TRAINER_SOCKET={socket}")
        return lines
    line = f"trainer  {state}"
    if trainer.get("pid"):
        line += f"  pid {number(trainer.get('pid'))}"
    if trainer.get("restarts"):
        line += f"  restarted {number(trainer.get('restarts'))} times"
    return [line]


def _seen(value: object) -> str:
    if not _is_number(value):
        return UNKNOWN
    return "now" if float(value) < 2 else f"{duration(value)} ago"  # type: ignore[arg-type]


def _quoted(name: object) -> str:
    return f' ("{_text(name, _NAME_CHARS)}")' if name else ""


def _text(value: object, limit: int = 80) -> str:
    return UNKNOWN if value is None else printable(str(value), limit)


def _map(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else []


def _is_number(value: object) -> bool:
    """A real number: JSON's null, a text or NaN is not one."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value  # noqa: PLR0124
