"""What a member's certificate lets it do, where it does it: protocols, relaying, and a stranger's share of the room."""

import random
from contextlib import AsyncExitStack

import pytest
import trio

from tests.transport.nodes import address, echo, identity, node
from tests.trusted import ROOT, SWARM, member_chain, trust_of
from transport.endpoint import open_endpoint
from transport.errors import PeerUnreachable, RemoteCallFailed, StreamReset
from transport.limits import Limits
from transport.peer import handler_of_calls
from transport.simulated.memory import MemoryNetwork
from transport.streams.frames import ResetCode
from transport.swarm import Swarm
from transport.trust.refusal import CertificateRefused, Refusal
from transport.trust.trust import Trust, self_issued

OPEN = Swarm.open_to_all(ROOT.public_key)


async def test_a_protocol_for_trainers_is_closed_to_others(autojump_clock: object) -> None:
    world = MemoryNetwork(1)
    async with node(world.host("10.0.0.1"), 1) as hub:
        hub.serve("vote", handler_of_calls(echo), permitted=lambda member: member.may_train)
        for number, role, allowed in (
            (2, "trainer", True),
            (3, "relay", False),
            (4, "observer", False),
        ):
            trust = Trust(SWARM.id, member_chain(identity(number), role).raw)
            async with node(world.host(f"10.0.0.{number}"), number, trust=trust) as member:
                peer = await member.connect([address(1)])
                assert peer.member.role == "trainer"
                if allowed:
                    assert await peer.call("vote", b"yes") == b"yes"
                    continue
                with pytest.raises(RemoteCallFailed, match="certificate does not let it"):
                    await peer.call("vote", b"yes")
                stream = await peer.open_stream("vote")
                with pytest.raises(StreamReset) as caught:
                    await stream.receive_message()
                assert caught.value.reset_code == ResetCode.NOT_PERMITTED
        assert hub.counters["refused-not-permitted"] == 4


def stranger_trust(number: int) -> Trust:
    shown = self_issued(identity(number), OPEN.id, serial=bytes(16), now_ms=0)
    return Trust(OPEN.id, shown.raw, strangers="observer")


def invited_trust(number: int) -> Trust:
    chain = member_chain(identity(number), is_open=True)
    return Trust(OPEN.id, chain.raw, strangers="observer")


async def test_an_open_swarm_takes_strangers_and_keeps_room_for_members(
    autojump_clock: object,
) -> None:
    world = MemoryNetwork(1)
    limits = Limits(max_peers=8)
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(
            node(world.host("10.0.0.1"), 1, swarm=OPEN, trust=invited_trust(1), limits=limits)
        )
        for number in range(2, 8):
            stranger = await stack.enter_async_context(
                node(
                    world.host(f"10.0.0.{number}"), number, swarm=OPEN, trust=stranger_trust(number)
                )
            )
            await stranger.connect([address(1)])
        await trio.sleep(1)
        assert len(hub.peers) == 2, "a quarter of the places"
        assert all(peer.member.is_stranger for peer in hub.peers.values())
        assert {peer.member.role for peer in hub.peers.values()} == {"observer"}
        for number in range(10, 18):
            member = await stack.enter_async_context(
                node(
                    world.host(f"10.0.0.{number}"), number, swarm=OPEN, trust=invited_trust(number)
                )
            )
            await member.connect([address(1)])
        await trio.sleep(1)
        assert len(hub.peers) == 8
        assert not any(peer.member.is_stranger for peer in hub.peers.values())
        assert hub.counters["peers-replaced"] == 2


async def test_a_closed_swarm_takes_no_strangers(autojump_clock: object) -> None:
    world = MemoryNetwork(1)
    shown = self_issued(identity(2), SWARM.id, serial=bytes(16), now_ms=0)
    async with (
        node(world.host("10.0.0.1"), 1) as hub,
        node(world.host("10.0.0.2"), 2, trust=Trust(SWARM.id, shown.raw)) as stranger,
    ):
        with pytest.raises(PeerUnreachable):
            await hub.connect([address(2)])
        assert hub.trust.refusals == {Refusal.SELF_SIGNED: 1}
        assert not stranger.peers


async def test_whoever_is_revoked_is_disconnected_when_asked(autojump_clock: object) -> None:
    from transport.trust.revocation import revoke

    world = MemoryNetwork(1)
    async with (
        node(world.host("10.0.0.1"), 1) as hub,
        node(world.host("10.0.0.2"), 2) as member,
        node(world.host("10.0.0.3"), 3) as other,
    ):
        for one in (member, other):
            await one.connect([address(1)])
        await trio.sleep(0.1)
        assert hub.judge_again() == []
        hub.trust.learn(revoke(ROOT, swarm_id=SWARM.id, subject=member.node_id, at_ms=0))
        link = hub.peers[member.node_id]
        assert hub.judge_again() == [member.node_id]
        assert link.closed.is_set(), "at once"
        assert list(hub.peers) == [other.node_id]
        assert hub.counters["expelled-revoked"] == 1
        with pytest.raises(CertificateRefused):
            hub.trust.check_again(link.member, 0)


async def test_an_endpoint_shows_the_certificate_it_has_now(autojump_clock: object) -> None:
    world = MemoryNetwork(1)
    trust = trust_of(identity(2))
    async with (
        node(world.host("10.0.0.1"), 1) as hub,
        open_endpoint(
            identity(2),
            SWARM,
            world.host("10.0.0.2"),
            [],
            trust=trust,
            wall_clock=lambda: 0.0,
            rng=random.Random(2),
        ) as member,
    ):
        await member.connect([address(1)])
        await trio.sleep(0.1)
        assert hub.peers[member.node_id].member.role == "trainer"
        trust.renew(member_chain(identity(2), "relay").raw)
        hub.peers[member.node_id].close("again")
        await trio.sleep(1)
        await member.connect([address(1)])
        await trio.sleep(0.1)
        assert hub.peers[member.node_id].member.role == "relay"
