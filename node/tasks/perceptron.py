"""A multi-layer perceptron as a recipe: settings, shapes, initial values and batches, without saying who computes.

Two places compute it: the tasks `digits` and `images` with torch, in a trainer, and the simulator's batched engine
with numpy, for many nodes at once. What both have to agree on is here, so neither imports the other.

Initial weights are Xavier-uniform (Glorot and Bengio 2010), within sqrt(6 / (fan_in + fan_out)); biases are zero.
They are drawn by `node.data.sampling`, not by torch, so that both hold the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import attrs
import numpy as np

from gossip.decentralized.protocol import TensorSpec, Vector
from node.data.cifar import load_cifar
from node.data.digits import load_digits
from node.data.errors import DataMissing
from node.data.femnist import load_femnist
from node.data.idx import load_idx
from node.data.labelled import Labelled
from node.data.sampling import stream_of, uniform
from node.run.layout import Layout
from node.run.manifest import Setting
from node.task import parse_settings
from node.tasks.settings import ImagesSettings, PerceptronSettings

__all__ = [
    "Recipe",
    "draw",
    "load_images",
    "own_seed",
    "recipe",
]


@attrs.frozen(eq=False)
class Recipe:
    """A perceptron for a data set."""

    settings: PerceptronSettings
    data: Labelled
    widths: tuple[int, ...]
    """Features, hidden layers, classes."""

    @classmethod
    def of(cls, settings: PerceptronSettings, data: Labelled) -> Recipe:
        """The one that fits the data."""
        hidden = (settings.hidden,) * settings.depth
        return cls(settings, data, (data.features, *hidden, data.classes))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameters by name; weights are (out, in), as torch has them."""
        found: dict[str, tuple[int, ...]] = {}
        for at, (inputs, outputs) in enumerate(zip(self.widths, self.widths[1:], strict=False)):
            found[f"layers.{at}.weight"] = (outputs, inputs)
            found[f"layers.{at}.bias"] = (outputs,)
        return found

    @property
    def layout(self) -> Layout:
        """Where they lie in a flat vector."""
        return Layout.of(self.shapes)

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """The same for a protocol."""
        return tuple(TensorSpec(slot.name, slot.start, slot.shape) for slot in self.layout.slots)

    def initial(self, seed: int) -> Vector:
        """Initial parameters of that seed, as a new flat vector."""
        layout = self.layout
        flat = np.zeros(layout.numel, np.float32)
        for name, view in layout.split(flat):
            view[...] = draw(name, view.shape, seed)
        return flat


def draw(name: str, shape: tuple[int, ...], seed: int) -> Vector:
    """Initial values of one parameter: Xavier-uniform for a matrix or kernel, zeros for a bias."""
    if len(shape) < 2:
        return np.zeros(shape, np.float32)
    field = math.prod(shape[2:])
    bound = math.sqrt(6.0 / ((shape[0] + shape[1]) * field))
    values = uniform(stream_of("initial", seed, name), math.prod(shape))
    return ((values * 2.0 - 1.0) * bound).astype(np.float32).reshape(shape)


def own_seed(seed: int, node: str) -> int:
    """Seed of the initial values that a node draws for itself, when it does not start from the run's."""
    return stream_of("own start", seed, node) >> 11


def load_images(settings: ImagesSettings, path: str) -> Labelled:
    """The data set that the settings of `images` name; raises `DataError`."""
    if not path:
        raise DataMissing(
            "the task images has no data of its own",
            hint="name the folder or archive in which the data set lies with --data ([run] data), and its format "
            "with run.task_settings.format",
        )
    return _read_images(settings.format, path, settings.any_version)


@lru_cache(maxsize=1)  # the simulator's exact engine builds a task for each of its nodes
def _read_images(format_: str, path: str, any_version: bool) -> Labelled:
    if format_ == "femnist":
        return load_femnist(path)
    load = load_cifar if format_ == "cifar" else load_idx
    try:
        return load(path, any_version=any_version)
    except DataMissing as error:
        other = (
            f'{error.hint}; a data set of another format than "{format_}" needs the setting format'
        )
        raise DataMissing(str(error), hint=other) from None


def recipe(task: str, raw: Mapping[str, Setting], data: str) -> Recipe | None:
    """The recipe of an installed task's name and settings; None if that is no perceptron.

    Raises:
        InvalidTaskSettings: an unknown key or a value out of range.
        DataError: what is wrong with the data.
    """
    if task == "digits":
        settings = parse_settings(task, PerceptronSettings, raw)
        return Recipe.of(settings, load_digits(data, any_version=settings.any_version))
    if task == "images":
        images = parse_settings(task, ImagesSettings, raw)
        if images.model == "mlp":
            return Recipe.of(images, load_images(images, data))
    return None
