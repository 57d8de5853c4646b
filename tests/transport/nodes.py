"""Two or more endpoints on one simulated network, for the tests of the drivers."""

import hashlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import trio

from tests.trusted import SWARM, trust_of
from transport.address import Address
from transport.endpoint import Endpoint, open_endpoint
from transport.identity import Identity
from transport.limits import Limits
from transport.network import Network
from transport.peer import Peer
from transport.simulated.memory import MemoryNetwork
from transport.swarm import Swarm
from transport.trust.trust import Trust

PORT = 7447


def identity(number: int) -> Identity:
    return Identity.from_seed(number.to_bytes(32, "big"))


def seeded_bytes(*seed: object) -> Callable[[int], bytes]:
    """Key material that depends on the seed alone."""
    rng = random.Random(hashlib.sha256(repr(seed).encode()).digest())
    return rng.randbytes


def address(number: int) -> Address:
    return Address(f"10.0.0.{number}", PORT)


@asynccontextmanager
async def node(
    network: Network,
    number: int,
    *,
    listen: Sequence[Address] | None = None,
    swarm: Swarm = SWARM,
    limits: Limits | None = None,
    trust: Trust | None = None,
    clock: Callable[[], float] = lambda: 0.0,
    seed: int = 0,
    aegis: bool | None = None,
) -> AsyncIterator[Endpoint]:
    async with open_endpoint(
        identity(number),
        swarm,
        network,
        [address(number)] if listen is None else listen,
        trust=trust or trust_of(identity(number), swarm),
        wall_clock=clock,
        name=f"node-{number}",
        limits=limits,
        random_bytes=seeded_bytes(seed, number),
        rng=random.Random(number),
        aegis=aegis,
    ) as endpoint:
        yield endpoint


@asynccontextmanager
async def nodes(
    world: MemoryNetwork, count: int, *, limits: Limits | None = None
) -> AsyncIterator[list[Endpoint]]:
    """`count` endpoints on the hosts 10.0.0.1, 10.0.0.2, ..., not connected."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                node(world.host(f"10.0.0.{number}"), number, limits=limits, seed=world.seed)
            )
            for number in range(1, count + 1)
        ]


async def echo(_peer: Peer, request: bytes) -> bytes:
    return request


async def lost(peer: Peer, within_s: float) -> float:
    """Wait until a peer is lost; return how long that took."""
    start = trio.current_time()
    with trio.fail_after(within_s):
        await peer.closed.wait()
    return trio.current_time() - start


async def peer_of(endpoint: Endpoint, other: Endpoint) -> Peer:
    """Wait until `endpoint` is connected to `other`."""
    with endpoint.watch() as events:
        while other.node_id not in endpoint.peers:
            with trio.fail_after(10):
                await events.receive()
    return endpoint.peers[other.node_id]
