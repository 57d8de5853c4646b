"""MoDeST's view: a join semilattice, one order for equal views, and bytes that are parsed as hostile."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.protocols.modest import view as view_module
from gossip.protocols.modest.membership import Standing
from gossip.protocols.modest.messages import Trained, decode
from gossip.protocols.modest.view import (
    ENTRY,
    MAX_COUNTER,
    MAX_ROUND,
    MAX_WIRE_ENTRIES,
    Entry,
    View,
)
from tests.hash_seeds import same_under_two_hash_seeds
from transport.codec import MAX_MESSAGE_BYTES, pack
from transport.errors import MalformedMessage
from transport.identity import NodeId

IDS = [NodeId(hashlib.sha256(b"node-%d" % i).digest()) for i in range(2000)]

entries = st.builds(
    Entry,
    st.integers(0, 5) | st.integers(0, MAX_ROUND),
    st.integers(0, 3) | st.integers(0, MAX_COUNTER),
    st.booleans(),
)
views = st.lists(st.tuples(st.sampled_from(IDS[:6]), entries), max_size=12).map(View)


def joined(*parts):
    result = View()
    for part in parts:
        result.merge_wire(part.wire())
    return result


@given(views, views, views)
def test_merging_is_commutative_associative_and_idempotent(a, b, c):
    assert joined(a, b) == joined(b, a)
    assert joined(joined(a, b), c) == joined(a, joined(b, c))
    assert joined(a, a) == a
    assert joined(a, b, a) == joined(a, b)


@given(views, views)
def test_a_merge_is_an_upper_bound_and_the_least_one(a, b):
    both = joined(a, b)
    for node in both:
        known = [part[node] for part in (a, b) if node in part]
        assert both[node].last_round == max(e.last_round for e in known)
        assert (both[node].counter, both[node].left) == max((e.counter, e.left) for e in known)


@given(views)
def test_wire_round_trip(a):
    assert joined(a) == a
    assert joined(a).wire() == a.wire()


def test_leave_wins_under_one_counter_and_a_higher_counter_wins_over_all():
    assert Entry(1, 4).join(Entry(9, 4, left=True)) == Entry(9, 4, left=True)
    assert Entry(9, 4, left=True).join(Entry(1, 5)) == Entry(9, 5)


def test_the_published_order():
    view = View((node, Entry(0, 0)) for node in IDS[:10])
    assert [IDS.index(node) for node in view.order(1, 50)] == [4, 0, 2, 9, 1, 8, 3, 6, 7, 5]
    assert [IDS.index(node) for node in view.order(2, 50)] == [2, 8, 1, 7, 9, 5, 0, 4, 3, 6]
    assert [IDS.index(node) for node in view.order(3, 50)] == [3, 7, 9, 0, 1, 6, 5, 4, 2, 8]


@given(st.permutations(range(12)), st.integers(1, 2**31))
def test_equal_views_give_equal_orders_whatever_came_first(permutation, k):
    one = View((IDS[i], Entry(k, 0)) for i in range(12))
    other = View((IDS[i], Entry(k, 0)) for i in permutation)
    assert one.order(k, 2) == other.order(k, 2)


@given(st.integers(1, 10_000), st.integers(0, 29), st.booleans())
def test_changing_one_candidate_changes_at_most_one_of_a_sample(k, changed, joins):
    before = View((IDS[i], Entry(k, 0)) for i in range(30) if not (joins and i == changed))
    after = View((IDS[i], Entry(k, 0, left=not joins and i == changed)) for i in range(30))
    assert len(set(before.order(k, 5)[:10]) ^ set(after.order(k, 5)[:10])) <= 2
    assert len(set(before.order(k, 5)[:10]) - set(after.order(k, 5)[:10])) <= 1


def test_candidates_are_recent_and_have_not_left():
    view = View([(IDS[0], Entry(10, 0)), (IDS[1], Entry(9, 0)), (IDS[2], Entry(20, 1, left=True))])
    assert view.candidates(15, 5) == [IDS[0]]
    assert view.candidates(14, 5) == [IDS[0], IDS[1]]


def test_draws_are_uniform_over_nodes_and_rounds():
    """Chi-square: 60 nodes, samples of 6, 600 rounds; 59 degrees of freedom, and less variance than with replacement."""
    view = View((node, Entry(0, 0)) for node in IDS[:60])
    drawn = dict.fromkeys(IDS[:60], 0)
    for k in range(1, 601):
        for node in view.order(k, 1000)[:6]:
            drawn[node] += 1
    chi_square = sum((count - 60) ** 2 / 60 for count in drawn.values()) / (1 - 6 / 60)
    assert 33 < chi_square < 95, "between the 0.2 % and 99.8 % points"


def test_a_thousand_nodes_fit_into_a_message_and_more_are_cut_to_the_latest():
    view = View((node, Entry(k, 0)) for k, node in enumerate(IDS[:1000]))
    message = pack(Trained(MAX_ROUND, view.wire(), 10))
    assert len(message) < MAX_MESSAGE_BYTES
    assert joined(view) == view
    many = View((node, Entry(k, 0)) for k, node in enumerate(IDS))
    assert len(pack(Trained(MAX_ROUND, many.wire(), 10))) <= MAX_MESSAGE_BYTES
    assert list(joined(many)) == sorted(IDS[-MAX_WIRE_ENTRIES:])


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(view_module, "MAX_ENTRIES", 100)
    view = View((node, Entry(k, 0)) for k, node in enumerate(IDS[:500]))
    assert list(view) == sorted(IDS[400:500])
    view.merge_wire(View((node, Entry(k, 0)) for k, node in enumerate(IDS[:50])).wire())
    assert list(view) == sorted(IDS[400:500])


@given(st.binary(max_size=200))
def test_any_bytes_are_a_view_or_malformed(data):
    view = View([(IDS[0], Entry(1, 1))])
    try:
        view.merge_wire(data)
    except MalformedMessage:
        assert view == View([(IDS[0], Entry(1, 1))])
    else:
        assert len(data) % ENTRY.size == 0


def test_too_many_entries_are_malformed():
    with pytest.raises(MalformedMessage):
        View().merge_wire(bytes(ENTRY.size * (MAX_WIRE_ENTRIES + 1)))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_malformed(data):
    try:
        decode(data)
    except MalformedMessage:
        pass


def test_the_wire_form_of_an_entry():
    assert View([(IDS[0], Entry(258, 3, left=True))]).wire() == bytes(IDS[0]) + bytes.fromhex(
        "0000010200000007"
    )


def test_the_same_order_in_every_process():
    text = """
import hashlib
from gossip.protocols.modest.view import Entry, View
from transport.identity import NodeId
ids = [NodeId(hashlib.sha256(b"%d" % i).digest()) for i in range(50)]
print(View((i, Entry(1, 0)) for i in set(ids)).order(7, 50))
"""
    assert same_under_two_hash_seeds("-c", text)


# ---- standing ------------------------------------------------------------------------------------


def test_a_joiner_waits_until_a_model_has_left():
    standing = Standing(IDS[0])
    standing.begin(IDS[1:3], 0)
    standing.says_here(IDS[5], 4, 0)
    standing.seen(IDS[6], 4, 0)
    assert IDS[5] not in standing.view
    assert IDS[6] not in standing.view
    standing.flush()
    assert {IDS[5], IDS[6]} <= set(standing.view)


def test_leaving_counts_at_once_and_only_a_higher_counter_comes_back():
    standing = Standing(IDS[0])
    standing.begin(IDS[1:3], 0)
    standing.says_gone(IDS[1], 3, 1)
    assert IDS[1] not in standing.view.candidates(3, 50)
    standing.seen(IDS[1], 9, 1)
    standing.flush()
    assert IDS[1] not in standing.view.candidates(3, 50)
    assert standing.overtaken(IDS[1], 1) == 1
    assert standing.overtaken(IDS[1], 2) is None
    standing.says_here(IDS[1], 9, 2)
    standing.flush()
    assert IDS[1] in standing.view.candidates(3, 50)


def test_whoever_is_declared_gone_says_that_it_is_there():
    standing, liar = Standing(IDS[0]), View([(IDS[0], Entry(3, 7, left=True))])
    standing.begin(IDS[1:3], 0)
    assert standing.merge(liar.wire())
    assert standing.counter == 8
    assert IDS[0] in standing.view.candidates(3, 50)
    assert not standing.merge(liar.wire())


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(0, 3)), max_size=30))
def test_views_only_grow(steps):
    rng, standing = random.Random(1), Standing(IDS[0])
    standing.begin(IDS[1:3], 0)
    for what, round_, counter in steps:
        before = View((node, standing.view[node]) for node in standing.view)
        node = rng.choice(IDS[:5])
        match what:
            case 0:
                standing.seen(node, round_, counter)
            case 1:
                standing.says_here(node, round_, counter)
            case 2:
                standing.says_gone(node, round_, counter)
            case 3:
                standing.flush()
            case 4:
                standing.raise_above(counter)
        assert joined(standing.view, before) == standing.view
