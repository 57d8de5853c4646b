"""The verb about the shared document: `noded state`.

Invariant: like `node.cli.main`, this module imports click and the standard library.
"""

from __future__ import annotations

import click

from node.cli.base import Verb, Verbs, current_settings

__all__ = ["KEYS", "add_state_verb"]

KEYS = ("member", "progress", "metrics", "links", "site", "checkpoints", "run", "revoked")
"""The fields of the document (`crdt.record`)."""


def add_state_verb(group: Verbs) -> None:
    """Put the verb into the command line."""
    group.add_command(state)


@click.command("state", cls=Verb, short_help="What the members of the run say.")
@click.option("--key", type=click.Choice(KEYS), help="Only this field.")
def state(key: str | None) -> None:
    """What the members of the run say, as this node knows it: values, authors, clocks, leases."""
    settings = current_settings()
    answer = settings.client().get("/v1/state")
    if key is not None:
        entries = [row for row in answer.get("entries") or [] if isinstance(row, dict)]
        answer = {**answer, "entries": [row for row in entries if row.get("key") == key]}
        if not answer["entries"]:
            click.echo(f"nobody has said anything under {key} yet", err=True)
    if settings.json:
        settings.print_json(answer)
    else:
        from node.cli.render_state import state_text

        click.echo(state_text(answer, settings.style()))
