"""The pasted line: one text for one value, whatever happens to it on the way."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import ExitCode
from node.joining.code import InvalidCode, InviteCode, invite_id, invite_key
from tests.node.joining.people import ALICE, SWARM_ID
from transport.address import Address

SECRET = bytes(range(16))
CODE = InviteCode(
    swarm_id=SWARM_ID,
    issuer=bytes(ALICE.node_id[:16]),
    secret=SECRET,
    expires_s=1_800_003_600,
    addresses=(
        Address("203.0.113.7", 7447),
        Address("2001:db8::7", 7447),
        Address("box.example", 9),
    ),
)
addresses = st.one_of(
    st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(str), st.just("host.example")
).map(lambda host: Address(host, 7447))
codes = st.builds(
    InviteCode,
    swarm_id=st.binary(min_size=32, max_size=32),
    issuer=st.binary(min_size=16, max_size=16),
    secret=st.binary(min_size=16, max_size=16),
    expires_s=st.integers(0, 2**32 - 1),
    addresses=st.lists(addresses.filter(lambda a: not a.is_wildcard), max_size=4).map(tuple),
)


@given(codes)
def test_what_is_printed_is_read(code):
    assert InviteCode.parse(code.text) == code


@given(codes, st.integers(0, 2**32))
def test_mail_and_terminals_do_not_matter(code, seed):
    rng = random.Random(seed)

    def spoil(character: str) -> str:
        noise = rng.choice(["", "", "", "", "\n", " ", "\r\n  ", "\u00a0", "\u200b", "\u2011", "-"])
        return noise + (character.upper() if rng.random() < 0.5 else character)

    assert InviteCode.parse("".join(map(spoil, code.text))) == code
    assert InviteCode.parse(code.text.replace("b", "8").replace("l", "1").replace("o", "0")) == code


@given(st.integers(3, len(CODE.text) - 1), st.sampled_from("abcdefghijklmnopqrstuvwxyz234567"))
def test_one_wrong_character_is_noticed(place, character):
    text = CODE.text
    if text[place] not in {"-", character}:
        with pytest.raises(InvalidCode):
            InviteCode.parse(text[:place] + character + text[place + 1 :])


BARE = CODE.text.replace("-", "")


@given(st.integers(0, len(BARE) - 1), st.integers(1, 60))
def test_a_hole_or_a_cut_is_noticed(place, size):
    with pytest.raises(InvalidCode):
        InviteCode.parse(BARE[:place] + BARE[place + size :])


@given(
    st.text(max_size=300) | st.text(alphabet="ni-abcdefg234567 ", max_size=300).map("ni".__add__)
)
def test_any_text_gives_one_error_that_does_not_quote_it(text):
    with pytest.raises(InvalidCode) as caught:
        InviteCode.parse(text)
    assert caught.value.exit_code is ExitCode.USAGE
    assert caught.value.hint
    assert len(text) < 12 or text not in str(caught.value)


def test_the_usual_one_is_short_and_keeps_its_bytes():
    usual = InviteCode(
        swarm_id=SWARM_ID,
        issuer=bytes(16),
        secret=SECRET,
        expires_s=7,
        addresses=(Address("203.0.113.7", 7447),),
    )
    assert len(usual.text) == 145
    assert usual.text.startswith("ni-afha2sxg-")
    # A release that changed the layout would not read codes that are out already.
    assert usual.text.endswith("-aaaaabye-zmahcby5-c7wrxzi")


@pytest.mark.parametrize(
    "address",
    [Address("0.0.0.0", 1), Address("::", 1), Address("fe80::1%eth0", 1), Address("1.2.3.4", 0)],
)
def test_an_address_that_helps_nobody_elsewhere_is_refused(address):
    with pytest.raises(InvalidCode, match="cannot be dialed"):
        InviteCode(
            swarm_id=SWARM_ID, issuer=bytes(16), secret=SECRET, expires_s=0, addresses=(address,)
        )


def test_another_kind_of_text_is_called_by_its_name():
    with pytest.raises(InvalidCode) as caught:
        InviteCode.parse(str(ALICE.node_id))
    assert "node's id" in caught.value.hint
    with pytest.raises(InvalidCode) as caught:
        InviteCode.parse("ns-aaaa")
    assert "swarm's key" in caught.value.hint


def test_the_secret_is_nowhere_but_in_the_text():
    for shown in (repr(CODE), str(CODE), repr(invite_id(SECRET)), repr(invite_key(SECRET))):
        assert repr(SECRET)[2:-1] not in shown
        assert SECRET.hex() not in shown
    assert invite_id(SECRET) not in invite_key(SECRET)
