"""What `noded simulate` does: a scenario from file and options, records to a file, progress and a summary for people.

Ctrl-C asks the simulation to end after the present moment: it writes its last point and its end, and the summary says
"interrupted". A second Ctrl-C is an ordinary one. What was written until then stays.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

import attrs
import click

from node.cli.render import style_for
from node.errors import ExitCode, NodedError
from node.overrides import plain_value
from node.simulation.keys import check_assigned
from node.simulation.progress import Bar
from node.simulation.records import Header, Point, Record, Writer
from node.simulation.run import Simulation
from node.simulation.scenario import Scenario, parse_scenario, read_scenario
from node.simulation.summary import summary_text

__all__ = ["Options", "run_command"]


class CannotWrite(NodedError):
    """The file for the records cannot be written."""


@attrs.frozen(kw_only=True)
class Options:
    """What the command line said."""

    scenario: Path | None
    changes: Mapping[str, Any]
    """Keys of the scenario, dotted, that win over the file."""
    assigned: frozenset[str]
    """Those of them that came as text with `--set`."""
    hashes: bool
    out: Path | None
    json: bool
    quiet: bool
    no_color: bool


def run_command(options: Options) -> None:
    """Run it; raises what `Simulation` does, and `SystemExit` with 130 after Ctrl-C."""
    changes = {
        key: plain_value(value) if key in options.assigned else value
        for key, value in options.changes.items()
    }
    if options.scenario is not None:
        scenario = read_scenario(options.scenario, changes)
    else:
        scenario = parse_scenario({}, changes)
    check_assigned(scenario, options.assigned)
    if not options.quiet and (why := _never_strikes(scenario)):
        click.echo(f"nothing will be disrupted: {why}", err=True)
    points: list[Point] = []
    header: list[Header] = []
    with ExitStack() as stack:
        files: list[BinaryIO] = []
        if options.json:
            files.append(sys.stdout.buffer)
        writer = Writer(files)

        def write(record: Record) -> None:
            if isinstance(record, Header):
                header.append(record)
                if (
                    options.out is not None
                ):  # not before: a scenario that is refused costs no old file
                    writer.add(stack.enter_context(_opened(options.out)))
            elif isinstance(record, Point):
                del points[1:]  # the first and the last
                points.append(record)
            writer.write(record)

        bar = Bar(sys.stderr) if _is_watched(options) else None
        simulation = Simulation(
            scenario,
            user_path=str(Path.cwd()),
            write=write,
            hashes=options.hashes,
            progress=None if bar is None else bar.show,
        )
        try:
            with _interrupting(simulation):
                end = simulation.run()
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            raise CannotWrite(f"the records cannot be written: {error.strerror}") from None
        finally:
            if bar is not None:
                bar.clear()
    if not options.json:
        style = style_for(sys.stdout, no_color=options.no_color)
        click.echo(summary_text(header[0], points, end, style))
        if options.out is not None:
            drawn = options.out.with_suffix(".png")
            click.echo(
                f"records in {options.out}: noded plot {options.out} --out {drawn}", err=True
            )
    if end.reason == "interrupted":
        raise SystemExit(int(ExitCode.INTERRUPTED))


def _never_strikes(scenario: Scenario) -> str:
    """Why a disruption that was asked for will not come; "" if it will, or none was."""
    blow = scenario.disruption
    if blow.case != "none" and blow.at_round is None and blow.at_s is None:
        return "neither disruption.at_round nor disruption.at_s says when"
    if blow.case != "none" and scenario.rounds and (blow.at_round or 0) > scenario.rounds:
        return f"there are {scenario.rounds} rounds, and disruption.at_round is {blow.at_round}"
    return ""


def _is_watched(options: Options) -> bool:
    return not options.quiet and sys.stderr.isatty()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        file = path.open("wb")
    except OSError as error:
        raise CannotWrite(
            f"{path} cannot be written: {error.strerror}", hint="name another file with --out"
        ) from None
    try:
        with file:
            yield file
    except OSError as error:  # what is left is written when it is closed
        raise CannotWrite(f"{path} cannot be written: {error.strerror}") from None


@contextlib.contextmanager
def _interrupting(simulation: Simulation) -> Iterator[None]:
    """The first Ctrl-C ends the simulation in good order."""
    before = signal.getsignal(signal.SIGINT)

    def on_interrupt(_number: int, _frame: FrameType | None) -> None:
        simulation.interrupt()
        signal.signal(signal.SIGINT, before)

    try:
        signal.signal(signal.SIGINT, on_interrupt)
    except ValueError:  # not the main thread: nobody sends it signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
