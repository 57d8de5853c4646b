"""Asking where our listening port is seen: of whom, how often, and what of the answers counts."""

import trio

from tests.transport.nodes import node
from transport.address import Address
from transport.reach.observed import Observations
from transport.reach.outside import AGAIN_S, Outside
from transport.simulated.host import MultiHomedHost
from transport.simulated.memory import MemoryNetwork

WILD = [Address("0.0.0.0", 7447)]


def hosts(observations: Observations) -> set[str]:
    return {address.host for address in observations.candidates(trio.current_time())}


async def test_who_meets_all_by_ipv6_asks_where_it_is_seen_by_ipv4(autojump_clock) -> None:
    world = MemoryNetwork(1)
    nat = world.nat("198.51.100.1", "symmetric")
    inside = MultiHomedHost(world.host("10.1.0.2", behind=nat), world.host("2001:db8::2"))
    outside = MultiHomedHost(world.host("192.0.2.9"), world.host("2001:db8::9"))
    both = [*WILD, Address("::", 7447)]
    at = [Address("192.0.2.9", 7447), Address("2001:db8::9", 7447)]
    async with (
        node(inside, 1, listen=both) as lone,
        node(outside, 2, listen=at) as public,
    ):
        lone.leave_from_listener = lambda _address: False
        observations = Observations()
        asking = Outside(lone, observations)
        assert not asking.should_look  # there is nobody to ask
        peer = await lone.connect([at[1]])
        observations.note(
            *(public.node_id, at[1].host, Address("2001:db8::2", 7447), trio.current_time()),
            from_listener=True,
        )
        assert asking.should_look
        await asking.look()
        assert hosts(observations) == {"2001:db8::2", "198.51.100.1"}
        assert not asking.should_look
        await trio.sleep(1)  # the other side counts after it has closed
        assert public.counters["probes-answered"] == 1
        assert world.open_connections == 1
        asking.start_over()
        assert not asking.should_look  # all who are there have spoken
        observations.clear()
        assert asking.should_look
        await outside.hosts[0].listen(Address("192.0.2.9", 80))
        public.set_advertised([Address("192.0.2.9", 80)])  # somebody who does not answer there
        await trio.sleep(1)
        await asking.look()
        assert hosts(observations) == {"2001:db8::2"}  # where we reached it
        assert not asking.should_look  # not again at once
        await trio.sleep(AGAIN_S)
        assert asking.should_look
        peer.close("")


async def test_a_word_of_somebody_else_at_that_place_does_not_count(autojump_clock) -> None:
    world = MemoryNetwork(1)
    victim = Address("192.0.2.77", 7447)
    async with (
        node(world.host("192.0.2.1"), 1, listen=WILD) as lone,
        node(world.host("192.0.2.9"), 2, listen=WILD) as liar,
        node(world.host(victim.host), 3, listen=[victim]) as other,
    ):
        observations = Observations()
        asking = Outside(lone, observations)
        liar.set_advertised([victim])
        await liar.connect([Address("192.0.2.1", 7447)])
        await trio.sleep(1)
        await asking.look()
        assert hosts(observations) == set()
        assert not other.counters["probes-answered"]


async def test_enough_is_enough(autojump_clock) -> None:
    world = MemoryNetwork(1)
    async with node(world.host("192.0.2.1"), 1, listen=WILD) as lone:
        lone.leave_from_listener = lambda _address: False
        observations = Observations()
        asking = Outside(lone, observations)
        async with trio.open_nursery() as nursery:
            for number in range(2, 9):

                async def serve(number: int = number) -> None:
                    host = f"192.0.2.{number}"
                    async with node(world.host(host), number, listen=[Address(host, 7447)]) as it:
                        await lone.connect(it.addresses)
                        await trio.sleep_forever()

                nursery.start_soon(serve)
            await trio.sleep(1)
            for _ in range(5):
                if asking.should_look:
                    await asking.look()
                await trio.sleep(AGAIN_S)
            now = trio.current_time()
            assert observations.observers(now) == observations.observers_needed + 1
            assert observations.believed(now) == (Address("192.0.2.1", 7447),)
            nursery.cancel_scope.cancel()
