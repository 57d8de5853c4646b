"""A group measures its links, and forms an epoch in whose ring a slow one is not."""

import hashlib
import itertools

import numpy as np
import trio

from gossip.collective.agreement.certificate import LANES
from gossip.collective.agreement.layout import PLAIN
from gossip.collective.placing.arranging import REARRANGE_S
from gossip.collective.placing.probing import TURN_S
from tests.gossip.swarm import ip, open_swarm
from transport.simulated.link_model import LinkSettings

STATE = hashlib.sha256(b"start").digest()
FAST = LinkSettings(latency_s=0.01, bandwidth_bytes_per_s=40e6)
SLOW = LinkSettings(latency_s=0.01, bandwidth_bytes_per_s=2e6)
LENGTH = 1 << 20


async def reduce_all(nodes, *, algorithm: str = "ring") -> float:
    """Seconds of virtual time for one operation of all."""
    began = trio.current_time()

    async def one(index, node):
        node.group.set_position(0, STATE)
        source = np.full(LENGTH, index, np.float32)
        out = np.empty_like(source)
        await node.group.all_reduce(b"x", source, out, algorithm=algorithm)
        assert (out == sum(range(len(nodes)))).all()
        node.group.set_position(0, STATE)

    async with trio.open_nursery() as nursery:
        for index, node in enumerate(nodes):
            nursery.start_soon(one, index, node)
    return trio.current_time() - began


async def test_links_are_measured_at_the_beginning_and_the_ring_goes_around_a_slow_one(
    autojump_clock,
):
    async with open_swarm(4, probing=True) as (network, nodes):
        network.set_default(FAST)
        by_id = sorted(nodes, key=lambda node: node.endpoint.node_id)
        slow = by_id[1], by_id[2]
        network.set_link(*(ip(nodes.index(node)) for node in slow), SLOW, both=False)
        for node in nodes:
            node.group.set_position(0, STATE)
        with trio.fail_after(600):
            await trio.sleep(len(nodes) * TURN_S + 5.0)
            epoch = nodes[0].group.epoch
            assert epoch.layout.probe
            # Each knows the links from itself; the run's document tells them of the others'.
            measured = {}
            for node in nodes:
                measured |= node.group.rhythm.rates()
            members = [node.endpoint.node_id for node in by_id]
            assert set(measured) == set(itertools.permutations(members, 2))
            link = members[1], members[2]
            others = [rate for pair, rate in measured.items() if pair != link]
            assert measured[link] < 4e6
            assert min(others) > 4 * measured[link]
            for node in nodes:
                node.group._arranger._rates = lambda: measured
            before = await reduce_all(nodes)
            by_id[3].group.rearrange()
            after = await reduce_all(nodes)
            assert nodes[0].group.epoch.id != epoch.id
            order = nodes[0].group.epoch.layout.order
            ring = [members[rank] for rank in order]
            assert link not in itertools.pairwise([*ring, ring[0]])
            assert after < before / 3
            # What is as good as can be stays, and is not looked at again for a while.
            settled = nodes[0].group.epoch.id
            await trio.sleep(REARRANGE_S)
            for node in nodes:
                node.group.rearrange()
            await reduce_all(nodes)
            assert nodes[0].group.epoch.id == settled


async def test_a_layout_that_is_none_is_refused_and_another_proposer_goes_on(autojump_clock):
    async with open_swarm(3) as (_, nodes):
        liar = nodes[1].group
        asked = []

        def nonsense(members):
            asked.append(members)
            return type(PLAIN)(order=b"\0\0\0")

        liar.machine.arrange = nonsense
        for node in nodes:
            node.group.set_position(0, STATE)
        with trio.fail_after(300):
            for _ in range(3):
                await reduce_all([nodes[0], nodes[1], nodes[2]])
                nodes[0].group.machine.break_epoch("test", trio.current_time())
                nodes[0].group._flush()
        assert asked, "the liar has proposed at least once"
        assert all(node.group.epoch is None or node.group.epoch.layout.fits(3) for node in nodes)


async def test_measuring_and_the_operations_of_all_tags_do_not_meet(autojump_clock):
    async with open_swarm(3, probing=True) as (_, nodes):
        for node in nodes:
            node.group.set_position(0, STATE)

        async def gather(node, tag):
            source = np.full(64, tag, np.float32)
            out = np.empty(3 * 64, np.float32)
            await node.group.all_gather(b"all tags", source, out, tag=tag)
            assert (out == tag).all()

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for node in nodes:
                    for tag in range(1, LANES):
                        nursery.start_soon(gather, node, tag)
        assert nodes[0].group.epoch.layout.probe
