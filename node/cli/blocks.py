"""The verbs about artefacts: `noded put` and `noded get`.

The daemon copies and fetches into its store; these show how far it is. What `get -o` writes it reads from the store itself, so that the file belongs to
who asked for it and lies where that person may write, not where the daemon may.

Invariant: like `node.cli.main`, this module imports click and the standard library; each verb imports what it needs when it runs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import click

from node.cli.base import Settings, Verb, Verbs, current_settings

__all__ = ["add_block_verbs", "follow"]

LOOK_S: Final = 0.5
"""How long the daemon lets each question wait for news."""


def add_block_verbs(group: Verbs) -> None:
    """Put the verbs into the command line."""
    group.add_command(put)
    group.add_command(get)


@click.command("put", cls=Verb, short_help="Offer a file or folder to the swarm.")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--no-pin", is_flag=True, help="Let it go when its place is needed.")
def put(path: Path, no_pin: bool) -> None:
    """Keep a copy of PATH (a file or a folder), offer it to the swarm, print its id."""
    settings = current_settings()
    body = {"path": str(path.absolute()), "pin": not no_pin}
    answer = follow(settings, "/v1/blocks/put", body)
    if settings.json:
        settings.print_json(answer)
    else:
        click.echo(str(answer["id"]))


@click.command("get", cls=Verb, short_help="Fetch an artefact by its hash.")
@click.argument("artefact", metavar="[HASH]", required=False)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Write it here as well (- for stdout)."
)
@click.option("--pin", is_flag=True, help="Keep it, whatever else needs its place.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
def get(artefact: str | None, output: Path | None, pin: bool, force: bool) -> None:
    """Fetch HASH from everybody who has it; without HASH: what is here.

    What has arrived stays when this is interrupted, and the next time goes on from there.
    """
    settings = current_settings()
    if artefact is None:
        if output is not None:
            raise click.UsageError("-o needs a HASH")
        _show_listing(settings)
        return
    answer = follow(settings, "/v1/blocks/get", {"id": artefact.strip(), "pin": pin})
    if output is not None:
        _write(answer, output, force=force)
        answer["output"] = str(output)
    if settings.json:
        settings.print_json(answer)
    elif output is None:
        from node.cli.render import printable

        for path, size in answer.get("files") or []:
            click.echo(f"{size:>14,}  {printable(str(path), 200)}")


def follow(settings: Settings, route: str, body: dict[str, Any]) -> dict[str, Any]:
    """Start a job of the daemon's and stay with it to its end, showing progress on a terminal.

    Raises:
        NodedError: the job failed; with the daemon's own sentence, hint and exit code.
        TimedOut: `--timeout` was shorter; the job stops a little later, what is done stays.
    """
    import time

    from node.errors import ExitCode, NodedError, TimedOut

    client = settings.client(default_timeout_s=30.0)
    deadline = None if settings.timeout_s is None else time.monotonic() + settings.timeout_s
    client.timeout_s = 30.0
    live = sys.stderr.isatty() and not settings.json and settings.verbosity >= 0
    anew = True
    try:
        while True:
            answer = client.post(route, {**body, "wait_s": LOOK_S, "anew": anew})
            anew = False
            if live:
                click.echo("\r" + progress_line(answer) + "\x1b[K", err=True, nl=False)
            if answer.get("state") != "running":
                break
            if deadline is not None and time.monotonic() >= deadline:
                raise TimedOut(
                    f"not done after {settings.timeout_s:g} s: {progress_line(answer)}",
                    hint="what has arrived stays: the same command goes on from there",
                )
    finally:
        if live:
            click.echo("", err=True)
    if answer.get("state") != "done":
        code = ExitCode(int(answer.get("exit_code") or ExitCode.FAILED))
        hint = str(answer.get("hint") or "")
        raise NodedError(str(answer.get("error") or "it failed"), hint=hint, exit_code=code)
    return answer


def progress_line(answer: dict[str, Any]) -> str:
    """One line about a job: share, bytes, speed, holders."""
    done, size = int(answer.get("done_bytes") or 0), answer.get("size")
    seconds = float(answer.get("seconds") or 0.0)
    speed = done / seconds / 2**20 if seconds > 0 else 0.0
    if size is None:
        text = "looking for it"
    else:
        share = 100 if not size else int(100 * done / int(size))
        text = (
            f"{share:3d} %  {done / 2**20:,.0f} of {int(size) / 2**20:,.0f} MiB  {speed:,.0f} MiB/s"
        )
    holders = answer.get("holders") or []
    if holders:
        ended = answer.get("state") != "running"
        giving = sum(bool(holder.get("blocks" if ended else "active")) for holder in holders)
        text += f"  from {giving} of {len(holders)}"
        bad = sum(int(holder.get("bad") or 0) for holder in holders)
        if bad:
            text += f"  ({bad} bad blocks refused)"
    return text


def _write(answer: dict[str, Any], output: Path, *, force: bool) -> None:
    from gossip.blocks.errors import ArtefactUnavailable
    from node.blocks.files import unpack
    from node.blocks.reader import StoredArtefact

    stored = StoredArtefact(Path(str(answer["store"])), bytes.fromhex(str(answer["id"])))
    if str(output) != "-":
        unpack(stored.read, stored.manifest, output, replace=force)
        return
    if len(stored.manifest.files) != 1:
        raise click.UsageError("only a single file can be written to standard output")
    for number in range(stored.manifest.blocks):
        block = stored.read(number)
        if block is None:
            raise ArtefactUnavailable(f"block {number} is not in the store (any more)")
        sys.stdout.buffer.write(block)
    sys.stdout.buffer.flush()


def _show_listing(settings: Settings) -> None:
    answer = settings.client().get("/v1/blocks")
    if settings.json:
        settings.print_json(answer)
        return
    from node.cli.render import printable, table

    rows = []
    for row in answer.get("artefacts") or []:
        missing = int(row.get("missing") or 0)
        rows.append(
            [
                printable(str(row.get("id")), 64),
                printable(str(row.get("kind")), 16),
                f"{int(row.get('size') or 0) / 2**20:,.1f} MiB",
                "whole" if not missing else f"{missing} blocks missing",
                "pinned" if row.get("pinned") else "",
                printable(str(row.get("name") or f"{row.get('files')} files"), 60),
            ]
        )
    if not rows:
        click.echo("nothing is here yet: noded put FILE", err=True)
        return
    click.echo(table(["HASH", "KIND", "SIZE", "STATE", "", "NAME"], rows, settings.style()))
