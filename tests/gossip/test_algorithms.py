"""Cores of algorithms against a float64 reference, and against every order by brute force."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.collective.algorithms.range_owner import ALIGN, RangeOwner, owner_bounds
from gossip.collective.algorithms.ring_order import EXACT, ring_order, slowest_link
from gossip.collective.formats.registry import FORMATS, format_named
from gossip.collective.formats.wire_format import NotFinite, RefusedPayload
from gossip.errors import InvalidOperation
from tests.gossip.test_formats import bound
from transport.identity import NodeId

NODES = tuple(NodeId(bytes([index + 1]) * 32) for index in range(40))
FP32 = format_named("fp32")


def reducers(
    sources: list[np.ndarray], weights: list[float], **options: object
) -> tuple[list[RangeOwner], list[np.ndarray]]:
    world = len(sources)
    outs = [np.full(source.size, np.nan, np.float32) for source in sources]
    options = {"uplink": FP32, "downlink": FP32, **options}
    return [
        RangeOwner(NODES[:world], me, sources[me], outs[me], weight=weights[me], **options)
        for me in range(world)
    ], outs


def exchange(members: list[RangeOwner], rng: random.Random) -> None:
    """Everything arrives, in any order."""
    world = range(len(members))
    pairs = [(sender, owner) for sender in world for owner in world if sender != owner]
    rng.shuffle(pairs)
    for sender, owner in pairs:
        assert not members[owner].done
        members[owner].take(sender, members[sender].contribution(owner))
    assert all(member.summed for member in members)
    results = [member.result() for member in members]
    rng.shuffle(pairs)
    for owner, other in pairs:
        members[other].take_result(owner, results[owner])


@settings(max_examples=60)
@given(
    world=st.integers(1, 9),
    length=st.sampled_from([0, 1, 3, 255, 257, 1000, 2305, 5001]),
    up=st.sampled_from(sorted(FORMATS)),
    down=st.sampled_from(sorted(FORMATS)),
    weights=st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0, 1000.0]), min_size=9, max_size=9),
    mean=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_all_members_get_the_same_bits_within_the_formats_bounds(
    world: int,
    length: int,
    up: str,
    down: str,
    weights: list[float],
    mean: bool,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    sources = [rng.standard_normal(length).astype(np.float32) for _ in range(world)]
    weights = weights[:world]
    shares = [float(share) for share in rng.integers(0, 4, world)]
    uplink, downlink = format_named(up), format_named(down)
    options = {"mean": mean, "uplink": uplink, "downlink": downlink}
    if sum(shares):
        options["shares"] = shares
    members, outs = reducers(sources, weights, **options)
    exchange(members, random.Random(seed))
    assert all(member.done for member in members)
    assert len({out.tobytes() for out in outs}) == 1
    assert len({member.root for member in members}) == 1
    assert {member.weight for member in members} == {sum(weights)}
    exact = sum(
        (
            weight * source.astype(np.float64)
            for weight, source in zip(weights, sources, strict=True)
        ),
        np.zeros(length),
    )
    # Blocks begin where ranges do, so the bound of a whole vector's blocks holds.
    allowed = sum(
        (
            bound(uplink, source * np.float32(weight))
            for weight, source in zip(weights, sources, strict=True)
        ),
        np.zeros(length),
    )
    total = sum(weights)
    if mean and total:
        exact, allowed = exact / total, allowed / total
    largest = np.abs(exact) + allowed
    back = bound(downlink, (np.abs(exact) + allowed).astype(np.float32))
    rounding = 1e-5 * (largest + sum(weights) / (total if mean and total else 1) * 5)
    assert (np.abs(outs[0] - exact) <= allowed + back + rounding).all()


def test_the_sum_is_made_in_member_order_whatever_comes_first() -> None:
    """fp32 addition is not associative: any other order would show."""
    sources = [np.full(1024, value, np.float32) for value in (1e8, 1.0, -1e8, 1.0)]
    found = set()
    for order in itertools.permutations(range(1, 4)):
        members, outs = reducers(sources, [1.0] * 4)
        for sender in order:
            members[0].take(sender, members[sender].contribution(0))
        members[0].result()
        found.add(outs[0][:256].tobytes())
    assert found == {np.full(256, 1.0, np.float32).tobytes()}


def test_a_value_is_encoded_twice_however_many_members_there_are() -> None:
    rng = np.random.default_rng(0)
    int8 = format_named("int8")
    errors = []
    for world in (2, 9):
        sources = [rng.standard_normal(20_000).astype(np.float32) for _ in range(world)]
        members, outs = reducers(sources, [1.0] * world, uplink=int8, downlink=int8)
        exchange(members, random.Random(0))
        exact = sum(source.astype(np.float64) for source in sources)
        errors.append(np.sqrt(np.mean((outs[0] - exact) ** 2)) / np.sqrt(np.mean(exact**2)))
    assert errors[1] < 1.2 * errors[0] < 0.012


def test_one_that_counts_nothing_may_hold_anything() -> None:
    sources = [np.ones(600, np.float32), np.full(600, np.nan, np.float32)]
    members, outs = reducers(sources, [1.0, 0.0], mean=True)
    exchange(members, random.Random(0))
    assert all((out == 1.0).all() for out in outs)


def test_a_value_that_is_not_finite_is_refused_by_its_own_node() -> None:
    sources = [np.ones(600, np.float32), np.full(600, np.inf, np.float32)]
    members, _ = reducers(sources, [1.0, 1.0])
    with pytest.raises(NotFinite):
        members[1].contribution(0)
    members[1].take(0, members[0].contribution(1))
    with pytest.raises(NotFinite):
        members[1].result()


def test_what_a_hostile_member_sends_names_it() -> None:
    def fresh() -> list[RangeOwner]:
        return reducers([np.ones(600, np.float32)] * 3, [1.0] * 3)[0]

    good = fresh()[1].contribution(0)
    nan = np.frombuffer(good, np.uint8).copy()
    nan[8:12].view("<f4")[:] = np.nan
    weight = np.frombuffer(good, np.uint8).copy()
    for bad in (nan.tobytes(), good[:-1], good + b"\0", b"", good[:7]):
        with pytest.raises(RefusedPayload) as raised:
            fresh()[0].take(1, bad)
        assert raised.value.sender == NODES[1]
    for value in (np.nan, np.inf, -1.0):
        weight[:8].view("<f8")[:] = value
        with pytest.raises(RefusedPayload, match="weight"):
            fresh()[0].take(1, weight.tobytes())
    for taken in (1, 2):  # added already, and waiting
        owner = fresh()[0]
        owner.take(taken, good)
        with pytest.raises(RefusedPayload, match="already"):
            owner.take(taken, good)


def test_an_owner_that_tells_members_different_things_is_found_by_their_votes() -> None:
    members, _ = reducers([np.ones(600, np.float32)] * 3, [1.0] * 3)
    for sender in (1, 2):
        members[0].take(sender, members[sender].contribution(0))
    honest = members[0].result()
    other = np.frombuffer(honest, np.uint8).copy()
    other[8:12].view("<f4")[:] = 4.0
    members[1].take_result(0, honest)
    members[2].take_result(0, other.tobytes())
    for owner in (1, 2):
        for sender in {0, 1, 2} - {owner}:
            members[owner].take(sender, members[sender].contribution(owner))
        result = members[owner].result()
        for other_member in {0, 1, 2} - {owner}:
            members[other_member].take_result(owner, result)
    assert members[0].root == members[1].root != members[2].root
    with pytest.raises(RefusedPayload, match="already"):
        members[1].take_result(0, honest)
    short = reducers([np.ones(600, np.float32)] * 3, [1.0] * 3)[0][0]
    for bad in (b"", honest[:-1], b"\xff" * len(honest)):
        with pytest.raises(RefusedPayload):
            short.take_result(1, bad)


@pytest.mark.parametrize(
    "options",
    [{"shares": [1.0]}, {"shares": [0.0, 0.0]}, {"shares": [-1.0, 2.0]}, {"weight": -1.0}],
)
def test_wrong_arguments(options: dict[str, object]) -> None:
    with pytest.raises(InvalidOperation):
        RangeOwner(
            NODES[:2],
            0,
            np.ones(3, np.float32),
            np.ones(3, np.float32),
            uplink=FP32,
            downlink=FP32,
            **options,
        )


@given(
    length=st.integers(0, 5000),
    shares=st.lists(st.floats(0, 1e6), min_size=1, max_size=9).filter(lambda found: sum(found) > 0),
)
def test_ranges_cover_everything_once_and_keep_blocks_whole(
    length: int, shares: list[float]
) -> None:
    bounds = owner_bounds(length, shares)
    assert (bounds[0], bounds[-1], len(bounds)) == (0, length, len(shares) + 1)
    assert bounds == sorted(bounds)
    assert all(at % ALIGN == 0 or at == length for at in bounds)


# ---- ring order -------------------------------------------------------------------------------------


def table(values: dict[tuple[NodeId, NodeId], float]) -> object:
    return lambda a, b: values[a, b]


def random_rates(count: int, seed: int) -> dict[tuple[NodeId, NodeId], float]:
    rng = random.Random(seed)
    return {(a, b): float(rng.randint(1, 12)) for a, b in itertools.permutations(NODES[:count], 2)}


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("seed", range(8))
def test_no_order_has_a_faster_slowest_link(count: int, seed: int) -> None:
    rate = table(random_rates(count, seed))
    order = ring_order(NODES[:count], rate)
    assert sorted(order) == list(NODES[:count])
    best = max(
        slowest_link((NODES[0], *rest), rate) for rest in itertools.permutations(NODES[1:count])
    )
    assert slowest_link(order, rate) == best
    assert ring_order(NODES[:count][::-1], rate) == order, "whatever order they came in"


def test_one_slow_link_is_left_out() -> None:
    """The sum of times would take it: 1 slow and 9 fast links against 10 middling ones."""
    values = dict.fromkeys(itertools.permutations(NODES[:10], 2), 5.0)
    for at in range(10):
        values[NODES[at], NODES[(at + 1) % 10]] = 1000.0
    values[NODES[9], NODES[0]] = 1.0
    assert slowest_link(ring_order(NODES[:10], table(values)), table(values)) >= 5.0


@pytest.mark.parametrize("seed", range(4))
def test_many_members_are_placed_well(seed: int) -> None:
    """Two sites with a thin line between them: the ring crosses it twice, and no more."""
    rng = random.Random(seed)
    nodes = list(NODES[: EXACT + 20])
    rng.shuffle(nodes)
    site = {node: index % 2 for index, node in enumerate(nodes)}

    def rate(a: NodeId, b: NodeId) -> float:
        return 100.0 if site[a] == site[b] else 10.0

    order = ring_order(nodes, rate)
    assert sorted(order) == sorted(nodes)
    crossings = sum(site[a] != site[b] for a, b in zip(order, [*order[1:], order[0]], strict=True))
    assert crossings == 2
