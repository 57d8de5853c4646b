"""The text of `noded netcheck`, from its document (`noded.netcheck/1`).

Unknown is said, never shown as zero or left out.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any, Final

from node.cli.render import Style, duration, printable, rtt, short_id

_COLOURS: Final = {
    "direct": "ok",
    "local": "ok",
    "punchable": "ok",
    "relayed": "warning",
    "unknown": "warning",
    "isolated": "failing",
}
_MAPPING: Final = {
    "independent": "one outside port for all destinations (can be punched)",
    "dependent": "another outside port for each destination (cannot be punched)",
    "none": "no NAT",
    "unknown": "not known yet: too few peers outside to compare",
}


def netcheck_text(report: Mapping[str, Any], style: Style | None = None) -> str:
    """Verdict first, then what it rests on, then what to do."""
    style = style or Style()
    verdict = str(report.get("verdict") or "unknown")
    lines = [
        _line(
            "verdict",
            f"{style.word(verdict, _COLOURS.get(verdict, 'warning'))}: {_text(report.get('sentence'))}",
        )
    ]
    lines += _addresses(report)
    mapping = _map(report.get("mapping"))
    lines.append(_line("nat", _MAPPING.get(str(mapping.get("ipv4")), _MAPPING["unknown"])))
    needed = verdict not in {"direct", "local"}
    lines += [
        _line(f"port {row.get('port')}", _mapped(row, needed=needed))
        for row in _rows(report, "port_mapping")
    ]
    lines.append(_line("hole punch", _punches(_map(report.get("punches")))))
    if trial := _trial(_map(report.get("punch_trial"))):
        lines.append(_line("punch trial", trial))
    lines.append(_line("relays", _relays(report)))
    if report.get("relay_service"):
        lines.append(_line("", "this node serves as a relay for others"))
    failures = _map(report.get("bootstrap_failures"))
    lines += [
        _line("bootstrap" if not number else "", f"{_text(at)}: {_text(reason)}")
        for number, (at, reason) in enumerate(failures.items())
    ]
    if report.get("advice"):
        lines.append(_line("next", _text(report.get("advice"))))
    return "\n".join(lines)


def _addresses(report: Mapping[str, Any]) -> list[str]:
    tested = {str(row.get("address")): row.get("reached") for row in _rows(report, "tested")}
    advertised = [str(address) for address in report.get("advertised") or []]
    lines: list[str] = []
    for address in dict.fromkeys([*advertised, *tested]):
        notes = []
        if address in tested:
            verdict = tested[address]
            notes.append(
                "not tested yet" if verdict is None else "dialed back" if verdict else "closed"
            )
        elif "/via/" in address:
            notes.append("through a relay")
        elif place := _place(address):
            notes.append(place)
        if address not in advertised:
            notes.append("not advertised")
        shown = address
        if "/via/" in address:
            place, _, relay = address.partition("/via/")
            shown = f"{place} via {short_id(relay)}"
        lines.append(
            _line(
                "addresses" if not lines else "",
                _text(shown) + (f"  ({', '.join(notes)})" if notes else ""),
            )
        )
    return lines or [_line("addresses", "none that others could dial")]


def _place(address: str) -> str:
    """From where an address can be dialed that no router outside knows; "" for one that may be dialed from anywhere."""
    try:
        ip = ipaddress.ip_address(address.rpartition(":")[0].strip("[]").partition("%")[0])
    except ValueError:  # a name
        return ""
    if ip.is_loopback:
        return "this machine only"
    return "local network" if ip.is_private or ip.is_link_local else ""


def _mapped(row: Mapping[str, Any], *, needed: bool) -> str:
    if row.get("external"):
        return (
            f"open at the router as {_text(row.get('external'))} by {_text(row.get('method'))}, "
            f"for {duration(row.get('expires_in_s'))}"
        )
    failures = _map(row.get("failures"))
    state = "not mapped" if needed else "not mapped at a router, and need not be"
    if not failures:
        return f"{state} yet" if needed else state
    methods: dict[str, list[str]] = {}
    for method, reason in failures.items():
        methods.setdefault(_text(reason), []).append(_text(method))
    return f"{state}: " + "; ".join(f"{', '.join(who)}: {why}" for why, who in methods.items())


def _punches(punches: Mapping[str, Any]) -> str:
    tried = punches.get("tried") or 0
    if not tried:
        return "left to the others so far" if punches.get("last") else "not tried yet"
    return f"{punches.get('succeeded') or 0} of {tried} succeeded"


def _trial(trial: Mapping[str, Any]) -> str:
    """What came of the newest punch, or why there was none; "" if the document does not say."""
    if not trial:
        return ""
    reason = _text(trial.get("reason"))
    if trial.get("ok") is None:
        return f"none: {reason}"
    who = short_id(trial.get("node"))
    if trial["ok"]:
        return f"{_text(trial.get('path'))} with {who} in {duration(trial.get('took_s'))}"
    return f"failed with {who}: {reason}"


def _relays(report: Mapping[str, Any]) -> str:
    relays = _rows(report, "relays")
    if relays:
        return ", ".join(
            (f"{_text(row['name'])} " if row.get("name") else "")
            + f"{short_id(row.get('node'))} {rtt(row.get('rtt_s'))}"
            for row in relays
        )
    if report.get("verdict") in {"direct", "local"}:
        return "none needed"
    return "none found"


def _line(label: str, text: str) -> str:
    return f"{label:<12} {text}".rstrip()


def _text(value: object) -> str:
    return printable(str(value), 400) if value is not None else "n/a"


def _map(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _rows(report: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    value = report.get(key)
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list) else []
