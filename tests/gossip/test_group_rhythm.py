"""A group names who has become slow from its own operations: a member that begins late, and a link that has lost its speed."""

import hashlib

import numpy as np
import trio

from gossip.collective.placing.rhythm import ALARM_IN, LEAST_HISTORY, Ailment
from tests.gossip.swarm import Node, ip, open_swarm
from transport.simulated.link_model import LinkSettings

LENGTH = 1 << 17
"""Values: segments of what goes over each link are large enough to be measured."""
FAST = LinkSettings(latency_s=0.005, jitter_s=0.001, bandwidth_bytes_per_s=100e6)
SLOW = LinkSettings(latency_s=0.005, jitter_s=0.001, bandwidth_bytes_per_s=5e6)


class Rounds:
    """Members that reduce in rounds, each after a moment of its own."""

    def __init__(self, nodes: list[Node], length: int = LENGTH, trains_s: float = 1.0) -> None:
        self.nodes = nodes
        self.length = length
        self.round = 0
        self.trains_s = [trains_s] * len(nodes)

    async def go(self, count: int) -> None:
        for _ in range(count):
            async with trio.open_nursery() as nursery:
                for index in range(len(self.nodes)):
                    nursery.start_soon(self._one, index)
            self.round += 1

    async def _one(self, index: int) -> None:
        group = self.nodes[index].group
        group.set_position(self.round, hashlib.sha256(b"%d" % self.round).digest())
        await trio.sleep(self.trains_s[index])
        source = np.full(self.length, index, np.float32)
        await group.all_reduce(b"round", source, np.empty_like(source))


async def test_a_member_that_has_become_late_is_named_by_all_and_its_links_are_not(autojump_clock):
    async with open_swarm(4) as (network, nodes):
        network.set_default(FAST)
        rounds = Rounds(nodes)
        await rounds.go(LEAST_HISTORY + 3)
        assert not any(node.group.rhythm.findings() for node in nodes)
        rounds.trains_s[2] = 3.0
        await rounds.go(ALARM_IN)
        late = nodes[2].endpoint.node_id
        for node in nodes:
            found = [(each.ailment, each.member) for each in node.group.rhythm.findings()]
            assert found == [(Ailment.LATE, late)]


async def test_a_link_that_has_lost_its_speed_is_named_by_who_sends_over_it(autojump_clock):
    async with open_swarm(4) as (network, nodes):
        network.set_default(FAST)
        measured = []
        members = sorted(nodes, key=lambda node: node.endpoint.node_id)
        receiver, sender = members[1], members[0]
        sender.group.on_measured = measured.append
        rounds = Rounds(nodes)
        await rounds.go(LEAST_HISTORY + 3)
        network.set_link(ip(nodes.index(sender)), ip(nodes.index(receiver)), SLOW, both=False)
        await rounds.go(ALARM_IN)
        (found,) = sender.group.rhythm.findings()
        assert (found.ailment, found.member) == (Ailment.LINK, sender.endpoint.node_id)
        assert found.other == receiver.endpoint.node_id
        assert found.factor > 2
        assert {each.source for each in measured} == {sender.endpoint.node_id}


def by_rate(bytes_per_s: float, latency_s: float) -> LinkSettings:
    return LinkSettings(latency_s=latency_s, bandwidth_bytes_per_s=bytes_per_s)


async def test_a_member_is_named_that_begins_late_in_rounds_through_which_values_flow(
    autojump_clock,
):
    """They last for a third of a second, and values come all the time: who begins when has to be told all the same."""
    async with open_swarm(4) as (network, nodes):
        network.set_default(by_rate(200e6, 2e-4))
        rounds = Rounds(nodes, length=1 << 22)
        await rounds.go(LEAST_HISTORY + 8)
        rounds.trains_s[3] = 1.4
        await rounds.go(ALARM_IN + 2)
        late = nodes[3].endpoint.node_id
        for node in nodes:
            assert (Ailment.LATE, late) in [
                (each.ailment, each.member) for each in node.group.rhythm.findings()
            ]


async def test_nobody_is_late_because_the_network_has_become_slow(autojump_clock):
    async with open_swarm(3) as (network, nodes):
        network.set_default(by_rate(400e6, 1e-4))
        rounds = Rounds(nodes, length=1 << 23, trains_s=0.1)
        await rounds.go(LEAST_HISTORY + 8)
        network.set_default(by_rate(130e6, 1e-4))
        await rounds.go(ALARM_IN + 2)
        for node in nodes:
            found = [each.ailment for each in node.group.rhythm.findings()]
            assert Ailment.LATE not in found
