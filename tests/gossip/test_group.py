"""Certified all-reduce between endpoints: values, retries, and one outcome for all members."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import trio

from gossip.collective.agreement.epoch_events import EpochSettings
from gossip.collective.agreement.messages import Vote
from gossip.collective.group import Behind, Reduced
from gossip.errors import CollectiveAborted, DescriptorMismatch, Indeterminate, NotFinite
from tests.gossip.swarm import Node, open_node, open_swarm
from transport.simulated.link_model import LinkSettings

START = hashlib.sha256(b"start").digest()


def inputs(index: int, length: int, dtype: str = "float32") -> np.ndarray:
    rng = np.random.default_rng(index)
    return (rng.standard_normal(length) * 10).astype(dtype)


async def reduce_all(
    nodes: list[Node], length: int, **options: object
) -> list[tuple[np.ndarray, Reduced]]:
    results: dict[int, tuple[np.ndarray, Reduced]] = {}

    async def one(index: int, node: Node) -> None:
        source = inputs(index, length)
        before = source.copy()
        out = np.empty_like(source)
        reduced = await node.group.all_reduce(b"test", source, out, **options)
        assert np.array_equal(source, before), "the source is only read"
        results[index] = (out, reduced)

    async with trio.open_nursery() as nursery:
        for index, node in enumerate(nodes):
            nursery.start_soon(one, index, node)
    return [results[index] for index in range(len(nodes))]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [0, 1, 3, 1000, 300_001])
async def test_sum_equals_a_float64_reference_and_is_equal_everywhere(
    count: int, length: int, autojump_clock: object
) -> None:
    async with open_swarm(count) as (_, nodes):
        for node in nodes:
            node.group.set_position(0, START)
        with trio.fail_after(30):
            results = await reduce_all(nodes, length)
    expected = sum(inputs(index, length).astype(np.float64) for index in range(count))
    for out, reduced in results:
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-4)
        assert len(reduced.epoch.members) == count
        assert reduced.certificate.verify(reduced.epoch.members)
    assert len({out.tobytes() for out, _ in results}) == 1
    assert len({reduced.certificate.root for _, reduced in results}) == 1


async def test_weighted_mean(autojump_clock: object) -> None:
    async with open_swarm(3) as (_, nodes):
        outs = [np.empty(1000, np.float32) for _ in nodes]
        weights = [1.0, 0.0, 3.0]
        reduced: list[Reduced] = []

        async def one(index: int) -> None:
            reduced.append(
                await nodes[index].group.all_reduce(
                    b"mean", inputs(index, 1000), outs[index], mean=True, weight=weights[index]
                )
            )

        for node in nodes:
            node.group.set_position(0, START)
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for index in range(3):
                    nursery.start_soon(one, index)
    expected = (inputs(0, 1000).astype(np.float64) + 3 * inputs(2, 1000).astype(np.float64)) / 4
    for out in outs:
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-4)
    assert {result.weight for result in reduced} == {4.0}


async def test_other_descriptor_is_an_error_at_once(autojump_clock: object) -> None:
    async with open_swarm(2) as (_, nodes):
        for node in nodes:
            node.group.set_position(0, START)
        caught = []

        async def one(index: int, length: int) -> None:
            try:
                await nodes[index].group.all_reduce(
                    b"x", np.ones(length, np.float32), np.empty(length, np.float32)
                )
            except DescriptorMismatch as error:
                caught.append(error)

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one, 0, 10)
                nursery.start_soon(one, 1, 11)
        assert len(caught) == 2


@pytest.mark.parametrize("algorithm", ["ring", "star", "double-star"])
async def test_who_has_values_that_are_not_finite_is_told_and_the_others_go_on_once_it_has_better_ones(
    algorithm: str, autojump_clock: object
) -> None:
    async with open_swarm(3) as (_, nodes):
        outs = [np.empty(3000, np.float32) for _ in nodes]

        async def one(index: int, source: np.ndarray) -> None:
            await nodes[index].group.all_reduce(b"x", source, outs[index], algorithm=algorithm)

        async def sick() -> None:
            source = inputs(1, 3000)
            source[2990] = np.nan
            with pytest.raises(NotFinite):
                await one(1, source)
            await one(1, inputs(1, 3000))

        for node in nodes:
            node.group.set_position(0, START)
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one, 0, inputs(0, 3000))
                nursery.start_soon(sick)
                nursery.start_soon(one, 2, inputs(2, 3000))
        assert not any(node.group.accusations for node in nodes)
    expected = sum(inputs(index, 3000).astype(np.float64) for index in range(3))
    np.testing.assert_allclose(outs[0], expected, rtol=1e-5, atol=1e-4)
    assert len({out.tobytes() for out in outs}) == 1


@pytest.mark.parametrize("after_s", [0.0, 0.01, 0.05, 0.2, 0.6])
async def test_killed_member_is_left_out_and_the_sum_is_exact(
    after_s: float, autojump_clock: object
) -> None:
    async with open_swarm(4, settings=EpochSettings(min_members=4)) as (network, nodes):
        for node in nodes:
            node.group.set_position(0, START)
        survivors = nodes[:3]
        results: dict[int, tuple[np.ndarray, Reduced]] = {}

        async def one(index: int) -> None:
            out = np.empty(400_000, np.float32)
            reduced = await nodes[index].group.all_reduce(b"kill", inputs(index, 400_000), out)
            results[index] = (out, reduced)

        async def victim() -> None:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    await nodes[3].group.wait_entered()
                    nursery.start_soon(one, 3)
                    await trio.sleep(after_s)
                    network.kill_host("10.0.0.4")
                    scope.cancel()

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for index in range(3):
                    nursery.start_soon(one, index)
                nursery.start_soon(victim)
        ids = {node.endpoint.node_id: index for index, node in enumerate(nodes)}
        outs = set()
        for index in range(len(survivors)):
            out, reduced = results[index]
            expected = sum(
                inputs(ids[member], 400_000).astype(np.float64) for member in reduced.epoch.members
            )
            np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-4)
            outs.add(out.tobytes())
        assert len(outs) == 1


async def test_newcomer_is_told_that_it_is_behind(autojump_clock: object) -> None:
    later = hashlib.sha256(b"later").digest()
    settings = EpochSettings(min_members=2)
    async with open_swarm(2, settings=settings) as (network, nodes):
        for node in nodes:
            node.group.set_position(7, later)
        with trio.fail_after(30):
            await nodes[0].group.wait_entered()
            async with open_node(network, 2, 0, settings) as newcomer:
                for node in nodes:
                    await newcomer.endpoint.connect([node.address])
                newcomer.group.set_position(0, START)
                with pytest.raises(Behind) as raised:
                    await newcomer.group.wait_entered()
                assert raised.value.epoch.round == 7
                assert set(raised.value.holders) == {node.endpoint.node_id for node in nodes}
                newcomer.group.set_position(7, later)
                await newcomer.group.wait_entered()


async def test_a_call_ends_by_its_deadline_and_says_what_is_known(autojump_clock: object) -> None:
    async with open_swarm(2) as (_, nodes):
        for node in nodes:
            node.group.set_position(0, START)
        await nodes[0].group.wait_entered()
        source, out = inputs(0, 1000), np.empty(1000, np.float32)
        soon = trio.current_time() + 2
        with pytest.raises(CollectiveAborted):
            await nodes[0].group.all_reduce(b"x", source, out, deadline=soon)
        assert trio.current_time() <= soon + 2

        # Now the other member takes part, but its vote is lost on the way.
        post = nodes[1].group._talk.send
        nodes[1].group._talk.send = lambda to, message: (
            None if isinstance(message, Vote) else post(to, message)
        )

        async def other() -> None:
            await nodes[1].group.all_reduce(b"x", inputs(1, 1000), np.empty(1000, np.float32))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            with pytest.raises(Indeterminate):
                await nodes[0].group.all_reduce(b"x", source, out, deadline=trio.current_time() + 3)
            nursery.cancel_scope.cancel()


async def test_an_operation_takes_as_long_as_its_values_come(autojump_clock: object) -> None:
    length = 1 << 21
    settings = EpochSettings(min_members=3, straggler_s=4.0)
    async with open_swarm(3, settings=settings) as (network, nodes):
        network.set_default(LinkSettings(latency_s=0.05, bandwidth_bytes_per_s=1e6))
        for node in nodes:
            node.group.set_position(0, START)
        began = trio.current_time()
        with trio.fail_after(60):
            results = await reduce_all(nodes, length)
        assert trio.current_time() - began > 2 * settings.straggler_s
        assert {reduced.epoch.number for _, reduced in results} == {1}
        assert all(len(reduced.epoch.members) == 3 for _, reduced in results)
        assert not any(node.group.aborted_operations for node in nodes)


async def test_one_whose_values_stop_coming_is_given_up_all_the_same(
    autojump_clock: object,
) -> None:
    async with open_swarm(3) as (_, nodes):
        for node in nodes:
            node.group.set_position(0, START)
        late = nodes[2]

        async def reduce(node: Node) -> None:
            source = inputs(0, 1000)
            await node.group.all_reduce(b"test", source, np.empty_like(source))

        with trio.fail_after(200):
            async with trio.open_nursery() as nursery:
                for node in nodes[:2]:
                    nursery.start_soon(reduce, node)
        assert late.endpoint.node_id not in nodes[0].group.epoch.members
