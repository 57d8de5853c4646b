"""Every kind, algorithm, type and wire format against a float64 reference; equal bits at all members."""

from __future__ import annotations

import itertools
import os

import attrs
import ml_dtypes
import numpy as np
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.collective.agreement.certificate import GENESIS, Ballot, Epoch
from gossip.collective.call import (
    LEAST_WEIGHT,
    MOST_WEIGHT,
    Call,
    Kind,
    Reduce,
    chunk_bounds,
    result_length,
)
from gossip.collective.choice import CAN, Algorithm
from gossip.collective.dataplane import Outcome, execute
from gossip.collective.elements import FLOATS, INTEGERS, elements_of
from gossip.collective.formats.registry import FORMATS
from gossip.collective.formats.wire_format import RefusedPayload
from gossip.collective.links import carriage
from gossip.collective.links.segment import Place, read_head, write_head
from gossip.errors import CollectiveAborted, DescriptorMismatch, InvalidOperation, NotFinite
from tests.gossip.links import Between, links_between, local_links, names, virtual
from tests.gossip.test_formats import bound
from transport.bulk.link import LinkClosed
from transport.simulated.link_model import LinkSettings
from transport.simulated.memory import MemoryNetwork

SLOW = os.environ.get("NODED_SLOW") == "1"
TYPES = {name: np.dtype(getattr(ml_dtypes, name, name)) for name in FLOATS | INTEGERS}
HALF_PLACE = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
LENGTHS = [0, 1, 2, 7, 255, 256, 257, 1001]


@attrs.define
class OpenLane:
    """Stands for a lane whose links are all there."""

    epoch: Epoch
    rank: int
    world: int
    out: dict
    into: dict

    def prepare(self, rank: int) -> None:
        assert rank in self.out

    def opened(self, rank: int):
        return self.out[rank]

    def accepted(self, rank: int):
        return self.into[rank]


async def lanes(world: int, network: MemoryNetwork | None = None) -> list[OpenLane]:
    epoch = Epoch(bytes(32), Ballot(1, 0, bytes(32)), names(world), GENESIS, 0, bytes(32))
    return [
        OpenLane(epoch, links.rank, world, dict(links.out), dict(links.into))
        for links in await links_between(world, network)
    ]


async def run_all(
    places: list[OpenLane], calls: list[Call], sources: list[np.ndarray]
) -> list[tuple[np.ndarray, Outcome] | BaseException]:
    """What every member gets, or the error it ends with; one that fails breaks its links."""
    world = len(places)
    results: list[tuple[np.ndarray, Outcome] | BaseException] = [RuntimeError()] * world

    async def one(rank: int) -> None:
        place, source = places[rank], sources[rank]
        before = source.tobytes()
        out = np.zeros(max(source.size, source.size * world), source.dtype)
        if calls[rank].kind in {Kind.ALL_REDUCE, Kind.BROADCAST}:
            out = out[: source.size]
        out.view(np.uint8).fill(0x55)
        try:
            outcome = await execute(place, calls[rank], source, out)
            results[rank] = (out[: outcome.length], outcome)
        except Exception as error:  # noqa: BLE001 - the tests look at it
            results[rank] = error
            for link in (*place.out.values(), *place.into.values()):
                link.abort("the operation failed here")
        assert source.tobytes() == before, "the source is only read"

    async with trio.open_nursery() as nursery:
        for rank in range(world):
            nursery.start_soon(one, rank)
    return results


def run(
    call: Call, sources: list[np.ndarray], weights: list[float] | None = None
) -> list[tuple[np.ndarray, Outcome]]:
    """All members' results; each has all it needs, and equal roots."""

    async def main():
        calls = [
            attrs.evolve(call, weight=weights[rank] if weights else call.weight).bind(b"t", source)
            for rank, source in enumerate(sources)
        ]
        return await run_all(await lanes(len(sources)), calls, sources)

    results = virtual(main)
    failed = [result for result in results if isinstance(result, BaseException)]
    assert not failed, failed
    assert len({outcome.root for _, outcome in results}) == 1
    assert len({outcome.weight for _, outcome in results}) == 1
    return results


def values(world: int, length: int, dtype: np.dtype, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    if dtype.name in INTEGERS:
        low, high = (-100, 100) if dtype.name == "int8" else (-(10**6), 10**6)
        return [rng.integers(low, high, length).astype(dtype) for _ in range(world)]
    return [(rng.standard_normal(length) * 10).astype(dtype) for _ in range(world)]


def reference(reduce: Reduce, sources: list[np.ndarray], weights: list[float]) -> np.ndarray:
    """In float64; of integers in int64."""
    wide = np.int64 if sources[0].dtype.name in INTEGERS else np.float64
    if not any(weights):
        return np.zeros(sources[0].size, wide)
    counted = [(s.astype(wide), w) for s, w in zip(sources, weights, strict=True) if w]
    match reduce:
        case Reduce.MIN:
            return np.min([s for s, _ in counted], axis=0)
        case Reduce.MAX:
            return np.max([s for s, _ in counted], axis=0)
        case _:
            total = np.sum([s if wide is np.int64 else s * w for s, w in counted], axis=0)
            return total / sum(weights) if reduce is Reduce.MEAN else total


def assert_close(
    got: np.ndarray, reduce: Reduce, sources: list[np.ndarray], weights: list[float]
) -> None:
    expected = reference(reduce, sources, weights)
    if got.dtype.name in INTEGERS:
        assert np.array_equal(got, expected.astype(got.dtype)), "modulo 2^bits"
        return
    wide = HALF_PLACE[got.dtype.name if got.dtype.name == "float64" else "float32"]
    size = np.sum(
        [np.abs(s.astype(np.float64)) * w for s, w in zip(sources, weights, strict=True)], 0
    )
    if reduce is Reduce.MEAN and sum(weights):
        size = size / sum(weights)
    if reduce in {Reduce.MIN, Reduce.MAX}:
        assert np.array_equal(got.astype(np.float64), expected)
        return
    # Each addition, multiplication and division rounds in the type of sums, the end once in the values' own.
    allowed = 3 * len(sources) * wide * size + HALF_PLACE[got.dtype.name] * np.abs(expected) + 1e-7
    assert (np.abs(got.astype(np.float64) - expected) <= allowed).all()


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
        gathered = np.concatenate(sources).astype(np.float64)
        assert within(one, outs[0], gathered, np.zeros(gathered.size))
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


@pytest.mark.parametrize("algorithm", [Algorithm.RING, Algorithm.BUTTERFLY, Algorithm.STAR])
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_lengths_around_a_segment(algorithm: Algorithm, extra: int) -> None:
    length = 2 * (1 << 17) + extra
    sources = values(2, length, np.dtype(np.float32), 1)
    outs = run(Call(algorithm=algorithm), sources)
    assert_close(outs[0][0], Reduce.SUM, sources, [1.0, 1.0])
    assert outs[0][0].tobytes() == outs[1][0].tobytes()


REDUCERS = list(CAN[Kind.ALL_REDUCE])
SITES = (0, 1, 0, 1)


def all_reduce(algorithm: Algorithm, **options: object) -> Call:
    sites = SITES if algorithm is Algorithm.HIERARCHICAL else ()
    return Call(algorithm=algorithm, sites=sites, **options)  # type: ignore[arg-type]


def failures(
    calls: list[Call],
    sources: list[np.ndarray],
    spoil: dict[tuple[int, int], object] | None = None,
) -> list[BaseException]:
    """What every member of an operation that must fail ends with; `spoil` changes what passes a link.

    A member whose own sending is spoilt may find nothing wrong; it gives a LinkClosed here.
    """

    async def main():
        places = await lanes(len(calls))
        for (one, other), change in (spoil or {}).items():
            places[one].out[other] = Between(places[one].out[other], change)  # type: ignore[arg-type]
        for place in places:  # a test that breaks a link breaks what is below, too
            place.out = {rank: _Breakable(link) for rank, link in place.out.items()}
        bound = [call.bind(b"t", source) for call, source in zip(calls, sources, strict=True)]
        return await run_all(places, bound, sources)

    liars = {one for one, _ in spoil or {}}
    results = virtual(main)
    honest = [result for rank, result in enumerate(results) if rank not in liars]
    assert any(isinstance(result, Exception) for result in honest), results
    return [LinkClosed() if isinstance(result, tuple) else result for result in results]


class _Breakable:
    def __init__(self, link: object) -> None:
        self._link = link

    def __getattr__(self, name: str) -> object:
        return getattr(self._link, name)

    def abort(self, reason: str) -> None:
        getattr(self._link, "_link", self._link).abort(reason)


@pytest.mark.parametrize("algorithm", REDUCERS)
@pytest.mark.parametrize("name", sorted(FLOATS))
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_by_who_has_them(
    algorithm: Algorithm, name: str, value: float
) -> None:
    if algorithm is Algorithm.RING and name in {"float16", "bfloat16"}:
        algorithm = Algorithm.BUTTERFLY
    sources = values(4, 20, TYPES[name], 0)
    for part in sources[2:3]:
        part[::4] = value
    errors = failures([all_reduce(algorithm)] * 4, sources)
    assert isinstance(errors[2], NotFinite)
    assert not any(isinstance(error, NotFinite) for error in errors[:2] + errors[3:])
    # The same, but with a weight of zero: nobody looks at them.
    weights = [1.0, 1.0, 0.0, 1.0]
    outs = run(all_reduce(algorithm), sources, weights)
    assert np.isfinite(outs[0][0].astype(np.float64)).all()


@pytest.mark.parametrize("algorithm", REDUCERS)
def test_who_sends_what_is_not_finite_is_named(algorithm: Algorithm) -> None:
    def spoil(_index: int, header: bytes, payload: bytes) -> list[tuple[bytes, bytes]]:
        return [(header, np.full(len(payload) // 4, np.nan, np.float32).tobytes())]

    sources = values(4, 20, TYPES["float32"], 0)
    errors = failures(
        [attrs.evolve(all_reduce(algorithm), careful=True)] * 4,
        sources,
        {(1, other): spoil for other in (0, 2, 3)},
    )
    named = {error.sender for error in errors if isinstance(error, RefusedPayload)}
    assert named == {names(4)[1]}


@pytest.mark.parametrize("wire", ["int8", "int4", "bf16+zstd"])
def test_who_sends_bytes_that_do_not_decode_is_named(wire: str) -> None:
    def spoil(_index: int, header: bytes, payload: bytes) -> list[tuple[bytes, bytes]]:
        return [(header, b"\xff" * len(payload))]

    sources = values(3, 600, TYPES["float32"], 0)
    call = Call(algorithm=Algorithm.BUTTERFLY, wire=wire)
    errors = failures([call] * 3, sources, {(1, 0): spoil})
    assert isinstance(errors[0], RefusedPayload)
    assert errors[0].sender == names(3)[1]


HOSTILE = {
    "another operation's number": lambda header, payload: [(b"\1" * 8 + header[8:], payload)],
    "another descriptor": lambda header, payload: [(header[:8] + bytes(16) + header[24:], payload)],
    "another phase": lambda header, payload: [(header[:24] + b"\7" + header[25:], payload)],
    "another step": lambda header, payload: [(header[:25] + b"\0\5" + header[27:], payload)],
    "another part": lambda header, payload: [(header[:27] + b"\0\5" + header[29:], payload)],
    "another start": lambda header, payload: [(header[:29] + b"\1" * 8 + header[37:], payload)],
    "a weight that is none": lambda header, payload: [
        (header[:37] + b"\xff" * 8 + header[45:], payload)
    ],
    "a short head": lambda header, payload: [(header[:20], payload)],
    "a long head": lambda header, payload: [(header + bytes(40), payload)],
    "a short payload": lambda header, payload: [(header, payload[:-4])],
    "a long payload": lambda header, payload: [(header, payload + bytes(4))],
    "nothing": lambda header, payload: [(header, b"")],
}


@pytest.mark.parametrize("algorithm", REDUCERS)
@pytest.mark.parametrize("how", sorted(HOSTILE))
def test_a_member_that_breaks_the_rules_ends_the_operation_at_once(
    algorithm: Algorithm, how: str
) -> None:
    def spoil(_index: int, header: bytes, payload: bytes) -> list[tuple[bytes, bytes]]:
        return HOSTILE[how](header, payload)

    sources = values(4, 40, TYPES["float32"], 0)
    errors = failures(
        [all_reduce(algorithm)] * 4, sources, {(1, other): spoil for other in (0, 2, 3)}
    )
    ends = (CollectiveAborted, RefusedPayload, LinkClosed)
    assert all(isinstance(error, ends) for error in errors)
    if how == "another descriptor":
        assert any(isinstance(error, DescriptorMismatch) for error in errors)
    assert any(not isinstance(error, LinkClosed) for error in errors)


@pytest.mark.parametrize("algorithm", [Algorithm.BUTTERFLY, Algorithm.STAR])
def test_an_owner_that_tells_members_different_things_is_found_by_the_votes(
    algorithm: Algorithm,
) -> None:
    def spoil(_index: int, header: bytes, payload: bytes) -> list[tuple[bytes, bytes]]:
        told = bytes(len(payload)) if header[24] == 1 else payload
        return [(header, told)]

    async def main():
        places = await lanes(3)
        places[0].out[2] = Between(places[0].out[2], spoil)
        sources = values(3, 30, TYPES["float32"], 0)
        calls = [Call(algorithm=algorithm).bind(b"t", source) for source in sources]
        return await run_all(places, calls, sources)

    roots = [outcome.root for _, outcome in virtual(main)]
    assert roots[0] == roots[1] != roots[2]


@pytest.mark.parametrize("algorithm", [Algorithm.BUTTERFLY])
def test_a_member_that_falls_silent_is_named_and_one_that_has_not_begun_is_waited_for(
    algorithm: Algorithm,
) -> None:
    def silent(_index: int, header: bytes, payload: bytes) -> list[tuple[bytes, bytes]]:
        return [(header, payload)] if header[24] == 0 else []

    sources = values(4, 30, TYPES["float32"], 0)
    errors = failures(
        [all_reduce(algorithm)] * 4, sources, {(1, other): silent for other in (0, 2, 3)}
    )
    said = [str(error) for error in errors if isinstance(error, CollectiveAborted)]
    assert f"no data from {names(4)[1].short} for 20 s" in said

    async def late():
        places = await lanes(3)
        calls = [Call(algorithm=algorithm).bind(b"t", source) for source in sources[:3]]
        results = {}

        async def one(rank: int) -> None:
            await trio.sleep(30 * (rank == 1))
            out = np.empty_like(sources[rank])
            results[rank] = await execute(places[rank], calls[rank], sources[rank], out)

        async with trio.open_nursery() as nursery:
            for rank in range(3):
                nursery.start_soon(one, rank)
        return results

    assert len({outcome.root for outcome in virtual(late).values()}) == 1


@pytest.mark.parametrize("algorithm", [Algorithm.BUTTERFLY, Algorithm.STAR, Algorithm.DOUBLING])
def test_the_order_of_arrival_changes_nothing(algorithm: Algorithm) -> None:
    sources = values(5, 1001, TYPES["float32"], 3)
    calls = [Call(algorithm=algorithm).bind(b"t", source) for source in sources]

    async def main(seed: int) -> bytes:
        link = LinkSettings(latency_s=0.01, jitter_s=0.05, split=0.3)
        results = await run_all(await lanes(5, MemoryNetwork(seed, default=link)), calls, sources)
        assert len({out.tobytes() for out, _ in results}) == 1
        return results[0][0].tobytes()

    assert len({virtual(main, seed) for seed in range(4)}) == 1


def test_several_members_that_disagree_learn_it_from_each_other() -> None:
    sources = values(3, 30, TYPES["float32"], 0)
    calls = [
        Call(algorithm=Algorithm.BUTTERFLY),
        Call(algorithm=Algorithm.BUTTERFLY),
        Call(wire="fp32", algorithm=Algorithm.BUTTERFLY),
    ]
    errors = failures(calls, sources)
    assert any(isinstance(error, DescriptorMismatch) for error in errors)


@pytest.mark.parametrize(
    ("call", "dtype"),
    [
        (Call(algorithm="ring"), "float16"),
        (Call(algorithm="ring", wire="int8"), "float32"),
        (Call(algorithm="doubling", wire="int8"), "float32"),
        (Call(algorithm="hierarchical"), "float32"),
        (Call(algorithm="ring", order=(0, 0)), "float32"),
        (Call(algorithm="ring", order=(1,)), "float32"),
        (Call(algorithm="nonsense"), "float32"),
        (Call(wire="int8"), "float64"),
        (Call(kind=Kind.BROADCAST), "float32"),
        (Call(kind=Kind.BROADCAST, root=names(9)[8]), "float32"),
        (Call(root=names(2)[0]), "float32"),
        (Call(kind=Kind.ALL_GATHER, algorithm="ring"), "float32"),
        (Call(), "uint8"),
        (Call(), "bool"),
        (Call(), ">f4"),
        (Call(reduce=Reduce.MEAN), "int32"),
        (Call(weight=2.0), "int32"),
        (Call(reduce=Reduce.MAX, weight=2.0), "float32"),
        (Call(weight=-1.0), "float32"),
        (Call(weight=np.nan), "float32"),
        (Call(weight=np.inf), "float32"),
        (Call(reduce=Reduce.MEAN, weight=1e308), "float64"),
        (Call(reduce=Reduce.MEAN, weight=1e-60), "float32"),
    ],
)
async def test_what_cannot_be_carried_out_is_refused_before_anything_is_sent(
    call: Call, dtype: str
) -> None:
    place = (await lanes(2))[0]
    place.out = place.into = {}
    source = np.zeros(10, dtype)
    with pytest.raises(InvalidOperation):
        await execute(place, call.bind(b"t", source), source, np.empty_like(source))


async def test_a_barrier_needs_no_link() -> None:
    place = (await lanes(2))[0]
    place.out = place.into = {}
    nothing = np.empty(0, np.float32)
    outcome = await execute(place, Call(kind=Kind.BARRIER), nothing, nothing)
    assert (outcome.length, outcome.weight) == (0, 2.0)


def test_the_sum_is_made_in_member_order() -> None:
    """fp32 addition is not associative: any other order would show."""
    sources = [np.full(64, value, np.float32) for value in (1e8, 1.0, -1e8, 1.0)]
    for algorithm in (Algorithm.BUTTERFLY, Algorithm.STAR):
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


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("algorithm", REDUCERS)
def test_within_one_machine_the_bits_are_the_same(
    algorithm: Algorithm, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real sockets, many segments: there they follow each other in another order."""
    monkeypatch.setattr(carriage, "SEGMENT_VALUE_BYTES", 4 * carriage.ALIGN)
    sources = values(4, 4 * 256 * 5 + 3, TYPES["float32"], 9)
    call = all_reduce(algorithm, reduce=Reduce.MEAN)
    weights = (0.5, 2.0, 0.0, 1.5)
    apart = run(call, sources, list(weights))
    calls = [
        attrs.evolve(call, weight=weight).bind(b"t", source)
        for weight, source in zip(weights, sources, strict=True)
    ]

    async def together():
        with trio.fail_after(30):
            async with local_links(4, shared=shared) as links:
                epoch = Epoch(bytes(32), Ballot(1, 0, bytes(32)), names(4), GENESIS, 0, bytes(32))
                places = [
                    OpenLane(epoch, one.rank, 4, dict(one.out), dict(one.into)) for one in links
                ]
                return await run_all(places, calls, sources)

    results = trio.run(together)
    assert {out.tobytes() for out, _ in results} == {apart[0][0].tobytes()}
    assert {outcome.root for _, outcome in results} == {apart[0][1].root}


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


@pytest.mark.parametrize("name", sorted(FLOATS))
@pytest.mark.parametrize("length", [1, 8191, 8192, 8193, 20_000])
def test_one_value_that_is_not_finite_is_found_wherever_it_is(name: str, length: int) -> None:
    one = elements_of(TYPES[name])
    sample = np.full(length, 3.0, TYPES[name])
    assert one.finite(sample)
    sample[:] = ml_dtypes.finfo(TYPES[name]).max  # their squares are infinite
    assert one.finite(sample)
    for at in {0, length // 2, length - 1}:
        for value in (np.nan, np.inf, -np.inf):
            bad = sample.copy()
            bad[at] = value
            assert not one.finite(bad)


@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf, 1e308, 1e-60, -0.5])
def test_a_weight_that_no_member_may_have_is_refused_on_the_way_in(weight: float) -> None:
    head = write_head(3, bytes(32), Place(0, 0, 0, 0), weight)
    with pytest.raises(CollectiveAborted, match="weight"):
        read_head(3, bytes(32), head)
    for fine in (0.0, LEAST_WEIGHT, 256 * MOST_WEIGHT):
        assert read_head(3, bytes(32), write_head(3, bytes(32), Place(0, 0, 0, 0), fine))[1] == fine
