"""The verb about the shared document: `noded state`.

Invariant: like `node.cli.main`, this module imports click and the standard library.
"""

from __future__ import annotations

import json

import click

from node.cli.base import Verb, Verbs, current_settings
from node.errors import NotReady

__all__ = ["add_state_verb"]


def add_state_verb(group: Verbs) -> None:
    """Put the verb into the command line."""
    group.add_command(state)


@click.command("state", cls=Verb)
@click.option(
    "--key",
    metavar="K",
    help="Only this field: member, progress, metrics, checkpoints, run, revoked.",
)
def state(key: str | None) -> None:
    """What the members of the run say, as this node knows it: values, authors, clocks, leases."""
    settings = current_settings()
    answer = settings.client().get("/v1/state")
    entries = [row for row in answer.get("entries") or [] if isinstance(row, dict)]
    if key is not None:
        answer = {**answer, "entries": [row for row in entries if row.get("key") == key]}
        if not answer["entries"]:
            keys = ", ".join(sorted({str(row.get("key")) for row in entries})) or "none"
            raise NotReady(f"nobody has said anything under {key!r}", hint=f"known keys: {keys}")
    if settings.json:
        click.echo(json.dumps(answer))
    else:
        from node.cli.render_state import state_text

        click.echo(state_text(answer, settings.style()))
