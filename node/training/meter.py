"""What a loop logs of its steps: loss, tokens, speed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import torch

__all__ = ["Meter"]

WINDOW_S: Final = 5.0
"""Speed is that of the last 5 to 10 seconds: steady, and still shows a slow-down."""


class Meter:
    """Counts one loop's tokens and losses; costs no synchronisation with a device.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.tokens = 0
        """Logged since the run began."""
        self._clock = clock
        self._since: tuple[float, int] = (clock(), 0)
        self._loss_sum: Any = 0.0
        self._loss_count = 0
        self._last_loss: Any = None

    def resume(self, tokens: int) -> None:
        """So many were logged by an earlier process."""
        self.tokens = tokens
        self._since = (self._clock(), tokens)

    def log(self, loss: torch.Tensor | float | None, tokens: int) -> None:
        """Take what one step saw."""
        self.tokens += tokens
        if loss is not None:
            value = loss.detach() if isinstance(loss, torch.Tensor) else loss
            self._last_loss = value
            self._loss_sum = self._loss_sum + value
            self._loss_count += 1

    @property
    def last_loss(self) -> float | None:
        """Of the last step; None if it was not finite, or there is none."""
        return None if self._last_loss is None else _finite(float(self._last_loss))

    def take_mean_loss(self) -> float | None:
        """Mean since it was taken last; None if that is not finite, or none was logged."""
        if not self._loss_count:
            return None
        mean = float(self._loss_sum) / self._loss_count
        self._loss_sum, self._loss_count = 0.0, 0
        return _finite(mean)

    def rate(self) -> float:
        """Tokens per second, lately."""
        now = self._clock()
        since, tokens = self._since
        rate = max(self.tokens - tokens, 0) / (now - since) if now > since else 0.0
        if now - since >= WINDOW_S:
            self._since = (now, self.tokens)
        return rate


def _finite(value: float) -> float | None:
    """`value`, or None for what JSON cannot say."""
    return value if math.isfinite(value) else None
