"""Operations of members on one machine, over real sockets and shared memory: the bits are those of members far apart."""

from __future__ import annotations

import os
from collections.abc import Callable

import attrs
import numpy as np
import pytest
import trio

from gossip.collective import choice
from gossip.collective.call import Call, Kind, Reduce
from gossip.collective.choice import Algorithm
from gossip.collective.dataplane import Outcome
from gossip.collective.links import carriage
from gossip.errors import NotFinite
from tests.gossip.dataplane_kit import (
    REDUCERS,
    TYPES,
    all_reduce,
    assert_close,
    lanes_of,
    run,
    run_all,
    values,
)
from tests.gossip.links import local_links, names
from transport.bulk import link

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux only")

WORLD = 4
LENGTH = 4 * 256 * 5 + 3
"""Values of 4 bytes: many segments, when those are as small as `small_segments` makes them."""
WEIGHTS = (0.5, 2.0, 0.0, 1.5)
SHARED = {
    "connections": lambda _one, _other: False,
    "memory": lambda _one, _other: True,
    "mixed": lambda one, other: (one + 2 * other) % 3 != 0,
    "one way": lambda one, other: one < other,
}
"""Whose links share memory."""
Sharing = Callable[[int, int], bool]


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carriage, "SEGMENT_VALUE_BYTES", 4 * carriage.ALIGN)
    monkeypatch.setattr(link, "BULK_RECORD_BYTES", 4 * carriage.ALIGN)


def together(
    calls: list[Call], sources: list[np.ndarray], shared: Sharing
) -> list[tuple[np.ndarray, Outcome] | BaseException]:
    """What every member gets; their links share memory or not."""
    world = len(sources)

    async def main() -> list[tuple[np.ndarray, Outcome] | BaseException]:
        with trio.fail_after(60):
            async with local_links(world, shared=shared) as links:
                bound = [
                    call.bind(b"t", source) for call, source in zip(calls, sources, strict=True)
                ]
                return await run_all(lanes_of(links), bound, sources)

    return trio.run(main)


def same_as_apart(call: Call, sources: list[np.ndarray], weights: list[float], sharing: str):
    """The results, which are those of the same operation over a network."""
    apart = run(call, sources, weights)
    calls = [attrs.evolve(call, weight=weight) for weight in weights]
    results = together(calls, sources, SHARED[sharing])
    assert not [one for one in results if isinstance(one, BaseException)], results
    for (out, outcome), (far, known) in zip(results, apart, strict=True):  # type: ignore[misc]
        assert out.tobytes() == far.tobytes()
        assert outcome.root == known.root
        assert outcome.weight == known.weight
    return results


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("whole", [True, False], ids=["whole parts", "segments"])
@pytest.mark.parametrize("sharing", sorted(SHARED))
@pytest.mark.parametrize("algorithm", REDUCERS)
def test_an_all_reduce(
    algorithm: Algorithm, sharing: str, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not whole:
        monkeypatch.setattr(choice, "PART_BYTES", 0)
    sources = values(WORLD, LENGTH, TYPES["float32"], 9)
    call = all_reduce(algorithm, reduce=Reduce.MEAN)
    results = same_as_apart(call, sources, list(WEIGHTS), sharing)
    assert_close(results[0][0], Reduce.MEAN, sources, list(WEIGHTS))


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("name", sorted(TYPES))
@pytest.mark.parametrize("sharing", ["memory", "mixed"])
@pytest.mark.parametrize(
    "kind", [Kind.ALL_REDUCE, Kind.REDUCE_SCATTER, Kind.ALL_GATHER, Kind.BROADCAST]
)
def test_every_kind_and_type(kind: Kind, sharing: str, name: str) -> None:
    algorithm = Algorithm.STAR if kind is Kind.BROADCAST else Algorithm.BUTTERFLY
    call = Call(kind=kind, algorithm=algorithm, root=None)
    if kind is Kind.BROADCAST:
        call = attrs.evolve(call, root=names(WORLD)[1])
    for length in (0, 1, 3, 257, LENGTH):
        sources = values(WORLD, length, TYPES[name], length)
        same_as_apart(call, sources, [1.0] * WORLD, sharing)


@pytest.mark.parametrize("algorithm", [Algorithm.BUTTERFLY, Algorithm.STAR, Algorithm.DOUBLE_STAR])
@pytest.mark.parametrize("more", [0, 1])
def test_parts_of_about_the_largest_that_pass_whole(algorithm: Algorithm, more: int) -> None:
    parts = {Algorithm.BUTTERFLY: WORLD, Algorithm.STAR: 1, Algorithm.DOUBLE_STAR: 2}[algorithm]
    length = parts * choice.PART_BYTES // 4 + more
    sources = values(WORLD, length, TYPES["float32"], more)
    same_as_apart(all_reduce(algorithm), sources, [1.0] * WORLD, "memory")


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("sharing", ["memory", "mixed"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("algorithm", REDUCERS)
def test_who_has_what_is_not_finite_is_told(
    algorithm: Algorithm, value: float, sharing: str
) -> None:
    sources = values(WORLD, LENGTH, TYPES["float32"], 0)
    sources[2][LENGTH - 1] = value
    call = all_reduce(algorithm, careful=True)
    errors = together([call] * WORLD, sources, SHARED[sharing])
    assert isinstance(errors[2], NotFinite)
    assert not any(isinstance(error, NotFinite) for error in errors[:2] + errors[3:])
