"""Endpoints with a mesh each, as members of one epoch, without the machine that agrees on it."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import attrs
import trio

from gossip.collective.agreement.certificate import GENESIS, Ballot, Epoch
from gossip.collective.links.mesh import Lane, Mesh
from tests.gossip.swarm import PORT, ip, seeded
from tests.trusted import SWARM, trust_of
from transport.address import Address
from transport.endpoint import Endpoint, open_endpoint
from transport.identity import Identity, NodeId
from transport.simulated.memory import MemoryNetwork


@attrs.define
class Member:
    endpoint: Endpoint
    mesh: Mesh
    changes: list[str]
    failures: list[tuple[str, tuple[NodeId, ...]]]


def epoch_of(members: list[Member], number: int = 1) -> Epoch:
    nodes = tuple(sorted(member.endpoint.node_id for member in members))
    ballot = Ballot(number, 0, nodes[0])
    return Epoch(bytes(32), ballot, nodes, GENESIS, 0, bytes(32))


def lane_of(member: Member, epoch: Epoch, number: int = 0) -> Lane:
    lane = member.mesh.lane(epoch, number)
    assert lane is not None
    return lane


@asynccontextmanager
async def open_members(
    count: int, network: MemoryNetwork | None = None
) -> AsyncIterator[tuple[MemoryNetwork, list[Member]]]:
    """Connected members, in the order of their ids."""
    network = network or MemoryNetwork(count)
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        members: list[Member] = []
        for index in range(count):
            identity = Identity.from_seed(hashlib.sha256(b"mesh/%d" % index).digest())
            rng = seeded(f"mesh/{index}")
            endpoint = await stack.enter_async_context(
                open_endpoint(
                    identity,
                    SWARM,
                    network.host(ip(index)),
                    [Address(ip(index), PORT)],
                    trust=trust_of(identity),
                    rng=rng,
                    random_bytes=rng.randbytes,
                )
            )
            for other in range(index):
                await endpoint.connect([Address(ip(other), PORT)])
            changes: list[str] = []
            failures: list[tuple[str, tuple[NodeId, ...]]] = []
            mesh = Mesh(
                endpoint,
                nursery,
                on_change=lambda changes=changes: changes.append("ring"),
                on_failure=lambda why, who, failures=failures: failures.append((why, who)),
            )
            members.append(Member(endpoint, mesh, changes, failures))
        members.sort(key=lambda member: member.endpoint.node_id)
        yield network, members
        for member in members:
            member.mesh.drop("the test is over")
        nursery.cancel_scope.cancel()
