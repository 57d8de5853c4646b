"""Points of the metrics: how good the nodes' models are, how far apart, and what it cost to get there.

A point is taken when the fastest node has completed so many more rounds, or all nodes together so many times their
number, whichever comes first, and always at the end of an instant, when all that happens then has happened. So nodes
of equal speed are seen at the same round, and slow ones still get points when the fast ones are done.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np

from gossip.collective.links.buffers import as_bytes
from gossip.decentralized.arithmetic import PIECE
from gossip.decentralized.protocol import Vector
from node.simulation.engine import Engine, Score
from node.simulation.records import Point, spread
from node.simulation.world import Node, World

__all__ = ["Metrics", "distance"]


class Metrics:
    """Decides when a point is due, and takes it.

    Args:
        world: what is looked at.
        engine: scores the models.
        every: rounds between two points.
        scored: indices of the nodes whose models are scored; None for all.
    """

    def __init__(
        self, world: World, engine: Engine, *, every: int, scored: frozenset[int] | None = None
    ) -> None:
        self._world = world
        self._engine = engine
        self._every = every
        self._scored = scored
        self.highest = 0
        """Round."""
        self.newest: Node | None = None
        """The node that completed the highest round last."""
        self._last_highest = 0
        self._last_completed = 0
        self._known: dict[bytes, Score] = {}
        """Scores of the models of the last point: nodes that stood still, or hold the same model, are scored once."""

    def completed(self, node: Node) -> None:
        """A node has completed a round."""
        if node.round >= self.highest:
            self.highest, self.newest = node.round, node

    @property
    def due(self) -> bool:
        """Whether it is time for a point."""
        if self.highest - self._last_highest >= self._every:
            return True
        more = self._world.totals.completed - self._last_completed
        return more > 0 and more >= self._every * self._world.present

    def take(self) -> Point | None:
        """The point at this moment; None if nobody is there."""
        world = self._world
        totals = world.totals
        self._last_highest, self._last_completed = self.highest, totals.completed
        alive = world.alive()
        parts = world.contacts.look([node.index for node in alive])
        shown = [node for node in alive if self._scored is None or node.index in self._scored]
        shown = shown or alive
        models = [node.model for node in shown if node.model is not None]
        if not models:
            return None
        newest = [] if self.newest is None or self.newest.model is None else [self.newest.model]
        scores = self._score([*models, *newest])
        last = scores[-1]
        scores = scores[: len(models)]
        accuracies = [score.accuracy for score in scores if score.accuracy is not None]
        apart = distance(models)
        return Point(
            round=self.highest,
            round_mean=round(sum(node.round for node in alive) / len(alive), 3),
            time_s=world.now,
            bytes=totals.bytes,
            transfers=round(totals.values / world.numel, 3),
            messages=totals.messages,
            lost=totals.lost,
            steps=totals.steps,
            alive=len(alive),
            parts=parts.count,
            largest=parts.largest,
            alone=parts.alone,
            consensus=apart if math.isfinite(apart) else None,
            loss=spread([score.loss for score in scores], higher_is_better=False),
            accuracy=spread(accuracies, higher_is_better=True) if accuracies else None,
            newest_loss=last.loss if math.isfinite(last.loss) else None,
            newest_accuracy=last.accuracy,
        )

    def _score(self, models: Sequence[Vector]) -> list[Score]:
        names = [hashlib.sha256(as_bytes(model)).digest() for model in models]
        known = {name: self._known[name] for name in names if name in self._known}
        missing = {
            name: model for name, model in zip(names, models, strict=True) if name not in known
        }
        if missing:
            fresh = self._engine.score(list(missing.values()))
            known.update(zip(missing, fresh, strict=True))
        self._known = known
        return [known[name] for name in names]


def distance(models: Sequence[Vector]) -> float:
    """Root of the mean squared Euclidean distance of the models from their mean."""
    total = 0.0
    for start in range(0, models[0].size, PIECE):
        with np.errstate(all="ignore"):
            piece = np.array([model[start : start + PIECE] for model in models], np.float64)
            piece -= piece.mean(axis=0)
            total += float(np.vdot(piece, piece))
    return math.sqrt(total / len(models)) if math.isfinite(total) else math.inf
