"""A peer that asks to be dialed cannot send us against anybody else."""

from collections import Counter

import pytest
import trio

from tests.transport.nodes import address, nodes
from tests.transport.relayed import relayed_pair
from transport.address import Address
from transport.bulk.door import DIAL_BACK, NOT_REACHED, TOKEN_BYTES
from transport.errors import RemoteCallFailed
from transport.limits import Limits
from transport.simulated.memory import LinkSettings, MemoryNetwork

VICTIM = "10.9.9.9"


async def test_a_burst_of_requests_with_foreign_addresses_dials_nobody(autojump_clock):
    world = MemoryNetwork(1, default=LinkSettings(latency_s=0.01))
    dialed = []
    async with nodes(world, 2) as (a, b):
        peer = await a.connect([address(2)])
        await trio.sleep(1)
        a.set_advertised([Address(VICTIM, port) for port in range(1, 17)])
        await trio.sleep(1)
        assert any(at.host == VICTIM for at in b.peers[a.node_id].listen)
        inner = b.network.connect

        async def connect(target, *, source=None):
            dialed.append(target)
            return await inner(target, source=source)

        b.network.connect = connect
        reasons = []

        async def ask(number):
            try:
                await peer.call(DIAL_BACK, number.to_bytes(TOKEN_BYTES, "big"))
            except RemoteCallFailed as error:
                reasons.append(str(error))

        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(ask, number)
        assert len(reasons) == 200
        assert all(target.host == "10.0.0.1" for target in dialed)
        assert len(dialed) <= 4 * Limits().bulk_links_per_peer
        # Which of the two limits a request meets depends on how many arrive in one go.
        refused = sum("enough dials" in text or "too many streams" in text for text in reasons)
        assert refused >= 100, Counter(reasons)


async def test_who_is_relayed_has_no_address_to_be_dialed_at(autojump_clock):
    async with relayed_pair(MemoryNetwork(1)) as pair:
        peer = pair.a.peers[pair.b.node_id]
        with pytest.raises(RemoteCallFailed, match="over a relay"):
            await peer.call(DIAL_BACK, bytes(TOKEN_BYTES))


async def test_a_bulk_link_is_not_dialed_at_names_nor_at_our_own_services(autojump_clock):
    world = MemoryNetwork(1, default=LinkSettings(latency_s=0.01))
    dialed = []
    async with nodes(world, 2) as (a, b):
        await a.connect([address(2)])
        await trio.sleep(1)
        named = ["metadata.example", "127.0.0.1", "169.254.169.254", "10.0.0.9"]
        a.set_advertised([Address(host, 80) for host in named])
        await trio.sleep(1)
        inner = b.network.connect

        async def connect(target, *, source=None):
            dialed.append(str(target))
            return await inner(target, source=source)

        b.network.connect = connect
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.accept_bulk, b.node_id, b"x")
            await b.open_bulk(b.peers[a.node_id], b"x")
        assert set(dialed) == {"10.0.0.9:80", "10.0.0.1:80"}


async def test_a_peer_learns_nothing_about_its_ports_from_a_dial_that_fails(
    autojump_clock: object,
) -> None:
    """Closed, silent, and answered by something else: all alike."""
    world = MemoryNetwork(1, default=LinkSettings(latency_s=0.01))
    other = await world.host("10.0.0.1").listen(Address("10.0.0.1", 22))
    silent = await world.host("10.0.0.1").listen(Address("10.0.0.1", 23))

    async def greet() -> None:
        while True:
            raw = await other.accept()
            await raw.send_all(b"SSH-2.0-x\r\n")

    async with nodes(world, 2) as (a, b), trio.open_nursery() as nursery:
        nursery.start_soon(greet)
        peer = await a.connect([address(2)])
        await trio.sleep(1)
        told = set()
        for port in (1, 22, 23):
            theirs = b.peers[a.node_id]
            theirs.set_listen([Address("10.0.0.1", port)])
            with pytest.raises(RemoteCallFailed) as refused:
                await peer.call(DIAL_BACK, port.to_bytes(TOKEN_BYTES, "big"))
            told.add(str(refused.value))
        assert told == {NOT_REACHED}
        assert b.counters["dial-back-failed"] == 3
        nursery.cancel_scope.cancel()
    await other.aclose()
    await silent.aclose()
