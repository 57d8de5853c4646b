"""Members that would use our punches: to send us about, to have us flood somebody, or to keep us from others."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from tests.transport.nodes import identity, node
from transport.address import Address
from transport.endpoint import Endpoint
from transport.identity import NodeId
from transport.limits import Limits
from transport.network import Path
from transport.punch.messages import PROTOCOL, Connect, End, EndReason, decode, encode
from transport.punch.puncher import (
    FOLLOW_ALL_AGAIN_S,
    FOLLOW_ALL_BURST,
    FOLLOW_BURST,
    KNOWN_PER_PEER,
    Puncher,
)
from transport.punch.targets import Screen
from transport.reach.observed import Observations
from transport.simulated.memory import MemoryNetwork

VICTIM = Address("203.0.113.66", 443)


class Relayed:
    """A peer over a relay, as far as admission and the choice of addresses look at it."""

    path = Path.RELAYED
    listen: tuple[Address, ...] = ()

    def __init__(self, number: int) -> None:
        self.node_id: NodeId = identity(number).node_id


@asynccontextmanager
async def lone(limits: Limits | None = None) -> AsyncIterator[tuple[Endpoint, Puncher]]:
    network = MemoryNetwork(1).host("192.0.2.1")
    async with node(network, 1, listen=[Address("0.0.0.0", 7447)], limits=limits) as endpoint:
        yield endpoint, Puncher(endpoint, Observations(), interfaces=tuple)


async def test_who_is_connected_directly_starts_no_session(autojump_clock: object) -> None:
    world = MemoryNetwork(1)
    async with (
        node(world.host("192.0.2.1"), 1, listen=[Address("192.0.2.1", 7447)]) as victim,
        node(world.host("192.0.2.2"), 2, listen=[]) as member,
    ):
        puncher = Puncher(victim, Observations(), interfaces=tuple)
        peer = await member.connect(victim.addresses)
        dialed = []
        connect = victim.network.connect

        async def noted(address: Address, **options: object) -> object:
            dialed.append(address)
            return await connect(address, **options)  # type: ignore[arg-type]

        victim.network.connect = noted  # type: ignore[method-assign, assignment]
        for _ in range(5):
            stream = await peer.open_stream(PROTOCOL)
            await stream.send_message(encode(Connect(bytes(16), (str(VICTIM),))))
            assert decode(await stream.receive_message()) == End(EndReason.DIRECT)
            stream.close()
        assert puncher.following == 0
        assert not dialed
        assert not victim.counters["handler-failed"]


async def test_however_many_names_begin_sessions_they_share_one_budget(
    autojump_clock: object,
) -> None:
    async with lone() as (_, puncher):

        def begins(numbers: range) -> int:
            now = trio.current_time()
            answers = [puncher._refusal(Relayed(n), now) for n in numbers]  # type: ignore[arg-type]
            assert set(answers) <= {None, EndReason.BUSY}
            return answers.count(None)

        assert begins(range(2, 500)) == FOLLOW_ALL_BURST
        await trio.sleep(10 * FOLLOW_ALL_AGAIN_S)
        assert begins(range(500, 999)) == 10


async def test_other_names_do_not_make_a_name_new_again(autojump_clock: object) -> None:
    limits = Limits(max_peers=8)
    async with lone(limits) as (_, puncher):
        now = trio.current_time()
        assert [puncher._followed.take(Relayed(2).node_id, now) for _ in range(4)] == [
            *([True] * FOLLOW_BURST),
            False,
        ]
        for number in range(3, 3 + KNOWN_PER_PEER * limits.max_peers - 1):
            puncher._followed.of(Relayed(number).node_id, now)
        assert not puncher._followed.take(Relayed(2).node_id, now)
        assert len(puncher._followed) == KNOWN_PER_PEER * limits.max_peers
        for number in range(1000, 1100):
            puncher._followed.of(Relayed(number).node_id, now)
        assert len(puncher._followed) == KNOWN_PER_PEER * limits.max_peers


@pytest.mark.parametrize("liars", [1, 2])
async def test_who_says_that_we_are_where_somebody_else_is(
    liars: int, autojump_clock: object
) -> None:
    """One peer keeps nobody from being dialed, and sends others there only until an honest one has spoken."""
    async with lone() as (_, puncher):
        observations, now = puncher._observations, trio.current_time()
        for number in range(liars):
            liar = identity(100).node_id if liars == 1 else identity(100 + number).node_id
            # Two names of one machine are one machine.
            observations.note(liar, "203.0.113.1", VICTIM, now, from_listener=True)
        good, _ = puncher.choose(Relayed(2), Screen(), [VICTIM])  # type: ignore[arg-type]
        assert good == [VICTIM]
        assert puncher.tell()[:-1] == (
            VICTIM,
        )  # the only word there is; the last is where we listen
        ours = Address("198.51.100.9", 7447)
        for number in (1, 2):
            honest = identity(200 + number).node_id
            observations.note(honest, f"203.0.114.{number}", ours, now, from_listener=True)
        assert puncher.tell()[:-1] == (ours,)
        for number in range(liars):
            observations.forget(identity(100 + number).node_id)
        observations.forget(identity(201).node_id)
        assert puncher.tell()[:-1] == (ours,)


async def test_a_word_that_came_over_a_relay_is_not_heard(autojump_clock: object) -> None:
    world = MemoryNetwork(1)
    async with node(world.host("192.0.2.1"), 1, listen=[Address("192.0.2.1", 7447)]) as victim:
        heard: list[Address] = []
        victim.on_observed.append(lambda _peer, seen: heard.append(seen))
        listener = await world.host("192.0.2.9").listen(Address("192.0.2.9", 1))
        async with node(world.host("192.0.2.2"), 2, listen=[]) as member, trio.open_nursery() as n:

            async def carry() -> None:
                raw = await listener.accept()
                raw.path = Path.RELAYED
                await victim.take_inbound(raw)

            n.start_soon(carry)
            await member.connect(
                [listener.address]
            )  # it takes the way for a direct one, and says so
            await trio.sleep(1)
            assert victim.peers[member.node_id].path is Path.RELAYED
            assert victim.peers[member.node_id].primary.link.result.intro.observed
            assert heard == []
