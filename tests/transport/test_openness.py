"""Who may say that strangers can dial us: strangers, of several networks, and only lately."""

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.transport.nodes import address, nodes
from transport.address import Address
from transport.connect.dialed import MAX_HOSTS, RememberingNetwork
from transport.errors import ConnectFailed
from transport.reach.openness import EXPIRY_S, MAX_ADDRESSES, Openness
from transport.simulated.memory import MemoryNetwork

AT, OTHER = Address("11.1.1.1", 7447), Address("11.1.1.1", 7448)


def test_one_machine_proves_nothing_whatever_it_says():
    openness = Openness()
    for _ in range(100):
        openness.stranger(AT, "11.5.5.5", 0.0)
    assert not openness.is_open(AT, 1.0)
    openness = Openness()
    for last in range(200):
        openness.stranger(AT, f"2600:1:2:3::{last:x}", 0.0)  # one customer's network
    assert not openness.is_open(AT, 1.0)


def test_two_networks_prove_it_for_an_hour():
    openness = Openness()
    openness.stranger(AT, "11.5.5.5", 0.0)
    assert not openness.is_open(AT, 0.0)
    openness.stranger(AT, "11.6.6.6", 10.0)
    assert openness.is_open(AT, 10.0)
    assert not openness.is_open(OTHER, 10.0)
    assert not openness.is_open(AT, EXPIRY_S)
    openness.stranger(AT, "11.5.5.5", 20.0)
    assert openness.is_open(AT, EXPIRY_S)
    openness.clear()
    assert not openness.is_open(AT, 20.0)


@given(st.lists(st.tuples(st.integers(1, 200), st.integers(0, 255)), max_size=200))
def test_lies_about_other_addresses_push_out_the_oldest_only(lies):
    openness = Openness()
    for port, last in lies:
        openness.stranger(Address("11.9.9.9", port), f"11.7.7.{last}", 0.0)
        openness.stranger(AT, "11.5.5.5", 0.0)
        openness.stranger(AT, "11.6.6.6", 0.0)
        assert openness.is_open(AT, 0.0)
        assert len(openness._proofs) <= MAX_ADDRESSES


async def test_every_dial_is_remembered_also_a_failed_one(autojump_clock):
    async with nodes(MemoryNetwork(1), 2) as (a, _b):
        assert not a.has_dialed("10.0.0.2")
        await a.connect([address(2)])
        assert a.has_dialed("10.0.0.2")
        with pytest.raises(ConnectFailed):
            await a.network.connect(Address("10.0.0.2", 9))
        assert a.has_dialed("10.0.0.2")
        assert not a.has_dialed("10.0.0.1")


async def test_the_memory_is_bounded(autojump_clock):
    network = RememberingNetwork(MemoryNetwork(1).host("10.0.0.1"))
    async with trio.open_nursery() as nursery:
        for number in range(MAX_HOSTS + 10):
            with pytest.raises(ConnectFailed):
                await network.connect(Address(f"10.1.{number >> 8}.{number & 255}", 1))
        nursery.cancel_scope.cancel()
    assert len(network._hosts) == MAX_HOSTS
    assert not network.has_dialed("10.1.0.0")
