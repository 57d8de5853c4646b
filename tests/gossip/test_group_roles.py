"""Who is no trainer has no part in an epoch, whatever it says."""

import hashlib

import trio

from gossip.collective.agreement.epoch_events import EpochSettings
from tests.gossip.swarm import open_node, open_swarm

START = hashlib.sha256(b"start").digest()


async def test_an_observer_is_in_no_epoch_though_it_wants_to(autojump_clock: object) -> None:
    settings = EpochSettings(min_members=2)
    async with (
        open_swarm(3, settings=settings) as (network, nodes),
        open_node(network, 3, 0, settings, role="observer") as observer,
    ):
        for node in nodes:
            await observer.endpoint.connect([node.address])
        for node in (*nodes, observer):
            node.group.set_position(0, START)
        with trio.fail_after(30):
            await nodes[0].group.wait_entered()
        await trio.sleep(10)
        members = {node.endpoint.node_id for node in nodes}
        for node in nodes:
            assert node.group.epoch is not None
            assert set(node.group.epoch.members) == members
            assert node.endpoint.counters["refused-not-permitted"] > 0
        assert observer.group.epoch is None
