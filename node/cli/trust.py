"""The verb about code: `noded trust HASH` shows the files of a task, asks, and has the daemon remember the answer.

Invariant: like `node.cli.main`, this module imports click and the standard library; nothing of the shown code is imported or run.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import click

from node.cli.base import Verb, Verbs, current_settings
from node.cli.blocks import follow

__all__ = ["add_trust_verb"]

MAX_LINE: Final = 16 << 20
"""All of a line is shown: the end of a long one runs like its beginning. A task has at most 1 MiB."""


def add_trust_verb(group: Verbs) -> None:
    """Put the verb into the command line."""
    group.add_command(trust)


@click.command("trust", cls=Verb, short_help="Look at a task's code, and allow it here.")
@click.argument("task", metavar="HASH")
@click.option("--yes", is_flag=True, help="Approve without being asked (for scripts).")
@click.option("--show", is_flag=True, help="Only show the files.")
@click.option("--withdraw", is_flag=True, help="Approve it no more.")
def trust(task: str, yes: bool, show: bool, withdraw: bool) -> None:
    """Look at the code of a run's task, and allow exactly that code to run on this machine.

    A run names its task by the hash of its files. Code with another hash is never run because of this.
    """
    from node.errors import Refused

    settings = current_settings()
    client = settings.client(default_timeout_s=30.0)
    task = task.strip()
    if withdraw:
        answer = client.post("/v1/trust/approve", {"id": task, "approve": False})
        was = bool(answer.get("withdrawn"))
        gone = "approved no more; a trainer that runs it already goes on until it ends"
        _tell(answer, gone if was else "it was not approved")
        return
    follow(settings, "/v1/blocks/get", {"id": task})
    shown = client.post("/v1/trust", {"id": task})
    if not settings.json:
        _print_files(shown)
    if show:
        if settings.json:
            settings.print_json(shown)
        return
    if shown.get("approved"):
        _tell(shown, "approved already")
        return
    if not yes:
        if settings.json or not sys.stdin.isatty():
            raise Refused(
                "nobody can be asked whether to trust this code",
                hint="look at it with --show, then approve it with --yes",
            )
        click.confirm("Run this code on this machine, as the daemon's user?", abort=True)
    answer = client.post("/v1/trust/approve", {"id": task, "approve": True})
    _tell(answer, "approved: a run that waits for it goes on within a second or two")


def _tell(answer: dict[str, Any], text: str) -> None:
    if current_settings().json:
        plain = {key: value for key, value in answer.items() if key != "files"}
        current_settings().print_json(plain)
    else:
        click.echo(text)


def _print_files(shown: dict[str, Any]) -> None:
    from node.cli.render import printable

    entry = printable(str(shown.get("entry")), 200)
    files = shown.get("files") or []
    click.echo(f"task {printable(str(shown.get('id')), 64)}")
    click.echo(f"runs {entry} from {len(files)} files:")
    for file in files:
        path, size = printable(str(file.get("path")), 200), int(file.get("size") or 0)
        click.echo(f"\n---- {path} ({size:,} bytes)")
        for number, line in enumerate(str(file.get("text")).splitlines(), 1):
            # What would move the cursor or turn the text around is shown as what it is.
            click.echo(f"{number:5d}  {printable(line.expandtabs(4), MAX_LINE)}")
    click.echo("")
