"""Logistic regression with weight decay, other data at each node: smooth, strongly convex, with a known optimum."""

from __future__ import annotations

import numpy as np

from gossip.decentralized.kit.rehearsal import World
from gossip.decentralized.protocol import LocalWork, Train

DIMENSIONS = 10
ROWS = 20
CONDITION = 11.6


class Logistic:
    """A rehearsal's trainer: the full gradient of a node's own data, and plain steps of `learning_rate`."""

    def __init__(self, nodes: int, seed: int = 0, learning_rate: float = 0.0) -> None:
        rng = np.random.default_rng(seed)
        truth = rng.standard_normal(DIMENSIONS)
        centres = rng.standard_normal((nodes, 1, DIMENSIONS))
        self.features = 0.6 * (rng.standard_normal((nodes, ROWS, DIMENSIONS)) + centres)
        likely = 1 / (1 + np.exp(-self.features @ truth))
        self.labels = np.where(rng.random((nodes, ROWS)) < likely, 1.0, -1.0)
        curvature = max(float(np.linalg.eigvalsh(a.T @ a / ROWS)[-1]) for a in self.features) / 4
        self.convexity = curvature / (CONDITION - 1)
        self.smoothness = curvature + self.convexity
        self.learning_rate = learning_rate
        self.optimum = self._newton(nodes)

    def gradient(self, node: int, x: np.ndarray) -> np.ndarray:
        a, b = self.features[node], self.labels[node]
        return a.T @ (-b / (1 + np.exp(b * (a @ x)))) / ROWS + self.convexity * x

    def __call__(self, node: int, leg: Train) -> LocalWork:
        gradient = self.gradient(node, leg.params.astype(np.float64))
        if leg.rule.kind == "gradient":
            return LocalWork(leg.params.copy(), 1, 1.0, None, gradient.astype(np.float32))
        return LocalWork((leg.params - self.learning_rate * gradient).astype(np.float32), 1, 1.0)

    def distance(self, world: World) -> float:
        """Mean squared distance of the nodes' models from the optimum."""
        return float(np.mean([np.sum((model - self.optimum) ** 2) for model in world.models()]))

    def _newton(self, nodes: int) -> np.ndarray:
        x = np.zeros(DIMENSIONS)
        for _ in range(50):
            hessian = self.convexity * np.eye(DIMENSIONS)
            for a, b in zip(self.features, self.labels, strict=True):
                p = 1 / (1 + np.exp(b * (a @ x)))
                hessian += (a.T * (p * (1 - p))) @ a / ROWS / nodes
            step = np.mean([self.gradient(node, x) for node in range(nodes)], axis=0)
            x -= np.linalg.solve(hessian, step)
        return x
