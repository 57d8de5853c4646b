"""Who is accepted, who is refused and why: chains against revocations, time and strangers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trusted import ROOT, SWARM, invited_chain, member_chain
from transport.errors import UsageError
from transport.identity import Identity
from transport.trust.chain import certify_by_root, root_swarm_id
from transport.trust.refusal import CertificateRefused, Refusal
from transport.trust.revocation import (
    MAX_REASON_BYTES,
    MAX_REVOCATION_BYTES,
    parse_revocation,
    revoke,
    verify_revocation,
)
from transport.trust.statement import (
    MAX_STATEMENT_BYTES,
    author_of,
    encode_statement,
    parse_statement,
    said_at_ms,
)
from transport.trust.trust import MAX_KEYS, Trust, self_issued

ALICE, BOB, CAROL, DAVE, MALLORY = (
    Identity.from_seed(bytes([number]) * 32) for number in range(1, 6)
)
NOW = 1_700_000_000_000
FOUNDER = member_chain(ALICE, may_invite=True)
INVITED = invited_chain(ALICE, FOUNDER, BOB, may_invite=True)
GUEST = invited_chain(BOB, INVITED, CAROL, "observer")
OTHER = member_chain(DAVE, may_invite=True)


def trust():
    return Trust(SWARM.id, OTHER.raw)


def said(revoker, subject, chain=None, **changes):
    return revoke(
        revoker,
        swarm_id=SWARM.id,
        subject=subject.node_id,
        at_ms=NOW,
        chain=chain,
        **({"reason": "lost laptop"} | changes),
    )


def refusal(asked, chain, identity):
    try:
        asked.check(chain.raw, identity.public_key, NOW)
    except CertificateRefused as error:
        return error.refusal
    return None


def test_members_and_their_rights():
    asked = trust()
    member = asked.check(GUEST.raw, CAROL.public_key, NOW)
    assert (member.node_id, member.role, member.chain) == (CAROL.node_id, "observer", GUEST)
    assert (member.may_train, member.may_relay, member.is_stranger) == (False, False, False)
    relay = asked.check(member_chain(BOB, "relay").raw, BOB.public_key, NOW)
    assert (relay.may_train, relay.may_relay) == (False, True)
    trainer = asked.check(FOUNDER.raw, ALICE.public_key, NOW)
    assert (trainer.may_train, trainer.may_relay, trainer.may_invite) == (True, True, True)
    assert asked.own == OTHER
    assert not asked.refusals


def test_a_chain_that_was_good_costs_no_signature_again(monkeypatch):
    asked = trust()
    asked.check(GUEST.raw, CAROL.public_key, NOW)
    monkeypatch.setattr(
        "transport.trust.certificate.verify", lambda *_: pytest.fail("a signature was verified")
    )
    asked.check(GUEST.raw, CAROL.public_key, NOW)
    asked.check(INVITED.raw, BOB.public_key, NOW)


def test_refusals_are_counted_by_reason_and_by_key():
    asked = trust()
    for _ in range(3):
        assert refusal(asked, FOUNDER, MALLORY) is Refusal.WRONG_KEY
    assert refusal(asked, member_chain(BOB, root=MALLORY), BOB) is Refusal.OTHER_SWARM
    assert asked.refusals == {Refusal.WRONG_KEY: 3, Refusal.OTHER_SWARM: 1}
    assert list(asked.refused_keys) == [MALLORY.node_id, BOB.node_id]
    known = asked.refused_keys[MALLORY.node_id]
    assert (known.refusal, known.count, known.last_ms) == (Refusal.WRONG_KEY, 3, NOW)
    for number in range(MAX_KEYS + 5):
        refusal(asked, FOUNDER, Identity.from_seed(number.to_bytes(32, "big")))
    assert len(asked.refused_keys) == MAX_KEYS


def test_the_root_revokes_anybody():
    asked = trust()
    revocation = said(ROOT, CAROL)
    assert asked.learn(revocation)
    assert not asked.learn(parse_revocation(revocation.raw))
    with pytest.raises(CertificateRefused, match="lost laptop"):
        asked.check(GUEST.raw, CAROL.public_key, NOW)
    assert refusal(asked, INVITED, BOB) is None
    # Whatever certificate it shows, now or later.
    assert refusal(asked, member_chain(CAROL), CAROL) is Refusal.REVOKED
    assert asked.revoked == {CAROL.node_id: (revocation,)}


@pytest.mark.parametrize("revoker", [ALICE, BOB])
def test_who_stands_above_revokes(revoker):
    asked = trust()
    assert asked.learn(said(revoker, CAROL, GUEST))
    assert refusal(asked, GUEST, CAROL) is Refusal.REVOKED
    # Somebody else may answer for the node: that is theirs to say.
    assert refusal(asked, invited_chain(DAVE, OTHER, CAROL), CAROL) is None


def test_a_node_leaves_by_itself():
    asked = trust()
    assert asked.learn(said(CAROL, CAROL, GUEST, reason=""))
    with pytest.raises(CertificateRefused, match="has left"):
        asked.check(invited_chain(DAVE, OTHER, CAROL).raw, CAROL.public_key, NOW)


def test_nobody_else_revokes():
    for revoker, subject, chain in (
        (CAROL, BOB, INVITED),  # below
        (DAVE, CAROL, GUEST),  # beside
        (MALLORY, CAROL, GUEST),  # a stranger
        (BOB, CAROL, None),  # without the proof
        (BOB, CAROL, INVITED),  # with another's
        (MALLORY, MALLORY, None),  # nobody leaves who has never been in
    ):
        with pytest.raises(UsageError, match="may not revoke"):
            said(revoker, subject, chain)


def test_an_inviter_cannot_revoke_a_member_by_inviting_it():
    """Dave makes a certificate for Bob's key, and revokes that: Bob shows another chain, in which Dave has no part."""
    asked = trust()
    forced = invited_chain(DAVE, OTHER, BOB)
    assert asked.learn(said(DAVE, BOB, forced))
    assert refusal(asked, INVITED, BOB) is None
    assert refusal(asked, forced, BOB) is Refusal.REVOKED


def test_a_revoked_issuers_certificates_are_void_unless_kept():
    asked = trust()
    assert asked.learn(said(ROOT, BOB, kept=[GUEST.leaf.mark]))
    assert refusal(asked, INVITED, BOB) is Refusal.REVOKED
    assert refusal(asked, GUEST, CAROL) is None
    # Signed after it was revoked, with a date from before.
    late = invited_chain(BOB, INVITED, MALLORY)
    assert refusal(asked, late, MALLORY) is Refusal.ISSUER_REVOKED
    # What another revocation does not keep is not kept.
    assert asked.learn(said(ALICE, BOB, INVITED, kept=[late.leaf.mark]))
    assert refusal(asked, late, MALLORY) is Refusal.ISSUER_REVOKED
    assert refusal(asked, GUEST, CAROL) is Refusal.ISSUER_REVOKED


def test_keeping_all_and_then_less():
    asked = trust()
    assert asked.learn(said(ROOT, BOB, keeps_all=True))
    assert refusal(asked, GUEST, CAROL) is None
    assert asked.learn(said(ROOT, BOB))
    assert refusal(asked, GUEST, CAROL) is Refusal.ISSUER_REVOKED
    assert not asked.learn(said(ROOT, BOB, keeps_all=True))
    assert not asked.learn(said(ROOT, BOB, kept=[GUEST.leaf.mark]))
    assert len(asked.revoked[BOB.node_id]) == 1


def test_whoever_is_connected_is_judged_again():
    asked = trust()
    member = asked.check(GUEST.raw, CAROL.public_key, NOW)
    asked.check_again(member, NOW)
    asked.learn(said(ROOT, BOB))
    with pytest.raises(CertificateRefused) as caught:
        asked.check_again(member, NOW)
    assert caught.value.refusal is Refusal.ISSUER_REVOKED
    fleeting = certify_by_root(
        ROOT, subject=MALLORY.public_key, role="relay", serial=bytes(16), now_ms=NOW, lifetime_ms=1
    )
    member = asked.check(fleeting.raw, MALLORY.public_key, NOW)
    with pytest.raises(CertificateRefused) as caught:
        asked.check_again(member, NOW + 60_002)
    assert caught.value.refusal is Refusal.EXPIRED
    assert not asked.refusals


def test_strangers_in_an_open_swarm_only():
    swarm_id = root_swarm_id(ROOT.public_key, is_open=True)
    shown = self_issued(MALLORY, swarm_id, serial=bytes(16), now_ms=NOW)
    closed = Trust(swarm_id)
    assert refusal(closed, shown, MALLORY) is Refusal.SELF_SIGNED
    asked = Trust(swarm_id, strangers="observer")
    member = asked.check(shown.raw, MALLORY.public_key, NOW)
    assert (member.role, member.may_invite, member.is_stranger) == ("observer", False, True)
    asked.check_again(member, NOW)
    wider = Trust(swarm_id, shown.raw, strangers="trainer")
    assert wider.check(shown.raw, MALLORY.public_key, NOW).role == "trainer"
    assert wider.own is None
    assert (
        refusal(wider, self_issued(BOB, SWARM.id, serial=bytes(16), now_ms=NOW), BOB)
        is Refusal.OTHER_SWARM
    )
    later = self_issued(BOB, swarm_id, serial=bytes(16), now_ms=NOW + 100_000)
    assert refusal(wider, later, BOB) is Refusal.NOT_YET_VALID
    wider.learn(revoke(ROOT, swarm_id=swarm_id, subject=MALLORY.node_id, at_ms=NOW))
    assert refusal(wider, shown, MALLORY) is Refusal.REVOKED
    forged = type(shown)(shown.certificates, shown.raw[:-1] + bytes([shown.raw[-1] ^ 1]))
    assert refusal(asked, forged, MALLORY) is Refusal.FORGED


def test_another_chain_is_shown_after_a_renewal():
    asked = trust()
    asked.renew(FOUNDER.raw)
    assert (asked.chain, asked.own) == (FOUNDER.raw, FOUNDER)
    asked.renew(b"")
    assert asked.own is None


@pytest.mark.parametrize("statement", [GUEST, said(ROOT, CAROL), said(BOB, CAROL, GUEST)])
def test_statements_travel(statement):
    data = encode_statement(statement)
    again = parse_statement(data)
    assert again == statement
    assert hash(again) == hash(statement)
    assert again.id == statement.id
    assert len(data) <= MAX_STATEMENT_BYTES
    trust().verify(again)
    with pytest.raises(CertificateRefused):
        Trust(root_swarm_id(MALLORY.public_key)).verify(again)
    for size in range(len(data)):
        with pytest.raises(CertificateRefused):
            parse_statement(data[:size])
    for place in range(len(data)):
        wrong = bytearray(data)
        wrong[place] ^= 1 + place % 255
        with pytest.raises(CertificateRefused):
            trust().verify(parse_statement(bytes(wrong)))


def test_who_answers_for_a_statement():
    assert author_of(GUEST) == author_of(said(BOB, CAROL, GUEST)) == ALICE.public_key
    assert author_of(FOUNDER) == author_of(said(ROOT, CAROL)) == ROOT.public_key
    assert said_at_ms(GUEST) == 0
    assert said_at_ms(said(ROOT, CAROL)) == NOW


def test_a_revocation_is_bounded_and_readable():
    long = said(ROOT, CAROL, reason="\n\x1bü" * 200, kept=[bytes([n]) * 16 for n in range(64)])
    assert len(long.reason.encode()) <= MAX_REASON_BYTES
    assert long.reason.isprintable()
    assert len(long.raw) <= MAX_REVOCATION_BYTES
    assert parse_revocation(long.raw).kept == long.kept
    for kept in ([b"short"], [bytes([n]) * 16 for n in range(65)]):
        with pytest.raises(UsageError, match="by name"):
            said(ROOT, CAROL, kept=kept)
    assert long.revoker_id == ROOT.node_id
    assert not long.by_subject


@settings(max_examples=200)
@given(st.binary(max_size=400))
def test_any_bytes_give_a_statement_or_one_error(data):
    try:
        statement = parse_statement(data)
    except CertificateRefused:
        return
    assert encode_statement(statement) == data


people = {"alice": ALICE, "bob": BOB, "carol": CAROL, "dave": DAVE}
chains = {"alice": FOUNDER, "bob": INVITED, "carol": GUEST, "dave": OTHER}
SAID = [
    said(ROOT, ALICE, kept=[INVITED.leaf.mark]),
    said(ROOT, ALICE, keeps_all=True),
    said(ROOT, BOB),
    said(ALICE, BOB, INVITED, kept=[GUEST.leaf.mark]),
    said(ALICE, CAROL, GUEST),
    said(CAROL, CAROL, GUEST),
    said(DAVE, BOB, invited_chain(DAVE, OTHER, BOB)),
]


@settings(max_examples=80)
@given(st.permutations(SAID), st.integers(0, len(SAID)), st.sampled_from(sorted(people)))
def test_more_revocations_never_let_anybody_in_and_their_order_does_not_matter(order, some, name):
    fewer, all_, sorted_ = trust(), trust(), trust()
    for number, revocation in enumerate(order):
        all_.learn(revocation)
        if number < some:
            fewer.learn(revocation)
    for revocation in SAID:
        sorted_.learn(revocation)
    results = [refusal(each, chains[name], people[name]) for each in (fewer, all_, sorted_)]
    assert (results[1] is None) == (results[2] is None)
    if results[0] is not None:
        assert results[1] is not None


def test_a_forged_revocation_is_not_taken():
    wrong = bytearray(said(ROOT, CAROL).raw)
    wrong[-1] ^= 1
    with pytest.raises(CertificateRefused) as caught:
        trust().learn(parse_revocation(bytes(wrong)))
    assert caught.value.refusal is Refusal.FORGED
    with pytest.raises(CertificateRefused):
        verify_revocation(said(ROOT, CAROL), root_swarm_id(MALLORY.public_key))
