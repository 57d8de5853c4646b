"""The verbs about belonging: `noded init`, `invite`, `join`, `members`, `renew`, `revoke` and `leave`.

A code is a secret until it is used, and a command line can be seen by everybody on a machine (`ps`) and is kept by shells: so `join`
reads it from standard input or a file as well, and `invite` prints it, and nothing else, to standard output.

Invariant: like `node.cli.main`, this module imports click and the standard library; each verb imports what it needs when it runs.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any, Final

import click

from node.cli.base import Verb, Verbs, current_settings

__all__ = ["add_joining_verbs"]

MAX_CODE_CHARACTERS: Final = 4096
ASK_DAEMON_S: Final = 20.0
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def add_joining_verbs(group: Verbs) -> None:
    """Put the verbs into the command line."""
    for verb in (init, invite, join, members, renew, revoke, leave):
        group.add_command(verb)


def _duration_s(_ctx: click.Context, _param: click.Parameter, text: str) -> float:
    match = _DURATION.fullmatch(text.strip().lower())
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if not 1 <= seconds <= 365 * 86400:
        raise click.BadParameter("write a time from 1s to 365d, as in 90m, 24h or 7d")
    return seconds


def _assigned(assignments: tuple[str, ...]) -> dict[str, Any]:
    from node.cli.text import parse_assignments

    texts = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise click.UsageError(f"--set wants KEY=VALUE, as in run.every=16, not {assignment!r}")
        texts[key.strip()] = value
    return parse_assignments(texts)


_set_option = click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Set a key, as run.every=16."
)
_preset_option = click.option(
    "--preset",
    type=click.Choice(["local", "lan", "wan"]),
    default="lan",
    show_default=True,
    help="Defaults for one machine, one network, or the internet.",
)
_listen_option = click.option(
    "--listen", multiple=True, metavar="HOST:PORT", help="Where to accept peers."
)
_advertise_option = click.option(
    "--advertise", multiple=True, metavar="HOST:PORT", help="What to tell others."
)
_run_option = click.option("--run", "run_name", metavar="NAME", help="Take part in this run.")


@click.command("init", cls=Verb)
@click.option("--name", metavar="S", help="What people call the swarm.  [default: the node's name]")
@click.option("--node-name", help="What people call this node.  [default: the host name]")
@_preset_option
@click.option(
    "--bootstrap", multiple=True, metavar="HOST:PORT", help="With --root or --enter: whom to ask."
)
@_listen_option
@_advertise_option
@_run_option
@click.option("--create", is_flag=True, help="Start that run if it does not exist.")
@_set_option
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Enter the swarm whose root key and swarm key lie there.",
)
@click.option(
    "--open", "open_", is_flag=True, help="Let in nodes that nobody invited, as strangers."
)
@click.option("--enter", metavar="no-...", help="Enter an open swarm by its name, as a stranger.")
@click.option("--force", is_flag=True, help="Write the configuration anew (never the keys).")
@click.option("--if-needed", is_flag=True, help="Do nothing, successfully, if it is there.")
def init(
    *,
    name: str | None,
    node_name: str | None,
    preset: str,
    bootstrap: tuple[str, ...],
    listen: tuple[str, ...],
    advertise: tuple[str, ...],
    run_name: str | None,
    create: bool,
    assignments: tuple[str, ...],
    root: Path | None,
    open_: bool,
    enter: str | None,
    force: bool,
    if_needed: bool,
) -> None:
    """Make a new swarm with this node as its first member.

    Other machines enter it with the codes that `noded invite` prints here.
    """
    from node.config import find_config
    from node.initialise import initialise

    settings = current_settings()
    path = find_config(settings.config)
    if if_needed and os.path.lexists(path):
        if settings.json:
            settings.print_json({"schema": "noded.init/2", "config": str(path), "created": []})
        else:
            click.echo(f"noded: {path} is there already", err=True)
        return
    if create and not run_name:
        raise click.UsageError("--create needs --run NAME")
    if enter and (root is not None or open_ or name):
        raise click.UsageError(
            "--enter goes to a swarm that is there: not with --root, --open or --name"
        )
    made = initialise(
        path,
        values={
            **_values(
                assignments,
                node_name,
                listen,
                advertise,
                run_name,
                create=create,
                bootstrap=bootstrap,
            ),
            **({"swarm.open": True} if open_ else {}),
        },
        preset=preset,
        open_name=enter or "",
        swarm_name=name or "",
        root_folder=root,
        force=force,
    )
    if settings.json:
        settings.print_json(
            {
                "schema": "noded.init/2",
                "config": str(made.config),
                "id": made.node_id,
                "swarm": made.swarm_id,
                "swarm_name": made.swarm_name,
                "may_invite": made.may_invite,
                "open_name": made.open_name or None,
                "created": list(made.created),
                "kept": list(made.kept),
            }
        )
        return
    from node.cli.text import initialised_text

    click.echo(initialised_text(made, settings.aim))


def _values(
    assignments: tuple[str, ...],
    node_name: str | None,
    listen: tuple[str, ...],
    advertise: tuple[str, ...],
    run_name: str | None,
    *,
    create: bool = False,
    bootstrap: tuple[str, ...] = (),
) -> dict[str, Any]:
    values = _assigned(assignments)
    options: dict[str, Any] = {
        "node.name": node_name,
        "network.bootstrap": list(bootstrap),
        "network.listen": list(listen),
        "network.advertise": list(advertise),
        "run.name": run_name,
        "run.create": create,
    }
    values.update((key, value) for key, value in options.items() if value)
    return values


@click.command("invite", cls=Verb)
@click.option(
    "--uses",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    help="Nodes that may join.",
)
@click.option(
    "--expires",
    default="24h",
    show_default=True,
    callback=_duration_s,
    metavar="TIME",
    help="How long it is good: 90m, 24h, 7d.",
)
@click.option(
    "--role",
    type=click.Choice(["trainer", "relay", "observer"]),
    default="trainer",
    show_default=True,
    help="What those nodes may do.",
)
@click.option("--may-invite", is_flag=True, help="They may invite others.")
@click.option("--local", is_flag=True, help="For nodes on this machine.")
@click.option("--list", "list_", is_flag=True, help="Show the invites of this node; make none.")
@click.option("--withdraw", metavar="ID", help="Take an invite back; who has joined stays.")
def invite(
    *,
    uses: int,
    expires: float,
    role: str,
    may_invite: bool,
    local: bool,
    list_: bool,
    withdraw: str | None,
) -> None:
    """Print a code with which another machine joins this swarm."""
    settings = current_settings()
    client = settings.client(default_timeout_s=ASK_DAEMON_S)
    if list_:
        answer = client.get("/v1/invites")
        if settings.json:
            settings.print_json(answer)
        else:
            from node.cli.render_joining import invites_text

            click.echo(invites_text(answer, settings.style()))
        return
    if withdraw is not None:
        answer = client.post("/v1/invites/withdraw", {"id": withdraw})
        if settings.json:
            settings.print_json(answer)
        else:
            click.echo(f"taken back: {answer.get('id')}")
        return
    request = {
        "uses": uses,
        "life_ms": round(expires * 1000),
        "role": role,
        "may_invite": may_invite,
        "local": local,
    }
    answer = client.post("/v1/invites", request)
    if settings.json:
        settings.print_json(answer)
        return
    click.echo(answer["code"])
    from node.cli.render_joining import when

    until = when(answer.get("expires_ms"))
    who = "one machine" if uses == 1 else f"{uses} machines"
    there = "There:  noded join CODE      and then:  noded run\n"
    if local:
        there = (
            "noded join CODE --preset local --listen 127.0.0.1:PORT --config FOLDER/noded.toml\n"
            "and then:  noded run --config FOLDER/noded.toml      with a port and a folder of its own\n"
        )
    click.echo(
        f"\nlets {who if not local else 'one more node of this machine' if uses == 1 else f'{uses} nodes of this machine'}"
        f" join as {role} until {until}; whoever has it can, so keep it private.\n{there}"
        f"It asks {', '.join(map(str, answer.get('addresses') or []))}, and this node has to run to say yes.",
        err=True,
    )


@click.command(
    "join", cls=Verb, short_help="Make this machine a member, with a CODE from `noded invite`."
)
@click.argument("code", nargs=-1)
@click.option(
    "--file", "file", type=click.File("r"), metavar="PATH", help="Read the code from a file."
)
@click.option(
    "--name", "--node-name", "name", help="What people call this node.  [default: the host name]"
)
@_preset_option
@_listen_option
@_advertise_option
@_run_option
@_set_option
def join(
    *,
    code: tuple[str, ...],
    file: Any,
    name: str | None,
    preset: str,
    listen: tuple[str, ...],
    advertise: tuple[str, ...],
    run_name: str | None,
    assignments: tuple[str, ...],
) -> None:
    """Make this machine a member of a swarm with a CODE that `noded invite` printed there.

    Line breaks and spaces in the code do not matter. With '-' it is read from standard input, which
    keeps it out of the shell's history and of `ps`.
    """
    from node.config import find_config
    from node.joining.enter import enter

    settings = current_settings()
    values = _values(assignments, name, listen, advertise, run_name)
    joined = enter(
        find_config(settings.config),
        _code_text(code, file),
        values=values,
        preset=preset,
        patience_s=settings.timeout_s,
    )
    if settings.json:
        settings.print_json(
            {
                "schema": "noded.join/1",
                "id": joined.node_id,
                "swarm": joined.swarm_id,
                "swarm_name": joined.swarm_name,
                "role": joined.role,
                "inviter": joined.inviter,
                "expires_ms": joined.expires_ms,
                "config": str(joined.config),
                "config_kept": joined.config_kept,
            }
        )
        return
    from node.cli.render import printable, short_id

    click.echo(
        f"joined    {printable(joined.swarm_name or 'the swarm', 64)}, as {joined.role}, "
        f"invited by {short_id(joined.inviter)}\n"
        f"node      {joined.node_id}\n"
        f"files     {joined.config.parent}\n" + settings.aim("start     noded run")
    )
    if joined.config_kept:
        unused = " (options of this command about it were not used)" if values else ""
        click.echo(
            f"kept the configuration that was there{unused}; change it with an editor: {joined.config}",
            err=True,
        )


def _code_text(code: tuple[str, ...], file: Any) -> str:
    """The code, from wherever it comes; never echoed."""
    if file is not None:
        if code:
            raise click.UsageError("a code and --file exclude each other")
        return str(file.read(MAX_CODE_CHARACTERS))
    if code == ("-",):
        return _typed_code() if sys.stdin.isatty() else sys.stdin.read(MAX_CODE_CHARACTERS)
    if not code:
        raise click.UsageError(
            "which code? `noded join CODE`, or `noded join -` to read it from standard input"
        )
    return " ".join(code)


def _typed_code() -> str:
    """A code pasted into a terminal, perhaps in several lines: an empty one ends it."""
    click.echo("paste the code, then press Enter twice", err=True)
    lines: list[str] = []
    while (line := sys.stdin.readline(MAX_CODE_CHARACTERS)).strip() or (line and not lines):
        lines.append(line)
        if sum(map(len, lines)) > MAX_CODE_CHARACTERS:
            break
    return "".join(lines)


@click.command("members", cls=Verb)
@click.option("--history", is_flag=True, help="What happened when: joined, revoked, left.")
def members(history: bool) -> None:
    """Who belongs to the swarm, who invited them, and who is out."""
    settings = current_settings()
    answer = settings.client().get("/v1/members")
    if settings.json:
        settings.print_json(answer)
        return
    from node.cli.render_joining import history_text, members_text

    text = history_text if history else members_text
    click.echo(text(answer, settings.style()))


@click.command("renew", cls=Verb, short_help="Renew the certificate with the root key.")
@click.option(
    "--root",
    "root_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The swarm's root key.  [default: swarm-root.key of this node]",
)
def renew(root_file: Path | None) -> None:
    """Renew this node's certificate with the swarm's root key.

    Only certificates that the root key gave need it; those of invited members are renewed by whoever invited them.
    """
    from datetime import UTC, datetime

    from node.config import load_config
    from node.joining.renewing import renew_by_root
    from transport.trust.chain import YEAR_MS

    settings = current_settings()
    config = load_config(settings.config).config
    days_ms = config.swarm.certificate_days * (YEAR_MS // 365)
    chain = renew_by_root(config.paths, root_file, is_open=config.swarm.open, lifetime_ms=days_ms)
    if settings.json:
        settings.print_json(
            {
                "schema": "noded.renew/1",
                "node": str(chain.node_id),
                "expires_at_ms": chain.leaf.expires_at_ms,
            }
        )
        return
    ends = datetime.fromtimestamp(chain.leaf.expires_at_ms / 1000, UTC)
    click.echo(f"renewed   until {ends:%Y-%m-%d}")
    click.echo("a daemon that runs uses it from its next start on", err=True)


@click.command("revoke", cls=Verb, short_help="End NODE's membership for good.")
@click.argument("node")
@click.option("--reason", default="", metavar="TEXT", help="Kept in the swarm's history.")
@click.option("--all-below", is_flag=True, help="Also those whom that node has invited.")
def revoke(node: str, reason: str, all_below: bool) -> None:
    """End NODE's membership for good (an id, the start of one, or a name).

    Only the members above it can: whoever invited it, and whoever invited those.
    """
    settings = current_settings()
    answer = settings.client(default_timeout_s=ASK_DAEMON_S).post(
        "/v1/revoke", {"node": node, "reason": reason, "all_below": all_below}
    )
    if settings.json:
        settings.print_json(answer)
    else:
        click.echo(f"revoked   {answer.get('node')}")
        click.echo(
            "connected nodes close their connections to it now; it cannot come back", err=True
        )


@click.command("leave", cls=Verb, short_help="Leave the swarm; this node's keys are removed.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def leave(yes: bool) -> None:
    """Leave the swarm: stop the daemon, give the membership up, remove its keys.

    The configuration, runs and checkpoints stay, and so does a swarm's root key.
    """
    from node.cli.client import data_dir_of
    from node.joining.depart import depart

    settings = current_settings()
    if not yes and not settings.json and sys.stdin.isatty():
        click.confirm("This node's key is removed and can never come back. Leave?", abort=True)
    left = depart(data_dir_of(settings.config), settings.client(default_timeout_s=ASK_DAEMON_S))
    if settings.json:
        settings.print_json(
            {
                "schema": "noded.leave/1",
                "announced": left.announced,
                "removed": list(left.removed),
                "kept": list(left.kept),
            }
        )
        return
    click.echo("left the swarm")
    click.echo(f"removed   {', '.join(left.removed)}")
    click.echo(f"kept      {', '.join(left.kept) or 'nothing'}")
    if not left.announced:
        click.echo(
            "the other members were not told; if this node's key may have been copied, let one of those "
            f"above it run:  noded revoke {left.node_id or 'ID-OF-THIS-NODE'}",
            err=True,
        )
    if "swarm-root.key" in left.kept:
        click.echo(
            "swarm-root.key is the only way to make members without an invite: "
            "move it to a safe place, or remove it yourself",
            err=True,
        )
