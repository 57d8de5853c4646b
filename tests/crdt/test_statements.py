"""The grow-only set of statements: the laws of a join, its bounds, and what it tells others."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crdt.errors import Forged, MalformedState, StateTooLarge
from crdt.statements import MAX_STATEMENT_BYTES, NEWS, Judged, Statements


def judge(raw):
    """A statement is author (1), rank (1), anything; "!" proves nothing."""
    if raw[:1] == b"!":
        raise Forged("statement: forged")
    return Judged(raw[:1], (0, raw[1] if len(raw) > 1 else 0))


def name(raw):
    return hashlib.sha256(raw).digest()


def of(*statements):
    held = Statements(judge)
    for statement in statements:
        held.add(statement)
    return held


def joined(*replicas):
    result = Statements(judge)
    for replica in replicas:
        result.merge(replica.to_wire())
    return result


sets = st.lists(st.binary(min_size=2, max_size=4).filter(lambda raw: raw[:1] != b"!"), max_size=12)


@settings(max_examples=60)
@given(sets, sets, sets)
def test_laws(one, two, three):
    a, b, c = of(*one), of(*two), of(*three)
    assert joined(a, b).digest() == joined(b, a).digest()
    assert joined(joined(a, b), c).digest() == joined(a, joined(b, c)).digest()
    assert joined(a, a).digest() == a.digest()
    assert set(joined(a, b).statements.values()) == set(one) | set(two)
    assert len(joined(a, b)) == len(set(one) | set(two))


@settings(max_examples=60)
@given(sets, sets)
def test_what_others_lack_is_found_and_told(one, two):
    a, b = of(*one), of(*two)
    names = a.they_lack(b.context())
    assert {each for each, _ in names} == {name(raw) for raw in set(one) - set(two)}
    wanted = a.we_lack(b.context())
    assert set(wanted) == {name(raw) for raw in set(two) - set(one)}
    delta, done = b.delta(b.they_lack(a.want(wanted)))
    assert done == len(wanted)
    if delta is not None:
        a.merge(delta)
    if names:
        b.merge(a.delta(names)[0])
    assert a.digest() == b.digest()


def test_of_one_author_and_of_all_the_greatest_stay(monkeypatch):
    monkeypatch.setattr("crdt.statements.MAX_PER_AUTHOR", 3)
    monkeypatch.setattr("crdt.statements.MAX_STATEMENTS", 5)
    greedy = [b"g" + bytes([rank]) for rank in range(9)]
    modest = [b"m" + bytes([rank]) for rank in (1, 200, 250)]
    left, right = of(*greedy[:5], *modest[:1]), of(*greedy[3:], *modest[1:])
    both = joined(left, right)
    assert set(both.statements.values()) == {*greedy[6:], *modest[1:]}
    assert joined(right, left).digest() == both.digest() == of(*greedy, *modest).digest()
    assert both.counters["dropped"]
    assert not both.add(greedy[0])
    assert name(greedy[0]) not in both


def test_bytes_are_bounded_too(monkeypatch):
    monkeypatch.setattr("crdt.statements.MAX_BYTES", 100)
    held = of(b"a\x01" + bytes(60), b"b\x02" + bytes(60))
    assert list(held.statements.values()) == [b"b\x02" + bytes(60)]


def test_what_proves_nothing_is_refused_whole():
    held = of(b"a1")
    before = held.digest(), held.version
    for entries, error in (
        ([b"b1", b"!x"], Forged),
        ([b"b1", "text"], MalformedState),
        ([b"b1", b"c" * (MAX_STATEMENT_BYTES + 1)], StateTooLarge),
    ):
        with pytest.raises(error):
            held.merge({"v": 2, "entries": entries, "evidence": []})
    with pytest.raises(MalformedState):
        held.merge([])
    assert (held.digest(), held.version) == before


def test_news_is_passed_on_once_and_told_to_the_owner():
    told = []
    held = Statements(judge, told.append)
    held.add(b"a1")
    begun = held.sequence
    assert held.own_names(above=0) == []  # a new conversation compares
    held.merge({"v": 2, "entries": [b"b1", b"a1", b"b1"], "evidence": []})
    assert held.own_names(above=begun) == [(name(b"b1"), "")]
    assert told == [b"a1", b"b1"]
    for number in range(2 * NEWS):
        held.add(b"c" + bytes([number]))
    assert len(held.own_names()) == NEWS
    assert held.convicted() == {}
    assert (held.convictions, held.edits) == (0, held.version)
    assert held.counters["obsolete"] == 2


def test_pages_and_their_digests():
    held = of(*(b"a" + bytes([number]) for number in range(100)))
    pages = held.ranges(32)
    assert [start for start, _ in pages] == [b"", *(end for _, end in pages[:-1])]
    contexts = [held.context(*page)["seen"] for page in pages]
    assert sum(map(len, contexts)) == 100
    assert max(map(len, contexts)) <= 32
    assert held.range_digest(*pages[0]) != held.range_digest(*pages[1])


def test_a_delta_ends_where_its_room_does():
    held = of(*(bytes([65 + number]) * 100 for number in range(5)))
    names = [(each, "") for each in held.statements]
    delta, done = held.delta([(b"?" * 32, ""), *names], max_bytes=250)
    assert (len(delta["entries"]), done) == (2, 3)
    assert held.delta([(b"?" * 32, "")]) == (None, 1)
