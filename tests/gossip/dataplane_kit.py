"""Operations among members whose links are all there: inputs, what every member gets, and the float64 reference for it."""

from __future__ import annotations

import os

import attrs
import ml_dtypes
import numpy as np
import trio

from gossip.collective.agreement.certificate import GENESIS, Ballot, Epoch
from gossip.collective.call import Call, Kind, Reduce
from gossip.collective.choice import CAN, Algorithm
from gossip.collective.dataplane import Outcome, execute
from gossip.collective.elements import FLOATS, INTEGERS
from gossip.collective.links.buffers import Workspace
from gossip.collective.links.exchange import Links
from tests.gossip.links import links_between, names, virtual
from transport.simulated.memory import MemoryNetwork

SLOW = os.environ.get("NODED_SLOW") == "1"
TYPES = {name: np.dtype(getattr(ml_dtypes, name, name)) for name in FLOATS | INTEGERS}
HALF_PLACE = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
REDUCERS = list(CAN[Kind.ALL_REDUCE])
SITES = (0, 1, 0, 1)


@attrs.define
class OpenLane:
    """Stands for a lane whose links are all there."""

    epoch: Epoch
    rank: int
    world: int
    out: dict
    into: dict
    workspace: Workspace = attrs.field(factory=Workspace)

    def prepare(self, rank: int) -> None:
        assert rank in self.out

    def opened(self, rank: int):
        return self.out[rank]

    def accepted(self, rank: int):
        return self.into[rank]


def lanes_of(links: list[Links]) -> list[OpenLane]:
    world = len(links)
    epoch = Epoch(bytes(32), Ballot(1, 0, bytes(32)), names(world), GENESIS, 0, bytes(32))
    return [OpenLane(epoch, one.rank, world, dict(one.out), dict(one.into)) for one in links]


async def lanes(world: int, network: MemoryNetwork | None = None) -> list[OpenLane]:
    return lanes_of(await links_between(world, network))


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


def all_reduce(algorithm: Algorithm, **options: object) -> Call:
    sites = SITES if algorithm is Algorithm.HIERARCHICAL else ()
    return Call(algorithm=algorithm, sites=sites, **options)  # type: ignore[arg-type]


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
