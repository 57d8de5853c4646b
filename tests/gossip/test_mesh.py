"""Links between the members of an epoch: opened when first needed, parted into lanes, gone with the epoch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import trio

from gossip.collective.call import Call, Reduce
from gossip.collective.dataplane import Outcome, execute
from gossip.collective.links.mesh import CONNECT_S, MAX_LANES
from gossip.errors import CollectiveAborted, DescriptorMismatch, InvalidOperation
from tests.gossip.mesh import Member, epoch_of, lane_of, open_members
from transport.bulk.link import BulkLink, LinkClosed
from transport.bulk.striped import StripedLink
from transport.simulated.link_model import LinkSettings
from transport.simulated.memory import MemoryNetwork


async def enter_all(members: list[Member], number: int = 1):
    epoch = epoch_of(members, number)
    for member in members:
        member.mesh.enter(epoch)
    return epoch


async def reduce_all(members: list[Member], epoch, lane: int = 0, **options) -> list[Outcome]:
    outcomes: dict[int, Outcome] = {}

    async def one(rank: int) -> None:
        source = np.full(1000, rank + 1, np.float32)
        out = np.empty_like(source)
        call = Call(reduce=Reduce.SUM, **options).bind(b"test", source)
        outcomes[rank] = await execute(lane_of(members[rank], epoch, lane), call, source, out)
        assert (out == sum(range(1, len(members) + 1))).all()

    async with trio.open_nursery() as nursery:
        for rank in range(len(members)):
            nursery.start_soon(one, rank)
    assert len({outcome.root for outcome in outcomes.values()}) == 1
    return [outcomes[rank] for rank in range(len(members))]


async def test_the_ring_of_the_first_lane_is_there_before_anybody_asks(autojump_clock):
    async with open_members(4) as (_, members):
        epoch = await enter_all(members)
        await trio.sleep(1)
        for member in members:
            lane = lane_of(member, epoch)
            assert member.changes == ["ring"]
            assert not member.failures
            following, previous = (lane.rank + 1) % 4, (lane.rank - 1) % 4
            others = set(range(4)) - {lane.rank}
            assert {rank for rank in others if lane.opened(rank)} == {following}
            assert {rank for rank in others if lane.accepted(rank)} == {previous}
        await reduce_all(members, epoch)


async def test_every_member_reaches_every_other_in_any_lane_whoever_begins(autojump_clock):
    async with open_members(3) as (_, members):
        epoch = await enter_all(members)
        for number, (one, other) in enumerate(itertools.permutations(range(3), 2)):
            link = await lane_of(members[one], epoch, number % 3).to(other)
            await link.send(b"%d" % number, b"payload")
            await trio.sleep(60)  # the receiver begins a minute later
            there = await lane_of(members[other], epoch, number % 3).from_(one)
            assert (await there.receive_head())[0] == b"%d" % number
            assert await lane_of(members[one], epoch, number % 3).to(other) is link


async def test_lanes_do_not_wait_for_each_other(autojump_clock):
    async with open_members(3) as (_, members):
        epoch = await enter_all(members)
        async with trio.open_nursery() as nursery:
            # Of lane 1 one member never begins: lanes 0 and 15 go on all the same.
            for member in members[:2]:
                source = np.ones(10, np.float32)
                call = Call().bind(b"other", source)
                nursery.start_soon(
                    execute, lane_of(member, epoch, 1), call, source, np.empty_like(source)
                )
            await reduce_all(members, epoch, 0)
            await reduce_all(members, epoch, 15)
            nursery.cancel_scope.cancel()


async def test_links_end_with_their_epoch_and_the_next_has_its_own(autojump_clock):
    async with open_members(3) as (_, members):
        first = await enter_all(members)
        await reduce_all(members, first)
        lane = lane_of(members[0], first)
        old = await lane.to(1)
        second = await enter_all(members, 2)
        assert old.closed
        assert members[0].mesh.lane(first) is None
        with pytest.raises(CollectiveAborted):
            await lane.to(2)
        with pytest.raises(LinkClosed):
            await old.send(b"", b"")
        await reduce_all(members, second)


async def test_who_waits_when_the_epoch_ends_is_told_at_once(autojump_clock):
    async with open_members(2) as (_, members):
        epoch = epoch_of(members)
        members[0].mesh.enter(epoch)  # the other one never does
        with pytest.RaisesGroup(CollectiveAborted, allow_unwrapped=True):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lane_of(members[0], epoch).from_, 1)
                await trio.sleep(1)
                members[0].mesh.drop("given up")


async def test_a_neighbour_that_cannot_be_had_is_named_once(autojump_clock):
    async with open_members(3) as (_, members):
        epoch = epoch_of(members)
        for member in members[:2]:
            member.mesh.enter(epoch)
        await trio.sleep(3 * CONNECT_S)
        # The one that dials it cannot tell: there the link waits to be taken. The one that waits can.
        assert [who for _, who in members[0].failures] == [(members[2].endpoint.node_id,)]
        assert not members[0].changes


async def test_a_second_link_for_one_lane_is_refused(autojump_clock):
    async with open_members(2) as (_, members):
        epoch = await enter_all(members)
        await reduce_all(members, epoch)
        peer = members[0].endpoint.peers[members[1].endpoint.node_id]
        for greeting in (b"\0\0\1", b"", bytes([MAX_LANES, 0, 1])):
            second = await peer.open_bulk(b"mesh/" + epoch.id[:24])
            await second.send(greeting, b"")
            with pytest.raises(LinkClosed):
                await second.receive_head()
        await reduce_all(members, epoch, sequence=1)


async def test_members_that_call_different_things_learn_it_at_once(autojump_clock):
    calls = [Call(), Call(algorithm="ring")]
    async with open_members(2) as (_, members):
        epoch = await enter_all(members)
        caught = []

        async def one(rank: int) -> None:
            source = np.ones(10, np.float32)
            call = calls[rank].bind(b"test", source)
            try:
                await execute(lane_of(members[rank], epoch), call, source, np.empty_like(source))
            except* DescriptorMismatch as group:
                caught.append(group)
                members[rank].mesh.drop("it failed")
            except* (CollectiveAborted, LinkClosed):
                pass  # the other one was quicker

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                for rank in range(2):
                    nursery.start_soon(one, rank)
        assert caught


def test_a_descriptor_binds_everything_that_members_must_agree_on():
    source = np.ones(10, np.float32)
    calls = [
        Call(),
        Call(reduce=Reduce.MEAN),
        Call(wire="int8"),
        Call(algorithm="ring"),
    ]
    descriptors = {call.bind(b"x", source).descriptor for call in calls}
    descriptors |= {Call().bind(b"y", source).descriptor}
    descriptors |= {Call().bind(b"x", source[:9]).descriptor}
    descriptors |= {Call().bind(b"x", source.astype(np.float64)).descriptor}
    assert len(descriptors) == 7
    assert Call(weight=2.0).bind(b"x", source).descriptor in descriptors


async def test_a_lane_of_another_number_is_an_error(autojump_clock):
    async with open_members(1) as (_, members):
        epoch = await enter_all(members)
        with pytest.raises(InvalidOperation):
            members[0].mesh.lane(epoch, MAX_LANES)
        await reduce_all(members, epoch)


async def test_a_long_path_has_several_links_in_the_first_lane(autojump_clock):
    network = MemoryNetwork(2, default=LinkSettings(latency_s=0.05))
    async with open_members(2, network) as (_, members):
        await trio.sleep(5)  # for a heartbeat to measure it
        epoch = await enter_all(members)
        await reduce_all(members, epoch)
        await reduce_all(members, epoch, 1)
        assert isinstance(lane_of(members[0], epoch).opened(1), StripedLink)
        assert isinstance(lane_of(members[0], epoch, 1).opened(1), BulkLink)
        # The second one carries on where the first left off.
        await reduce_all(members, epoch, sequence=1)
