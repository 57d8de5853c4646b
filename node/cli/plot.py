"""The verb that draws simulations: `noded plot`.

Invariant: like `node.cli.main`, this module imports click and the standard library.
"""

from __future__ import annotations

from pathlib import Path

import click

from node.cli.base import Verb, Verbs, current_settings

__all__ = ["add_plot_verb"]


def add_plot_verb(group: Verbs) -> None:
    """Put the verb into the command line."""
    group.add_command(plot)


@click.command("plot", cls=Verb, short_help="Draw simulations, several in one picture.")
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE..."
)
@click.option(
    "--x",
    type=click.Choice(["rounds", "bytes", "time", "steps"]),
    default="rounds",
    show_default=True,
    help="Against what.",
)
@click.option(
    "--y",
    type=click.Choice(["accuracy", "loss", "consensus"]),
    default="accuracy",
    show_default=True,
    help="What.",
)
@click.option("--out", type=click.Path(path_type=Path), help="The picture: .png, .svg or .pdf.")
@click.option("--label", "labels", multiple=True, help="Name of a file, in the files' order.")
@click.option("--title", help="Above the picture.")
@click.option("--newest", is_flag=True, help="The model of the highest round, not the nodes'.")
@click.option("--log", type=click.Choice(["x", "y", "xy"]), help="Logarithmic axes.")
def plot(
    *,
    files: tuple[Path, ...],
    x: str,
    y: str,
    out: Path | None,
    labels: tuple[str, ...],
    title: str | None,
    newest: bool,
    log: str | None,
) -> None:
    """Draw what noded simulate --out wrote: mean, quartiles and the worst node of each run.

    Runs that differ in the seed alone share a colour. With --json the curves are printed.

    \b
    noded plot ring.jsonl full.jsonl --x bytes --out traffic.png
    """  # noqa: D301 (click reads a real backspace as "leave these lines alone")
    settings = current_settings()
    if out is None and not settings.json:
        raise click.UsageError("name the picture with --out, or print the curves with --json")
    if labels and len(labels) != len(files):
        raise click.UsageError(f"{len(labels)} labels for {len(files)} files")
    if newest and y == "consensus":
        raise click.UsageError("--newest is about one model, --y consensus about all")
    from node.simulation.series import common_title, read_series

    series, headers = read_series(files, x, y, labels)
    if out is not None:
        from node.simulation.chart import Look, draw

        name = common_title(headers) if title is None else title
        draw(out, series, Look(x=x, y=y, title=name, newest=newest, log=log or ""))
    if settings.json:
        from attrs import asdict

        settings.print_json(
            {
                "schema": "noded.plot/1",
                "x": x,
                "y": y,
                "out": None if out is None else str(out),
                "series": [asdict(one) for one in series],
            }
        )
    else:
        click.echo(str(out))
