"""Splits are partitions that depend on seed and labels alone; draws need no history."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.data.digits import load_digits
from node.data.errors import InvalidSplit
from node.data.sampling import batch_draws, stream_of, uniform
from node.data.splits import sizes_by_class, split

LABELS = np.repeat(np.arange(10), 30)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["iid", "dirichlet", "shards", "user"]),
    parts=st.integers(1, 12),
    seed=st.integers(0, 1000),
    minimum=st.integers(1, 3),
)
def test_every_split_is_a_partition(kind, parts, seed, minimum):
    users = np.arange(300) % 17
    found = split(kind, LABELS, parts, seed=seed, alpha=1.0, minimum=minimum, users=users)
    assert len(found) == parts
    assert np.array_equal(np.sort(np.concatenate(found)), np.arange(300))
    assert min(map(len, found)) >= minimum
    again = split(kind, LABELS, parts, seed=seed, alpha=1.0, minimum=minimum, users=users)
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))
    if kind == "user":
        assert all(len({int(users[i]) for i in part} & {int(users[i]) for i in other}) == 0
                   for part in found for other in found if part is not other)  # fmt: skip


def test_the_cut_is_the_same_for_good():
    """Nodes of different versions have to agree: this digest may never change."""
    digest = hashlib.sha256()
    for kind in ("iid", "dirichlet", "shards", "user"):
        for part in split(kind, LABELS, 7, seed=3, alpha=0.3, users=np.arange(300) % 17):
            digest.update(part.astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == "ed0a30270d3b441c"
    drawn = batch_draws(stream_of("node"), 5, 9, 4)
    assert drawn.tolist() == [
        [7378920563204582813, 3582346746186548487, 5918571528229473246, 13851576416799587838]
    ]


def test_how_uneven_they_are():
    labels = load_digits().train_y
    spread = {}
    for kind, options in (
        ("iid", {}),
        ("even", {"alpha": 100.0}),
        ("uneven", {"alpha": 0.1}),
        ("shards", {"shards": 2}),
    ):
        name = "dirichlet" if "alpha" in options else kind
        counts = sizes_by_class(split(name, labels, 20, seed=1, **options), labels, 10)
        spread[kind] = np.mean(counts.max(axis=1) / counts.sum(axis=1))
        if kind == "shards":
            assert (counts > 0).sum(axis=1).max() <= 4  # two pieces, each over at most two classes
        if kind == "iid":
            assert np.ptp(counts.sum(axis=1)) <= 1
    assert spread["iid"] < 0.25
    assert spread["even"] < 0.25
    assert spread["uneven"] > 0.5
    assert spread["shards"] > 0.4


@pytest.mark.parametrize(
    ("kind", "options", "complaint"),
    [
        ("iid", {"parts": 301}, "cannot give 301 nodes"),
        ("dirichlet", {"parts": 100, "alpha": 0.01}, "200 Dirichlet splits"),
        ("user", {"parts": 2}, "does not say which user"),
        ("user", {"parts": 4, "users": np.zeros(300)}, "1 users cannot be dealt to 4"),
        ("thirds", {"parts": 3}, "no split named"),
        ("shards", {"parts": 7, "shards": 1, "minimum": 43}, "fewer than 43|at least 43"),
    ],
)
def test_what_cannot_be_split(kind, options, complaint):
    with pytest.raises(InvalidSplit, match=complaint) as caught:
        split(kind, LABELS, seed=0, **options)
    assert caught.value.hint


def test_draws_are_a_function_of_their_place():
    streams = np.array([stream_of(f"n{at}") for at in range(5)], np.uint64)
    index = np.array([0, 7, 7, 100, 3])
    together = batch_draws(streams, 11, index, 16)
    assert together.shape == (5, 16)
    for row in range(5):
        assert np.array_equal(
            batch_draws(int(streams[row]), 11, int(index[row]), 16)[0], together[row]
        )
    assert len(np.unique(together)) == 80
    assert not np.array_equal(batch_draws(streams, 12, index, 16), together)


def test_draws_are_uniform():
    drawn = batch_draws(stream_of("any"), 0, np.arange(500), 20) % np.uint64(10)
    counts = np.bincount(drawn.ravel().astype(int), minlength=10)
    assert (np.square(counts - 1000) / 1000).sum() < 27.9  # chi-square, 9 degrees: 0.1 %
    values = uniform(stream_of("any"), 10_000)
    assert values.min() >= 0
    assert values.max() < 1
    assert abs(values.mean() - 0.5) < 0.01
