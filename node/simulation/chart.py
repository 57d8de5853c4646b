"""Several simulations in one picture: the mean, how far the nodes are spread, and the worst one.

The mean of a hundred nodes hides the one that learnt nothing, so every curve comes with the band between the quartiles
and the worst node, dashed. Runs that differ in their seed alone share a colour. Matplotlib's Agg canvas is used without
pyplot: no display, no global state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import attrs

from node.errors import NodedError
from node.simulation.series import Series

__all__ = ["CannotDraw", "Look", "draw"]

# Okabe and Ito's palette: told apart with any common kind of colour vision.
KINDS: Final = (".png", ".svg", ".pdf")
"""Of pictures; another name gets one of matplotlib's own choice, under a name of its choice."""
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
_MARKS: Final = ("-", "-.", ":")
"""Line styles of the second and third round through the palette."""


class CannotDraw(NodedError):
    """The picture cannot be made or written."""


@attrs.frozen(kw_only=True)
class Look:
    """What the picture shows."""

    x: str
    y: str
    title: str
    newest: bool = False
    """The newest model alone, without the nodes."""
    log: str = ""
    """The axes that are logarithmic: "", "x", "y" or "xy"."""


def draw(path: Path, series: Sequence[Series], look: Look) -> None:
    """Write the picture; its kind follows from the file's name (png, svg, pdf).

    Raises:
        CannotDraw: matplotlib is missing, or the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise CannotDraw(
            "matplotlib is not installed", hint="pip install 'noded[demo]', or use --json"
        ) from None
    if path.suffix.lower() not in KINDS:
        raise CannotDraw(f"{path} is no picture", hint=f"name a {', '.join(KINDS)} file")
    figure = Figure(figsize=(9, 5.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    divisor, x_label = _x_axis(look.x, max((one.x[-1] for one in series), default=0.0))
    styles = _styles(series)
    told: set[str] = set()
    for one in series:
        colour, line = styles[one.label]
        seeds = sum(other.label == one.label for other in series)
        name = one.label if seeds == 1 else f"{one.label} ({seeds} runs)"
        label = None if one.label in told else name
        told.add(one.label)
        _curves(axes, one, look, divisor, {"color": colour, "linestyle": line, "label": label})
    _dress(axes, look, x_label, several=len(styles) > 1)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CannotDraw(
            f"{path} cannot be written: {reason}", hint="name a .png, .svg or .pdf file"
        ) from None


def _styles(series: Sequence[Series]) -> dict[str, tuple[str, str]]:
    labels = list(dict.fromkeys(one.label for one in series))
    return {
        label: (
            _COLOURS[number % len(_COLOURS)],
            _MARKS[number // len(_COLOURS) % len(_MARKS)],
        )
        for number, label in enumerate(labels)
    }


def _curves(axes: Any, one: Series, look: Look, divisor: float, style: dict[str, Any]) -> None:
    # A logarithmic axis has no place for what was before the first byte.
    x = [value / divisor if value > 0 or "x" not in look.log else math.nan for value in one.x]
    colour = style["color"]
    if look.newest:
        axes.plot(x, _gaps(one.newest), linewidth=1.8, **style)
        return
    if any(value is not None for value in one.low):
        axes.fill_between(x, _gaps(one.low), _gaps(one.high), color=colour, alpha=0.16, linewidth=0)
    axes.plot(x, _gaps(one.mean), linewidth=1.8, **style)
    if any(value is not None for value in one.worst):
        axes.plot(
            x, _gaps(one.worst), color=colour, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.8
        )


def _dress(axes: Any, look: Look, x_label: str, *, several: bool) -> None:
    axes.set_title(look.title, loc="left", fontsize=11)
    if look.y != "consensus":
        key = "newest model" if look.newest else "line: mean, band: quartiles, dashed: worst node"
        axes.set_title(key, loc="right", fontsize=8.5, color="#666666")
    axes.set_xlabel(x_label)
    axes.set_ylabel(
        {
            "accuracy": "accuracy on held-out data",
            "loss": "loss on held-out data",
            "consensus": "root mean squared distance from the mean model",
        }[look.y]
    )
    if "x" in look.log:
        axes.set_xscale("log")
    if "y" in look.log:
        axes.set_yscale("log")
    elif look.y == "accuracy":
        axes.yaxis.set_major_formatter(lambda value, _position: f"{100 * value:.4g} %")
    axes.margins(x=0.01)
    axes.grid(visible=True, color="#e2e2e2", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if several:
        axes.legend(frameon=False, fontsize=9)


def _x_axis(x: str, most: float) -> tuple[float, str]:
    """What values are divided by, and the axis's label."""
    if x == "bytes":
        for size, name in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
            if most >= size:
                return size, f"{name} sent by all nodes"
        return 1, "bytes sent by all nodes"
    if x == "time":
        for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
            if most >= 3 * size:
                return size, f"{name} of virtual time"
        return 1, "seconds of virtual time"
    return 1, {"rounds": "round", "steps": "local steps of all nodes"}[x]


def _gaps(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]
