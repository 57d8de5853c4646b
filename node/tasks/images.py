"""Photographs and drawings from files that the operator has: MNIST, Fashion-MNIST, CIFAR-10, FEMNIST.

Two models. "mlp" is the perceptron of `node.tasks.perceptron`. "cnn" is a small convolutional network in the manner
of LeNet (LeCun et al. 1998): twice a 5 x 5 convolution, ReLU and 2 x 2 max pooling, then one linear layer. It has no
batch normalisation: running statistics are private to a node, and models that are averaged without them are wrong
in a way that looks like bad luck.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from node.data.labelled import Labelled
from node.tasks.classification import Classification, Perceptron
from node.tasks.perceptron import Recipe, draw, load_images
from node.tasks.settings import ImagesSettings

__all__ = ["Images", "SmallCNN"]


class SmallCNN(nn.Module):
    """(batch, channels, height, width) to logits."""

    def __init__(self, shape: tuple[int, int, int], width: int, classes: int, seed: int) -> None:
        super().__init__()
        channels, height, breadth = shape
        self.first = nn.Conv2d(channels, max(width // 2, 1), 5, padding=2)
        self.second = nn.Conv2d(max(width // 2, 1), width, 5, padding=2)
        self.last = nn.Linear(width * (height // 4) * (breadth // 4), classes)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(torch.from_numpy(draw(name, tuple(parameter.shape), seed)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = functional.max_pool2d(functional.relu(self.first(x)), 2)
        x = functional.max_pool2d(functional.relu(self.second(x)), 2)
        logits: Tensor = self.last(x.flatten(1))
        return logits


class Images(Classification):
    """What is in the picture? Files in the formats of MNIST, CIFAR-10 or FEMNIST."""

    name: ClassVar[str] = "images"
    Settings: ClassVar[type[msgspec.Struct]] = ImagesSettings
    parsed: ImagesSettings

    def load(self, path: str) -> Labelled:
        """The data set at the run's data."""
        return load_images(self.parsed, path)

    def build_model(self) -> nn.Module:
        """The model that the settings name, with the initial values of the run's seed."""
        if self.parsed.model == "mlp":
            return Perceptron(Recipe.of(self.parsed, self.data), self.context.seed)
        channels, height, width = self.data.train_x.shape[1:]
        return SmallCNN(
            (channels, height, width), self.parsed.hidden, self.data.classes, self.context.seed
        )
