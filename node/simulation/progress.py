"""One line on the terminal that says how far a simulation is, in virtual and in real time."""

from __future__ import annotations

import shutil
import time
from typing import Final, TextIO

from node.simulation.run import Progress

__all__ = ["Bar", "line"]

BAR_CHARS: Final = 12


class Bar:
    """Draws over its own line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._began_s = time.monotonic()

    def show(self, progress: Progress) -> None:
        """Draw it anew."""
        width = shutil.get_terminal_size().columns
        text = line(progress, time.monotonic() - self._began_s)
        self._stream.write(f"\r\x1b[K{text[: width - 1]}")
        self._stream.flush()

    def clear(self) -> None:
        """Leave the line as it was before."""
        self._stream.write("\r\x1b[K")
        self._stream.flush()


def line(progress: Progress, real_s: float) -> str:
    """The text of the line, `real_s` seconds after the beginning."""
    filled = int(progress.share * BAR_CHARS)
    bar = "=" * filled + ">" * (filled < BAR_CHARS)
    rounds = f"{progress.round}/{progress.rounds}" if progress.rounds else f"{progress.round}"
    left = f", {real_s * (1 / progress.share - 1):.0f} s left" if progress.share > 0.02 else ""
    return (
        f"[{bar:<{BAR_CHARS}}] {progress.share:4.0%}  round {rounds}"
        f"  {progress.time_s:,.1f} s virtual, {real_s:,.1f} s real{left}"
        f"  {progress.alive} nodes  {progress.steps / max(real_s, 1e-9):,.0f} steps/s"
    )
