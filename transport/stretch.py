"""When a task that always finds something to do has to let others run (asks trio's clock, and nothing else)."""

from __future__ import annotations

from typing import Final

import trio

YIELD_AFTER_S: Final = 0.001
"""How long a task may work before it lets others run."""

YIELD_AFTER_STEPS: Final = 64
"""The same bound in steps, for clocks that stand still while we work."""


class Stretch:
    """What a task has done since it last let others run: steps of one kind, such as calls of a socket.

    The clock is asked from the second step on: most tasks wait before each, and asking costs as much as a short one.
    """

    __slots__ = ("_since", "_steps")

    def __init__(self) -> None:
        self._steps = 0
        self._since = 0.0

    def rested(self) -> None:
        """Others have run."""
        self._steps = 0

    def begin(self) -> None:
        """Others have run, and a single step may take long: the clock runs from now on."""
        self._steps = 2
        self._since = trio.current_time()

    def hogs(self) -> bool:
        """Count a step; whether it is time to let others run."""
        self._steps += 1
        if self._steps == 1:
            return False
        now = trio.current_time()
        if self._steps == 2:
            self._since = now
        return self._steps >= YIELD_AFTER_STEPS or now - self._since > YIELD_AFTER_S
