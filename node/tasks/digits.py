"""Handwritten digits of 8 x 8 pixels and a small perceptron: a task that needs no download and takes seconds.

The model is that of `node.tasks.perceptron`, here as a torch module; the simulator's batched engine computes the same.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from node.data.digits import load_digits
from node.data.labelled import Labelled
from node.tasks.classification import Classification, Perceptron
from node.tasks.perceptron import Recipe
from node.tasks.settings import PerceptronSettings

__all__ = ["Digits"]


class Digits(Classification):
    """Which digit is it? Pictures of 8 x 8 pixels and a perceptron."""

    name: ClassVar[str] = "digits"
    Settings: ClassVar[type[msgspec.Struct]] = PerceptronSettings

    def load(self, path: str) -> Labelled:
        """scikit-learn's digits, or a file in their format."""
        return load_digits(path, any_version=self.parsed.any_version)

    def build_model(self) -> Perceptron:
        """A perceptron with the initial values of the run's seed."""
        return Perceptron(Recipe.of(self.parsed, self.data), self.context.seed)
