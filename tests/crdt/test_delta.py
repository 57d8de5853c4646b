import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt import delta
from crdt.clock import Timestamp
from crdt.counter import PNCounter
from crdt.delta import Dot, DotSet, DotStore
from crdt.errors import CrdtError, MalformedState, StateTooLarge
from crdt.map import AWMap
from crdt.orset import ORSet
from crdt.register import LWW, MaxRegister
from crdt.wire import MAX_INT

dots = st.frozensets(
    st.builds(Dot, writer=st.sampled_from([b"a", b"b"]), number=st.integers(1, 12))
)


def expand(dot_set):
    return {
        Dot(writer, number)
        for writer, pairs in dot_set.ranges.items()
        for low, high in pairs
        for number in range(low, high + 1)
    }


@given(dots, dots)
def test_ranges_behave_as_a_plain_set_of_dots(a, b):
    left, right = DotSet.of(a), DotSet.of(b)
    assert expand(left) == a
    assert expand(left.union(right)) == a | b
    assert expand(left.minus(right)) == a - b
    assert expand(left.intersection(right)) == a & b
    assert bool(left) == bool(a)
    assert all((dot in left) == (dot in a) for dot in a | b)
    # One content, one value: the form is normal whatever way it was reached.
    assert left.union(right) == DotSet.of(a | b)
    assert left.minus(right) == DotSet.of(a - b)
    assert DotSet.from_wire(left.to_wire()) == left


@given(dots, st.integers(1, 20))
def test_the_next_dot_is_new_and_not_below_the_start(seen, at_least):
    dot = DotSet.of(seen).next_dot(b"a", at_least=at_least)
    assert dot.number >= at_least
    assert all(dot.number > other.number for other in seen if other.writer == b"a")


def test_a_contiguous_history_is_one_range():
    assert DotSet.of(Dot(b"a", n) for n in range(1, 1000)).to_wire() == [[b"a", [1, 999]]]


@pytest.mark.parametrize(
    "wire",
    [
        [[b"a", []]],
        [[b"a", [1]]],
        [[b"a", [2, 1]]],
        [[b"a", [0, 1]]],
        [[b"a", [1, 2, 3, 4]]],  # adjacent: has a shorter form
        [[b"a", [5, 6, 1, 2]]],
        [[b"b", [1, 1]], [b"a", [1, 1]]],
        [[b"a", [1, 1]], [b"a", [3, 3]]],
        [[b"", [1, 1]]],
        {},
    ],
)
def test_dots_out_of_form_are_refused(wire):
    with pytest.raises(MalformedState):
        DotSet.from_wire(wire)


def test_an_entry_without_its_dot_in_the_context_is_refused():
    # Joined elsewhere, it would be removed at once in one order and stay in the other.
    with pytest.raises(MalformedState, match="missing from the context"):
        ORSet.from_wire([[], [[b"a", 1, "x"]]])


def test_a_delta_since_tells_of_removals_that_the_other_has_not_seen():
    theirs, _ = ORSet().add(b"a", "x")
    theirs, _ = theirs.add(b"a", "y")
    mine, _ = theirs.remove("x")
    delta = mine.delta_since(theirs.summary())
    assert delta.store.entries == {}
    assert theirs.join(delta).elements() == ["y"]
    # Added and removed before the other saw either: its context must still learn of the dot.
    mine, _ = mine.add(b"b", "z")
    mine, _ = mine.remove("z")
    assert theirs.join(mine.delta_since(theirs.summary())) == theirs.join(mine)


def test_a_reused_dot_ends_alike_everywhere():
    one = DotStore({Dot(b"a", 1): ("x",)}, DotSet.of([Dot(b"a", 1)]))
    two = DotStore({Dot(b"a", 1): ("y",)}, DotSet.of([Dot(b"a", 1)]))
    assert one.join(two) == two.join(one)
    assert len(one.join(two).entries) == 1


def test_a_writer_that_lost_its_state_numbers_on_from_its_clock():
    before, _ = ORSet().add(b"a", "x", at_least=1_000)
    before, _ = before.remove("x")
    # Fresh process, no state, a later clock: the addition is news, though "x" was once removed.
    after, _ = ORSet().add(b"a", "x", at_least=2_000)
    assert before.join(after).elements() == ["x"]
    # Numbering again from the start would lose it. This is what the rule is for.
    forgetful, _ = ORSet().add(b"a", "x", at_least=1_000)
    assert before.join(forgetful).elements() == []


def test_bounds(monkeypatch):
    monkeypatch.setattr(delta, "MAX_ENTRIES", 2)
    monkeypatch.setattr(delta, "MAX_RANGES", 2)
    three = [ORSet().add(b"%d" % index, index)[0] for index in range(3)]
    two = three[0].join(three[1])
    with pytest.raises(StateTooLarge):
        two.join(three[2])
    with pytest.raises(StateTooLarge):
        DotSet.from_wire([[b"a", [1, 1, 3, 3]], [b"b", [1, 1]]])
    with pytest.raises(StateTooLarge):
        DotSet.of([Dot(b"a", 1), Dot(b"a", 3)]).union(DotSet.of([Dot(b"a", 5)]))
    with pytest.raises(StateTooLarge):
        DotSet.of([Dot(b"a", MAX_INT)]).next_dot(b"a")


def test_edits_beyond_the_bounds_are_refused(monkeypatch):
    stamp = Timestamp(1, 0, b"a")
    edits = [
        lambda: ORSet().add(b"a", "x" * 5000),
        lambda: ORSet().add(b"a", float("nan")),
        lambda: ORSet().add(b"a", 2**64),
        lambda: ORSet().add(b"a", ["list"]),
        lambda: ORSet().add(b"a", "\ud800"),
        lambda: ORSet().add(b"", "x"),
        lambda: AWMap().set(b"a", "k" * 300, 1, stamp),
        lambda: AWMap().set(b"a", 7, 1, stamp),
        lambda: LWW().set(b"x" * 5000, stamp),
        lambda: MaxRegister().raise_to(-1, ()),
        lambda: MaxRegister().raise_to(1, (1,) * 17),
        lambda: PNCounter({b"a": (MAX_INT, 0)}).add(b"a", 1),
        lambda: PNCounter.from_wire([[b"a", 0, 0]]),
    ]
    for edit in edits:
        with pytest.raises(CrdtError):
            edit()
    monkeypatch.setattr("crdt.counter.MAX_WRITERS", 1)
    with pytest.raises(StateTooLarge):
        PNCounter().add(b"a", 1)[0].add(b"b", 1)


def test_counting_nothing_is_no_change():
    counter, change = PNCounter().add(b"a", 0)
    assert counter == change == PNCounter()
