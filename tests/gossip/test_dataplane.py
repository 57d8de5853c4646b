"""Every kind, algorithm, type and wire format against a float64 reference; equal bits at all members."""

from __future__ import annotations

import itertools

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.collective.call import Call, Kind, Reduce, chunk_bounds, result_length
from gossip.collective.choice import CAN, Algorithm
from gossip.collective.dataplane import execute
from gossip.collective.elements import INTEGERS
from gossip.collective.formats.registry import FORMATS
from tests.gossip.dataplane_kit import (
    REDUCERS,
    SLOW,
    TYPES,
    assert_close,
    lanes,
    reference,
    run,
    run_all,
    values,
)
from tests.gossip.links import names, virtual
from tests.gossip.test_formats import bound
from transport.simulated.link_model import LinkSettings
from transport.simulated.memory import MemoryNetwork

LENGTHS = [0, 1, 2, 7, 255, 256, 257, 1001]
CASES = [
    (kind, algorithm, name)
    for kind, name in itertools.product(CAN, sorted(TYPES))
    for algorithm in CAN[kind]
    if not (algorithm is Algorithm.RING and name in {"float16", "bfloat16"})
]


@settings(max_examples=400 if SLOW else 60, deadline=None)
@given(
    case=st.sampled_from(CASES),
    world=st.integers(1, 9),
    length=st.sampled_from(LENGTHS),
    reduce=st.sampled_from(list(Reduce)),
    weights=st.lists(st.sampled_from([0.0, 0.3, 1.0, 2.0, 1000.0]), min_size=9, max_size=9),
    seed=st.integers(0, 1000),
)
def test_every_kind_algorithm_and_type(
    case, world: int, length: int, reduce: Reduce, weights: list[float], seed: int
) -> None:
    kind, algorithm, name = case
    dtype = TYPES[name]
    if name in INTEGERS and reduce is Reduce.MEAN:
        reduce = Reduce.SUM
    if name in INTEGERS or reduce in {Reduce.MIN, Reduce.MAX}:
        weights = [float(weight > 0) for weight in weights]
    if algorithm is Algorithm.HIERARCHICAL and name in INTEGERS and reduce is Reduce.SUM:
        reduce = Reduce.MAX
    weights = weights[:world]
    sources = values(world, length, dtype, seed)
    call = Call(kind=kind, reduce=reduce, algorithm=algorithm)
    if kind is Kind.BROADCAST:
        call = attrs.evolve(call, root=names(world)[seed % world])
    if algorithm is Algorithm.HIERARCHICAL:
        call = attrs.evolve(call, sites=tuple(rank * 3 % 7 % 3 for rank in range(world)))
    results = run(call, sources, weights)
    for rank, (_, outcome) in enumerate(results):
        assert outcome.length == result_length(kind, length, rank, world)
        assert outcome.algorithm == algorithm
    outs = [out for out, _ in results]
    match kind:
        case Kind.ALL_REDUCE:
            assert len({out.tobytes() for out in outs}) == 1
            if algorithm is Algorithm.HIERARCHICAL and name in {"float16", "bfloat16"}:
                return  # rounded at each site: see the next test
            assert_close(outs[0], reduce, sources, weights)
            assert outs[0].size == length
            assert results[0][1].weight == pytest.approx(sum(weights), rel=1e-12)
        case Kind.REDUCE_SCATTER:
            assert_close(np.concatenate(outs), reduce, sources, weights)
            bounds = chunk_bounds(length, world)
            assert [out.size for out in outs] == [b - a for a, b in itertools.pairwise(bounds)]
        case Kind.ALL_GATHER:
            assert {out.tobytes() for out in outs} == {np.concatenate(sources).tobytes()}
        case Kind.BROADCAST:
            assert {out.tobytes() for out in outs} == {sources[seed % world].tobytes()}


@settings(max_examples=300 if SLOW else 40, deadline=None)
@given(
    wire=st.sampled_from(sorted(FORMATS)),
    case=st.sampled_from(
        [
            (Kind.ALL_REDUCE, Algorithm.BUTTERFLY),
            (Kind.ALL_REDUCE, Algorithm.STAR),
            (Kind.ALL_REDUCE, Algorithm.HIERARCHICAL),
            (Kind.REDUCE_SCATTER, Algorithm.BUTTERFLY),
            (Kind.ALL_GATHER, Algorithm.BUTTERFLY),
            (Kind.BROADCAST, Algorithm.STAR),
            (Kind.BROADCAST, Algorithm.CHAIN),
        ]
    ),
    world=st.integers(1, 9),
    length=st.sampled_from(LENGTHS),
    reduce=st.sampled_from([Reduce.SUM, Reduce.MEAN]),
    weights=st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=9, max_size=9),
    seed=st.integers(0, 1000),
)
def test_every_wire_format_keeps_its_bound_and_equal_bits(
    wire: str, case, world: int, length: int, reduce: Reduce, weights: list[float], seed: int
) -> None:
    kind, algorithm = case
    weights = weights[:world]
    sources = values(world, length, np.dtype(np.float32), seed)
    call = Call(kind=kind, reduce=reduce, algorithm=algorithm, wire=wire)
    if kind is Kind.BROADCAST:
        call = attrs.evolve(call, root=names(world)[0])
    if algorithm is Algorithm.HIERARCHICAL:
        call = attrs.evolve(call, sites=tuple(rank % 2 for rank in range(world)))
    outs = [out for out, _ in run(call, sources, weights)]
    if kind is not Kind.REDUCE_SCATTER:
        assert len({out.tobytes() for out in outs}) == 1
    one = FORMATS[wire]
    if kind is Kind.BROADCAST:
        assert within(one, outs[0], sources[0].astype(np.float64), np.zeros(length))
    elif kind is Kind.ALL_GATHER:
        parts = np.split(outs[0], world)  # a block is of one of them
        for source, part in zip(sources, parts, strict=True):
            assert within(one, part, source.astype(np.float64), np.zeros(length))
    elif algorithm is not Algorithm.HIERARCHICAL:
        expected = reference(reduce, sources, weights)
        first = sum(
            bound(one, source) * weight for source, weight in zip(sources, weights, strict=True)
        )
        scale = sum(weights) if reduce is Reduce.MEAN and sum(weights) else 1.0
        got = np.concatenate(outs) if kind is Kind.REDUCE_SCATTER else outs[0]
        second = np.zeros(length) if kind is Kind.REDUCE_SCATTER else None
        assert within(one, got, expected, np.zeros(length) + first / scale, second)


def within(one, got, expected, first, second=None) -> bool:
    """Two encodings: of what was contributed, and of the result."""
    worst = np.abs(expected) + first
    again = bound(one, worst.astype(np.float32)) if second is None else second
    return bool((np.abs(got - expected) <= 1.02 * (first + again) + 1e-4).all())


@pytest.mark.parametrize(
    "algorithm", [Algorithm.RING, Algorithm.BUTTERFLY, Algorithm.STAR, Algorithm.DOUBLE_STAR]
)
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_lengths_around_a_segment(algorithm: Algorithm, extra: int) -> None:
    length = 2 * (1 << 17) + extra
    sources = values(2, length, np.dtype(np.float32), 1)
    outs = run(Call(algorithm=algorithm), sources)
    assert_close(outs[0][0], Reduce.SUM, sources, [1.0, 1.0])
    assert outs[0][0].tobytes() == outs[1][0].tobytes()


@pytest.mark.parametrize(
    "algorithm", [Algorithm.BUTTERFLY, Algorithm.STAR, Algorithm.DOUBLE_STAR, Algorithm.DOUBLING]
)
def test_the_order_of_arrival_changes_nothing(algorithm: Algorithm) -> None:
    sources = values(5, 1001, TYPES["float32"], 3)
    calls = [Call(algorithm=algorithm).bind(b"t", source) for source in sources]

    async def main(seed: int) -> bytes:
        link = LinkSettings(latency_s=0.01, jitter_s=0.05, split=0.3)
        results = await run_all(await lanes(5, MemoryNetwork(seed, default=link)), calls, sources)
        assert len({out.tobytes() for out, _ in results}) == 1
        return results[0][0].tobytes()

    assert len({virtual(main, seed) for seed in range(4)}) == 1


async def test_a_barrier_needs_no_link() -> None:
    place = (await lanes(2))[0]
    place.out = place.into = {}
    nothing = np.empty(0, np.float32)
    outcome = await execute(place, Call(kind=Kind.BARRIER), nothing, nothing)
    assert (outcome.length, outcome.weight) == (0, 2.0)


def test_the_sum_is_made_in_member_order() -> None:
    """fp32 addition is not associative: any other order would show."""
    sources = [np.full(64, value, np.float32) for value in (1e8, 1.0, -1e8, 1.0)]
    for algorithm in (Algorithm.BUTTERFLY, Algorithm.STAR, Algorithm.DOUBLE_STAR):
        out, _ = run(Call(algorithm=algorithm), sources)[0]
        assert (out == 1.0).all()


def test_a_value_is_encoded_twice_however_many_members_there_are() -> None:
    rng = np.random.default_rng(0)
    errors = []
    for world in (2, 9):
        sources = [rng.standard_normal(20_000).astype(np.float32) for _ in range(world)]
        out, _ = run(Call(wire="int8"), sources)[0]
        exact = sum(source.astype(np.float64) for source in sources)
        errors.append(np.sqrt(np.mean((out - exact) ** 2)) / np.sqrt(np.mean(exact**2)))
    assert errors[1] < 1.2 * errors[0] < 0.012


@pytest.mark.parametrize("order", [(0, 2, 1, 3), (3, 1, 0, 2)])
def test_a_ring_in_any_order(order: tuple[int, ...]) -> None:
    sources = values(4, 101, TYPES["float32"], 8)
    results = run(Call(algorithm=Algorithm.RING, order=order), sources)
    assert len({out.tobytes() for out, _ in results}) == 1
    assert_close(results[0][0], Reduce.SUM, sources, [1.0] * 4)


@pytest.mark.parametrize("name", ["float32", "int32", "bfloat16"])
@pytest.mark.parametrize("reduce", [Reduce.MIN, Reduce.MAX])
@pytest.mark.parametrize("sites", [(0, 1, 0, 1), (0, 1, 2, 2), (0, 0, 1, 1), (0, 0, 0, 0)])
def test_a_minimum_site_by_site(sites: tuple[int, ...], reduce: Reduce, name: str) -> None:
    """What a site has found counts for several members, and a minimum has no weights."""
    sources = values(4, 10, TYPES[name], 1)
    call = Call(algorithm=Algorithm.HIERARCHICAL, sites=sites, reduce=reduce)
    for out, outcome in run(call, sources):
        assert_close(out, reduce, sources, [1.0] * 4)
        assert outcome.weight == 4.0


@pytest.mark.skipif(not SLOW, reason="the whole grid takes minutes: NODED_SLOW=1")
@pytest.mark.parametrize("world", range(1, 10))
@pytest.mark.parametrize("name", sorted(TYPES))
def test_all_worlds_types_and_algorithms(world: int, name: str) -> None:
    for algorithm, length, reduce in itertools.product(REDUCERS, (1, 257, 4001), Reduce):
        integers = name in INTEGERS
        narrow = name in {"float16", "bfloat16"}
        if (integers and reduce is Reduce.MEAN) or (narrow and algorithm is Algorithm.RING):
            continue
        sites = tuple(rank % 3 for rank in range(world)) if algorithm == "hierarchical" else ()
        if sites and ((integers and reduce is Reduce.SUM) or narrow):
            continue
        sources = values(world, length, TYPES[name], length)
        results = run(Call(reduce=reduce, algorithm=algorithm, sites=sites), sources)
        assert len({out.tobytes() for out, _ in results}) == 1
        assert_close(results[0][0], reduce, sources, [1.0] * world)


@pytest.mark.skipif(not SLOW, reason="the whole grid takes minutes: NODED_SLOW=1")
@pytest.mark.parametrize("world", range(1, 10))
@pytest.mark.parametrize("wire", sorted(FORMATS))
def test_all_worlds_and_wire_formats(world: int, wire: str) -> None:
    one = FORMATS[wire]
    for algorithm, length in itertools.product(
        (Algorithm.BUTTERFLY, Algorithm.STAR), (1, 257, 4001)
    ):
        sources = values(world, length, TYPES["float32"], length)
        results = run(Call(algorithm=algorithm, wire=wire), sources)
        assert len({out.tobytes() for out, _ in results}) == 1
        expected = reference(Reduce.SUM, sources, [1.0] * world)
        assert within(one, results[0][0], expected, sum(bound(one, source) for source in sources))
