"""What came of a simulation, as text for people: from its first, last and final record."""

from __future__ import annotations

from collections.abc import Sequence

from node.cli.render import Style, human_bytes, table
from node.simulation.records import End, Header, Point, Spread

__all__ = ["summary_text"]

_REASONS = {
    "rounds": "all rounds are done",
    "time": "the time is up",
    "accuracy": "the accuracy is reached",
    "stalled": "it stands still: nobody completes a round any more",
    "empty": "nobody is left",
    "interrupted": "interrupted",
}


def summary_text(header: Header, points: Sequence[Point], end: End, style: Style) -> str:
    """Several lines, without a newline at their end."""
    scenario = header.scenario
    nodes = f"{scenario.nodes} node" + ("s" if scenario.nodes != 1 else "")
    title = f"{scenario.protocol}, {nodes}, {scenario.task}, seed {scenario.seed}"
    lines = [
        f"{title}: {_REASONS.get(end.reason, end.reason)}",
        f"round {end.round} after {end.time_s:,.1f} s of virtual time",
    ]
    if points:
        last = points[-1]
        rows = [_row("loss", last.loss, last.newest_loss, 4)]
        if last.accuracy is not None:
            rows.append(_row("accuracy", last.accuracy, last.newest_accuracy, 4))
        header_row = ["", "MEAN", "WORST", "QUARTILES", "BEST", "NEWEST"]
        lines += ["", table(header_row, rows, style), ""]
        swarm = f"{last.alive} of {scenario.nodes} nodes there, in {last.parts} part"
        swarm += "s" if last.parts != 1 else ""
        if last.parts > 1:
            swarm += " by the messages since the last point"
            swarm += f" (the largest has {last.largest}, {last.alone} met nobody)"
        lines.append(f"swarm     {swarm}, consensus distance {_figure(last.consensus, 4)}")
    traffic = f"{human_bytes(end.bytes)} in {end.messages:,} messages, {end.transfers:,.0f} models"
    if end.lost:
        traffic += f", {end.lost:,} lost"
    if end.refused:
        traffic += f" ({end.refused:,} were not finite)"
    cost = end.cost
    took = f"{end.steps:,} node-steps in {cost.real_s:,.1f} s ({cost.cpu_s:,.1f} s of CPU: "
    took += f"{cost.node_steps_per_cpu_s:,.0f} a CPU second)"
    lines += [
        f"traffic   {traffic}",
        f"cost      {took}, peak memory {human_bytes(cost.peak_rss_bytes)}",
        f"digest    {end.digest}",
    ]
    return "\n".join(lines)


def _row(name: str, figures: Spread, newest: float | None, digits: int) -> list[str]:
    return [
        name,
        _figure(figures.mean, digits),
        _figure(figures.worst, digits),
        f"{_figure(figures.low, digits)} .. {_figure(figures.high, digits)}",
        _figure(figures.best, digits),
        _figure(newest, digits),
    ]


def _figure(value: float | None, digits: int) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"
