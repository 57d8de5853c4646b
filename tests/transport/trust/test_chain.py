"""Certificates and chains: what was issued verifies, and nothing else does."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transport.errors import UsageError
from transport.identity import Identity, NodeId
from transport.trust.certificate import (
    CLOCK_LEEWAY_MS,
    MAX_CERTIFICATE_BYTES,
    MAX_TIME_MS,
    ROLES,
    Extension,
    parse_certificate,
    sign_certificate,
)
from transport.trust.chain import (
    MAX_CHAIN_BYTES,
    YEAR_MS,
    certify,
    certify_by_root,
    chain_of,
    parse_chain,
    root_swarm_id,
    verify_chain,
)
from transport.trust.refusal import CertificateRefused, Refusal

ROOT, ALICE, BOB, CAROL, MALLORY = (
    Identity.from_seed(bytes([number]) * 32) for number in range(1, 6)
)
SWARM_ID = root_swarm_id(ROOT.public_key)
NOW = 1_700_000_000_000
SERIAL = bytes(range(16))

FOUNDER = certify_by_root(
    ROOT, subject=ALICE.public_key, role="trainer", serial=SERIAL, now_ms=NOW, may_invite=True
)
MEMBER = certify(
    ALICE,
    FOUNDER,
    subject=BOB.public_key,
    role="trainer",
    serial=SERIAL,
    now_ms=NOW,
    may_invite=True,
    invite=b"i" * 16,
)
GUEST = certify(
    BOB, MEMBER, subject=CAROL.public_key, role="observer", serial=SERIAL, now_ms=NOW + 5
)


def refused(chain, swarm_id=SWARM_ID, now_ms=NOW):
    with pytest.raises(CertificateRefused) as caught:
        verify_chain(chain, swarm_id, now_ms)
    assert caught.value.code == f"certificate-{caught.value.refusal}"
    return caught.value.refusal


def signed(issuer, holder, **changes):
    fields = {
        "swarm_id": SWARM_ID,
        "subject": holder.public_key,
        "role": "trainer",
        "may_invite": True,
        "serial": SERIAL,
        "issued_at_ms": NOW,
        "expires_at_ms": NOW + YEAR_MS,
    }
    return sign_certificate(issuer, **(fields | changes))


@pytest.mark.parametrize("chain", [FOUNDER, MEMBER, GUEST])
def test_what_was_issued_verifies(chain):
    again = parse_chain(chain.raw)
    assert again == chain
    assert again.id == chain.id
    assert hash(again) == hash(chain)
    verify_chain(again, SWARM_ID, NOW + 5)
    assert len(chain.raw) <= MAX_CHAIN_BYTES


def test_what_a_chain_says():
    assert GUEST.issuers == (ROOT.public_key, ALICE.public_key, BOB.public_key)
    assert GUEST.node_id == CAROL.node_id
    assert (GUEST.leaf.role, GUEST.leaf.may_invite) == ("observer", False)
    assert GUEST.leaf.inviter == GUEST.leaf.issuer_id == BOB.node_id
    assert MEMBER.leaf.invite == b"i" * 16
    assert GUEST.leaf.expires_at_ms == FOUNDER.leaf.expires_at_ms
    assert (FOUNDER.can_extend, MEMBER.can_extend, GUEST.can_extend) == (True, True, False)
    assert GUEST.above == MEMBER
    assert FOUNDER.above is None
    assert ALICE.public_key.hex() not in repr(GUEST)


def test_golden_certificate():
    """The exact bytes (docs/wire.md)."""
    certificate = MEMBER.leaf
    assert certificate.raw[:3] == b"\x01\x03\x01"
    assert certificate.raw[3:35] == SWARM_ID
    assert certificate.raw[35:67] == BOB.public_key
    assert certificate.raw[67:99] == ALICE.public_key
    assert certificate.raw[99:131] == ALICE.node_id
    assert certificate.raw[131:163] == b"i" * 16 + SERIAL
    assert (
        certificate.raw[163:180]
        == NOW.to_bytes(8, "big") + (NOW + YEAR_MS).to_bytes(8, "big") + b"\0"
    )
    assert len(certificate.raw) == 244
    assert MEMBER.raw == b"\x02" + b"".join(b"\0\xf4" + each.raw for each in MEMBER.certificates)


def test_extensions_travel_and_critical_ones_refuse():
    more = (Extension("z", b"later"), Extension("a.b", b""))
    certificate = signed(ROOT, ALICE, extensions=more)
    assert parse_certificate(certificate.raw).extensions == (more[1], more[0])
    verify_chain(chain_of((certificate,)), SWARM_ID, NOW)
    critical = bytearray(certificate.raw)
    critical[180] = 1
    with pytest.raises(CertificateRefused) as caught:
        parse_certificate(bytes(critical))
    assert caught.value.refusal is Refusal.UNKNOWN_CRITICAL
    assert "a.b" in str(caught.value)
    with pytest.raises(UsageError):
        signed(ROOT, ALICE, extensions=[Extension("mine", critical=True)])


@pytest.mark.parametrize(
    ("extensions", "why"),
    [
        ([Extension("a"), Extension("a")], "order"),
        ([Extension("A")], "sense"),
        ([Extension(f"x{number}") for number in range(9)], "more than 8"),
        ([Extension("a", bytes(MAX_CERTIFICATE_BYTES))], "more than 512"),
        ([Extension("ä")], "ascii"),
        ([Extension("a", bytes(70_000))], "65535"),
    ],
)
def test_extensions_that_nobody_could_read_are_not_made(extensions, why):
    with pytest.raises(UsageError, match=why):
        signed(ROOT, ALICE, extensions=extensions)


@pytest.mark.parametrize(
    "changes",
    [
        {"role": "king"},
        {"serial": b"short"},
        {"expires_at_ms": NOW},
        {"expires_at_ms": MAX_TIME_MS + 1},
        {"issued_at_ms": -1},
        {"subject": bytes(32)},
        {"inviter": b"x"},
    ],
)
def test_values_that_make_no_certificate(changes):
    with pytest.raises(UsageError):
        signed(ROOT, ALICE, **changes)


def test_the_root_has_no_certificate():
    with pytest.raises(UsageError, match="no node's key"):
        certify_by_root(ROOT, subject=ROOT.public_key, role="trainer", serial=SERIAL, now_ms=NOW)


@pytest.mark.parametrize(
    ("issuer", "chain", "changes", "why"),
    [
        (BOB, FOUNDER, {}, "not the one"),
        (CAROL, GUEST, {}, "does not let it invite"),
        (ALICE, FOUNDER, {"subject": ALICE.public_key}, "itself"),
        (ALICE, FOUNDER, {"subject": ROOT.public_key}, "itself"),
        (BOB, MEMBER, {"may_invite": True}, "too far"),
        (ALICE, FOUNDER, {"now_ms": NOW + YEAR_MS}, "over"),
    ],
)
def test_what_a_member_may_not_give(issuer, chain, changes, why):
    fields = {
        "subject": CAROL.public_key,
        "role": "trainer",
        "serial": SERIAL,
        "now_ms": NOW,
    }
    with pytest.raises(UsageError, match=why):
        certify(issuer, chain, **(fields | changes))


def test_the_third_in_a_row_cannot_invite():
    third = chain_of((*MEMBER.certificates, signed(BOB, CAROL)))
    with pytest.raises(UsageError, match="too far"):
        certify(
            CAROL, third, subject=MALLORY.public_key, role="observer", serial=SERIAL, now_ms=NOW
        )


def test_a_role_is_not_widened():
    relay = certify_by_root(
        ROOT, subject=ALICE.public_key, role="relay", serial=SERIAL, now_ms=NOW, may_invite=True
    )
    with pytest.raises(UsageError, match="relay itself"):
        certify(ALICE, relay, subject=BOB.public_key, role="trainer", serial=SERIAL, now_ms=NOW)
    wider = chain_of((*relay.certificates, signed(ALICE, BOB)))
    assert refused(wider) is Refusal.NOT_NARROWER


@pytest.mark.parametrize(
    ("certificates", "reason"),
    [
        ((signed(ALICE, ALICE),), Refusal.SELF_SIGNED),
        ((signed(MALLORY, ALICE),), Refusal.UNKNOWN_ROOT),
        ((signed(ROOT, ALICE, swarm_id=root_swarm_id(MALLORY.public_key)),), Refusal.OTHER_SWARM),
        ((signed(ROOT, ALICE), signed(BOB, CAROL)), Refusal.BROKEN_CHAIN),
        ((signed(ROOT, ALICE, may_invite=False), signed(ALICE, BOB)), Refusal.NOT_NARROWER),
        (
            (signed(ROOT, ALICE), signed(ALICE, BOB, expires_at_ms=NOW + YEAR_MS + 1)),
            Refusal.NOT_NARROWER,
        ),
        (
            (signed(ROOT, ALICE), signed(ALICE, BOB, issued_at_ms=NOW - 1)),
            Refusal.NOT_NARROWER,
        ),
    ],
)
def test_chains_that_lead_nowhere(certificates, reason):
    assert refused(chain_of(certificates)) is reason


def test_an_open_swarm_is_another_one():
    chain = certify_by_root(
        ROOT, subject=ALICE.public_key, role="trainer", serial=SERIAL, now_ms=NOW, is_open=True
    )
    verify_chain(chain, root_swarm_id(ROOT.public_key, is_open=True), NOW)
    assert refused(chain) is Refusal.OTHER_SWARM


def test_time_with_its_leeway():
    end = FOUNDER.leaf.expires_at_ms
    verify_chain(GUEST, SWARM_ID, NOW + 5 - CLOCK_LEEWAY_MS)
    verify_chain(GUEST, SWARM_ID, end + CLOCK_LEEWAY_MS)
    assert refused(GUEST, now_ms=NOW + 4 - CLOCK_LEEWAY_MS) is Refusal.NOT_YET_VALID
    assert refused(GUEST, now_ms=end + CLOCK_LEEWAY_MS + 1) is Refusal.EXPIRED
    verify_chain(GUEST, SWARM_ID, None)


def test_no_chain_and_too_long_ones():
    for data, reason in (
        (b"", Refusal.MISSING),
        (b"\0", Refusal.MISSING),
        (b"\4", Refusal.TOO_LONG),
        (bytes(MAX_CHAIN_BYTES + 1), Refusal.TOO_LONG),
        (FOUNDER.raw + b"x", Refusal.MALFORMED),
        (b"\1\2\1" + bytes(513), Refusal.MALFORMED),
        (b"\1\0\1\2", Refusal.UNKNOWN_VERSION),
    ):
        with pytest.raises(CertificateRefused) as caught:
            parse_chain(data)
        assert caught.value.refusal is reason
    for count in (0, 4):
        with pytest.raises(UsageError):
            chain_of(FOUNDER.certificates * count)


def test_no_byte_of_a_chain_can_be_changed():
    rng = random.Random(1)
    for place in range(len(GUEST.raw)):
        data = bytearray(GUEST.raw)
        data[place] ^= rng.randrange(1, 256)
        with pytest.raises(CertificateRefused):
            verify_chain(parse_chain(bytes(data)), SWARM_ID, NOW + 5)


def test_no_byte_can_be_left_off():
    for size in range(len(MEMBER.raw)):
        with pytest.raises(CertificateRefused) as caught:
            parse_chain(MEMBER.raw[:size])
        assert caught.value.refusal in {Refusal.TRUNCATED, Refusal.MISSING}


@settings(max_examples=300)
@given(st.binary(max_size=600))
def test_any_bytes_give_a_value_or_one_error(data):
    for parse in (parse_chain, parse_certificate):
        try:
            value = parse(data)
        except CertificateRefused:
            continue
        assert value.raw == data


certificates = st.tuples(
    st.sampled_from(ROLES),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(1, 6),
)


@settings(max_examples=60)
@given(st.lists(certificates, min_size=1, max_size=3), st.integers(-2, 10))
def test_verified_exactly_if_each_is_within_the_one_above(rows, at):
    """Against a plain model of the rules, with a leeway of zero days."""
    keys = [ROOT, ALICE, BOB, CAROL]
    day = 24 * 3600 * 1000
    chain = chain_of(
        tuple(
            signed(
                keys[number],
                keys[number + 1],
                role=role,
                may_invite=may_invite,
                issued_at_ms=NOW + start * day,
                expires_at_ms=NOW + (start + length) * day,
            )
            for number, (role, may_invite, start, length) in enumerate(rows)
        )
    )
    now_ms = NOW + at * day + day // 2
    good = all(
        upper[1]
        and ROLES.index(lower[0]) <= ROLES.index(upper[0])
        and upper[2] <= lower[2]
        and lower[2] + lower[3] <= upper[2] + upper[3]
        for upper, lower in itertools.pairwise(rows)
    ) and all(start <= at < start + length for _, _, start, length in rows)
    try:
        verify_chain(parse_chain(chain.raw), SWARM_ID, now_ms)
    except CertificateRefused:
        assert not good
    else:
        assert good


def test_every_reason_has_its_words():
    for reason in Refusal:
        assert str(CertificateRefused(reason))
    assert "detail" in str(CertificateRefused(Refusal.FORGED, "detail"))
    assert NodeId(bytes(32)) == signed(ROOT, ALICE).inviter
