"""What `noded local` shows while it runs: a live table, plain lines, or JSON lines.

Idea: three small classes with the same three verbs. The live one repaints in place and needs a terminal;
the plain one writes a line every few seconds, for logs; the JSON one writes an object for each event.

Invariants: progress never runs backwards (a peer that comes back starts below the others); every text
that a daemon gave is escaped.
"""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, TextIO

from node.cli.render import duration, human_bytes, number, printable
from node.local.watch import PeerView

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["JsonView", "LiveView", "PlainView", "Progress", "View", "open_view"]

PLAIN_EVERY_S: Final = 5.0
_RATE_WINDOW_S: Final = 30.0


class Progress:
    """How far the run is, and when it will be over.

    Args:
        steps: local steps of the whole run.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.step = 0
        self._samples: deque[tuple[float, int]] = deque()

    def update(self, views: Sequence[PeerView], now: float) -> None:
        """Take the peers' steps; the slowest of those that train counts."""
        training = [
            view.progress_step for view in views if view.daemon.running and view.progress_step > 0
        ]
        if training:
            self.step = max(self.step, min(training))
        if self.step > 0:  # the time until the first step says nothing about the pace
            self._samples.append((now, self.step))
        while self._samples and self._samples[0][0] < now - _RATE_WINDOW_S:
            self._samples.popleft()

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end at the pace of the last half minute; None while there is none."""
        if not self._samples:
            return None
        (start, first), (end, last) = self._samples[0], self._samples[-1]
        if last <= first or end <= start:
            return None
        return (self.steps - last) * (end - start) / (last - first)


class View(ABC):
    """Where the swarm's doings are shown."""

    @abstractmethod
    def update(self, views: Sequence[PeerView], progress: Progress, now: float) -> None:
        """Show the state of this moment; `now` in monotonic seconds."""

    @abstractmethod
    def event(self, kind: str, text: str, **facts: Any) -> None:
        """Show that something happened."""

    def close(self) -> None:
        """Give the terminal back. Calling it again does nothing."""
        return


class PlainView(View):
    """A line of numbers every few seconds, and a line for each event, on standard error."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last = float("-inf")

    def update(self, views: Sequence[PeerView], progress: Progress, now: float) -> None:
        """One line, if the last one is some seconds old."""
        if now - self._last < PLAIN_EVERY_S:
            return
        self._last = now
        rounds = [view.run.get("round") for view in views]
        known = [value for value in rounds if isinstance(value, int)]
        losses = " ".join(number(view.run.get("loss"), 3) for view in views)
        speed = sum(_number(view.run.get("tokens_per_s")) for view in views)
        sent = sum(view.bytes_sent for view in views)
        states = " ".join(printable(view.state, 20) for view in views)
        self._line(
            f"step {progress.step}/{progress.steps}  round {max(known, default=0)}  loss {losses}"
            f"  {speed:.0f} tokens/s  sent {human_bytes(sent)}  eta {duration(progress.eta_s)}"
            f"  [{states}]"
        )

    def event(self, kind: str, text: str, **facts: Any) -> None:
        """One line."""
        del kind, facts
        self._line(printable(text, 400))

    def _line(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class JsonView(View):
    """One object a line on standard output; `event` says which kind."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last = float("-inf")

    def update(self, views: Sequence[PeerView], progress: Progress, now: float) -> None:
        """A `progress` object, at most one a second."""
        if now - self._last < 1.0:
            return
        self._last = now
        peers = [
            {
                "name": view.name,
                "state": view.state,
                "pid": view.daemon.pid,
                "step": view.step,
                "round": view.run.get("round"),
                "loss": view.run.get("loss"),
                "validation_loss": view.run.get("val_loss"),
                "accuracy": view.run.get("accuracy"),
                "tokens_per_s": view.run.get("tokens_per_s"),
                "bytes_sent": view.bytes_sent,
                "bytes_received": view.bytes_received,
                "lives": view.daemon.lives,
            }
            for view in views
        ]
        self.write(
            "progress",
            step=progress.step,
            steps=progress.steps,
            eta_s=progress.eta_s,
            peers=peers,
        )

    def event(self, kind: str, text: str, **facts: Any) -> None:
        """An object of that kind."""
        self.write(kind, text=text, **facts)

    def write(self, event: str, **facts: Any) -> None:
        """One line."""
        line = json.dumps({"schema": "noded.local/1", "event": event, **facts})
        print(line, file=self._stream, flush=True)


class LiveView(View):
    """A table that is repainted in place, a progress bar, and the latest events below."""

    def __init__(self, stream: TextIO, *, no_color: bool = False) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=stream, no_color=no_color or None, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=False)
        self._events: deque[str] = deque(maxlen=4)
        self._open = True
        self._live.start()

    def update(self, views: Sequence[PeerView], progress: Progress, now: float) -> None:
        """Repaint."""
        del now
        self._live.update(self._picture(views, progress), refresh=True)

    def event(self, kind: str, text: str, **facts: Any) -> None:
        """Kept below the table until newer ones push it out."""
        del kind, facts
        self._events.append(printable(text, 200))

    def close(self) -> None:
        """Leave the last picture standing."""
        if self._open:
            self._open = False
            self._live.stop()

    def _picture(self, views: Sequence[PeerView], progress: Progress) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for title, justify in _COLUMNS:
            table.add_column(title, justify="right" if justify else "left", no_wrap=True)
        for view in views:
            state = printable(view.state, 20)
            table.add_row(
                view.name,
                Text(state, style=_STATE_STYLES.get(state, "")),
                number(view.run.get("round")),
                number(view.run.get("step")),
                number(view.run.get("loss"), 3),
                _evaluation(view),
                number(view.run.get("tokens_per_s"), 0),
                human_bytes(view.bytes_sent),
                printable(view.path, 40),
            )
        line = Table.grid(padding=(0, 2, 0, 0))
        eta = f"eta {duration(progress.eta_s)}" if progress.eta_s is not None else ""
        line.add_row(
            ProgressBar(total=progress.steps, completed=progress.step, width=40),
            Text(f"step {progress.step} of {progress.steps}"),
            Text(eta, style="dim"),
        )
        return Group(table, Text(), line, *(Text(text, style="dim") for text in self._events))


_COLUMNS: Final = (
    ("PEER", False),
    ("STATE", False),
    ("ROUND", True),
    ("STEP", True),
    ("LOSS", True),
    ("HELD OUT", True),
    ("TOK/S", True),
    ("SENT", True),
    ("PATH", False),
)
_STATE_STYLES: Final = {
    "training": "green",
    "finished": "green bold",
    "down": "red",
    "failed": "red bold",
    "degraded": "red",
    "coming back": "yellow",
    "syncing": "yellow",
    "waiting": "yellow",
    "joining": "yellow",
    "starting": "dim",
}


def open_view(*, json_lines: bool, plain: bool, no_color: bool) -> View:
    """The view for these options and this terminal."""
    if json_lines:
        return JsonView(sys.stdout)
    if plain or not sys.stdout.isatty():
        return PlainView(sys.stderr)
    try:
        return LiveView(sys.stdout, no_color=no_color)
    except ImportError:  # rich comes with the extra `demo`; without it the numbers are the same
        return PlainView(sys.stderr)


def _evaluation(view: PeerView) -> str:
    """The last evaluation: right answers where the task has any, else the loss."""
    accuracy = view.run.get("accuracy")
    if isinstance(accuracy, int | float):
        return f"{100 * accuracy:.1f} %"
    return number(view.run.get("val_loss"), 3)


def _number(value: object) -> float:
    real = isinstance(value, int | float) and value == value  # noqa: PLR0124 (not NaN)
    return float(value) if real else 0.0  # type: ignore[arg-type]  # looked at above
