"""What tasks that tell classes apart have in common: batches of a portion, cross-entropy, accuracy, SGD; and the perceptron in torch."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from node.data.labelled import Labelled
from node.task import Evaluation, Task, TaskContext
from node.tasks.perceptron import Recipe
from node.tasks.portion import Portion
from node.tasks.settings import PerceptronSettings

__all__ = ["Batch", "Classification", "Perceptron"]

Batch = tuple[Tensor, Tensor]
"""(examples, classes): float32 with the batch first, int64."""


class Perceptron(nn.Module):
    """Linear layers with ReLU between them: (batch, ...) to (batch, classes)."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        super().__init__()
        widths = recipe.widths
        self.layers = nn.ModuleList(
            nn.Linear(inputs, outputs) for inputs, outputs in pairwise(widths)
        )
        with torch.no_grad():
            named = dict(self.named_parameters())
            for name, values in recipe.layout.split(recipe.initial(seed)):
                named[name].copy_(torch.from_numpy(values))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = x.flatten(1)
        for at, layer in enumerate(self.layers):
            x = layer(x)
            if at + 1 < len(self.layers):
                x = functional.relu(x)
        return x


class Classification(Task):
    """What tasks that tell classes apart have in common: batches, loss, evaluation, SGD."""

    parsed: PerceptronSettings

    def __init__(self, context: TaskContext) -> None:
        super().__init__(context)
        self.data = self.load(context.data)
        self._portion = Portion.of(
            self.parsed, self.data.train_y, context.part, seed=context.seed, users=self.data.users
        )
        self._test = self._on_device(self.data.test_x, self.data.test_y)

    def load(self, path: str) -> Labelled:
        """The data set; raises `DataError`."""
        raise NotImplementedError

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """SGD as the settings have it."""
        return torch.optim.SGD(
            model.parameters(),
            lr=self.parsed.learning_rate,
            momentum=self.parsed.momentum,
            weight_decay=self.parsed.weight_decay,
        )

    def batch(self, index: int) -> Batch:
        """Examples of this node's portion, drawn with replacement."""
        chosen = self._portion.batch(
            self.context.stream, self.context.seed, index, self.parsed.batch
        )
        return self._on_device(self.data.train_x[chosen], self.data.train_y[chosen])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy in nats, and the penalty of `l2`."""
        examples, classes = batch
        loss = functional.cross_entropy(model(examples), classes)
        if self.parsed.l2:
            squares = [parameter.square().sum() for parameter in model.parameters()]
            loss = loss + self.parsed.l2 / 2 * torch.stack(squares).sum()
        return loss

    def tokens(self, batch: Batch) -> int:
        """Examples in the batch."""
        return len(batch[1])

    def learning_rate(self, step: int) -> float:
        """Falls by the factor `decay` with every step."""
        return self.parsed.learning_rate * self.parsed.decay**step

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Cross-entropy and accuracy on the held-out examples."""
        examples, classes = self._test
        total, right, training = 0.0, 0, model.training
        model.eval()
        with torch.inference_mode():
            for first in range(0, len(classes), 1024):
                logits = model(examples[first : first + 1024])
                wanted = classes[first : first + 1024]
                total += float(functional.cross_entropy(logits, wanted, reduction="sum"))
                right += int((logits.argmax(1) == wanted).sum())
        model.train(training)
        return Evaluation(total / len(classes), len(classes), right / len(classes))

    def describe(self) -> str:
        """Source and size of the data."""
        whole = len(self.data.train_y)
        mine = len(self._portion.indices)
        return self.data.describe() + (f"; this node trains on {mine:,}" if mine < whole else "")

    def _on_device(self, examples: np.ndarray, classes: np.ndarray) -> Batch:
        pair = torch.from_numpy(examples), torch.from_numpy(classes)
        if self.context.device == "cpu":
            return pair
        return pair[0].to(self.context.device), pair[1].to(self.context.device)
