"""Examples with one class each, some to train on and some held out."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

__all__ = ["Features", "Labelled", "Labels"]

Features = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@attrs.frozen(eq=False, kw_only=True)
class Labelled:
    """A classification data set in memory, normalised."""

    train_x: Features
    """Examples first: (examples, features) or (examples, channels, height, width)."""
    train_y: Labels
    test_x: Features
    test_y: Labels
    classes: int
    source: str
    """For people: where it came from."""
    users: npt.NDArray[Any] | None = None
    """Who each training example came from (small integers), where the data set knows."""

    @property
    def features(self) -> int:
        """Values of one example."""
        return int(np.prod(self.train_x.shape[1:]))

    def flat(self) -> tuple[Features, Features]:
        """(train, test) as matrices, one row for each example."""
        return (
            np.ascontiguousarray(self.train_x.reshape(len(self.train_x), -1)),
            np.ascontiguousarray(self.test_x.reshape(len(self.test_x), -1)),
        )

    def describe(self) -> str:
        """One line for the log."""
        return (
            f"{self.source}: {len(self.train_y):,} examples of {self.features:,} values in {self.classes} classes,"
            f" {len(self.test_y):,} held out"
        )
