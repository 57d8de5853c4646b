"""The part of a data set that one node trains on, and which of its examples make batch number i.

Free of torch: the simulator's batched engine draws the same batches as the tasks in a trainer.
"""

from __future__ import annotations

from typing import Any, Self

import attrs
import numpy as np
import numpy.typing as npt

from node.data.sampling import batch_draws, stream_of, uniform
from node.data.splits import split
from node.task import InvalidTaskSettings
from node.tasks.settings import SplitSettings

__all__ = ["Portion", "all_parts"]

Indices = npt.NDArray[np.int64]


@attrs.frozen(eq=False)
class Portion:
    """Indices into the training examples."""

    indices: Indices
    """Ascending."""

    @classmethod
    def of(
        cls,
        settings: SplitSettings,
        labels: npt.NDArray[np.int64],
        part: tuple[int, int] | None,
        *,
        seed: int,
        users: npt.NDArray[Any] | None = None,
    ) -> Self:
        """The part (index, count) of all examples, or all of them.

        Raises:
            InvalidSplit: the data cannot be split so.
            InvalidTaskSettings: there is no such part.
        """
        if part is None:
            return cls(_used(settings, len(labels), seed))
        index, count = part
        if not 0 <= index < count:
            raise InvalidTaskSettings(
                f"there is no part {index} of {count}",
                hint='in a TaskContext they are counted from 0; the configuration writes "1/8" to "8/8"',
            )
        return cls(all_parts(settings, labels, count, seed=seed, users=users)[index])

    def batch(self, stream: int, seed: int, index: int, size: int) -> Indices:
        """Examples of batch `index`: `size` of them drawn with replacement; size 0: the whole portion."""
        if not size:
            return self.indices
        places = batch_draws(stream, seed, index, size)[0] % np.uint64(len(self.indices))
        chosen: Indices = self.indices[places.astype(np.int64)]
        return chosen


def all_parts(
    settings: SplitSettings,
    labels: npt.NDArray[np.int64],
    count: int,
    *,
    seed: int,
    users: npt.NDArray[Any] | None = None,
) -> list[Indices]:
    """Every part of the split among `count` nodes; raises `InvalidSplit`."""
    used = _used(settings, len(labels), seed)
    parts = split(
        settings.split,
        labels[used],
        count,
        seed=seed,
        alpha=settings.alpha,
        shards=settings.shards,
        minimum=settings.minimum,
        users=None if users is None else users[used],
    )
    return [used[part] for part in parts]


def _used(settings: SplitSettings, total: int, seed: int) -> Indices:
    """The examples that are trained on by anybody, ascending."""
    wanted = settings.examples
    if not wanted or wanted == total:
        return np.arange(total)
    if wanted > total:
        raise InvalidTaskSettings(
            f"examples = {wanted:,}, but the data set has {total:,}", hint="0 takes all of them"
        )
    keys = uniform(stream_of("examples", seed), total)
    return np.sort(np.argsort(keys, kind="stable")[:wanted])
