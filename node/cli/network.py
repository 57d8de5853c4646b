"""The verbs about the network: `noded ping` and `noded netcheck`.

Invariant: like `node.cli.main`, this module imports click and the standard library; only a netcheck without
a daemon loads the event loop.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import click

from node.cli.base import Settings, Verb, Verbs, current_settings
from node.errors import DaemonNotRunning, NodedError, PeerNotReachable, TimedOut

__all__ = ["add_network_verbs"]

ALONE_S = 20.0
"""How long a netcheck without a daemon looks for peers and asks them."""


def add_network_verbs(group: Verbs) -> None:
    """Put the verbs into the command line."""
    group.add_command(ping)
    group.add_command(netcheck)


def _complete_peer(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    from node.cli.client import Client, find_socket

    try:
        answer = Client(find_socket(None, None), timeout_s=0.5).get("/v1/peers")
        entries = [entry for entry in answer.get("peers", []) if isinstance(entry, dict)]
    except NodedError:
        return []
    names = [str(entry.get("name") or entry.get("id")) for entry in entries]
    return [name for name in names if name.startswith(incomplete)]


@click.command("ping", cls=Verb, short_help="Round trip to PEER, and over which path.")
@click.argument("peer", shell_complete=_complete_peer)
@click.option(
    "-c",
    "--count",
    type=click.IntRange(1, 10_000),
    default=3,
    show_default=True,
    metavar="N",
    help="How many pings.",
)
@click.option(
    "--interval",
    type=click.FloatRange(0, 3600),
    default=1.0,
    show_default=True,
    metavar="S",
    help="Seconds between two pings.",
)
@click.option(
    "--until-direct", is_flag=True, help="Go on until the path is direct; 5 if --timeout is over."
)
def ping(peer: str, count: int, interval: float, until_direct: bool) -> None:
    """Measure the round trip to PEER (a name, an id, or the start of one) and its path."""
    settings = current_settings()
    client = settings.client(default_timeout_s=25.0)
    deadline = time.monotonic() + (settings.timeout_s or 60.0)
    replies: list[dict[str, Any]] = []
    answer: dict[str, Any] = {}
    number = 0
    while until_direct or number < count:
        if number:
            time.sleep(interval)
        number += 1
        answer = client.post("/v1/ping", {"peer": peer, "count": 1})
        before = replies[-1].get("path") if replies else None
        new = answer.get("replies") or []
        replies = [*replies, *new][-10_000:]
        for reply in new:
            if not settings.json:
                _print_reply(peer, answer, reply, before)
        if until_direct and replies and replies[-1].get("path") != "relayed":
            break
        if until_direct and time.monotonic() >= deadline:
            raise TimedOut(
                f"{peer} is still reached over a relay", hint=_why_relayed(answer, settings)
            )
    if not replies:
        from node.cli.render import printable

        raise PeerNotReachable(
            f"no reply from {printable(peer, 80)}", hint="noded peers shows when it was last seen"
        )
    if settings.json:  # one document: where it failed, that of the error
        settings.print_json({"schema": "noded.ping/1", **answer, "replies": replies})


def _print_reply(
    peer: str, answer: dict[str, Any], reply: dict[str, Any], before: str | None
) -> None:
    from node.cli.render import printable, rtt, short_id

    name = printable(str(answer.get("name") or peer), 64)
    path = str(reply.get("path") or "n/a")
    via = path
    if path == "relayed":
        via = f"relay {reply.get('relay_name') or ''} {short_id(reply.get('relay'))}"
        via = " ".join(via.split())
    if path != "relayed" and answer.get("address"):
        via += f" {answer['address']}"
    changed = f"   path changed from {before}" if before not in {None, path} else ""
    click.echo(
        f"pong from {name} ({short_id(answer.get('peer'))}) via {printable(via, 120)}"
        f" in {rtt(reply.get('rtt_s'))}{changed}"
    )


def _why_relayed(answer: dict[str, Any], settings: Settings) -> str:
    """What came of the last punch, for the hint of a time-out."""
    punch = answer.get("last_punch")
    if not isinstance(punch, dict):
        return "no direct attempt has been made yet; noded netcheck says what this node can do"
    lines = [f"last attempt: {punch.get('reason') or 'n/a'}"]
    if settings.verbosity > 0:
        tries: Counter[tuple[str, str]] = Counter()
        for row in punch["attempts"]:
            tries[str(row.get("address")), str(row.get("reason"))] += int(row.get("count") or 1)
        lines += [
            f"{address}: {reason}" + (f" ({count} times)" if count > 1 else "")
            for (address, reason), count in tries.items()
        ]
    return "\n".join([*lines, "noded netcheck says what this node's network allows"])


@click.command(
    "netcheck", cls=Verb, short_help="Can others reach this node, and what to do if not."
)
@click.option(
    "--every",
    type=click.FloatRange(min=0.1, max=86400),
    metavar="S",
    help="Again every S seconds until Ctrl-C.",
)
def netcheck(every: float | None) -> None:
    """Can others reach this node: verdict, addresses, NAT, port mapping, punches, relays.

    Asks the daemon; without one it looks for itself, for up to 20 seconds.
    """
    settings = current_settings()
    while True:
        report = _netcheck(settings)
        if settings.json:
            settings.print_json(report)
        else:
            from node.cli.render_network import netcheck_text

            click.echo(netcheck_text(report, settings.style()))
        if every is None:
            return
        time.sleep(every)


def _netcheck(settings: Settings) -> dict[str, Any]:
    try:
        return settings.client().get("/v1/netcheck")
    except DaemonNotRunning:
        pass
    from node.config import load_config
    from node.netcheck import check_alone

    if not settings.json:
        click.echo("the daemon is not running: looking without it ...", err=True)
    config = load_config(settings.config).config
    return check_alone(config, patience_s=settings.timeout_s or ALONE_S)
