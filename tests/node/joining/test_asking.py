"""Asking several members, of which some are down, slow, silent or lying; virtual time."""

import random

import pytest
import trio

from node.errors import PeerNotReachable
from node.joining.answer import hearsay, refuse, seal_grant
from node.joining.asking import PATIENCE_S, redeem
from node.joining.reasons import JoinRefused, Reason
from node.joining.request import parse_request
from tests.node.joining.people import (
    ALICE,
    EVE,
    NOW_MS,
    alice_with,
    decided,
    grant,
    invited,
    redeemer,
)
from transport.address import Address
from transport.errors import ConnectFailed

DOWN, SILENT, LIAR, SHY, GOOD = (Address(f"192.0.2.{n}", 7447) for n in range(1, 6))


class Members:
    """What each address does with a request."""

    def __init__(self) -> None:
        self.issuer = alice_with()
        self.code = invited(self.issuer)
        self.asked: list[tuple[float, Address]] = []
        self.start = trio.current_time()

    async def ask(self, address: Address, data: bytes) -> bytes:
        self.asked.append((trio.current_time() - self.start, address))
        request = parse_request(data)
        await trio.sleep(0.1)
        if address == DOWN:
            raise ConnectFailed("nobody listens")
        if address == SILENT:
            await trio.sleep_forever()
        if address == LIAR:
            return refuse(request, Reason.USED_UP, EVE)
        if address == SHY:
            return hearsay(Reason.ISSUER_UNREACHABLE)
        decision = decided(self.issuer, request)
        if hasattr(decision, "answer"):
            return decision.answer
        chain = grant(decision.use.chain)
        return seal_grant(request, decision.invite.key, chain, random.Random(3).randbytes)

    async def redeem(self, *addresses: Address):
        return await redeem(redeemer(self.code), addresses, self.ask, wall_ms=lambda: NOW_MS)


async def test_the_first_that_helps_is_enough(autojump_clock):
    members = Members()
    assert (await members.redeem(GOOD, SILENT)).chain
    assert members.asked == [(0.0, GOOD)]


async def test_those_that_withhold_or_alter_are_passed_by(autojump_clock):
    members = Members()
    joined = await members.redeem(DOWN, SILENT, LIAR, GOOD)
    assert joined.grant.swarm_name == "attic"
    assert [(round(at, 1), who) for at, who in members.asked] == [
        (0.0, DOWN),
        (0.1, SILENT),
        (1.1, LIAR),
        (1.2, GOOD),
    ]


async def test_nobody_that_helps_ends_with_every_reason_in_time(autojump_clock):
    members = Members()
    with pytest.raises(PeerNotReachable) as caught:
        await members.redeem(DOWN, SILENT, LIAR)
    text = str(caught.value)
    for word in ("192.0.2.1:7447: nobody listens", "no answer within 20 s", "not of the node"):
        assert word in text
    assert trio.current_time() - members.start < PATIENCE_S + 5


async def test_an_issuer_that_is_down_is_called_so(autojump_clock):
    with pytest.raises(JoinRefused) as caught:
        await Members().redeem(SHY, DOWN)
    assert caught.value.reason is Reason.ISSUER_UNREACHABLE


async def test_the_issuers_no_ends_it(autojump_clock):
    members = Members()
    members.issuer.commit(members.issuer.withdraw(members.code.id, NOW_MS))
    with pytest.raises(JoinRefused) as caught:
        await members.redeem(GOOD, DOWN)
    assert caught.value.reason is Reason.WITHDRAWN
    assert len(members.asked) == 1
    assert ALICE.node_id[:16] == members.code.issuer


async def test_a_code_without_addresses_says_so(autojump_clock):
    with pytest.raises(PeerNotReachable, match="names no address"):
        await Members().redeem()
