"""Members and their history from statements, and as text."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.cli.render_joining import history_text, invites_text, members_text
from node.errors import NodedError
from node.joining.book import find_member, history_rows, member_rows
from tests.node.joining.people import (
    ALICE,
    ALICE_CHAIN,
    BOB,
    CAROL,
    EVE,
    NOW_MS,
    ROOT,
    SWARM_ID,
)
from transport.trust.chain import certify, certify_by_root
from transport.trust.revocation import Revocation, revoke
from transport.trust.trust import Member, Trust


def below(issuer, issuer_chain, who, later_ms, **more):
    return certify(
        issuer,
        issuer_chain,
        subject=who.public_key,
        role=more.pop("role", "trainer"),
        serial=bytes([later_ms % 250]) * 16,
        now_ms=NOW_MS + later_ms,
        **more,
    )


BOBS = below(ALICE, ALICE_CHAIN, BOB, 10, may_invite=True, invite=b"i" * 16)
CAROLS = below(BOB, BOBS, CAROL, 20, role="observer")
EVES = below(ALICE, ALICE_CHAIN, EVE, 30)
NAMES = {ALICE.node_id: "attic", BOB.node_id: "barn"}


def gone(by, chain, at_ms, **more):
    return revoke(
        by, swarm_id=SWARM_ID, subject=chain.node_id, at_ms=NOW_MS + at_ms, chain=chain, **more
    )


def book(*statements):
    """The statements in any order, and the rows of members by id."""
    trust = Trust(SWARM_ID, ALICE_CHAIN.raw)
    held = random.Random(1).sample([ALICE_CHAIN, BOBS, *statements], len(statements) + 2)
    for each in held:
        if isinstance(each, Revocation):
            trust.learn(each)

    def check(chain):
        leaf = chain.leaf
        trust.check_again(Member(chain.node_id, leaf.role, leaf.may_invite, chain), NOW_MS)

    return held, {
        row["id"]: row for row in member_rows(held, check, names=NAMES, connected=[ALICE.node_id])
    }


def test_who_invited_whom():
    _, rows = book(CAROLS, EVES)
    assert [row["id"] for row in rows.values()] == [
        str(each.node_id) for each in (ALICE, BOB, CAROL, EVE)
    ]
    assert {row["state"] for row in rows.values()} == {"member"}
    bob, carol = rows[str(BOB.node_id)], rows[str(CAROL.node_id)]
    assert (bob["name"], bob["inviter"], bob["invite"]) == (
        "barn",
        str(ALICE.node_id),
        (b"i" * 16).hex(),
    )
    assert (carol["inviter"], carol["role"]) == (str(BOB.node_id), "observer")
    assert rows[str(ALICE.node_id)]["inviter"] == "root"
    assert rows[str(ALICE.node_id)]["connected"] is True


def test_who_is_out_and_who_with_them():
    _, rows = book(CAROLS, EVES, gone(ALICE, BOBS, 40, reason="stolen"), gone(EVE, EVES, 50))
    states = {name: rows[str(who.node_id)]["state"] for name, who in (("b", BOB), ("c", CAROL))}
    assert states == {"b": "revoked", "c": "issuer-revoked"}
    assert "stolen" in rows[str(BOB.node_id)]["why"]
    assert rows[str(EVE.node_id)]["state"] == "left"
    _, rows = book(CAROLS, gone(ALICE, BOBS, 40, kept=[CAROLS.leaf.mark]))
    assert rows[str(CAROL.node_id)]["state"] == "member"


def test_history_is_in_order_and_says_who():
    held, _ = book(
        CAROLS, gone(ALICE, BOBS, 40, reason="stolen"), below(ALICE, ALICE_CHAIN, BOB, 35)
    )
    events = [(row["event"], row["node"], row["by"]) for row in history_rows(held)]
    a, b, c = (str(each.node_id) for each in (ALICE, BOB, CAROL))
    assert events == [
        ("joined", a, "root"),
        ("joined", b, a),
        ("joined", c, b),
        ("renewed", b, a),
        ("revoked", b, a),
    ]
    assert history_rows(held)[-1]["detail"] == "stolen"


def test_a_member_is_meant_by_id_start_or_name():
    statements = [BOBS, CAROLS, ALICE_CHAIN]
    for text in (str(BOB.node_id), str(BOB.node_id)[:9].upper(), "barn"):
        assert find_member(text, statements, NAMES) == BOBS
    for text in ("", "nd-", "nobody", "nd-aaaa-aaaa-aaaa"):
        with pytest.raises(NodedError, match="no member"):
            find_member(text, statements, NAMES)
    twins = {ALICE.node_id: "twin", BOB.node_id: "twin"}
    with pytest.raises(NodedError, match="more than one"):
        find_member("twin", statements, twins)


def test_the_tables_read_well():
    _, rows = book(CAROLS, gone(ALICE, BOBS, 40))
    held, _ = book(CAROLS, gone(ALICE, BOBS, 40, reason="lost \x1b[31m"))
    answer = {"members": list(rows.values()), "history": history_rows(held)}
    text = members_text(answer)
    assert re.search(r"nd-\S+ +barn +revoked +trainer, may invite +attic \(nd-", text)
    lines = history_text(answer).splitlines()
    assert "root" in lines[1]
    assert "revoked" in lines[-1]
    assert "\x1b" not in history_text(answer)
    invites = [{"id": "ab" * 16, "state": "open", "uses": 2, "used": [], "role": "relay"}]
    assert re.search(r"abababab +open +0 of 2 +relay", invites_text({"invites": invites}))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=8,
)
rows = st.lists(
    st.dictionaries(
        st.sampled_from(
            [
                "id",
                "name",
                "state",
                "role",
                "may_invite",
                "inviter",
                "joined_ms",
                "expires_ms",
                "at_ms",
                "event",
                "node",
                "by",
                "used",
            ]
        ),
        json_values,
        max_size=6,
    ),
    max_size=3,
)


@given(
    st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("members", "history", "invites"), rows | json_values)
    )
)
def test_odd_answers_still_render(answer):
    for render in (members_text, history_text, invites_text):
        assert isinstance(render(answer), str)


def test_a_certificate_forced_upon_a_member_and_revoked_changes_nothing_in_the_book():
    """Eve, who may invite, certifies Bob's key as an observer's, dated later, and revokes that."""
    eves = certify_by_root(
        ROOT,
        subject=EVE.public_key,
        role="trainer",
        may_invite=True,
        serial=bytes(16),
        now_ms=NOW_MS,
    )
    forced = below(EVE, eves, BOB, 90)
    _, rows = book(CAROLS, eves, forced, gone(EVE, forced, 95))
    bob = rows[str(BOB.node_id)]
    assert (bob["state"], bob["inviter"]) == ("member", str(ALICE.node_id))
