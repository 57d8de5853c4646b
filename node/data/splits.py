"""Who trains on what: one data set cut into disjoint parts, the same cut on every node.

Kinds:

* "iid": shuffled and dealt; sizes differ by at most one.
* "dirichlet": for each class shares are drawn from Dir(alpha, ..., alpha) and its shuffled examples cut accordingly
  (Hsu, Qi and Brown 2019). Small alpha: few classes for each node, and very different sizes. Redrawn until every
  part has at least `minimum` examples.
* "shards": sorted by class, cut into `shards` pieces for each part, pieces dealt at random (McMahan et al. 2017):
  with 2 shards a node sees about two classes.
* "user": whole users are dealt, largest first, each to the part that is smallest by then: the natural split of data
  that people wrote.

Everything follows from the seed and the labels, by Python's generator: numpy may change its streams between
versions, and nodes with different cuts would train on examples that others hold.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from node.data.errors import InvalidSplit
from node.data.labelled import Labels

__all__ = ["SPLITS", "split"]

SPLITS: Final = ("iid", "dirichlet", "shards", "user")
REDRAWS: Final = 200
"""Of a Dirichlet split before it is given up; each costs classes times parts draws."""

Indices = npt.NDArray[np.int64]


def split(
    kind: str,
    labels: Labels,
    parts: int,
    *,
    seed: int,
    alpha: float = 0.5,
    shards: int = 2,
    minimum: int = 1,
    users: npt.NDArray[Any] | None = None,
) -> list[Indices]:
    """Disjoint parts that cover all examples, as ascending indices.

    Args:
        kind: one of `SPLITS`.
        labels: class of each example.
        parts: how many.
        seed: the run's.
        alpha: concentration of "dirichlet".
        shards: pieces for each part of "shards".
        minimum: least examples of a part.
        users: who each example came from, for "user".

    Raises:
        InvalidSplit: unknown kind, no users, or not every part can have `minimum` examples.
    """
    if len(labels) < parts * max(minimum, 1):
        raise InvalidSplit(
            f"{len(labels):,} examples cannot give {parts:,} nodes at least {max(minimum, 1)} each",
            hint="take fewer nodes, a smaller `minimum`, or more data",
        )
    rng = random.Random(f"noded split/{kind}/{seed}/{parts}")
    if kind == "iid":
        found = _iid(len(labels), parts, rng)
    elif kind == "dirichlet":
        found = _dirichlet(labels, parts, alpha, minimum, rng)
    elif kind == "shards":
        found = _shards(labels, parts, shards, rng)
    elif kind == "user":
        if users is None:
            raise InvalidSplit(
                "this data set does not say which user an example came from",
                hint='set split to "iid", "dirichlet" or "shards"',
            )
        found = _by_user(users, parts, rng)
    else:
        raise InvalidSplit(f"no split named {kind!r}", hint=f"there are: {', '.join(SPLITS)}")
    if min(map(len, found)) < minimum:
        raise InvalidSplit(
            f"a part of the {kind} split among {parts:,} nodes has fewer than {minimum} examples",
            hint="take fewer nodes or a smaller `minimum`",
        )
    return [np.sort(part) for part in found]


def _iid(count: int, parts: int, rng: random.Random) -> list[Indices]:
    return list(np.array_split(_shuffled(np.arange(count), rng), parts))


def _dirichlet(
    labels: Labels, parts: int, alpha: float, minimum: int, rng: random.Random
) -> list[Indices]:
    by_class = [_shuffled(np.flatnonzero(labels == value), rng) for value in np.unique(labels)]
    for _ in range(REDRAWS):
        cuts = [_cuts(len(members), parts, alpha, rng) for members in by_class]
        sizes = np.sum([np.diff(cut) for cut in cuts], axis=0)
        if sizes.min() >= minimum:
            return [
                np.concatenate(
                    [
                        members[cut[part] : cut[part + 1]]
                        for members, cut in zip(by_class, cuts, strict=True)
                    ]
                )
                for part in range(parts)
            ]
    raise InvalidSplit(
        f"{REDRAWS} Dirichlet splits with alpha {alpha} left one of {parts:,} nodes with fewer than {minimum} examples",
        hint="take a larger `alpha`, a smaller `minimum`, fewer nodes or more data",
    )


def _cuts(members: int, parts: int, alpha: float, rng: random.Random) -> Indices:
    shares = np.array([rng.gammavariate(alpha, 1.0) for _ in range(parts)])
    if not shares.sum() > 0:  # every share underflowed: one part takes the class
        shares[rng.randrange(parts)] = 1.0
    ends = np.floor(np.cumsum(shares / shares.sum()) * members + 0.5).astype(np.int64)
    ends[-1] = members
    return np.concatenate([[0], ends])


def _shards(labels: Labels, parts: int, shards: int, rng: random.Random) -> list[Indices]:
    shuffled = _shuffled(np.arange(len(labels)), rng)
    ordered = shuffled[np.argsort(labels[shuffled], kind="stable")]
    pieces = np.array_split(ordered, parts * shards)
    hands = _shuffled(np.arange(parts * shards), rng).reshape(parts, shards)
    return [np.concatenate([pieces[piece] for piece in hand]) for hand in hands]


def _by_user(users: npt.NDArray[Any], parts: int, rng: random.Random) -> list[Indices]:
    names, sizes = np.unique(users, return_counts=True)
    if len(names) < parts:
        raise InvalidSplit(
            f"the examples of {len(names):,} users cannot be dealt to {parts:,} nodes",
            hint="take at most as many nodes as there are users, or another split",
        )
    order = _shuffled(np.arange(len(names)), rng)
    order = order[np.argsort(-sizes[order], kind="stable")]
    held: list[list[Indices]] = [[] for _ in range(parts)]
    total = [0] * parts
    for place in order:
        smallest = min(range(parts), key=lambda part: (total[part], part))
        held[smallest].append(np.flatnonzero(users == names[place]))
        total[smallest] += int(sizes[place])
    return [np.concatenate(chunks) for chunks in held]


def _shuffled(values: npt.NDArray[Any], rng: random.Random) -> Indices:
    # Sorting by random keys uses nothing but `random()`, the one method whose values Python promises to keep.
    keys = np.array([rng.random() for _ in range(len(values))])
    found: Indices = values[np.argsort(keys, kind="stable")].astype(np.int64)
    return found


def sizes_by_class(parts: Sequence[Indices], labels: Labels, classes: int) -> Indices:
    """How many examples of each class each part has: shape (parts, classes)."""
    return np.array([np.bincount(labels[part], minlength=classes) for part in parts])
