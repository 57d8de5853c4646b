"""Declared state: whose counts, what is fetched, and parity after it, with members that come, go and differ."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from gossip.blocks.merkle import BLOCK_BYTES
from gossip.collective.agreement.epoch_events import EpochSettings
from gossip.collective.call import Call
from gossip.collective.group import Job
from gossip.collective.state.declaration import RECORD_BYTES, Declaration, decode_all, elect
from gossip.collective.state.state_sync import StateSync, Synced, open_state_sync
from gossip.errors import (
    DescriptorMismatch,
    EpochChanged,
    Indeterminate,
    InvalidOperation,
    StateUnavailable,
)
from tests.gossip.swarm import Node, open_node, open_swarm
from transport.identity import NodeId

START = hashlib.sha256(b"start").digest()
A, B, C, D = (NodeId(bytes([byte]) * 32) for byte in (1, 2, 3, 4))
ONE, TWO = b"1" * 32, b"2" * 32


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Five blocks and a bit."""
    rng = np.random.default_rng(seed)
    return {
        "weights": rng.standard_normal(5 * BLOCK_BYTES // 4 - 7).astype(np.float32),
        "bias": rng.standard_normal(13),
        "steps": np.array(seed, np.int64),
        "nothing": np.empty(0, np.float32),
        "mask": rng.integers(0, 2, (3, 5)).astype(bool),
    }


def syncer(node: Node) -> object:
    numbers = itertools.count()
    salt = node.endpoint.node_id
    return open_state_sync(
        node.endpoint,
        node.group,
        lambda count: hashlib.sha256(salt + b"%d" % next(numbers)).digest()[:count],
    )


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


# ---- whose state counts --------------------------------------------------------------------------


def said(artefact: bytes, *, revision: int = 0, continued: bool = False) -> Declaration:
    return Declaration(revision, continued, artefact)


@pytest.mark.parametrize(
    ("declared", "veterans", "chosen"),
    [
        ({A: said(ONE), B: said(ONE), C: said(TWO)}, set(), ONE),
        ({A: said(ONE), B: said(TWO, revision=5)}, set(), TWO),
        ({A: said(TWO), B: said(ONE)}, set(), ONE),
        # Three that come anew are no majority over one that has been there.
        ({A: said(TWO, continued=True), B: said(ONE), C: said(ONE), D: said(ONE)}, {A}, TWO),
        # And saying that it has been there makes nobody a veteran.
        (
            {A: said(TWO, continued=True), B: said(ONE, revision=9, continued=True)},
            {A},
            TWO,
        ),
        # A veteran that was started again does not vote.
        ({A: said(ONE, revision=9), B: said(TWO, continued=True)}, {A, B}, TWO),
        ({A: said(ONE), B: said(ONE), C: said(TWO)}, {A, B, C}, ONE),
    ],
)
def test_whose_state_counts(
    declared: dict[NodeId, Declaration], veterans: set[NodeId], chosen: bytes
) -> None:
    state, holders = elect(declared, veterans)
    assert state == chosen
    assert set(holders) == {member for member, one in declared.items() if one.artefact == chosen}


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 2)), min_size=1, max_size=9
    ),
    st.sets(st.integers(0, 8)),
    st.randoms(),
)
def test_all_members_elect_the_same(
    said_: list[tuple[int, bool, int]], chosen: set[int], order: object
) -> None:
    members = [NodeId(bytes([index]) * 32) for index in range(len(said_))]
    declared = {
        member: Declaration(revision, continued, bytes([which]) * 32)
        for member, (revision, continued, which) in zip(members, said_, strict=True)
    }
    veterans = {members[index] for index in chosen if index < len(members)}
    shuffled = list(declared.items())
    order.shuffle(shuffled)
    assert elect(declared, veterans) == elect(dict(shuffled), veterans)
    gathered = np.concatenate([one.encode() for one in declared.values()])
    assert gathered.size == RECORD_BYTES * len(members)
    assert decode_all(gathered, members) == declared


# ---- between members -----------------------------------------------------------------------------


async def sync_all(syncs: list[StateSync], states: list[dict[str, np.ndarray]]) -> list[Synced]:
    results: dict[int, Synced] = {}

    async def one(index: int) -> None:
        results[index] = await syncs[index].sync(states[index])

    async with trio.open_nursery() as nursery:
        for index in range(len(syncs)):
            nursery.start_soon(one, index)
    return [results[index] for index in range(len(syncs))]


async def test_equal_states_cost_no_block_and_a_diverged_one_gets_what_it_lacks(
    autojump_clock: object,
) -> None:
    async with open_swarm(3) as (_, nodes):
        for node in nodes:
            node.group.set_position(0, START)
        async with syncer(nodes[0]) as a, syncer(nodes[1]) as b, syncer(nodes[2]) as c:
            states = [tensors() for _ in range(3)]
            with trio.fail_after(30):
                results = await sync_all([a, b, c], states)
            assert [result.fetched_blocks for result in results] == [0, 0, 0]
            assert {result.artefact for result in results} == {results[0].artefact}

            states[1]["weights"][2 * BLOCK_BYTES // 4] += 1  # in one block
            states[1]["bias"][:] = 0  # in another
            with trio.fail_after(30):
                results = await sync_all([a, b, c], states)
            assert [result.fetched_blocks for result in results] == [0, 2, 0]
            assert same(states[1], states[0])
            assert same(states[0], tensors())
            assert len(results[0].holders) == 2


async def test_newcomers_take_the_state_of_those_who_were_there(autojump_clock: object) -> None:
    settings = EpochSettings(min_members=1)
    async with (
        open_swarm(1, settings=settings) as (network, nodes),
        syncer(nodes[0]) as first,
    ):
        nodes[0].group.set_position(0, START)
        state = tensors(7)
        with trio.fail_after(30):
            await first.sync(state)
            async with (
                open_node(network, 1, 0, settings) as second,
                open_node(network, 2, 0, settings) as third,
                syncer(second) as s2,
                syncer(third) as s3,
            ):
                for newcomer in (second, third):
                    await newcomer.endpoint.connect([nodes[0].address])
                await third.endpoint.connect([second.address])
                for newcomer in (second, third):
                    newcomer.group.set_position(0, START)
                while nodes[0].group.epoch is None or len(nodes[0].group.epoch.members) < 3:
                    await nodes[0].group.wait_changed()
                states = [state, tensors(1), tensors(1)]
                results = await sync_all([first, s2, s3], states)
        assert results[0].holders == (nodes[0].endpoint.node_id,)
        assert all(same(one, tensors(7)) for one in states)
        assert results[1].fetched_blocks == 6


@pytest.mark.parametrize("blocks", [0, 1, 3, 8])
async def test_a_lost_holder_costs_an_attempt_at_most(blocks: int, autojump_clock: object) -> None:
    async with open_swarm(4, settings=EpochSettings(min_members=4)) as (network, nodes):
        for node in nodes:
            node.group.set_position(0, START)
        async with (
            syncer(nodes[0]) as a,
            syncer(nodes[1]) as b,
            syncer(nodes[2]) as c,
            syncer(nodes[3]) as d,
        ):
            await nodes[3].group.wait_entered()
            states = [tensors(index % 3 != 0) for index in range(4)]  # 0, 1, 1, 0
            done: dict[int, Synced] = {}

            async def one(index: int, sync: StateSync) -> None:
                done[index] = await sync.sync(states[index])

            life = trio.CancelScope()
            given = itertools.count()
            for sync in (a, b, c, d):
                read = sync._shelf.read

                def reads(artefact: bytes, block: int, read: object = read) -> object:
                    if next(given) == blocks:
                        network.kill_host("10.0.0.4")
                        life.cancel()
                    return read(artefact, block)

                sync._shelf.read = reads

            async def victim() -> None:
                with life:
                    await d.sync(states[3])

            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    for index, sync in enumerate((a, b, c)):
                        nursery.start_soon(one, index, sync)
                    nursery.start_soon(victim)
            assert life.cancelled_caught
            assert len({result.artefact for result in done.values()}) == 1
            assert len(done) == 3
            assert same(states[0], states[1])
            assert same(states[1], states[2])
            assert len(done[0].epoch.members) in {3, 4}


async def test_what_rests_on_the_parity_ends_with_its_epoch(autojump_clock: object) -> None:
    """A job within an epoch that a member's loss ends is told so at once, and not done with others."""
    async with open_swarm(3, settings=EpochSettings(min_members=3)) as (network, nodes):
        for node in nodes:
            node.group.set_position(0, START)
        async with syncer(nodes[0]) as a, syncer(nodes[1]) as b, syncer(nodes[2]) as c:
            states = [tensors() for _ in range(3)]
            results = await sync_all([a, b, c], states)
            within = results[0].epoch.id
            source = np.ones(10, np.float32)
            call = Call().bind(b"step", source)
            handles = [
                nodes[i].group.start(Job(call, source, source.copy(), 1, within=within))
                for i in range(2)
            ]
            await trio.sleep(0.05)
            network.kill_host("10.0.0.3")
            with trio.fail_after(20):
                for handle in handles:
                    with pytest.raises(EpochChanged):
                        await handle.wait()
                results = await sync_all([a, b], states[:2])
                within = results[0].epoch.id
                handles = [
                    nodes[i].group.start(Job(call, source, source.copy(), 1, within=within))
                    for i in range(2)
                ]
                for handle in handles:
                    assert (await handle.wait()).weight == 2.0


async def test_other_names_or_shapes_are_a_mismatch(autojump_clock: object) -> None:
    async with open_swarm(2) as (_, nodes):
        for node in nodes:
            node.group.set_position(0, START)
        async with syncer(nodes[0]) as a, syncer(nodes[1]) as b:
            states = [tensors(), {**tensors(), "bias": np.zeros(12)}]
            failed = []

            async def one(sync: StateSync, state: dict[str, np.ndarray]) -> None:
                with pytest.raises(DescriptorMismatch):
                    await sync.sync(state)
                failed.append(sync)

            with trio.fail_after(10):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(one, a, states[0])
                    nursery.start_soon(one, b, states[1])
            assert len(failed) == 2


async def test_a_state_that_nobody_gives_is_an_error_by_the_deadline(
    autojump_clock: object,
) -> None:
    async with open_swarm(2) as (_, nodes):
        for node in nodes:
            node.group.set_position(0, START)
        async with syncer(nodes[0]) as a, syncer(nodes[1]) as b:
            a._shelf.put = lambda _state: None  # it declares and does not serve
            states = [tensors(0), tensors(1)]
            states[0]["steps"][...] = 0
            before = {name: tensor.copy() for name, tensor in states[1].items()}
            ended = []

            async def one(sync: StateSync, state: dict[str, np.ndarray], revision: int) -> None:
                deadline = trio.current_time() + 5
                try:
                    await sync.sync(state, revision=revision, deadline=deadline)
                except (StateUnavailable, Indeterminate) as error:
                    ended.append(error)
                assert trio.current_time() <= deadline + 2

            async with trio.open_nursery() as nursery:
                nursery.start_soon(one, a, states[0], 1)
                nursery.start_soon(one, b, states[1], 0)
            assert len(ended) == 2
            assert same(states[1], before)


async def test_arguments(autojump_clock: object) -> None:
    async with open_swarm(1) as (_, nodes), syncer(nodes[0]) as sync:
        for bad in ({}, {"x": np.empty(0)}, {"x": np.ones((4, 4))[:, 1]}):
            with pytest.raises(InvalidOperation):
                await sync.sync(bad)
        with pytest.raises(InvalidOperation, match="revision"):
            await sync.sync(tensors(), revision=-1)
