"""The run's document by the laws of a join: signed entries, caps, leases and all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt.errors import CrdtError
from crdt.record import CheckpointInfo, LinkTime, MemberInfo, Metrics, Progress
from tests.crdt.authors import NOW_MS, new_state
from tests.crdt.test_laws import JUNK, mutate

CAP = 3
"""Members kept in some of the tests, so that dropping the oldest meets every law."""
EVERYTHING = {"v": 2, "from": b"", "to": b"", "seen": []}

members = st.builds(
    MemberInfo,
    name=st.text(st.characters(codec="ascii", categories=["L"]), max_size=4),
    addresses=st.lists(st.sampled_from(["10.0.0.1:7447", "[::1]:7"]), max_size=2).map(tuple),
    role=st.sampled_from(["trainer", "observer", "relay"]),
)
reports = st.builds(
    Progress,
    round=st.integers(0, 9),
    step=st.integers(0, 99),
    loss=st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)),
    tokens=st.integers(0, 2**40),
    tokens_per_s=st.floats(0, 1e6),
)


def observer(*wires, wall_ms=NOW_MS):
    """A replica that writes nothing and has merged these, in this order."""
    state = new_state(99, lambda: wall_ms)
    for each in wires:
        if each is not None:
            state.merge(each)
    return state


def own_delta(state):
    return state.delta(state.own_names())[0]


@st.composite
def run_worlds(draw, writers=5):
    """Documents of a few writers after edits and merges, and every delta that was made."""
    walls = dict.fromkeys(range(writers), NOW_MS)
    states = [
        new_state(index, lambda index=index: walls[index], creator=new_state(0).node)
        for index in range(writers)
    ]
    deltas = []
    for _ in range(draw(st.integers(0, 14))):
        index, other = draw(st.integers(0, writers - 1)), draw(st.integers(0, writers - 1))
        here = states[index]
        if index != other:
            here.merge(states[other].to_wire())
            continue
        walls[index] = NOW_MS + draw(st.integers(-2, 5))
        action = draw(st.integers(0, 7))
        if action == 0:
            here.set_member(draw(members))
        elif action == 1:
            here.leave("done")
        elif action == 2:
            step = draw(st.integers(0, 3))
            here.set_checkpoint(
                CheckpointInfo(step, 1, draw(st.binary(min_size=32, max_size=32)), here.node)
            )
        elif action == 3:
            here.set_metrics(Metrics([("val_loss", draw(st.floats(0, 9)))]))
        elif action == 5:
            here.set_site(draw(st.sampled_from(["lab", "attic"])))
        elif action == 4:
            here.set_links([LinkTime(states[0].node, draw(st.integers(0, 9)), 1)])
        else:
            here.set_progress(draw(reports))
        deltas.append(own_delta(here))
    return states, deltas


caps = pytest.mark.parametrize("cap", [CAP, 4096])


@caps
@given(data=st.data())
def test_run_documents_join_by_the_laws(cap, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("crdt.ledger.MAX_WRITERS", cap)
        states, deltas = data.draw(run_worlds())
        a, b, c, *_ = (state.to_wire() for state in states)
        ab, bc = observer(a, b), observer(b, c)
        assert ab.digest() == observer(b, a).digest()
        assert observer(ab.to_wire(), c).digest() == observer(a, bc.to_wire()).digest()
        assert observer(a, a, b, a, b).to_wire() == ab.to_wire()
        assert observer(ab.to_wire()).to_wire() == ab.to_wire()
        assert len(ab) <= cap
        whole = observer(*(state.to_wire() for state in states))
        shuffled = data.draw(st.permutations(deltas + deltas[:3]))
        assert observer(*shuffled).to_wire() == whole.to_wire()
        assert not whole.convicted()


@given(data=st.data())
def test_joining_only_grows(data):
    states, _ = data.draw(run_worlds())
    a, b, *_ = states
    joined = observer(a.to_wire(), b.to_wire())
    for each in (a, b):
        again = observer(joined.to_wire(), each.to_wire())
        assert again.digest() == joined.digest()
        for part in each.ledger.parts():
            for key, entry in part.fields.items():
                assert joined.ledger.entry(part.writer, key).sequence >= entry.sequence


@caps
@given(data=st.data())
def test_a_run_delta_since_a_context_equals_the_full_merge(cap, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("crdt.ledger.MAX_WRITERS", cap)
        (mine, theirs, *_), _ = data.draw(run_worlds())
        full = observer(theirs.to_wire(), mine.to_wire())
        names = mine.they_lack(theirs.context())
        delta, told = mine.delta(names)
        assert told == len(names)
        assert observer(theirs.to_wire(), delta).digest() == full.digest()
        # Asking for it gives the same as being told.
        want = theirs.want(theirs.we_lack(mine.context()))
        asked, _ = mine.delta(mine.they_lack(want))
        assert observer(theirs.to_wire(), asked).digest() == full.digest()
        # Digests are equal exactly if the contents are.
        assert (mine.digest() == theirs.digest()) == (mine.to_wire() == theirs.to_wire())
        if mine.digest() == theirs.digest():
            assert names == []
            assert want["seen"] == []


@given(data=st.data())
def test_only_what_differs_is_told(data):
    (mine, theirs, *_), _ = data.draw(run_worlds())
    held = {entry.id for part in theirs.ledger.parts() for entry in part.fields.values()}
    for writer, key in mine.they_lack(theirs.context()):
        assert mine.ledger.part(writer).fields[key].id not in held


@given(data=st.data(), later_ms=st.integers(0, 2 * 24 * 3600 * 1000))
def test_collecting_before_or_after_a_join_is_the_same(data, later_ms):
    states, deltas = data.draw(run_worlds())
    wall = NOW_MS + later_ms
    early, late = new_state(99, lambda: wall), new_state(99, lambda: wall)
    for state in states:
        early.merge(state.to_wire())
        early.ledger.collect()
        late.merge(state.to_wire())
    late.ledger.collect()
    assert early.digest() == late.digest()
    before = late.to_wire()
    for delta in deltas:  # nothing collected comes back, in whatever form
        if delta is not None:
            late.merge(delta)
    assert late.to_wire() == before


@given(data=st.data())
def test_junk_changes_no_run_document(data):
    (state, other, *_), _ = data.draw(run_worlds())
    before, version, edits = state.to_wire(), state.version, state.edits
    valid = data.draw(st.sampled_from([other.to_wire(), other.context(), other.want([other.node])]))
    junk = data.draw(JUNK) if data.draw(st.booleans()) else mutate(data.draw, valid)
    for parse in (state.they_lack, state.we_lack):
        try:
            parse(junk)
        except CrdtError:
            continue
    assert state.to_wire() == before
    try:
        changed = state.merge(junk)
    except CrdtError:
        changed = False
    assert changed == (state.to_wire() != before) == (state.version != version)
    if not changed:
        assert state.edits == edits


@given(st.binary(max_size=300), st.data())
def test_bytes_of_an_entry_changed_anywhere_are_refused(noise, data):
    state = new_state(1)
    state.set_progress(Progress(1, 2, 0.5, 3, 1.0))
    (raw,) = state.to_wire()["entries"]
    at = data.draw(st.integers(0, len(raw) - 1))
    bad = raw[:at] + noise + raw[at + max(1, len(noise)) :]
    other = new_state(2)
    if bad != raw:
        with pytest.raises(CrdtError):
            other.merge({"v": 2, "entries": [bad], "evidence": []})
        assert len(other) == 0
