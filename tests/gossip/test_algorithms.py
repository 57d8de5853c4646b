"""In which order members stand in a ring, against every order by brute force; which algorithm is chosen."""

from __future__ import annotations

import itertools
import random

import ml_dtypes
import numpy as np
import pytest

from gossip.collective.algorithms.doubling import partners
from gossip.collective.call import Call, Kind, Path, Reduce
from gossip.collective.choice import CAN, Algorithm, choose, estimate
from gossip.collective.placing.ring_order import EXACT, ring_order, slowest_link
from transport.identity import NodeId

NODES = tuple(NodeId(bytes([index + 1]) * 32) for index in range(40))

# ---- the choice ----------------------------------------------------------------------------------

FP32 = np.dtype(np.float32)
BF16 = np.dtype(ml_dtypes.bfloat16)
FAR = Path(0.1, 1.25e8)


@pytest.mark.parametrize("world", [2, 3, 4, 9, 30])
@pytest.mark.parametrize("path", [None, FAR])
@pytest.mark.parametrize("kind", sorted(CAN))
def test_what_is_chosen_is_estimated_to_be_the_fastest(kind: Kind, path: Path | None, world: int):
    for size in (0, 1 << 10, 1 << 16, 1 << 20, 1 << 28):
        call = Call(kind=kind, path=path)
        chosen = choose(call, FP32, size, world)
        others = set(CAN[kind]) - {Algorithm.HIERARCHICAL}
        if size > 1 << 20:
            others -= {Algorithm.DOUBLING}
        if size > 1 << 23 or world <= 2:  # of two members each owns a half of whatever it is
            others -= {Algorithm.DOUBLE_STAR}
        assert chosen in others
        best = min(estimate(one, call, size, world) for one in others)
        assert estimate(chosen, call, size, world) == best


def test_few_hops_over_a_long_path_and_few_bytes_for_a_large_vector():
    far = Call(path=FAR)
    assert choose(far, FP32, 1 << 10, 8) in {Algorithm.BUTTERFLY, Algorithm.DOUBLING}
    assert choose(far, FP32, 1 << 28, 8) in {Algorithm.RING, Algorithm.BUTTERFLY}
    near = Call()
    assert choose(near, FP32, 1 << 10, 4) in {Algorithm.STAR, Algorithm.DOUBLING}
    for world in (3, 4, 8):
        assert choose(near, FP32, 1 << 20, world) is Algorithm.DOUBLE_STAR
        assert choose(near, BF16, 1 << 28, world) is Algorithm.BUTTERFLY
    for size in (0, 1 << 10, 1 << 16):  # of two, neither waits for the other
        assert choose(near, FP32, size, 2) is Algorithm.DOUBLING
    assert choose(near, FP32, 1 << 20, 2) is Algorithm.RING
    assert choose(near, FP32, 1 << 28, 4) in {Algorithm.RING, Algorithm.BUTTERFLY}
    assert choose(Call(kind=Kind.BROADCAST, path=FAR), FP32, 1 << 28, 8) is Algorithm.CHAIN
    assert choose(Call(kind=Kind.BROADCAST, path=FAR), FP32, 1 << 10, 8) is Algorithm.STAR


def test_sites_are_used_where_they_are_known():
    assert choose(Call(sites=(0, 0, 1)), FP32, 1 << 20, 3) is Algorithm.HIERARCHICAL
    assert choose(Call(sites=(0, 0)), FP32, 1 << 20, 3) is not Algorithm.HIERARCHICAL
    integers = np.dtype(np.int32)
    assert choose(Call(sites=(0, 0, 1)), integers, 1 << 20, 3) is not Algorithm.HIERARCHICAL
    largest = Call(reduce=Reduce.MAX, sites=(0, 0, 1))
    assert choose(largest, integers, 1 << 20, 3) is Algorithm.HIERARCHICAL


@pytest.mark.parametrize("world", range(1, 20))
def test_partners_of_the_doubling_meet_each_other_and_reach_everybody(world: int):
    meetings = [partners(rank, world) for rank in range(world)]
    for rank, met in enumerate(meetings):
        assert rank not in met
        assert all(rank in meetings[other] for other in met)
    # Whose values each holds, round by round; those of a pair are together from the start.
    holds = [{rank} for rank in range(world)]
    extra = world - (1 << (world.bit_length() - 1))
    for rank in range(0, 2 * extra, 2):
        holds[rank] = {rank, rank + 1}
    active = [rank for rank in range(world) if rank >= 2 * extra or rank % 2 == 0]
    for number in range(world.bit_length() - 1):
        step = {r: meetings[r][number + (r < 2 * extra)] for r in active}
        holds = [holds[r] | holds[step[r]] if r in step else holds[r] for r in range(world)]
    assert all(holds[rank] == set(range(world)) for rank in active)


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
