"""`noded revoke` at the daemon: which chain it speaks about, and that it never says more than it did."""

import random
from types import SimpleNamespace

import attrs
import pytest

from gossip.swarm.document import SwarmDocument
from node.errors import NodedError, Refused
from node.joining.belonging import Belonging
from tests.trusted import SWARM, invited_chain, member_chain
from transport.identity import Identity
from transport.trust import trust as trust_module
from transport.trust.chain import certify
from transport.trust.refusal import CertificateRefused
from transport.trust.trust import Trust

ALICE, DAVE, MALLORY = (Identity.from_seed(bytes([number]) * 32) for number in range(31, 34))
FOUNDER = member_chain(ALICE, may_invite=True)
OTHER = member_chain(DAVE, may_invite=True)
SHOWN = invited_chain(ALICE, FOUNDER, MALLORY)


def belonging(who=ALICE, own=FOUNDER):
    document = SwarmDocument(Trust(SWARM.id, own.raw))
    document.say(SHOWN)
    statements = SimpleNamespace(
        all=lambda: [entry.statement for entry in document.history()],
        say=document.say,
        issued_by=document.issued_by,
    )
    endpoint = SimpleNamespace(identity=who, node_id=who.node_id, peers={})
    return document, Belonging(
        endpoint=endpoint,
        trust=document.trust,
        statements=statements,
        joining=None,
        stop=lambda: None,
        own_name="here",
    )


async def revoke(asked):
    return await asked._answer_revoke({"node": str(MALLORY.node_id), "reason": "stolen"})


async def test_another_inviters_later_certificate_keeps_nobody_from_revoking_its_own(
    autojump_clock,
):
    document, asked = belonging()
    later = certify(
        DAVE, OTHER, subject=MALLORY.public_key, role="trainer", serial=bytes(16), now_ms=1000
    )
    document.say(later)
    assert (await revoke(asked))[0] == 200
    with pytest.raises(CertificateRefused):
        document.trust.check(SHOWN.raw, MALLORY.public_key, 0)


async def test_who_stands_beside_is_refused(autojump_clock):
    _, asked = belonging(DAVE, OTHER)
    with pytest.raises(Refused, match="may not revoke"):
        await revoke(asked)


async def test_it_is_said_when_nothing_was_revoked(autojump_clock, monkeypatch):
    monkeypatch.setattr(trust_module, "MAX_REVOKED_SHARE", 0)
    _, asked = belonging()
    with pytest.raises(NodedError, match="nothing was revoked"):
        await revoke(asked)


async def test_a_revocation_keeps_the_newest_certificates_by_their_hashes(autojump_clock):
    inviting = invited_chain(ALICE, FOUNDER, MALLORY, may_invite=True)
    document, asked = belonging()
    document.say(inviting)
    guest = Identity.from_seed(random.Random(1).randbytes(32))
    below = invited_chain(MALLORY, inviting, guest)
    document.say(below)
    assert (await revoke(asked))[1]["kept"] == 1
    assert document.trust.check(below.raw, guest.public_key, 0)


async def test_leaving_needs_nobodys_room(autojump_clock, monkeypatch):
    monkeypatch.setattr(trust_module, "MAX_REVOKED_SHARE", 0)
    stopped = []
    _, asked = belonging(MALLORY, SHOWN)
    asked = attrs.evolve(asked, stop=lambda: stopped.append(True))
    asked.endpoint.peers[ALICE.node_id] = None
    assert (await asked._answer_leave(None))[1]["announced"] is False
    assert stopped == [True]
