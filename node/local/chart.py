"""The loss curve of a local swarm as a PNG: training and validation loss of each peer against steps or rounds.

Idea: matplotlib's Agg canvas, used without pyplot, so no display, no global state and no fonts to find.
The raw training loss is noise from batch to batch; it is drawn pale, with its running mean on top. The
validation loss, measured on text that no peer trained on, is what the eye should land on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

__all__ = ["draw_losses"]

# Okabe and Ito's palette: told apart with any common kind of colour vision.
_COLOURS: Final = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999")

Points = Sequence[tuple[int, float]]


def draw_losses(
    path: Path,
    training: Mapping[str, Points],
    validation: Mapping[str, Points],
    *,
    title: str,
    unit: str = "nats per byte",
    shared: bool = True,
    axis: str = "local steps of each peer",
) -> bool:
    """Write the PNG.

    Args:
        path: where.
        training: (step, loss) of each peer.
        validation: the same, on held-out data.
        title: above the picture.
        unit: of the loss, may be empty.
        shared: whether all peers hold the same model after a round: one line then stands for their validation losses.
        axis: what the losses are drawn against.

    Returns:
        False if there is nothing to draw, or matplotlib (the extra `demo`) is missing.
    """
    if not any(training.values()) and not any(validation.values()):
        return False
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(9, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    for number, (name, points) in enumerate(training.items()):
        steps, losses = _columns(points)
        colour = _COLOURS[number % len(_COLOURS)]
        axes.plot(steps, losses, color=colour, alpha=0.18, linewidth=0.8)
        axes.plot(steps, _running_mean(losses), color=colour, linewidth=1.3, label=name)
    at_step: dict[int, list[float]] = {}
    for number, points in enumerate(validation.values()):
        steps, losses = _columns(points)
        colour = _COLOURS[number % len(_COLOURS)]
        line = "" if shared else "--"
        axes.plot(steps, losses, color=colour, linestyle=line, marker="o", markersize=5, zorder=3)
        for step, loss in zip(steps, losses, strict=True):
            at_step.setdefault(step, []).append(loss)
    if at_step and shared:
        # All peers hold the same model at these steps, so one line stands for them; a peer that was
        # away then has no point on it.
        steps = sorted(at_step)
        losses = [sum(at_step[step]) / len(at_step[step]) for step in steps]
        style: Any = {"color": "#222222", "linewidth": 1.6, "marker": "o", "markersize": 3}
        axes.plot(steps, losses, label="validation", zorder=4, **style)
        axes.annotate(
            f"{losses[-1]:.2f}",
            (steps[-1], losses[-1]),
            textcoords="offset points",
            xytext=(-4, 10),
            ha="right",
            color="#222222",
            fontweight="bold",
        )
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(axis)
    axes.set_ylabel(f"loss ({unit})" if unit else "loss")
    axes.margins(x=0.01)
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=2)
    figure.savefig(path)
    return True


def _columns(points: Points) -> tuple[list[int], list[float]]:
    finite = [(step, loss) for step, loss in points if math.isfinite(loss)]
    return [step for step, _ in finite], [loss for _, loss in finite]


def _running_mean(values: Sequence[float]) -> list[float]:
    """Exponential mean over about a fortieth of the picture, corrected for its start."""
    share = min(1.0, 40 / max(1, len(values)))
    smoothed, mean, weight = [], 0.0, 0.0
    for value in values:
        mean = (1 - share) * mean + share * value
        weight = (1 - share) * weight + share
        smoothed.append(mean / weight)
    return smoothed
