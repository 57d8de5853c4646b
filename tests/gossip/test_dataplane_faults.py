"""Members that send what they must not, differ or fall silent, at every algorithm; calls that are refused before anything is sent."""

from __future__ import annotations

import struct

import attrs
import ml_dtypes
import numpy as np
import pytest
import trio

from gossip.collective.call import LEAST_WEIGHT, MOST_WEIGHT, Call, Kind, Reduce
from gossip.collective.choice import Algorithm
from gossip.collective.dataplane import execute
from gossip.collective.elements import FLOATS, INTEGERS, elements_of
from gossip.collective.formats.wire_format import RefusedPayload
from gossip.collective.links.segment import Place, read_head, write_head
from gossip.errors import CollectiveAborted, DescriptorMismatch, InvalidOperation, NotFinite
from tests.gossip.dataplane_kit import REDUCERS, TYPES, all_reduce, lanes, run, run_all, values
from tests.gossip.links import Between, names, virtual
from transport.bulk.link import LinkClosed


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
    call = all_reduce(algorithm)
    errors = failures([attrs.evolve(call, careful=True)] * 4, sources)
    assert isinstance(errors[2], NotFinite)
    first = failures([call] * 4, sources)  # which need not find whose they are
    for ends in (errors, first):
        assert not any(isinstance(end, NotFinite) for end in ends[:2] + ends[3:])
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


@pytest.mark.parametrize("algorithm", [Algorithm.BUTTERFLY, Algorithm.STAR, Algorithm.DOUBLE_STAR])
@pytest.mark.parametrize("reduce", [Reduce.SUM, Reduce.MAX])
@pytest.mark.parametrize("name", sorted(INTEGERS))
def test_a_weight_for_values_that_have_none_ends_the_operation(
    algorithm: Algorithm, reduce: Reduce, name: str
) -> None:
    """An owner would multiply by it, which is no operation of integers."""

    def spoil(_index: int, header: bytes, payload: bytes) -> list[tuple[bytes, bytes]]:
        return [(header[:37] + struct.pack(">d", 2.5) + header[45:], payload)]

    sources = values(4, 40, TYPES[name], 0)
    errors = failures(
        [all_reduce(algorithm, reduce=reduce)] * 4,
        sources,
        {(3, other): spoil for other in (0, 1, 2)},
    )
    ends = (CollectiveAborted, RefusedPayload, LinkClosed)
    assert all(isinstance(error, ends) for error in errors), errors


@pytest.mark.parametrize("algorithm", REDUCERS)
@pytest.mark.parametrize("world", [1, 4])
def test_a_product_that_becomes_infinite_is_found_by_who_makes_it(
    algorithm: Algorithm, world: int
) -> None:
    sources = values(world, 40, TYPES["float32"], 0)
    sources[world // 2][:] = 3e38
    call = attrs.evolve(all_reduce(algorithm), careful=True)
    if algorithm is Algorithm.HIERARCHICAL:
        call = attrs.evolve(call, sites=(0, 1, 0, 1)[:world])
    calls = [call] * world
    calls[world // 2] = attrs.evolve(call, weight=1024.0)
    errors = failures(calls, sources)
    assert isinstance(errors[world // 2], NotFinite)
    others = errors[: world // 2] + errors[world // 2 + 1 :]
    assert not any(isinstance(error, NotFinite) for error in others)


@pytest.mark.parametrize("algorithm", [Algorithm.BUTTERFLY, Algorithm.STAR, Algorithm.DOUBLE_STAR])
def test_who_brings_what_makes_a_sum_infinite_is_named(algorithm: Algorithm) -> None:
    sources = values(4, 40, TYPES["float32"], 0)
    sources[3][:] = sources[2][:] = 3e38
    errors = failures([attrs.evolve(all_reduce(algorithm), careful=True)] * 4, sources)
    named = {error.sender for error in errors if isinstance(error, RefusedPayload)}
    assert named <= {names(4)[2], names(4)[3]}
    assert named or any(isinstance(error, NotFinite) for error in errors[2:])
    assert not any(isinstance(error, NotFinite) for error in errors[:2])


@pytest.mark.parametrize("hub", [0, 1])
@pytest.mark.parametrize("told", [b"", bytes(31)])
def test_a_hub_that_does_not_say_what_its_half_is_ends_the_operation(hub: int, told: bytes) -> None:
    def spoil(_index: int, header: bytes, payload: bytes) -> list[tuple[bytes, bytes]]:
        return [(header[:45] + told if header[24] == 1 else header, payload)]

    sources = values(4, 40, TYPES["float32"], 0)
    errors = failures([all_reduce(Algorithm.DOUBLE_STAR)] * 4, sources, {(hub, 3): spoil})
    assert f"{names(4)[hub].short} sent no digest" in str(errors[3])


def test_a_hub_that_tells_members_different_things_is_believed_until_the_next_round() -> None:
    """As in a ring (docs/guarantees.md): what differs is the state, which the next operation's descriptor binds."""

    def spoil(_index: int, header: bytes, payload: bytes) -> list[tuple[bytes, bytes]]:
        return [(header, bytes(len(payload)) if header[24] == 1 else payload)]

    async def main():
        places = await lanes(3)
        places[0].out[2] = Between(places[0].out[2], spoil)
        sources = values(3, 30, TYPES["float32"], 0)
        calls = [Call(algorithm="double-star").bind(b"t", source) for source in sources]
        return await run_all(places, calls, sources)

    results = virtual(main)
    assert len({outcome.root for _, outcome in results}) == 1
    assert len({out.tobytes() for out, _ in results}) == 2


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


@pytest.mark.parametrize("algorithm", [Algorithm.RING, Algorithm.BUTTERFLY, Algorithm.STAR])
async def test_an_out_that_is_the_source_is_refused_before_anything_is_sent(
    algorithm: Algorithm,
) -> None:
    (place, *_) = await lanes(2)
    memory = np.arange(20, dtype=np.float32)
    source, out = memory[:12], memory[8:]
    call = all_reduce(algorithm).bind(b"t", source)
    with pytest.raises(InvalidOperation, match="memory of source"):
        await execute(place, call, source, out)
    assert (memory == np.arange(20)).all()


@np.errstate(over="ignore", invalid="ignore")  # as an operation is carried out
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
