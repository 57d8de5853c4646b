"""Film ratings by matrix factorisation: r = mean + b_user + b_film + <p_user, q_film> (Koren, Bell and Volinsky 2009).

The loss is the mean squared error plus `penalty` times the squares of the factors used; the held-out loss is the mean
squared error alone, so its root is the RMSE that papers report. There is no accuracy.
"""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from node.data.errors import DataMissing
from node.data.movielens import Ratings, load_movielens
from node.data.sampling import stream_of, uniform
from node.task import Evaluation, Task, TaskContext
from node.tasks.portion import Portion
from node.tasks.settings import RatingsSettings

__all__ = ["Factors", "MovieRatings"]

Batch = tuple[Tensor, Tensor, Tensor]
"""(users, films, ratings)."""


class Factors(nn.Module):
    """Predicts ratings; small uniform factors, zero biases."""

    def __init__(self, data: Ratings, settings: RatingsSettings, seed: int) -> None:
        super().__init__()
        self.user = nn.Embedding(data.users, settings.factors)
        self.film = nn.Embedding(data.items, settings.factors)
        self.user_bias = nn.Embedding(data.users, 1)
        self.film_bias = nn.Embedding(data.items, 1)
        # A constant, not a parameter: every node has the same training ratings to take it from.
        self.mean = float(np.mean(data.train_values, dtype=np.float64))
        with torch.no_grad():
            for name, table in (("user", self.user), ("film", self.film)):
                values = uniform(stream_of("initial", seed, name), table.weight.numel())
                small = (values - 0.5) * (2 / settings.factors)
                table.weight.copy_(torch.from_numpy(small).view_as(table.weight))
            self.user_bias.weight.zero_()
            self.film_bias.weight.zero_()

    def forward(self, users: Tensor, films: Tensor) -> Tensor:
        """One rating for each pair."""
        shared = (self.user(users) * self.film(films)).sum(1)
        rating: Tensor = (
            self.mean + self.user_bias(users)[:, 0] + self.film_bias(films)[:, 0] + shared
        )
        return rating


class MovieRatings(Task):
    """How will this person like that film? MovieLens and matrix factorisation."""

    name: ClassVar[str] = "ratings"
    Settings: ClassVar[type[msgspec.Struct]] = RatingsSettings
    parsed: RatingsSettings

    def __init__(self, context: TaskContext) -> None:
        super().__init__(context)
        if not context.data:
            raise DataMissing(
                "the task ratings has no data of its own",
                hint="name a MovieLens folder or archive with --data ([run] data)",
            )
        self.data = _cached(context.data, self.parsed.any_version)
        stars = np.round(self.data.train_values).astype(np.int64)
        self._portion = Portion.of(
            self.parsed, stars, context.part, seed=context.seed, users=self.data.train_users
        )

    def build_model(self) -> Factors:
        """Factors with the initial values of the run's seed."""
        return Factors(self.data, self.parsed, self.context.seed)

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """SGD as the settings have it."""
        return torch.optim.SGD(
            model.parameters(), lr=self.parsed.learning_rate, momentum=self.parsed.momentum
        )

    def batch(self, index: int) -> Batch:
        """Ratings of this node's portion, drawn with replacement."""
        chosen = self._portion.batch(
            self.context.stream, self.context.seed, index, self.parsed.batch
        )
        data = self.data
        return self._tensors(
            data.train_users[chosen], data.train_items[chosen], data.train_values[chosen]
        )

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean squared error, and the penalty on the factors of those in the batch."""
        users, films, ratings = batch
        assert isinstance(model, Factors)
        squares = model.user(users).square().sum(1) + model.film(films).square().sum(1)
        penalty = self.parsed.penalty * squares.mean()
        loss: Tensor = functional.mse_loss(model(users, films), ratings) + penalty
        return loss

    def tokens(self, batch: Batch) -> int:
        """Ratings in the batch."""
        return len(batch[2])

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Mean squared error on the held-out ratings, predictions cut to 0.5 to 5 stars."""
        data = self.data
        users, films, ratings = self._tensors(data.test_users, data.test_items, data.test_values)
        total, training = 0.0, model.training
        model.eval()
        with torch.inference_mode():
            for first in range(0, len(ratings), 65536):
                part = slice(first, first + 65536)
                guess = model(users[part], films[part]).clamp(0.5, 5.0)
                total += float(functional.mse_loss(guess, ratings[part], reduction="sum"))
        model.train(training)
        return Evaluation(total / len(ratings), len(ratings))

    def describe(self) -> str:
        """Source and size of the data."""
        return self.data.describe()

    def _tensors(self, users: np.ndarray, films: np.ndarray, ratings: np.ndarray) -> Batch:
        device = self.context.device
        return (
            torch.from_numpy(users).to(device),
            torch.from_numpy(films).to(device),
            torch.from_numpy(ratings).to(device),
        )


@lru_cache(maxsize=1)
def _cached(path: str, any_version: bool) -> Ratings:
    # The simulator's exact engine builds a task for each of its nodes.
    return load_movielens(path, any_version=any_version)
