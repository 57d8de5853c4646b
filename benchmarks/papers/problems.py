"""Problems whose answer is known, as engines of the simulator: the "loss" of a model is its squared distance from the optimum."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from gossip.decentralized.protocol import LocalWork, TensorSpec, Vector
from node.simulation.engine import Engine, Job, Score


class Known(Engine):
    """The base: a gradient for each node, plain steps of `learning_rate` for the rule "task"."""

    def __init__(self, optimum: np.ndarray, learning_rate: float = 0.0) -> None:
        self.optimum = optimum
        self.learning_rate = learning_rate
        self.numel = len(optimum)
        self.tensors = (TensorSpec("x", 0, (self.numel,)),)
        self.visits: Counter[int] = Counter()

    def gradient(self, node: int, x: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def initial(self, node: int, *, common: bool) -> Vector:  # noqa: ARG002
        return np.zeros(self.numel, np.float32)

    def train(self, jobs: Sequence[Job]) -> list[LocalWork]:
        return [self._leg(job) for job in jobs]

    def _leg(self, job: Job) -> LocalWork:
        self.visits[job.node] += 1
        x = job.params.astype(np.float64)
        if job.rule.kind == "gradient":
            gradient = self.gradient(job.node, x).astype(np.float32)
            return LocalWork(job.params.copy(), job.steps, job.steps, None, gradient)
        for _ in range(job.steps):
            x -= self.learning_rate * self.gradient(job.node, x)
        return LocalWork(x.astype(np.float32), job.steps, job.steps)

    def score(self, models: Sequence[Vector]) -> list[Score]:
        return [
            Score(float(np.sum((m.astype(np.float64) - self.optimum) ** 2)), None) for m in models
        ]


class Opposed(Known):
    """f_i(x) = (x - c_i)^2 / 2 with optima c_i that lie apart; the mean's is 0 if theirs is."""

    def __init__(self, centres: np.ndarray) -> None:
        super().__init__(np.array([centres.mean()]))
        self.centres = centres

    def gradient(self, node: int, x: np.ndarray) -> np.ndarray:
        return x - self.centres[node]


class Idle(Known):
    """Nothing is learnt; every node begins with values of its own, so that only the averaging is seen."""

    def __init__(self, nodes: int, seed: int, values: int = 16) -> None:
        self._starts = (
            np.random.default_rng(seed).standard_normal((nodes, values)).astype(np.float32)
        )
        super().__init__(self._starts.mean(axis=0))

    def initial(self, node: int, *, common: bool) -> Vector:  # noqa: ARG002
        return self._starts[node].copy()

    def gradient(self, node: int, x: np.ndarray) -> np.ndarray:  # noqa: ARG002
        return np.zeros_like(x)


class Logistic(Known):
    """Logistic regression with weight decay, 20 rows of 10 features at each node, around another centre at each."""

    ROWS, DIMENSIONS, CONDITION = 20, 10, 11.6

    def __init__(self, nodes: int, seed: int, learning_rate: float = 0.0) -> None:
        rng = np.random.default_rng([seed, nodes])
        truth = rng.standard_normal(self.DIMENSIONS)
        centres = rng.standard_normal((nodes, 1, self.DIMENSIONS))
        noise = rng.standard_normal((nodes, self.ROWS, self.DIMENSIONS))
        self.features = 0.6 * (noise + centres)
        likely = 1 / (1 + np.exp(-self.features @ truth))
        self.labels = np.where(rng.random(likely.shape) < likely, 1.0, -1.0)
        largest = max(float(np.linalg.eigvalsh(a.T @ a / self.ROWS)[-1]) for a in self.features) / 4
        self.convexity = largest / (self.CONDITION - 1)
        self.smoothness = largest + self.convexity
        super().__init__(self._newton(nodes), learning_rate)

    def gradient(self, node: int, x: np.ndarray) -> np.ndarray:
        a, b = self.features[node], self.labels[node]
        return a.T @ (-b / (1 + np.exp(b * (a @ x)))) / self.ROWS + self.convexity * x

    def _newton(self, nodes: int) -> np.ndarray:
        x = np.zeros(self.DIMENSIONS)
        for _ in range(50):
            curvature = self.convexity * np.eye(self.DIMENSIONS)
            for a, b in zip(self.features, self.labels, strict=True):
                p = 1 / (1 + np.exp(b * (a @ x)))
                curvature += (a.T * (p * (1 - p))) @ a / self.ROWS / nodes
            x -= np.linalg.solve(
                curvature, np.mean([self.gradient(i, x) for i in range(nodes)], axis=0)
            )
        return x
