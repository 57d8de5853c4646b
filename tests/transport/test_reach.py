"""Whole nodes behind simulated NATs: who finds a way to whom, and what each learns about itself."""

from contextlib import AsyncExitStack
from typing import ClassVar

import pytest
import trio

from tests.transport.reach_world import PORT, PUBLIC, World, open_world
from transport.address import Address
from transport.nat.mapping_core import MapMethod, Mapping
from transport.network import Path
from transport.reach.diagnosis import Standing
from transport.relay.settings import RelaySettings


async def meet(world: World, kind_a: str, kind_b: str) -> tuple[Path, Path]:
    """Two nodes behind NATs: the path they meet on, and the one they end up with."""
    a = await world.join("a", "10.1.0.2", behind=world.network.nat("11.2.0.1", kind_a))
    b = await world.join("b", "10.1.0.2", behind=world.network.nat("11.3.0.1", kind_b))
    await world.until(lambda: any(address.relay for address in b.advertised))
    peer = await a.connect(b.advertised, expected=b.node_id)
    first = peer.path
    with trio.move_on_after(60):
        while a.peers[b.node_id].path is Path.RELAYED:
            await trio.sleep(0.1)
    await trio.sleep(1)
    assert a.peers[b.node_id].path == b.peers[a.node_id].path
    assert await a.peers[b.node_id].ping() > 0
    return first, a.peers[b.node_id].path


async def test_public_nodes_learn_that_they_are_public_and_become_relays(autojump_clock):
    async with open_world() as world:
        for name, ip in PUBLIC.items():
            reach = world.reaches[name]
            await world.until(lambda reach=reach: reach.diagnosis.standing is Standing.DIRECT)
            await world.until(lambda reach=reach: reach.service.serving)
            assert world.endpoints[name].advertised == (Address(ip, PORT),)
            assert reach.facts().mapping == "none"
            assert not reach.relays.relays


@pytest.mark.parametrize(
    ("kind_a", "kind_b", "ends"),
    [
        ("port-restricted", "port-restricted", Path.PUNCHED),
        ("port-restricted-rst", "port-restricted", Path.PUNCHED),
        ("address-restricted", "symmetric", Path.PUNCHED),
        ("full-cone", "symmetric", Path.REVERSED),
        ("symmetric", "symmetric", Path.RELAYED),
        ("port-restricted", "symmetric", Path.RELAYED),
    ],
)
async def test_two_nodes_behind_nats_meet_as_well_as_their_nats_allow(
    autojump_clock, kind_a, kind_b, ends
):
    async with open_world() as world:
        first, last = await meet(world, kind_a, kind_b)
        assert first is Path.RELAYED
        assert last is ends
        succeeded, tried = world.reaches["b"].facts().punches
        assert tried >= 1
        assert (succeeded == 1) == (ends is not Path.RELAYED)


@pytest.mark.parametrize(
    ("kind", "standing"),
    [("port-restricted", Standing.PUNCHABLE), ("symmetric", Standing.RELAYED)],
)
async def test_a_node_knows_what_its_nat_does(autojump_clock, kind, standing):
    async with open_world() as world:
        nat = world.network.nat("11.2.0.1", kind)
        await world.join("a", "10.1.0.2", behind=nat)
        reach = world.reaches["a"]
        await world.until(lambda: reach.diagnosis.standing is standing)
        await world.until(lambda: len(reach.relays.relays) == 2)
        await world.until(lambda: not reach.diagnosis.advice or standing is Standing.RELAYED)
        facts = reach.facts()
        assert facts.mapping == ("independent" if standing is Standing.PUNCHABLE else "dependent")
        assert len(facts.relays) == 2


async def test_a_dead_relay_is_replaced(autojump_clock):
    async with open_world() as world:
        nat = world.network.nat("11.2.0.1", "symmetric")
        a = await world.join("a", "10.1.0.2", behind=nat)
        reach = world.reaches["a"]
        await world.until(lambda: len(reach.relays.relays) == 2)
        dead = reach.relays.relays[0].node_id
        host = next(p.address.host for p in a.peers.values() if p.node_id == dead)
        world.network.kill_host(host)
        await world.until(
            lambda: (
                len(reach.relays.relays) == 2
                and all(relay.node_id != dead for relay in reach.relays.relays)
            )
        )
        assert all(address.relay != str(dead) for address in a.advertised)


async def test_peers_are_asked_to_come_over_a_relay_that_holds_a_place(autojump_clock):
    async with open_world() as world:
        nat = world.network.nat("11.2.0.1", "symmetric")
        a = await world.join("a", "10.1.0.2", behind=nat)
        reach = world.reaches["a"]
        await world.until(lambda: len(reach.relays.relays) == 2)
        await trio.sleep(5)
        entries = [reach.relays.candidates.get(relay.node_id) for relay in reach.relays.relays]
        assert all(entry.circuits >= 1 for entry in entries)  # nobody else has come
        assert a.counters["relay-trial-failed"] == 0
        assert sum(e.counters["dial-backs-reached"] for e in world.endpoints.values()) >= 2


async def test_a_swarm_on_one_network_wants_no_relays(autojump_clock):
    async with AsyncExitStack() as stack:
        world = World()
        await stack.enter_async_context(world._stack)
        one = await world.node("one", "192.168.1.1")
        two = await world.node("two", "192.168.1.2")
        await one.connect([Address("192.168.1.2", PORT)])
        await world.until(lambda: world.reaches["one"].diagnosis.standing is Standing.LOCAL)
        await trio.sleep(30)
        assert not world.reaches["one"].relays.relays
        assert one.advertised == (Address("192.168.1.1", PORT),)
        assert two.peers[one.node_id].listen == one.advertised


async def test_relaying_can_be_declined(autojump_clock):
    async with AsyncExitStack() as stack:
        world = World()
        await stack.enter_async_context(world._stack)
        one = await world.node("one", "11.1.1.1", relay=RelaySettings(serve="off"))
        await world.node("two", "11.1.2.1", relay=RelaySettings(serve="on"))
        await one.connect([Address("11.1.2.1", PORT)])
        await world.until(lambda: world.reaches["one"].diagnosis.standing is Standing.DIRECT)
        await trio.sleep(5)
        assert not world.reaches["one"].service.serving
        assert world.reaches["two"].service.serving


async def test_a_firewalled_machine_whom_nobody_can_tell_takes_relays_all_the_same(autojump_clock):
    """No peer sees it at its public address, so none may dial it there."""
    async with open_world() as world:
        a = await world.node("a", "10.1.0.2", behind=world.network.nat("11.2.0.1", "symmetric"))
        world.hosts["a"] += ["11.9.9.9"]
        world.reaches["a"]._look_at_interfaces()
        for host in PUBLIC.values():
            await a.connect([Address(host, PORT)])
        await world.until(lambda: len(world.reaches["a"].relays.relays) == 2)
        await world.until(lambda: any(address.relay for address in a.advertised))


async def test_relays_do_not_wait_for_private_addresses_of_other_sites(autojump_clock):
    async with open_world() as world:
        nat = world.network.nat("11.2.0.1", "symmetric")
        a = await world.join("a", "10.1.0.2", behind=nat)
        await world.until(lambda: any(address.relay for address in a.advertised))
        relay = a.advertised[-1]
        assert relay.relay
        caller = next(e for n, e in world.endpoints.items() if PUBLIC.get(n) != relay.host != "")
        if a.node_id in caller.peers:
            caller.peers[a.node_id].close("to dial it anew")
            await world.until(lambda: a.node_id not in caller.peers)
        began = trio.current_time()
        await caller.connect(a.advertised, expected=a.node_id)
        assert trio.current_time() - began < 1.0


class LyingRouter:
    """A port mapper that was told an address of somebody else."""

    listen_port = PORT
    failures: ClassVar[dict[str, str]] = {}
    settled = True

    def __init__(self, external: Address) -> None:
        self.mapping = Mapping(external, MapMethod.UPNP, 1e9, "192.168.1.1")


async def test_an_address_that_only_a_router_names_is_not_told_against_all_peers(autojump_clock):
    async with open_world() as world:
        nat = world.network.nat("11.2.0.1", "port-restricted")
        a = await world.join("a", "10.1.0.2", behind=nat)
        reach = world.reaches["a"]
        reach.mappers.append(LyingRouter(Address("11.66.6.6", 443)))
        await world.until(lambda: reach.diagnosis.standing is Standing.PUNCHABLE)
        await trio.sleep(30)
        assert all(address.host != "11.66.6.6" for address in a.advertised)
        reach.mappers[0] = LyingRouter(Address("11.2.0.1", 443))  # where peers see us: plausible
        reach._news.set()
        await world.until(lambda: any(address.port == 443 for address in a.advertised))


async def test_the_word_of_one_network_is_not_told(autojump_clock):
    """The only peer may name any address and dial it back through the hole that we made for it."""
    async with AsyncExitStack() as stack:
        world = World()
        await stack.enter_async_context(world._stack)
        await world.node("boot", "11.1.1.1")
        nat = world.network.nat("11.2.0.1", "full-cone")
        a = await world.node("a", "10.1.0.2", behind=nat)
        await a.connect([Address("11.1.1.1", PORT)])
        reach = world.reaches["a"]
        seen = Address("11.2.0.1", PORT)
        await world.until(
            lambda: reach.evidence.reachability.reached(seen, trio.current_time()) is True
        )
        await trio.sleep(5)
        assert seen not in a.advertised
