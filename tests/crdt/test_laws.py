"""The laws that make replicas agree, for every type through one harness.

A history edits and merges three replicas at random. From it come states that can really occur, and
all deltas that were ever made; on these every law is checked. Equal means equal on the wire.
"""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt import log
from crdt.clock import HybridClock, Timestamp
from crdt.counter import PNCounter
from crdt.delta import DotSet, Summary
from crdt.document import Document
from crdt.errors import CrdtError
from crdt.log import BoundedLog
from crdt.map import AWMap
from crdt.mvregister import MVRegister
from crdt.orset import ORSet
from crdt.owned import OwnedMap
from crdt.register import LWW, MaxRegister
from crdt.wire import canonical


@pytest.fixture(autouse=True, scope="module")
def short_logs():
    """Bounds that random histories reach."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "QUOTA", 2)
        patch.setattr(log, "CAPACITY", 4)
        yield


REPLICAS = 3
ELEMENTS = st.sampled_from(["x", "y", 1, True, 1.0, b"x"])
KEYS = st.sampled_from(["lr", "batch", ""])
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.text(max_size=3), st.binary(max_size=3)
)


@dataclass
class Kind:
    """How the harness creates, edits and parses one type."""

    name: str
    bottom: Any
    ops: st.SearchStrategy
    edit: Any  # (value, writer, stamp, op) -> (value, delta)
    parse: Any
    since: Any = None  # (mine, theirs) -> what theirs lacks, through the wire where there is one


def edit_counter(value, writer, stamp, amount):
    return value.add(writer, amount)


def edit_set(value, writer, stamp, op):
    add, element = op
    return value.add(writer, element) if add else value.remove(element)


def edit_map(value, writer, stamp, op):
    add, key, element = op
    return value.set(writer, key, element, stamp) if add else value.remove(key)


def edit_lww(value, writer, stamp, op):
    return value.set(op, stamp), LWW(stamp, op)


def edit_max(value, writer, stamp, op):
    rank, content = op
    return value.raise_to(rank, (content,)), MaxRegister(rank, (content,))


def edit_mv(value, writer, stamp, op):
    keep, content = op
    return value.set(writer, content) if keep else value.clear()


def edit_owned(value, writer, stamp, op):
    return value.set(writer, *op)


def edit_log(value, writer, stamp, text):
    return value.append(text, stamp)


SCHEMA = {
    "count": PNCounter,
    "height": MaxRegister,
    "log": BoundedLog,
    "name": LWW,
    "own": OwnedMap,
    "tags": ORSet,
}


def edit_document(value, writer, stamp, op):
    part, content = op
    edited = {
        "count": lambda v: v.add(writer, 1),
        "height": lambda v: edit_max(v, writer, stamp, (stamp.counter, content)),
        "log": lambda v: v.append(content, stamp),
        "name": lambda v: edit_lww(v, writer, stamp, content),
        "own": lambda v: v.set(writer, "k", content),
        "tags": lambda v: v.add(writer, content),
    }[part](value[part])
    return value.put(part, edited[1])


def since_plain(mine, theirs):
    return mine.delta_since(theirs.summary())


def since_summary(mine, theirs):
    return mine.delta_since(Summary.from_wire(theirs.summary().to_wire()))


KINDS = [
    Kind("lww", LWW(), SCALARS, edit_lww, LWW.from_wire),
    Kind(
        "max",
        MaxRegister(),
        st.tuples(st.integers(0, 4), SCALARS),
        edit_max,
        MaxRegister.from_wire,
    ),
    Kind(
        "counter",
        PNCounter(),
        st.integers(-9, 9),
        edit_counter,
        PNCounter.from_wire,
        lambda mine, theirs: mine.delta_since(theirs),
    ),
    Kind(
        "set",
        ORSet(),
        st.tuples(st.booleans(), ELEMENTS),
        edit_set,
        ORSet.from_wire,
        since_summary,
    ),
    Kind(
        "map",
        AWMap(),
        st.tuples(st.booleans(), KEYS, SCALARS),
        edit_map,
        AWMap.from_wire,
        since_summary,
    ),
    Kind(
        "multi-value",
        MVRegister(),
        st.tuples(st.integers(0, 3), SCALARS),
        edit_mv,
        MVRegister.from_wire,
        since_summary,
    ),
    Kind(
        "owned", OwnedMap(), st.tuples(KEYS, SCALARS), edit_owned, OwnedMap.from_wire, since_plain
    ),
    Kind("log", BoundedLog(), SCALARS, edit_log, BoundedLog.from_wire, since_plain),
    Kind(
        "document",
        Document(SCHEMA),
        st.tuples(st.sampled_from(sorted(SCHEMA)), SCALARS),
        edit_document,
        lambda wire: Document.from_wire(wire, SCHEMA),
        since_plain,
    ),
]


@dataclass
class World:
    """Three replicas after some history."""

    kind: Kind
    values: list = field(default_factory=list)
    deltas: list = field(default_factory=list)

    def __post_init__(self):
        self.values = [self.kind.bottom] * REPLICAS


@st.composite
def worlds(draw, kind):
    world = World(kind)
    # Few distinct times: clocks that stand still or step back are the interesting ones.
    walls = [0] * REPLICAS
    clocks = [
        HybridClock(b"%d" % index, lambda index=index: walls[index]) for index in range(REPLICAS)
    ]
    for _ in range(draw(st.integers(0, 12))):
        here = draw(st.integers(0, REPLICAS - 1))
        there = draw(st.sampled_from([here, 0, 1, 2]))
        if here != there:
            world.values[here] = world.values[here].join(world.values[there])
            continue
        walls[here] = draw(st.integers(0, 3))
        world.values[here], delta = kind.edit(
            world.values[here], b"%d" % here, clocks[here].now(), draw(kind.ops)
        )
        world.deltas.append(delta)
    return world


any_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def wire(value):
    return canonical(value.to_wire())


@any_kind
@given(data=st.data())
def test_join_commutes_associates_and_may_repeat(kind, data):
    a, b, c = data.draw(worlds(kind)).values
    assert wire(a.join(b)) == wire(b.join(a))
    assert wire(a.join(b).join(c)) == wire(a.join(b.join(c)))
    assert wire(a.join(a)) == wire(a)
    assert wire(kind.bottom.join(a)) == wire(a)


@any_kind
@given(data=st.data())
def test_join_and_edits_only_grow(kind, data):
    world = data.draw(worlds(kind))
    a, b, _ = world.values
    joined = a.join(b)
    assert wire(joined.join(a)) == wire(joined) == wire(joined.join(b))
    stamp = Timestamp(1, 0, b"0")
    edited, delta = kind.edit(a, b"0", stamp, data.draw(kind.ops))
    assert wire(a.join(edited)) == wire(edited)
    assert wire(a.join(delta)) == wire(edited)


@any_kind
@given(data=st.data())
def test_deltas_in_any_order_with_repeats_equal_the_join_of_replicas(kind, data):
    world = data.draw(worlds(kind))
    joined = kind.bottom
    for value in world.values:
        joined = joined.join(value)
    deltas = world.deltas + data.draw(st.lists(st.sampled_from(world.deltas or [kind.bottom])))
    from_deltas = kind.bottom
    for delta in data.draw(st.permutations(deltas)):
        from_deltas = from_deltas.join(kind.parse(delta.to_wire()))
    assert wire(from_deltas) == wire(joined)


@any_kind
@given(data=st.data())
def test_a_delta_since_a_summary_equals_the_full_merge(kind, data):
    if kind.since is None:
        return
    mine, theirs, _ = data.draw(worlds(kind)).values
    delta = kind.since(mine, theirs)
    assert wire(theirs.join(delta)) == wire(theirs.join(mine))
    # Nothing is sent to those who have it all.
    assert wire(kind.since(mine, theirs.join(mine))) == wire(kind.bottom)


@any_kind
@given(data=st.data())
def test_what_was_decoded_encodes_again_to_the_same_wire(kind, data):
    for value in data.draw(worlds(kind)).values:
        again = kind.parse(value.to_wire())
        assert wire(again) == wire(value)
        assert again == value


# --- what strangers send ---

JUNK = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(st.characters(), max_size=5),
        st.sampled_from(["\ud800", "\x1b[2J"]),
        st.binary(max_size=40),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=6),
        st.dictionaries(st.sampled_from(["v", "entries", "evidence", "from", "to", "seen"]), inner),
    ),
    max_leaves=12,
)


def mutate(draw, wire):
    """Put junk somewhere into a valid wire."""
    if isinstance(wire, list) and wire and draw(st.integers(0, 4)):
        index = draw(st.integers(0, len(wire) - 1))
        return [*wire[:index], mutate(draw, wire[index]), *wire[index + 1 :]]
    if isinstance(wire, dict) and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(wire)))
        return {**wire, key: mutate(draw, wire[key])}
    return draw(JUNK)


@any_kind
@given(data=st.data())
def test_junk_raises_the_rooms_own_error_or_is_canonical(kind, data):
    valid = data.draw(worlds(kind)).values[0].to_wire()
    junk = data.draw(JUNK) if data.draw(st.booleans()) else mutate(data.draw, valid)
    try:
        value = kind.parse(junk)
    except CrdtError:
        return
    assert canonical(value.to_wire()) == canonical(junk)
    assert wire(value.join(kind.parse(valid))) == wire(kind.parse(valid).join(value))


@given(JUNK)
def test_junk_is_no_summary_and_no_dots(junk):
    for parse in (Summary.from_wire, DotSet.from_wire, Timestamp.from_wire):
        try:
            value = parse(junk)
        except CrdtError:
            continue
        assert canonical(value.to_wire()) == canonical(junk)
