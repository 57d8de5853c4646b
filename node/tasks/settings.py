"""What may be set of the tasks that come with noded: `[run.task_settings]`.

Free of torch and of the tasks themselves: the entry points `noded.task_settings` lead here, so that a daemon, which imports no
task, refuses a wrong setting when the configuration is read (`node.task.check_settings`).
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

__all__ = [
    "ByteGPTSettings",
    "ImagesSettings",
    "PerceptronSettings",
    "RatingsSettings",
    "SplitSettings",
]


class SplitSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the examples are dealt to the nodes; without effect where no part is named (`[run] part`)."""

    split: Literal["iid", "dirichlet", "shards", "user"] = "iid"
    """iid: alike; dirichlet: unequal shares of each class; shards: a few classes for each node; user: by who made them."""
    alpha: Annotated[float, Meta(gt=0, le=1e6)] = 0.5
    """Concentration of the Dirichlet split: 0.1 is very uneven, 100 nearly even."""
    shards: Annotated[int, Meta(ge=1, le=1024)] = 2
    """Pieces of equal class for each node in the split by shards."""
    minimum: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    """Least examples of a node."""
    examples: Annotated[int, Meta(ge=0, le=100_000_000)] = 0
    """Train on so many examples in all, chosen at random with the run's seed, alike on all nodes; 0: all there are."""
    any_version: bool = False
    """Accept files whose checksums are not those of the published data set."""


class PerceptronSettings(SplitSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[run.task_settings]` of a perceptron."""

    hidden: Annotated[int, Meta(ge=1, le=4096)] = 64
    """Width of each hidden layer."""
    depth: Annotated[int, Meta(ge=0, le=32)] = 1
    """Hidden layers; 0 is softmax regression, a convex problem."""
    batch: Annotated[int, Meta(ge=0, le=65536)] = 16
    """Examples of a local step; 0: all that the node holds."""
    learning_rate: Annotated[float, Meta(gt=0, le=100)] = 0.1
    """Of stochastic gradient descent."""
    decay: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """Factor on the learning rate after each local step."""
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Of the local optimizer."""
    weight_decay: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Added to the gradient by the optimizer; no part of the loss."""
    l2: Annotated[float, Meta(ge=0, le=100)] = 0.0
    """The loss gets l2 / 2 times the squared norm of all parameters: strongly convex if depth is 0."""


class ImagesSettings(PerceptronSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[run.task_settings]` of the task `images`."""

    format: Literal["idx", "cifar", "femnist"] = "idx"
    """idx: MNIST, Fashion-MNIST and whatever has their format; cifar: CIFAR-10, binary version; femnist: as LEAF writes it."""
    model: Literal["cnn", "mlp"] = "cnn"
    """cnn: two convolutions and a linear layer, `hidden` channels in the second; mlp: a perceptron of `hidden` and `depth`."""


class RatingsSettings(SplitSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[run.task_settings]` of the film ratings."""

    factors: Annotated[int, Meta(ge=1, le=1024)] = 16
    """Length of the vector of each user and film."""
    batch: Annotated[int, Meta(ge=1, le=1_000_000)] = 64
    """Ratings of a local step."""
    learning_rate: Annotated[float, Meta(gt=0, le=100)] = 0.05
    """Of plain stochastic gradient descent."""
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Of the local optimizer."""
    penalty: Annotated[float, Meta(ge=0, le=10)] = 0.02
    """On the squares of the factors that a batch uses."""


class ByteGPTSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[run.task_settings]` of the byte-level GPT."""

    layers: Annotated[int, Meta(ge=1, le=64)] = 3
    """Blocks of attention and perceptron."""
    width: Annotated[int, Meta(ge=8, le=8192)] = 64
    """Length of the vector of each position; a multiple of `heads`."""
    heads: Annotated[int, Meta(ge=1, le=128)] = 4
    """Attention heads of a block."""
    context: Annotated[int, Meta(ge=8, le=65536)] = 64
    """Bytes per window."""
    batch: Annotated[int, Meta(ge=1, le=65536)] = 8
    """Windows per local step."""
    learning_rate: Annotated[float, Meta(gt=0, le=1)] = 3e-3
    """Peak of the local AdamW."""
    weight_decay: Annotated[float, Meta(ge=0, le=1)] = 0.1
    """Of the local AdamW, on matrices only."""
    warmup: Annotated[int, Meta(ge=0, le=1_000_000)] = 50
    """Steps of linear warm-up; then a cosine down to a tenth of the peak."""
    clip: Annotated[float, Meta(gt=0, le=1e6)] = 1.0
    """Largest norm of a gradient."""
    evaluation_windows: Annotated[int, Meta(ge=1, le=65536)] = 192
    """Windows of the held-out text that are scored."""
    sample_bytes: Annotated[int, Meta(ge=0, le=4096)] = 400
    """Length of the sample that is written at the end; 0: none."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of {self.heads} heads")
