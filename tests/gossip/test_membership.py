"""Membership over real endpoints on the in-memory network, in virtual time."""

from __future__ import annotations

import hashlib
import random
from contextlib import AsyncExitStack, asynccontextmanager

import attrs
import pytest
import trio

from gossip.membership.messages import PROTOCOL
from gossip.membership.service import Membership, Missed, open_membership
from gossip.membership.settings import LAN
from gossip.membership.swim import MemberEvent
from gossip.membership.table import MemberState
from tests.trusted import SWARM, trust_of
from transport.address import Address
from transport.endpoint import Endpoint, open_endpoint
from transport.errors import RemoteCallFailed
from transport.identity import Identity
from transport.simulated.deterministic import run_deterministically
from transport.simulated.memory import MemoryNetwork

ALIVE, SUSPECT, LEFT, LOST = MemberState


@attrs.define
class Node:
    endpoint: Endpoint
    membership: Membership
    address: Address
    scope: trio.CancelScope

    @property
    def id(self):
        return self.endpoint.node_id

    def sees(self, other: Node) -> MemberState | None:
        view = self.membership.member(other.id)
        return None if view is None else view.state


@asynccontextmanager
async def open_node(
    network: MemoryNetwork, index: int, *, life: int = 0, settings=LAN, host: str = "", find=None
):
    rng = random.Random(f"{index}/{life}")
    identity = Identity.from_seed(hashlib.sha256(f"member {index}".encode()).digest())
    address = Address(host or f"10.0.0.{index + 1}", 7447)
    async with (
        open_endpoint(
            identity,
            SWARM,
            network.host(address.host),
            [address],
            trust=trust_of(identity),
            name=f"n{index}",
            rng=rng,
            random_bytes=rng.randbytes,
        ) as endpoint,
        open_membership(
            endpoint,
            rng=rng,
            wall_clock=lambda: 1000.0 + life + trio.current_time(),
            settings=settings,
            find=find,
        ) as membership,
    ):
        yield Node(endpoint, membership, address, trio.CancelScope())


@asynccontextmanager
async def open_swarm(count: int):
    network = MemoryNetwork(1)
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(open_node(network, i)) for i in range(count)]
        for index, node in enumerate(nodes):
            for other in nodes[:index]:
                await node.endpoint.connect([other.address], expected=other.id)
        await until(lambda: all(a.sees(b) is ALIVE for a in nodes for b in nodes if a is not b))
        yield network, nodes


async def until(condition, within_s: float = 60.0) -> float:
    began = trio.current_time()
    with trio.fail_after(within_s):
        while not condition():
            await trio.sleep(0.05)
    return trio.current_time() - began


def in_virtual_time(main):
    def test():
        run_deterministically(7, main)

    test.__name__ = main.__name__
    test.__doc__ = main.__doc__
    return test


@in_virtual_time
async def test_members_find_each_other_and_rest():
    async with open_swarm(4) as (_, nodes):
        views = nodes[0].membership.members()
        assert sorted(view.name for view in views) == ["n1", "n2", "n3"]
        assert all(view.connected for view in views)
        await trio.sleep(120)
        assert {node.membership.score for node in nodes} == {0}
        assert all(node.membership.counters["looks"] == 0 for node in nodes)


@in_virtual_time
async def test_who_is_cut_off_is_lost_within_five_seconds_and_comes_back():
    async with open_swarm(5) as (network, nodes):
        await trio.sleep(3.3)
        *rest, gone = nodes
        network.partition([node.address.host for node in rest], [gone.address.host])
        assert await until(lambda: all(node.sees(gone) is LOST for node in rest)) <= 5.0
        reason = rest[0].membership.member(gone.id).reason
        assert reason.startswith("silent for 2")
        assert "no answer through 3 others" in reason
        assert all(a.sees(b) is ALIVE for a in rest for b in rest if a is not b)
        await trio.sleep(20)
        network.heal()
        await gone.endpoint.connect([rest[0].address], expected=rest[0].id)
        await until(lambda: all(node.sees(gone) is ALIVE for node in rest))


@in_virtual_time
async def test_leaving_is_announced_and_a_restart_is_a_new_life():
    network = MemoryNetwork(1)
    async with open_node(network, 0) as stays:
        async with open_node(network, 1) as goes:
            await goes.endpoint.connect([stays.address], expected=stays.id)
            await until(lambda: stays.sees(goes) is ALIVE)
        view = stays.membership.member(goes.id)
        assert (view.state, view.reason) == (LEFT, "shutting down")
        async with open_node(network, 1, life=60) as again:
            await again.endpoint.connect([stays.address], expected=stays.id)
            await until(lambda: stays.sees(again) is ALIVE)


@in_virtual_time
async def test_who_dies_is_lost_and_not_left():
    network = MemoryNetwork(1)
    async with open_node(network, 0) as stays, trio.open_nursery() as nursery:
        scope, started = trio.CancelScope(), trio.Event()
        ids = []

        async def other():
            with scope:
                async with open_node(network, 1) as dies:
                    ids.append(dies.id)
                    await dies.endpoint.connect([stays.address], expected=stays.id)
                    await until(lambda: stays.sees(dies) is ALIVE)
                    # A death says no goodbye.
                    dies.membership._swim._state.peers.clear()
                    dies.membership._swim._state.own = dies.membership._swim._state.keys.left(1, "")
                    started.set()
                    await trio.sleep_forever()

        nursery.start_soon(other)
        await started.wait()
        scope.cancel()
        await until(lambda: stays.membership.member(ids[0]).state is LOST)
        assert "nobody else to ask" in stays.membership.member(ids[0]).reason


@in_virtual_time
async def test_who_has_moved_is_found_where_others_say_it_is():
    network = MemoryNetwork(1)
    moved_to, asked = Address("10.0.0.77", 7447), []

    async def find(node_id):
        asked.append(node_id)
        return [Address("10.0.0.2", 7447), moved_to]

    async with open_node(network, 0, find=find) as stays, AsyncExitStack() as stack:
        goes = await stack.enter_async_context(open_node(network, 1))
        await goes.endpoint.connect([stays.address], expected=stays.id)
        await until(lambda: stays.sees(goes) is ALIVE)
        network.kill_host(goes.address.host)  # it says no goodbye
        async with open_node(network, 1, life=60, host=moved_to.host) as again:
            assert again.id == goes.id
            await until(lambda: asked and again.id in stays.endpoint.peers)
            assert stays.endpoint.peers[again.id].address == moved_to
            await until(lambda: stays.sees(again) is ALIVE)


@in_virtual_time
async def test_events_come_in_order_and_a_slow_watcher_is_told():
    async with open_swarm(3) as (network, nodes):
        first, _, gone = nodes
        with first.membership.watch() as events:
            network.partition([node.address.host for node in nodes[:2]], [gone.address.host])
            await until(lambda: first.sees(gone) is LOST)
            states = []
            while len(states) < 2:
                event = await events.receive()
                assert isinstance(event, MemberEvent)
                states.append((event.before, event.member.state))
            assert states == [(ALIVE, SUSPECT), (SUSPECT, LOST)]
            view = first.membership.member(gone.id)
            for _ in range(1000):
                first.membership._tell(MemberEvent(view, ALIVE))
            received = [events.receive_nowait() for _ in range(256)]
            assert isinstance(received[-1], Missed)
            with pytest.raises(trio.WouldBlock):
                events.receive_nowait()


@in_virtual_time
async def test_malformed_messages_are_refused_and_change_nothing():
    async with open_swarm(2) as (_, nodes):
        a, b = nodes
        with pytest.raises(RemoteCallFailed):
            await a.endpoint.peers[b.id].call(PROTOCOL, b"\xff\xff")
        assert b.membership.counters["malformed_in"] == 1
        assert b.sees(a) is ALIVE


@in_virtual_time
async def test_a_peer_that_takes_no_part_is_no_member_and_in_nobodys_way():
    network = MemoryNetwork(1)
    rng = random.Random(9)
    async with (
        open_swarm(2) as (_, nodes),
        open_endpoint(
            Identity.from_seed(b"o" * 32),
            SWARM,
            network.host("10.0.0.9"),
            [],
            trust=trust_of(Identity.from_seed(b"o" * 32)),
            rng=rng,
            random_bytes=rng.randbytes,
        ),
    ):
        nodes[0].endpoint.unserve(PROTOCOL)
        await trio.sleep(60)
        assert nodes[0].membership.counters["internal_errors"] == 0


@in_virtual_time
async def test_an_error_in_the_block_comes_out_as_it_is():
    network = MemoryNetwork(1)
    with pytest.raises(ZeroDivisionError):
        async with open_node(network, 0):
            raise ZeroDivisionError
