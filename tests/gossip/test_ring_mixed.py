"""A ring in which some links are shared memory and others connections, which carry less at once."""

from __future__ import annotations

import os

import attrs
import numpy as np
import pytest
import trio

from gossip.collective.call import Reduce
from tests.gossip.links import local_ring
from tests.gossip.test_ring import PLAIN, assert_same_bits, random_sources, reduce_on
from transport.address import Address
from transport.bulk.link import MAX_PAYLOAD_BYTES
from transport.bulk.shared import MAX_SHARED_BYTES

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux only")

FAR = Address("192.0.2.1", 1)
S, C = True, False


@pytest.mark.parametrize("far", [None, FAR], ids=["declined", "far"])
@pytest.mark.parametrize("reduce", [Reduce.MEAN, Reduce.MAX])
@pytest.mark.parametrize("links", [(S, C), (S, C, C), (C, S, C, S)])
async def test_what_came_through_memory_leaves_over_a_connection_in_smaller_segments(
    links: tuple[bool, ...], reduce: Reduce, far: Address | None
) -> None:
    world = len(links)
    # Chunks of more than one of the larger transfers, and no multiple of the smaller ones.
    length = world * (MAX_SHARED_BYTES + 2 * MAX_PAYLOAD_BYTES) // 4 + 12_345
    sources = random_sources(world, length, "float32", seed=world)
    weights = [1.0 if reduce is Reduce.MAX else 0.5 + rank for rank in range(world)]
    reductions = [attrs.evolve(PLAIN, reduce=reduce, weight=weight) for weight in weights]
    with trio.fail_after(60):
        async with local_ring(world, shared=links, far=far) as places:
            outcomes = await reduce_on(places, sources, reductions)
    assert_same_bits(outcomes, world)  # type: ignore[arg-type]
    wide = [source.astype(np.float64) for source in sources]
    if reduce is Reduce.MAX:
        expected = np.max(wide, axis=0)
    else:
        expected = np.sum([w * one for w, one in zip(weights, wide, strict=True)], axis=0)
        expected /= sum(weights)
    np.testing.assert_allclose(outcomes[0][0], expected, rtol=1e-5, atol=1e-4)  # type: ignore[index]
