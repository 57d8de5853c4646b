"""A few endpoints with a collective group each, on one in-memory network."""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import attrs
import trio

from gossip.collective.agreement.epoch_events import EpochSettings
from gossip.collective.group import Group, open_group
from tests.trusted import SWARM, trust_of
from transport.address import Address
from transport.endpoint import Endpoint, open_endpoint
from transport.identity import Identity
from transport.simulated.memory import MemoryNetwork
from transport.trust.certificate import Role

RUN = hashlib.sha256(b"the run of the tests").digest()
PORT = 7447


@attrs.define
class Node:
    endpoint: Endpoint
    group: Group
    address: Address


def seeded(label: str) -> random.Random:
    return random.Random(label)


def ip(index: int) -> str:
    return f"10.0.0.{index + 1}"


@asynccontextmanager
async def open_node(
    network: MemoryNetwork,
    index: int,
    seed: int,
    settings: EpochSettings,
    *,
    role: Role = "trainer",
    probing: bool = False,
) -> AsyncIterator[Node]:
    rng = seeded(f"{seed}/{index}")
    identity = Identity.from_seed(hashlib.sha256(f"{seed}/{index}".encode()).digest())
    address = Address(ip(index), PORT)
    async with (
        open_endpoint(
            identity,
            SWARM,
            network.host(ip(index)),
            [address],
            trust=trust_of(identity, role=role),
            name=f"n{index}",
            rng=rng,
            random_bytes=rng.randbytes,
        ) as endpoint,
        open_group(endpoint, RUN, settings=settings, rng=rng, probing=probing) as group,
    ):
        yield Node(endpoint, group, address)


@asynccontextmanager
async def open_swarm(
    count: int, *, seed: int = 0, settings: EpochSettings | None = None, probing: bool = False
) -> AsyncIterator[tuple[MemoryNetwork, list[Node]]]:
    """`count` nodes, fully connected."""
    network = MemoryNetwork(seed)
    settings = settings or EpochSettings(min_members=count)
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(
                open_node(network, index, seed, settings, probing=probing)
            )
            for index in range(count)
        ]
        for index, node in enumerate(nodes):
            for other in nodes[:index]:
                await node.endpoint.connect([other.address], expected=other.endpoint.node_id)
        yield network, nodes
        for node in nodes:
            with trio.move_on_after(1):
                await node.group.leave()
