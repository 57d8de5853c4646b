"""The verb that needs no swarm: `noded simulate`.

Invariant: like `node.cli.main`, this module imports click and the standard library; what it starts imports numpy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from node.cli.base import Verb, Verbs, current_settings

__all__ = ["add_simulate_verb"]

_TABLES = (
    *("protocol_settings", "task_settings", "speed", "links", "churn"),
    *("disruption", "discovery", "stop"),
)


def add_simulate_verb(group: Verbs) -> None:
    """Put the verb into the command line."""
    group.add_command(simulate)


@click.command(
    "simulate", cls=Verb, short_help="A swarm of up to thousands of nodes in one process."
)
@click.option("--scenario", type=click.Path(path_type=Path), help="TOML file that says it all.")
@click.option("--nodes", type=click.IntRange(1, 100_000), help="Nodes.  [default: 10]")
@click.option("--protocol", help="How they combine their work.  [default: dpsgd]")
@click.option("--task", help="What they train.  [default: digits]")
@click.option("--data", type=click.Path(path_type=Path), help="Where the task's data lies.")
@click.option("--engine", type=click.Choice(["batched", "exact"]), help="What trains.")
@click.option("--rounds", type=click.IntRange(min=0), help="Rounds of each node.  [default: 100]")
@click.option("--every", type=click.IntRange(min=1), help="Local steps in a round.  [default: 5]")
@click.option("--seed", type=click.IntRange(0, 2**53 - 1), help="Random seed.  [default: 0]")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting of the protocol (graph=ring), or a key of a table (links.loss=0.1).",
)
@click.option("--ids", type=click.Path(path_type=Path), help="File of node ids, one a line.")
@click.option("--run-id", metavar="HEX", help="The run's id, 64 digits.")
@click.option("--hashes", is_flag=True, help="Record the hash of each round's models.")
@click.option("--out", type=click.Path(path_type=Path), help="File for the records.")
def simulate(
    *,
    scenario: Path | None,
    data: Path | None,
    ids: Path | None,
    assignments: tuple[str, ...],
    hashes: bool,
    out: Path | None,
    **values: Any,
) -> None:
    """Simulate a swarm: real protocols and real training on a virtual clock.

    The same scenario and seed give the same digest on every run. Records (JSON lines) go to --out, with
    --json to standard output; noded plot draws them. Ctrl-C ends it early and keeps what there is.
    All keys: docs/simulation.md.

    \b
    noded simulate --nodes 100 --rounds 200 --set graph=ring --out ring.jsonl
    noded simulate --nodes 100 --set links.loss=0.05 --set churn.kind=exponential
    noded simulate --scenario disaster.toml --seed 3 --json | tail -1
    """  # noqa: D301 (click reads a real backspace as "leave these lines alone")
    changes = {key: value for key, value in values.items() if value is not None}
    if data is not None:
        changes["data"] = str(data)
    if ids is not None:
        changes["ids"] = _ids(ids)
        changes.setdefault("nodes", len(changes["ids"]))
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        key = key.strip()
        if not (key and equals):
            raise click.UsageError(f"--set wants KEY=VALUE, as in graph=ring, not {assignment!r}")
        changes[_place(key)] = value
    from node.simulation.command import Options, run_command

    settings = current_settings()
    run_command(
        Options(
            scenario=scenario,
            changes=changes,
            assigned=frozenset(_place(one.partition("=")[0].strip()) for one in assignments),
            hashes=hashes,
            out=out,
            json=settings.json,
            quiet=settings.verbosity < 0,
            no_color=settings.no_color,
        )
    )


def _place(key: str) -> str:
    """A key without a table is a setting of the protocol."""
    table, dot, _ = key.partition(".")
    if not dot:
        return f"protocol_settings.{key}"
    if table == "scenario":
        return key.removeprefix("scenario.")
    if table not in _TABLES:
        raise click.UsageError(
            f"--set {key}: there are the tables {', '.join(_TABLES)}, and scenario for keys that are in none"
        )
    return key


def _ids(path: Path) -> list[str]:
    from node.errors import ConfigError

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--ids: {path} cannot be read: {error}") from None
    return [line.strip() for line in lines if line.strip()]
