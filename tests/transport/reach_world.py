"""Whole nodes on the in-memory internet: three public ones that know each other, and whoever joins from behind something."""

import ipaddress
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import trio

from tests.transport.nodes import SWARM, identity
from tests.trusted import trust_of
from transport.address import Address
from transport.endpoint import Endpoint, open_endpoint
from transport.reach.reach import Reach, ReachSettings, open_reach
from transport.simulated.link_model import LinkSettings
from transport.simulated.memory import MemoryNetwork
from transport.simulated.nat_model import Nat

PORT = 7447
PUBLIC = {"relay": "11.1.1.1", "far-1": "11.1.2.1", "far-2": "11.1.3.1"}
PATIENCE_S = 120.0


class World:
    """Public nodes that know each other, and whoever joins from behind something."""

    def __init__(self) -> None:
        self.network = MemoryNetwork(3, default=LinkSettings(latency_s=0.02))
        self.endpoints: dict[str, Endpoint] = {}
        self.reaches: dict[str, Reach] = {}
        self.hosts: dict[str, list[str]] = {}
        self._stack = AsyncExitStack()
        self._count = 0

    async def node(self, name: str, ip: str, *, behind: Nat | None = None, **settings: object):
        self._count += 1
        rng = random.Random(self._count)
        self.hosts[name] = [ip]
        endpoint = await self._stack.enter_async_context(
            open_endpoint(
                identity(self._count),
                SWARM,
                self.network.host(ip, behind=behind),
                [Address("0.0.0.0", PORT)],
                trust=trust_of(identity(self._count)),
                name=name,
                random_bytes=rng.randbytes,
                rng=rng,
            )
        )
        reach = await self._stack.enter_async_context(
            open_reach(
                endpoint,
                ReachSettings(
                    port_mapping=(),
                    interfaces=lambda: [
                        ipaddress.ip_interface(f"{h}/24") for h in self.hosts[name]
                    ],
                    news=None,
                    **settings,
                ),
                rng=rng,
            )
        )
        self.endpoints[name], self.reaches[name] = endpoint, reach
        return endpoint

    async def join(self, name: str, ip: str, *, behind: Nat | None = None) -> Endpoint:
        """A node that connects to all public ones, as the DHT makes every node do."""
        endpoint = await self.node(name, ip, behind=behind)
        for host in PUBLIC.values():
            await endpoint.connect([Address(host, PORT)])
        return endpoint

    async def until(self, condition) -> None:
        with trio.fail_after(PATIENCE_S):
            while not condition():
                await trio.sleep(0.1)


@asynccontextmanager
async def open_world() -> AsyncIterator[World]:
    world = World()
    async with world._stack:
        for name, ip in PUBLIC.items():
            await world.node(name, ip)
        for name, ip in PUBLIC.items():
            for host in PUBLIC.values():
                if host != ip:
                    await world.endpoints[name].connect([Address(host, PORT)])
        yield world
