"""The whole stack under virtual time: real endpoints, handshakes and streams on the in-memory network."""

import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio

from dht.contact import sane_address
from dht.key import record_key
from dht.service import Dht, _parsed, open_dht
from tests.trusted import SWARM, trust_of
from transport.address import Address
from transport.endpoint import Endpoint, open_endpoint
from transport.identity import Identity, NodeId
from transport.network import Path
from transport.relay.client import RelayClient
from transport.relay.service import RelayService
from transport.simulated.deterministic import run_deterministically
from transport.simulated.memory import MemoryNetwork

KEY = record_key(SWARM.id, "run", "tiny")
WALL = 1_800_000_000.0


def ip(number: int) -> str:
    return f"10.0.0.{number}"


@asynccontextmanager
async def swarm_of(world: MemoryNetwork, count: int) -> AsyncIterator[list[tuple[Endpoint, Dht]]]:
    async with AsyncExitStack() as stack:
        nodes = []
        for number in range(1, count + 1):
            seed = hashlib.sha256(b"%d" % number).digest()
            endpoint = await stack.enter_async_context(
                open_endpoint(
                    Identity.from_seed(seed),
                    SWARM,
                    world.host(ip(number)),
                    [Address("0.0.0.0", 7447)],  # what others are told must come from what they see
                    trust=trust_of(Identity.from_seed(seed)),
                    name=f"node-{number}",
                    random_bytes=random.Random(number).randbytes,
                    rng=random.Random(number),
                )
            )
            dht = await stack.enter_async_context(
                open_dht(
                    endpoint,
                    rng=random.Random(number),
                    wall_clock=lambda: WALL + trio.current_time(),
                )
            )
            nodes.append((endpoint, dht))
        yield nodes


async def find_by_name(seed: int, count: int, *, silent: bool) -> tuple[bytes, float]:
    world = MemoryNetwork(seed)
    async with swarm_of(world, count) as nodes:
        bootstrap = [Address(ip(1), 7447)]
        async with trio.open_nursery() as nursery:
            for _, dht in nodes[1:]:
                nursery.start_soon(dht.bootstrap, bootstrap)
        _, writer = nodes[1]
        assert await writer.put(KEY, b"tiny is here") >= min(3, count - 1)
        for endpoint, dht in nodes:
            (record,) = await dht.get(KEY)
            assert record.value == b"tiny is here"
            assert record.public_key == nodes[1][0].identity.public_key
            assert dht.stats().get("internal_errors", 0) == 0
            assert endpoint.node_id not in [c.node_id for c in dht.contacts()]

        world.kill_host(ip(1), silent=silent)  # the bootstrap node
        world.kill_host(ip(2), silent=silent)  # and the writer
        started = trio.current_time()
        for _, dht in nodes[2:]:
            records = await dht.get(KEY)
            assert [r.value for r in records] == [b"tiny is here"]
        slowest = trio.current_time() - started

        world.revive_host(ip(1))
        world.revive_host(ip(2))
    return world.trace_digest(), slowest


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("count", [4, 16])
def test_run_is_found_by_name_also_without_the_bootstrap_node(count: int, silent: bool) -> None:
    run_deterministically(1, lambda: find_by_name(1, count, silent=silent))


def test_same_seed_same_bytes_on_the_network() -> None:
    first = run_deterministically(2, lambda: find_by_name(2, 4, silent=True))
    assert first == run_deterministically(2, lambda: find_by_name(2, 4, silent=True))
    assert first != run_deterministically(3, lambda: find_by_name(3, 4, silent=True))


def test_newcomer_joins_after_the_first_address_is_dead() -> None:
    async def scenario() -> None:
        world = MemoryNetwork(5)
        async with swarm_of(world, 5) as nodes:
            one = [Address(ip(1), 7447)]
            for _, dht in nodes[1:4]:
                assert await dht.bootstrap(one) == 1
            assert await nodes[1][1].put(KEY, b"here") == 3
            world.kill_host(ip(1))
            last = nodes[4][1]
            assert await last.bootstrap(one) == 0
            assert last.bootstrap_status()["10.0.0.1:7447"] != ""
            assert await last.get(KEY) == []
            assert await last.bootstrap([*one, Address(ip(3), 7447)]) == 1
            assert [r.value for r in await last.get(KEY)] == [b"here"]
            world.revive_host(ip(1))

    run_deterministically(5, scenario)


async def find_a_node_behind_a_relay() -> None:
    """What a node that nobody can dial has told a relay's DHT is enough to reach it."""
    world = MemoryNetwork(3)
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        ((relay, _),) = await stack.enter_async_context(swarm_of(world, 1))
        await nursery.start(RelayService(relay).run)
        nodes = []
        for number in (2, 3):
            endpoint = await stack.enter_async_context(
                open_endpoint(
                    Identity.from_seed(hashlib.sha256(b"%d" % number).digest()),
                    SWARM,
                    world.host(ip(number)),
                    [],
                    trust=trust_of(Identity.from_seed(hashlib.sha256(b"%d" % number).digest())),
                    random_bytes=random.Random(number).randbytes,
                    rng=random.Random(number),
                )
            )
            client = RelayClient(endpoint, on_change=endpoint.set_advertised)
            await nursery.start(client.run)
            dht = await stack.enter_async_context(
                open_dht(endpoint, rng=random.Random(number), wall_clock=lambda: WALL)
            )
            await dht.bootstrap([Address(ip(1), 7447)])
            nodes.append((endpoint, dht))
            await trio.sleep(5)
        (hidden, _), (asker, dht) = nodes
        relayed = Address(ip(1), 7447, str(relay.node_id))
        assert hidden.advertised == (relayed,)
        found = {contact.node_id: contact for contact in await dht.find_node(hidden.node_id)}
        assert found[bytes(hidden.node_id)].addresses == (str(relayed),)
        assert asker.peers[hidden.node_id].path is Path.RELAYED


def test_a_node_behind_a_relay_is_found_and_reached() -> None:
    run_deterministically(1, find_a_node_behind_a_relay)


def test_an_address_that_cannot_be_read_spoils_no_other() -> None:
    good = f"10.0.0.1:7447/via/{NodeId(bytes(32))}"
    typo = good[:-1] + ("b" if good[-1] == "a" else "a")
    assert sane_address(typo, loopback=False)  # its form is right
    assert [str(address) for address in _parsed([typo, good, "10.0.0.2:1"])] == [good, "10.0.0.2:1"]
