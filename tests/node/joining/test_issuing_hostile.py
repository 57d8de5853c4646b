"""Members that want to keep newcomers out: words about an issuer that say nothing."""

import random

import pytest
import trio

from node.joining.answer import Grant, Refusal, read_answer
from node.joining.reasons import Reason
from node.joining.redeemer import Redeemer
from tests.node.joining.people import NOW_MS, ROOT, SWARM_ID, newcomer
from tests.node.joining.world import Member, World
from transport.trust.chain import certify
from transport.trust.revocation import revoke


@pytest.mark.parametrize("really", [False, True])
async def test_an_issuer_that_another_inviter_has_revoked_is_asked_all_the_same(
    really, tmp_path, autojump_clock, monkeypatch
):
    """Another member certifies the issuer's key, and revokes that. Only who cannot reach the issuer says that it is out."""
    monkeypatch.setattr(Member, "peers", {})
    world = World(1, members=3, folder=tmp_path)
    world.loss = 0.0
    issuer, asked, liar = world.members
    async with trio.open_nursery() as nursery:
        for member in world.members:
            await nursery.start(member.live)
        code, _ = await issuer.joining.invite(life_ms=3_600_000, uses=1)
        forced = certify(
            liar.identity,
            liar.chain,
            subject=issuer.identity.public_key,
            role="observer",
            serial=bytes(16),
            now_ms=NOW_MS,
        )
        word = revoke(
            ROOT if really else liar.identity,
            swarm_id=SWARM_ID,
            subject=issuer.identity.node_id,
            at_ms=NOW_MS,
            chain=forced,
        )
        asked.trust.learn(word)
        if really:
            issuer.kill()  # as far as the others are concerned
        asking = Redeemer(code, newcomer(1), random.Random(1).randbytes)
        answer = await world.ask(asked.address, asking.request)
        read = read_answer(answer, asking._request, code, asking._private)
        if really:
            assert read == Refusal(Reason.ISSUER_REVOKED, signed=False)
        else:
            assert isinstance(read, Grant)
        nursery.cancel_scope.cancel()
