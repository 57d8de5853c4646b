"""Members that flood the swarm's document: what was said by those above them stays, and a renewal is no tap."""

import random

import pytest

from crdt import statements
from gossip.swarm import renewal
from gossip.swarm.document import SwarmDocument
from gossip.swarm.service import SwarmService
from tests.trusted import ROOT, SWARM, invited_chain, member_chain
from transport.errors import RemoteCallFailed
from transport.identity import Identity
from transport.trust.certificate import MAX_TIME_MS
from transport.trust.chain import certify, certify_by_root
from transport.trust.revocation import revoke
from transport.trust.trust import Trust

ALICE, BOB, CAROL, MALLORY = (Identity.from_seed(bytes([number]) * 32) for number in range(21, 25))
NOW_MS = 1_700_000_000_000
DAY_MS = 24 * 3600 * 1000


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(statements, "MAX_PER_AUTHOR", 8)


def said(revoker, subject, chain=None, at_ms=NOW_MS, **more):
    return revoke(
        revoker, swarm_id=SWARM.id, subject=subject.node_id, at_ms=at_ms, chain=chain, **more
    )


def flood(document, revoker, chain):
    """As many leaves as there is room for, and more, dated as late as can be."""
    for number in range(30):
        late = MAX_TIME_MS - number
        document.say(said(revoker, revoker, chain, late, kept=[bytes([number]) * 16]))


def test_one_that_leaves_again_and_again_pushes_out_no_word_of_the_root(small):
    document = SwarmDocument(Trust(SWARM.id))
    word = said(ROOT, CAROL)
    document.say(word)
    flood(document, MALLORY, member_chain(MALLORY, "observer"))
    assert word.id in {getattr(each.statement, "id", None) for each in document.history()}


def test_one_that_was_invited_pushes_out_no_word_of_its_inviter(small):
    document = SwarmDocument(Trust(SWARM.id))
    founder = member_chain(ALICE, may_invite=True)
    word = said(ALICE, CAROL, invited_chain(ALICE, founder, CAROL))
    document.say(word)
    flood(document, MALLORY, invited_chain(ALICE, founder, MALLORY))
    assert word.id in {getattr(each.statement, "id", None) for each in document.history()}


def world(days):
    """Alice's service without its replication, and Bob as a member below her."""
    founder = certify_by_root(
        ROOT,
        subject=ALICE.public_key,
        role="trainer",
        serial=bytes(16),
        now_ms=NOW_MS,
        lifetime_ms=900 * DAY_MS,
        may_invite=True,
    )
    bobs = certify(
        ALICE,
        founder,
        subject=BOB.public_key,
        role="trainer",
        serial=bytes(16),
        now_ms=NOW_MS,
        lifetime_ms=90 * DAY_MS,
    )
    now_ms = NOW_MS + days * DAY_MS
    document = SwarmDocument(Trust(SWARM.id, founder.raw))
    document.say(bobs)

    class Around:
        identity = ALICE
        random_bytes = staticmethod(random.Random(1).randbytes)
        member = document.trust.check(bobs.raw, BOB.public_key, now_ms)

        def judge_again(self):
            return []

        def notify(self):
            pass

    around = Around()
    service = SwarmService(
        around,  # type: ignore[arg-type]
        document,
        around,  # type: ignore[arg-type]
        wall_ms=lambda: now_ms,
        lifetime_ms=90 * DAY_MS,
        find=None,
    )
    return service, around


async def test_asking_for_a_renewal_again_and_again_makes_one_statement():
    service, bob = world(days=61)
    answers = {await service._answer(bob, b"") for _ in range(50)}
    assert len(answers) == 1
    assert service.counters["renewals-given"] == 1
    assert len(service.document.statements) == 3
    accepted = renewal.accepted(
        Trust(SWARM.id, bob.member.chain.raw), answers.pop(), BOB.public_key, NOW_MS + 61 * DAY_MS
    )
    assert accepted is not None


async def test_a_certificate_in_the_middle_of_its_time_is_not_renewed():
    service, bob = world(days=10)
    with pytest.raises(RemoteCallFailed, match="last third"):
        await service._answer(bob, b"")
    assert len(service.document.statements) == 2


def test_a_member_by_others_word_is_not_treated_as_gone():
    """An inviter certifies Bob's key and revokes that: nobody's table forgets Bob; when Alice revokes him, all do."""
    founder, other = member_chain(ALICE, may_invite=True), member_chain(MALLORY, may_invite=True)
    document = SwarmDocument(Trust(SWARM.id))
    gone = []
    document.on_revoked = gone.append
    shown = invited_chain(ALICE, founder, BOB)
    document.say(shown)
    document.say(said(MALLORY, BOB, invited_chain(MALLORY, other, BOB)))
    assert gone == []
    document.say(said(ALICE, BOB, shown))
    assert gone == [BOB.node_id]
    assert document.members() == {each.node_id for each in (ALICE, BOB, MALLORY)}
    before = document.members()
    assert document.members() is before


@pytest.mark.parametrize("dated_ms", [0, 10**12])
def test_a_thief_s_certificates_push_no_honest_one_out_of_what_is_kept(dated_ms):
    founder = member_chain(ALICE, may_invite=True)
    bobs = invited_chain(ALICE, founder, BOB, may_invite=True)
    guest = invited_chain(BOB, bobs, CAROL)
    document = SwarmDocument(Trust(SWARM.id, founder.raw))
    document.say(guest)
    for number in range(70):
        made_up = Identity.from_seed(random.Random(number).randbytes(32))
        document.say(
            certify(
                BOB,
                bobs,
                subject=made_up.public_key,
                role="trainer",
                serial=bytes(16),
                now_ms=dated_ms + number,
            )
        )
    again = SwarmDocument(Trust(SWARM.id, founder.raw))
    again.load(document.statements.statements.values())  # as the log has them
    for each in (document, again):
        word = each.revocation(ALICE, BOB.node_id, at_ms=NOW_MS)
        assert guest.leaf.mark in word.kept
        each.say(word)
        assert each.trust.check(guest.raw, CAROL.public_key, NOW_MS)
