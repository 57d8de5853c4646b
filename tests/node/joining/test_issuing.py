"""Request, decision, answer: what passes, what is refused and why, and what recordings are worth."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import ExitCode, NodedError
from node.joining.answer import (
    MalformedAnswer,
    Refusal,
    hearsay,
    read_answer,
    refuse,
    seal_grant,
)
from node.joining.code import InviteCode
from node.joining.forwarder import MAX_UNDER_WAY, PER_MINUTE, Forwarder
from node.joining.issuer import Again, Issuer, New, No, TooManyInvites
from node.joining.ledger import MAX_INVITES
from node.joining.reasons import JoinRefused, Reason
from node.joining.redeemer import Joined
from node.joining.request import MalformedRequest, make_request, parse_request
from node.joining.source_budget import MAX_SOURCES, SourceBudget
from tests.node.joining.people import (
    ADDRESS,
    ALICE,
    ALICE_CHAIN,
    BOB,
    CAROL,
    EVE,
    HOUR_MS,
    NOW_MS,
    ROOT,
    SWARM_ID,
    SWARM_SECRET,
    alice_with,
    certified,
    decided,
    grant,
    invited,
    newcomer,
    redeemer,
)
from transport.trust.chain import certify, certify_by_root, parse_chain


def answered(issuer: Issuer, data: bytes, **more) -> bytes:
    """What leaves the issuer."""
    request = parse_request(data)
    decision = decided(issuer, request, **more)
    if isinstance(decision, No):
        return decision.answer
    return seal_grant(
        request, decision.invite.key, grant(decision.use.chain), random.Random(7).randbytes
    )


def refused(issuer: Issuer, asking, **more) -> Reason:
    verdict = asking.receive("a", answered(issuer, asking.request, **more), NOW_MS)
    assert isinstance(verdict, JoinRefused)
    assert verdict.hint
    return verdict.reason


# ---- the good way ---------------------------------------------------------------------------------


def test_a_code_becomes_a_certificate_and_the_secret():
    alice = alice_with()
    code = invited(alice)
    bob = redeemer(code)
    verdict = bob.receive("a", answered(alice, bob.request), NOW_MS)
    assert isinstance(verdict, Joined)
    assert verdict.chain.node_id == BOB.node_id
    assert verdict.chain.leaf.invite == code.id
    assert verdict.chain.leaf.inviter == ALICE.node_id
    assert verdict.grant.swarm_secret == SWARM_SECRET
    assert verdict.grant.bootstrap == (str(ADDRESS),)
    assert SWARM_SECRET not in answered(alice, bob.request)


def test_role_and_right_to_invite_are_the_invites():
    alice = alice_with()
    bob = redeemer(invited(alice, role="observer", may_invite=True))
    verdict = bob.receive("a", answered(alice, bob.request), NOW_MS)
    assert isinstance(verdict, Joined)
    assert (verdict.chain.leaf.role, verdict.chain.leaf.may_invite) == ("observer", True)


def test_asking_again_gives_the_same_certificate_also_after_the_end():
    alice = alice_with()
    code = invited(alice)
    first, again = redeemer(code, seed=1), redeemer(code, seed=2)
    one = first.receive("a", answered(alice, first.request), NOW_MS)
    late = {"now_ms": NOW_MS + 30 * HOUR_MS}
    two = again.receive("a", answered(alice, again.request, **late), NOW_MS)
    assert isinstance(one, Joined)
    assert isinstance(two, Joined)
    assert one.chain == two.chain
    assert alice.counters == {"granted": 1, "repeated": 1}


def test_uses_are_counted_by_subject():
    alice = alice_with()
    code = invited(alice, uses=3)
    for who in (BOB, CAROL, BOB, EVE, CAROL):
        asking = redeemer(code, who)
        assert isinstance(asking.receive("a", answered(alice, asking.request), NOW_MS), Joined)
    assert refused(alice, redeemer(code, newcomer(99))) is Reason.USED_UP


# ---- refusals -------------------------------------------------------------------------------------


def test_every_refusal_has_its_reason():
    alice = alice_with()
    code = invited(alice)
    assert refused(alice_with(), redeemer(code)) is Reason.UNKNOWN
    late = {"now_ms": NOW_MS + HOUR_MS + 1000}
    assert refused(alice, redeemer(code), **late) is Reason.EXPIRED
    decided(alice, parse_request(redeemer(code).request))
    assert refused(alice, redeemer(code, CAROL)) is Reason.USED_UP
    alice.commit(alice.withdraw(code.id, NOW_MS))
    assert refused(alice, redeemer(code, CAROL)) is Reason.WITHDRAWN
    fallen = alice_with(standing=lambda _chain: Reason.ISSUER_REVOKED)
    assert refused(fallen, redeemer(invited(fallen))) is Reason.ISSUER_REVOKED
    above = redeemer(invited(alice_with(), seed=3), ROOT)
    issuer = alice_with()
    invited(issuer, seed=3)
    assert refused(issuer, above) is Reason.CANNOT_CERTIFY


def test_a_revoked_node_gets_nothing_again():
    out = set()
    alice = alice_with(
        standing=lambda raw: Reason.REVOKED if parse_chain(raw).node_id in out else None
    )
    code = invited(alice, uses=2)
    decided(alice, parse_request(redeemer(code, EVE).request))
    out.add(EVE.node_id)
    assert refused(alice, redeemer(code, EVE)) is Reason.REVOKED
    decided(alice, parse_request(redeemer(code, BOB).request))
    assert alice.counters["granted"] == 2


def test_every_reason_says_what_to_do_and_has_a_code():
    for reason in Reason:
        error = JoinRefused(reason)
        assert error.hint
        assert error.exit_code not in {ExitCode.OK, ExitCode.USAGE}
    assert JoinRefused(Reason.ISSUER_UNREACHABLE).exit_code is ExitCode.PEER_UNREACHABLE
    assert JoinRefused(Reason.USED_UP).exit_code is ExitCode.REFUSED


def guess(code: InviteCode, who=EVE) -> bytes:
    """A request for an invite whose id was seen on the way, without its secret."""
    data = bytearray(redeemer(code, who).request)
    data[-32:] = bytes(32)
    return bytes(data)


def test_whoever_saw_only_the_invites_id_gets_nowhere():
    alice = alice_with()
    code = invited(alice)
    decision = decided(alice, parse_request(guess(code)))
    assert isinstance(decision, No)
    assert decision.reason is Reason.WRONG_SECRET
    assert alice.invites[code.id].used == ()


def test_guesses_are_limited_for_each_source_and_do_not_lock_out_the_right_one():
    alice = alice_with()
    code = invited(alice)
    told = [alice.decide(parse_request(guess(code)), "x", now=1.0, now_ms=NOW_MS) for _ in range(8)]
    assert [each.reason for each in told] == [Reason.WRONG_SECRET] * 5 + [Reason.BUSY] * 3
    other = alice.decide(parse_request(guess(code)), "y", now=1.0, now_ms=NOW_MS)
    assert other.reason is Reason.WRONG_SECRET
    later = alice.decide(parse_request(guess(code)), "x", now=14.0, now_ms=NOW_MS)
    assert later.reason is Reason.WRONG_SECRET
    right = alice.decide(parse_request(redeemer(code).request), "x", now=14.0, now_ms=NOW_MS)
    assert isinstance(right, New)


def test_nothing_of_an_invites_state_is_told_to_who_does_not_hold_its_code():
    alice = alice_with()
    code = invited(alice)
    decided(alice, parse_request(redeemer(code).request))
    late = decided(alice, parse_request(guess(code)), now_ms=NOW_MS + 2 * HOUR_MS)
    assert late.reason is Reason.WRONG_SECRET


@given(st.integers(0, 224), st.integers(1, 255))
def test_a_request_that_was_changed_grants_nothing(place, flip):
    alice = alice_with()
    data = bytearray(redeemer(invited(alice)).request)
    data[place] ^= flip
    try:
        request = parse_request(bytes(data))
    except MalformedRequest:
        return
    assert isinstance(decided(alice, request), No)


def test_a_key_that_did_not_ask_is_not_certified():
    """The code's holder cannot enrol somebody else's key."""
    alice = alice_with()
    code = invited(alice)
    mine = make_request(code, BOB, bytes(32)).data
    from node.joining.request import _BODY_BYTES, _proof

    body = bytearray(mine[: _BODY_BYTES + 64])
    body[65:97] = CAROL.public_key
    forged = parse_request(bytes(body) + _proof(code.key, bytes(body)))
    decision = decided(alice, forged)
    assert isinstance(decision, No)
    assert decision.reason is Reason.MALFORMED


# ---- recordings and middlemen ---------------------------------------------------------------------


def test_a_recorded_request_gives_its_thief_nothing_and_changes_nothing():
    alice = alice_with()
    code = invited(alice)
    bob = redeemer(code)
    answered(alice, bob.request)
    before = dict(alice.invites)
    stolen = answered(alice, bob.request)
    assert dict(alice.invites) == before
    thief = redeemer(code, EVE, seed=5)
    assert thief.receive("a", stolen, NOW_MS) is None
    assert isinstance(bob.receive("a", stolen, NOW_MS), Joined)


def test_a_recorded_answer_is_for_its_request_only():
    alice = alice_with()
    code = invited(alice)
    before = redeemer(code, seed=1)
    recorded = answered(alice, before.request)
    assert redeemer(code, seed=2).receive("a", recorded, NOW_MS) is None
    no = refuse(parse_request(before.request), Reason.EXPIRED, ALICE)
    assert redeemer(code, seed=2).receive("a", no, NOW_MS) is None
    assert isinstance(before.receive("a", no, NOW_MS), JoinRefused)


@given(st.data())
def test_an_answer_that_was_changed_is_noticed(data):
    alice = alice_with()
    bob = redeemer(invited(alice))
    answer = bytearray(answered(alice, bob.request))
    place = data.draw(st.integers(0, len(answer) - 1))
    answer[place] ^= data.draw(st.integers(1, 255))
    assert bob.receive("a", bytes(answer), NOW_MS) is None
    assert bob.failures["a"]


def test_a_forwarders_own_no_ends_nothing():
    alice = alice_with()
    code = invited(alice)
    bob = redeemer(code)
    liar = refuse(parse_request(bob.request), Reason.EXPIRED, EVE)
    assert bob.receive("liar", liar, NOW_MS) is None
    assert bob.receive("cut", answered(alice, bob.request)[:50], NOW_MS) is None
    assert bob.receive("shy", hearsay(Reason.ISSUER_UNREACHABLE), NOW_MS) is None
    assert isinstance(bob.receive("honest", answered(alice, bob.request), NOW_MS), Joined)


def test_a_holder_of_the_code_cannot_make_up_a_swarm():
    """The chain must lead to the root that the code names, and to us, by the issuer."""
    alice = alice_with()
    code = invited(alice)
    bob = redeemer(code)
    request = parse_request(bob.request)
    other_root = certify_by_root(
        EVE, subject=BOB.public_key, role="trainer", serial=bytes(16), now_ms=NOW_MS
    )
    for_carol = certify(
        ALICE,
        ALICE_CHAIN,
        subject=CAROL.public_key,
        role="trainer",
        serial=bytes(16),
        now_ms=NOW_MS,
    )
    not_alice = certify_by_root(
        ROOT, subject=BOB.public_key, role="trainer", serial=bytes(16), now_ms=NOW_MS
    )
    for chain in (other_root.raw, for_carol.raw, not_alice.raw, ALICE_CHAIN.raw, b"x"):
        answer = seal_grant(request, code.key, grant(chain), random.Random(1).randbytes)
        assert bob.receive("a", answer, NOW_MS) is None, chain[:20]


@pytest.mark.parametrize("public", [bytes(32), (1).to_bytes(32, "little")])
def test_a_key_that_agrees_on_nothing_is_not_sealed_to(public):
    code = invited(alice_with())
    with pytest.raises(MalformedAnswer):
        seal_grant(
            make_request(code, BOB, public), code.key, grant(b"x"), random.Random(1).randbytes
        )


@given(
    st.binary(max_size=400)
    | st.binary(max_size=300).map(b"\x01\x01".__add__)
    | st.binary(max_size=120).map(b"\x01\x02".__add__)
)
def test_any_bytes_are_an_answer_or_none(data):
    bob = redeemer(invited(alice_with()))
    assert bob.receive("a", data, NOW_MS) is None


# ---- what is told at the end ----------------------------------------------------------------------


def test_the_most_telling_of_several_failures_is_told():
    code = invited(alice_with())
    bob = redeemer(code)
    bob.failed("192.0.2.1:7447", "nobody listens")
    assert bob.given_up(NOW_MS).exit_code is ExitCode.PEER_UNREACHABLE
    assert "nobody listens" in str(bob.given_up(NOW_MS))
    bob.receive("b", hearsay(Reason.BUSY), NOW_MS)
    assert "too many requests" in str(bob.given_up(NOW_MS))
    bob.receive("c", hearsay(Reason.ISSUER_UNREACHABLE), NOW_MS)
    assert "cannot be reached now" in str(bob.given_up(NOW_MS))
    assert "code's time is over" in bob.given_up(NOW_MS + 2 * HOUR_MS).hint


# ---- bounds ---------------------------------------------------------------------------------------


def test_invites_are_bounded_and_old_ones_are_forgotten():
    alice = alice_with()
    for number in range(MAX_INVITES):
        invited(alice, seed=number)
    with pytest.raises(TooManyInvites):
        invited(alice, seed=-1)
    month = NOW_MS + 31 * 24 * HOUR_MS
    gone = alice.forgettable(month)
    assert len(gone) == MAX_INVITES
    for each in gone:
        alice.forget(each)
    assert not alice.invites


@pytest.mark.parametrize(
    "wrong", [{"uses": 0}, {"uses": 1001}, {"life_ms": 10}, {"life_ms": 2**50}]
)
def test_an_invite_out_of_range_is_refused(wrong):
    with pytest.raises(NodedError):
        invited(alice_with(), **wrong)


def test_a_forwarder_takes_only_so_many():
    forwarder = Forwarder(SWARM_ID)
    request = redeemer(invited(alice_with())).request
    for number in range(MAX_UNDER_WAY):
        assert not isinstance(forwarder.admit(request, str(number), 0.0), Reason)
    assert forwarder.admit(request, "one more", 0.0) is Reason.BUSY
    forwarder.done("passed")
    assert not isinstance(forwarder.admit(request, "one more", 0.0), Reason)
    patient = Forwarder(SWARM_ID)
    for _ in range(PER_MINUTE):
        assert not isinstance(patient.admit(request, "x", 0.0), Reason)
        patient.done("passed")
    assert patient.admit(request, "x", 0.0) is Reason.BUSY
    assert not isinstance(patient.admit(request, "x", 1.0), Reason)


def test_a_forwarder_passes_its_own_swarms_requests_only():
    request = redeemer(invited(alice_with())).request
    assert Forwarder(bytes(32)).admit(request, "x", 0.0) is Reason.MALFORMED
    assert Forwarder(SWARM_ID).admit(b"junk", "x", 0.0) is Reason.MALFORMED


def test_requests_for_somebody_else_are_none_of_the_issuers_business():
    request = parse_request(redeemer(invited(alice_with())).request)
    bob = Issuer(BOB, SWARM_ID, (), certify=certified)
    assert decided(bob, request).reason is Reason.MALFORMED
    elsewhere = Issuer(ALICE, bytes(32), (), certify=certified)
    assert decided(elsewhere, request).reason is Reason.MALFORMED


def test_a_refusal_of_an_unknown_kind_is_no_answer():
    code = invited(alice_with())
    request = make_request(code, BOB, bytes(31) + b"\x09")
    for data in (b"\x01\x03\xee", b"\x01\x09\x01", b"\x02\x03\x01", b""):
        with pytest.raises(MalformedAnswer):
            read_answer(data, request, code, bytes(31) + b"\x09")
    assert read_answer(hearsay(Reason.BUSY), request, code, bytes(32)) == Refusal(
        Reason.BUSY, signed=False
    )


def test_deciding_changes_nothing_until_it_is_committed():
    alice = alice_with()
    code = invited(alice)
    for who in (BOB, CAROL):
        request = parse_request(redeemer(code, who).request)
        assert isinstance(alice.decide(request, "x", now=0.0, now_ms=NOW_MS), New)
    decided(alice, parse_request(redeemer(code, CAROL).request))
    assert isinstance(decided(alice, parse_request(redeemer(code, CAROL).request)), Again)
    assert isinstance(decided(alice, parse_request(redeemer(code, BOB).request)), No)


def test_the_table_of_sources_is_bounded_and_so_are_all_together():
    budget = SourceBudget(per_minute=5, all_per_minute=3000)
    taken = sum(budget.take(str(number), 0.0) for number in range(5000))
    assert len(budget) == MAX_SOURCES
    assert taken == 3000
    assert not budget.take("new", 0.0)
    assert budget.take("new", 60.0)
