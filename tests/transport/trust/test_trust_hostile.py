"""Members that want to stay, or to keep others in: what they can sign does not help them."""

import random

import pytest

from tests.trusted import ROOT, SWARM, invited_chain, member_chain
from transport.identity import Identity
from transport.trust import trust as trust_module
from transport.trust.certificate import sign_certificate
from transport.trust.chain import Chain, chain_of
from transport.trust.refusal import CertificateRefused, Refusal
from transport.trust.revocation import revoke
from transport.trust.statement import author_of, weight_of
from transport.trust.trust import Trust

ALICE, BOB, CAROL, DAVE, KATE, MALLORY = (
    Identity.from_seed(bytes([number]) * 32) for number in range(11, 17)
)
NOW = 1_700_000_000_000
FOUNDER = member_chain(ALICE, may_invite=True)
INVITED = invited_chain(ALICE, FOUNDER, BOB, may_invite=True)
OTHER = member_chain(DAVE, may_invite=True)


def refusal(asked: Trust, chain: Chain, identity: Identity) -> Refusal | None:
    try:
        asked.check(chain.raw, identity.public_key, NOW)
    except CertificateRefused as error:
        return error.refusal
    return None


def said(revoker, subject, chain=None, **more):
    return revoke(
        revoker, swarm_id=SWARM.id, subject=subject.node_id, at_ms=NOW, chain=chain, **more
    )


def test_who_holds_a_revoked_key_cannot_sign_another_certificate_with_a_kept_one_s_serial():
    guest = invited_chain(BOB, INVITED, CAROL)
    asked = Trust(SWARM.id)
    asked.learn(said(ROOT, BOB, kept=[guest.leaf.mark]))
    assert refusal(asked, guest, CAROL) is None
    twin = sign_certificate(
        BOB,
        swarm_id=SWARM.id,
        subject=MALLORY.public_key,
        role=guest.leaf.role,
        may_invite=False,
        serial=guest.leaf.serial,
        issued_at_ms=guest.leaf.issued_at_ms,
        expires_at_ms=guest.leaf.expires_at_ms,
    )
    shown = chain_of((*INVITED.certificates, twin))
    assert refusal(asked, shown, MALLORY) is Refusal.ISSUER_REVOKED


@pytest.mark.parametrize("accomplice", ["beside", "below"])
def test_an_accomplice_s_many_words_leave_room_for_the_one_that_counts(accomplice):
    """An inviter certifies Mallory's key, and revokes that as often as it likes, each time keeping something else."""
    shown = invited_chain(ALICE, FOUNDER, MALLORY)
    issuer, above = (DAVE, OTHER) if accomplice == "beside" else (BOB, INVITED)
    pretext = invited_chain(issuer, above, MALLORY)
    asked = Trust(SWARM.id)
    for number in range(20):
        asked.learn(said(issuer, MALLORY, pretext, kept=[bytes([number]) * 16]))
    assert len(asked.revoked[MALLORY.node_id]) == 1
    assert not asked.revoked[MALLORY.node_id][0].kept
    assert refusal(asked, shown, MALLORY) is None
    assert asked.learn(said(ALICE, MALLORY, shown))
    assert refusal(asked, shown, MALLORY) is Refusal.REVOKED


def test_nobody_uses_up_the_room_of_others_or_of_those_above(monkeypatch):
    monkeypatch.setattr(trust_module, "MAX_REVOKED_SHARE", 6)
    monkeypatch.setattr(trust_module, "MIN_REVOKED_SHARE", 2)
    monkeypatch.setattr(trust_module, "MAX_REVOKED", 8)
    asked = Trust(SWARM.id)
    for number in range(20):
        made_up = Identity.from_seed(random.Random(number).randbytes(32))
        for issuer, above in ((DAVE, OTHER), (BOB, INVITED)):
            asked.learn(said(issuer, made_up, invited_chain(issuer, above, made_up)))
    assert len(asked.revoked) < 10
    victim = invited_chain(ALICE, FOUNDER, MALLORY)
    assert asked.learn(said(ALICE, MALLORY, victim))
    assert refusal(asked, victim, MALLORY) is Refusal.REVOKED
    assert asked.learn(said(ROOT, DAVE))
    assert asked.learn(said(KATE, KATE, member_chain(KATE)))


def test_what_a_member_says_of_itself_is_not_the_root_s():
    own = said(DAVE, DAVE, OTHER)
    assert author_of(own) == DAVE.public_key
    guest = invited_chain(BOB, INVITED, CAROL)
    weights = [
        weight_of(each)
        for each in (
            guest,
            said(CAROL, CAROL, guest),
            said(BOB, CAROL, guest),
            said(ALICE, CAROL, guest),
            said(ROOT, CAROL),
        )
    ]
    assert weights == [0, 1, 2, 3, 4]
    assert weight_of(own) == 3
