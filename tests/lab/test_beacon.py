"""LAN discovery between two network namespaces on one cable: over IPv4, over IPv6 alone, and not beyond the swarm."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio

from node.joining.beacon import BEACON_BYTES
from node.joining.lan import GROUP_V4, PORT, discover
from tests.lab.namespaces import Namespace, placed
from tests.trusted import FOREIGN, SWARM
from transport.address import Address
from transport.errors import ConnectFailed
from transport.identity import Identity, NodeId
from transport.swarm import Swarm

pytestmark = pytest.mark.real
PATIENCE_S = 30.0


class Node:
    """An endpoint that only notes whom it is told to dial."""

    def __init__(self, number: int, listen: str, swarm: Swarm = SWARM) -> None:
        self.identity = Identity.from_seed(bytes([number]) * 32)
        self.swarm = swarm
        self.addresses = (Address(listen, 7447),)
        self.peers: dict[NodeId, object] = {}
        self.dialed = trio.Event()
        self.tried: list[tuple[NodeId | None, Address]] = []

    async def connect(self, addresses, *, expected=None):
        self.tried.append((expected, addresses[0]))
        self.dialed.set()
        raise ConnectFailed("there is no endpoint in this test")

    async def run(self) -> None:
        await discover(self, rng=random.Random(1))


@contextmanager
def cable(*, v4: bool = True) -> Iterator[tuple[Namespace, Namespace]]:
    with Namespace("one") as one, Namespace("two") as two:
        one.link("eth0", two, "eth0")
        for number, each in enumerate((one, two), start=1):
            if v4:
                each.ip(f"addr add 192.168.7.{number}/24 dev eth0")
            each.ip("link set eth0 up")
        yield one, two


async def live(namespace: Namespace, node: Node) -> None:
    await placed(namespace, node.run())


async def meet(one: Namespace, two: Namespace, first: Node, second: Node) -> None:
    """Both run until both have heard of the other."""
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(live, one, first)
            nursery.start_soon(live, two, second)
            await first.dialed.wait()
            await second.dialed.wait()
            nursery.cancel_scope.cancel()


async def test_two_members_on_one_network_hear_of_each_other():
    with cable() as (one, two):
        first, second = Node(1, "0.0.0.0"), Node(2, "0.0.0.0")
        await meet(one, two, first, second)
    assert first.tried[0] == (second.identity.node_id, Address("192.168.7.2", 7447))
    assert second.tried[0] == (first.identity.node_id, Address("192.168.7.1", 7447))


async def test_without_any_address_of_its_own_ipv6_is_enough():
    with cable(v4=False) as (one, two):
        first, second = Node(1, "::"), Node(2, "::")
        await meet(one, two, first, second)
    (who, address), *_ = first.tried
    assert who == second.identity.node_id
    assert address.host.startswith("fe80::")
    assert address.host.endswith("%eth0")


async def test_another_swarm_and_a_node_for_this_machine_alone_stay_apart():
    with cable() as (one, two):
        member, stranger = Node(1, "0.0.0.0"), Node(3, "0.0.0.0", FOREIGN)
        shy = Node(4, "127.0.0.1")
        with two.entered():
            listener = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
            listener.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
            await listener.bind((GROUP_V4, PORT))
            joined = trio.socket.inet_aton(GROUP_V4) + trio.socket.inet_aton("192.168.7.2")
            listener.setsockopt(trio.socket.IPPROTO_IP, trio.socket.IP_ADD_MEMBERSHIP, joined)
        heard = []
        with listener:
            async with trio.open_nursery() as nursery:
                for namespace, node in ((one, member), (two, stranger), (two, shy)):
                    nursery.start_soon(live, namespace, node)
                with trio.fail_after(PATIENCE_S):
                    while len(heard) < 4:  # two rounds of the two that speak
                        heard.append(await listener.recvfrom(2000))
                nursery.cancel_scope.cancel()
    assert {len(data) for data, _ in heard} == {BEACON_BYTES}
    sources = {data[8:40] for data, _ in heard}
    assert sources == {member.identity.public_key, stranger.identity.public_key}
    # The shy one speaks to nobody, but it belongs to the swarm and hears.
    assert {who for who, _ in shy.tried} == {member.identity.node_id}
    assert not stranger.tried
    assert not member.tried
