"""What one member says alone moves numbers by a part of their range only."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gossip.decentralized.hearsay import MAX_CLAIMS, Hearsay
from gossip.decentralized.kit.rehearsal import node_id


@given(st.lists(st.integers(0, 2**62), max_size=20))
def test_one_alone_gets_no_further_than_far(numbers):
    hearsay, known = Hearsay(100), 0
    for number in numbers:
        if hearsay.believes(node_id(1), number, known):
            assert number <= known + 100
            known = max(known, number)


def test_two_are_believed_where_they_agree():
    hearsay = Hearsay(100)
    assert not hearsay.believes(node_id(1), 5000, 0)
    assert not hearsay.believes(node_id(2), 50_000, 0)
    assert hearsay.believes(node_id(3), 5050, 0)
    assert hearsay.believes(node_id(1), 5060, 0), "what the third has said counts from now on"


def test_claims_are_bounded():
    hearsay = Hearsay(1)
    for at in range(3 * MAX_CLAIMS):
        hearsay.believes(node_id(at), 10 * at + 10, 0)
    assert len(hearsay._claims) == MAX_CLAIMS
