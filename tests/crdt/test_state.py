"""What the laws do not say about the run's document: owners, crashes, clocks, bounds."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from crdt import state as state_module
from crdt.clock import MAX_SKEW_MS, HybridClock
from crdt.errors import ClockSkew, CrdtError, MalformedState, StateTooLarge
from crdt.record import MAX_RECORD_BYTES, CheckpointInfo, MemberInfo, Progress
from crdt.state import RunState, split_delta
from crdt.wire import canonical

ROOT = Path(__file__).parents[2]
NOW_MS = 1_700_000_000_000
HASH = bytes(range(32))


class Node:
    """A replica with its own wall clock."""

    def __init__(self, name, wall_ms=NOW_MS):
        self.name, self.wall_ms = name, wall_ms
        self.restart()

    def restart(self):
        """Lose everything but the identity."""
        self.state = RunState(self.name, HybridClock(self.name, lambda: self.wall_ms))

    def say(self, name="n", **fields):
        self.state.set_member(MemberInfo(name, ("10.0.0.1:7447",), **fields))

    def report(self, step, loss=1.5):
        self.state.set_progress(Progress(step // 10, step, loss, step * 100, 50.0, HASH))


def exchange(a, b):
    """One round of full comparison in both directions."""
    for mine, theirs in ((a.state, b.state), (b.state, a.state)):
        delta = mine.delta_since(theirs.context())
        if delta is not None:
            theirs.merge(delta)


def test_a_member_speaks_and_others_see_it():
    a, b = Node(b"a"), Node(b"b")
    a.say("alice", role="observer", model=HASH)
    a.report(40)
    b.say("bob")
    exchange(a, b)
    for node in (a, b):
        assert list(node.state.members()) == [b"a", b"b"]
        assert node.state.members()[b"a"].role == "observer"
        assert node.state.members()[b"a"].model == HASH
        assert node.state.progress() == {b"a": Progress(4, 40, 1.5, 4000, 50.0, HASH)}
    assert a.state.digest() == b.state.digest()
    assert len(a.state) == 2
    a.state.leave("stopped by the operator")
    exchange(a, b)
    left = b.state.members()[b"a"]
    assert (left.status, left.reason, left.name) == ("left", "stopped by the operator", "alice")
    assert b.state.progress()[b"a"].step == 40


def test_leaving_before_joining_says_nothing():
    node = Node(b"a")
    node.state.leave("x")
    assert node.state.members() == {}
    assert node.state.take_delta() is None


def test_a_reason_is_cut_down_rather_than_refused():
    node = Node(b"a")
    node.say()
    node.state.leave("boom\x1b[31m\n" + "x" * 1000)
    reason = node.state.members()[b"a"].reason
    assert len(reason) == 256
    assert reason.startswith("boom [31m x")


def test_saying_the_same_again_is_no_change():
    node = Node(b"a")
    node.say()
    node.report(1)
    version, edits = node.state.version, node.state.edits
    node.say()
    node.report(1)
    assert (node.state.version, node.state.edits) == (version, edits)


def test_take_delta_gives_own_changes_once():
    a, b = Node(b"a"), Node(b"b")
    assert a.state.take_delta() is None
    assert a.state.own_delta() is None
    b.say()
    a.state.merge(b.state.take_delta())
    assert a.state.take_delta() is None  # merged from elsewhere is not an own change
    a.say()
    delta = a.state.take_delta()
    assert [record[0] for record in delta["records"]] == [b"a"]
    assert a.state.take_delta() is None
    a.state.set_checkpoint(CheckpointInfo(5, 1, HASH, b"a"))
    assert a.state.take_delta()["checkpoint"] == [5, [1, HASH, b"a"]]


def test_the_highest_checkpoint_stays():
    a, b = Node(b"a"), Node(b"b")
    assert a.state.checkpoint() is None
    a.state.set_checkpoint(CheckpointInfo(320, 4, HASH, b"a"))
    b.state.set_checkpoint(CheckpointInfo(640, 8, HASH, b"b"))
    exchange(a, b)
    assert a.state.checkpoint() == b.state.checkpoint() == CheckpointInfo(640, 8, HASH, b"b")
    edits = a.state.edits
    a.state.set_checkpoint(CheckpointInfo(100, 1, HASH, b"a"))
    assert a.state.checkpoint().step == 640
    assert a.state.edits == edits
    assert a.state.digest() == b.state.digest()


# --- crashes and clocks ---


def test_a_killed_node_is_active_again_and_outranks_its_former_self():
    a, b = Node(b"a"), Node(b"b")
    a.say("alice")
    a.state.leave("gone")
    exchange(a, b)
    a.wall_ms += 1
    a.restart()
    a.say("alice")
    exchange(a, b)
    assert b.state.members()[b"a"].status == "active"
    assert a.state.digest() == b.state.digest()


def test_a_restarted_node_that_says_nothing_yet_adopts_its_former_word():
    a, b = Node(b"a"), Node(b"b")
    a.say("alice")
    a.report(70)
    exchange(a, b)
    a.restart()
    exchange(a, b)
    assert a.state.progress()[b"a"].step == 70
    assert a.state.take_delta() is None
    a.wall_ms -= 5_000
    a.say("alice", role="observer")
    exchange(a, b)
    # It kept its progress, and its sequence went on although the clock had been set back.
    assert b.state.members()[b"a"].role == "observer"
    assert b.state.progress()[b"a"].step == 70


@pytest.mark.parametrize("back_ms", [0, 1, 50_000])
def test_after_a_clock_set_back_the_living_process_wins(back_ms):
    a, b = Node(b"a"), Node(b"b")
    a.say("old")
    a.report(10)
    exchange(a, b)
    a.wall_ms -= back_ms
    a.restart()
    a.say("new")
    exchange(a, b)  # meets its former self, continues above it
    assert a.state.take_delta() is not None  # which is an own change, to be pushed
    exchange(a, b)
    for node in (a, b):
        assert node.state.members()[b"a"].name == "new"
        assert node.state.progress()[b"a"].step == 10
    assert a.state.digest() == b.state.digest()


def test_a_clock_set_back_by_hours_is_noticed_and_heals_with_the_clock():
    a, b = Node(b"a"), Node(b"b")
    a.say("old")
    b.say()
    exchange(a, b)
    a.wall_ms -= 3_600_000
    a.restart()
    a.say("new")
    with pytest.raises(ClockSkew):  # everybody seems to live in the future, its former self too
        a.state.merge(b.state.to_wire())
    assert sorted(a.state.ahead) == [b"a", b"b"]
    a.wall_ms = NOW_MS
    exchange(a, b)
    exchange(a, b)
    assert b.state.members()[b"a"].name == "new"
    assert a.state.digest() == b.state.digest()


def test_two_halves_that_fit_only_apart_do_not_break_the_merge():
    a = Node(b"a")
    addresses = tuple(f"{index:0>230}:1" for index in range(16))
    former = RunState(b"a", HybridClock(b"a", lambda: NOW_MS + 5))
    former.set_progress(Progress(1, 2, 3.0, 2**62, 5.0, HASH))
    free = MAX_RECORD_BYTES
    while True:  # the largest member that fits alone
        try:
            a.state.set_member(MemberInfo("n", addresses, reason="r" * (free % 257)))
            break
        except StateTooLarge:
            free -= 1
            addresses = (addresses[0][1:], *addresses[1:])
    said = a.state.members()[b"a"]
    assert a.state.merge(former.to_wire())
    assert a.state.members()[b"a"] == said
    assert a.state.progress() == {}


def test_a_record_from_the_future_is_left_out_alone():
    a, b, c = Node(b"a"), Node(b"b", NOW_MS + MAX_SKEW_MS + 1), Node(b"c")
    b.say("fast")
    c.say("right")
    b.state.merge(c.state.to_wire())
    assert a.state.merge(b.state.to_wire())
    assert list(a.state.members()) == [b"c"]
    assert dict(a.state.ahead) == {b"b": MAX_SKEW_MS + 1}
    before = a.state.digest()
    with pytest.raises(ClockSkew) as caught:
        a.state.merge(b.state.to_wire())
    assert caught.value.ahead_ms == MAX_SKEW_MS + 1
    assert a.state.digest() == before
    assert a.state.want_since(b.state.context()) is None  # not asked for in vain either
    a.wall_ms += 1
    exchange(a, b)
    assert a.state.members()[b"b"].name == "fast"
    assert dict(a.state.ahead) == {}
    assert a.state.digest() == b.state.digest()


def test_a_fast_clock_does_not_make_honest_members_unacceptable():
    # b runs 59 s ahead; a learns b's time; c is 2 s behind a and must still accept a.
    a, b, c = Node(b"a"), Node(b"b", NOW_MS + 59_000), Node(b"c", NOW_MS - 2_000)
    b.say()
    a.state.merge(b.state.to_wire())
    a.say("honest")
    assert a.state.members()[b"a"].name == "honest"
    assert c.state.merge(a.state.own_delta())
    assert c.state.members()[b"a"].name == "honest"


def test_the_list_of_fast_clocks_is_bounded():
    a = Node(b"a")
    for index in range(100):
        b = Node(b"%03d" % index, NOW_MS * 2)
        b.say()
        with pytest.raises(ClockSkew):
            a.state.merge(b.state.to_wire())
    assert len(a.state.ahead) == state_module.MAX_AHEAD


def test_one_sequence_for_two_contents_still_ends_alike():
    one, two, b, c = Node(b"a"), Node(b"a"), Node(b"b"), Node(b"c")
    one.say("one")
    two.say("two")
    b.state.merge(one.state.to_wire())
    c.state.merge(two.state.to_wire())
    # Either side alone would notice, by telling or by asking.
    want = b.state.want_since(c.state.context())
    assert want == c.state.want_since(b.state.context())
    assert want == {"v": 1, "writers": [b"a"], "checkpoint": False}
    exchange(b, c)
    assert b.state.digest() == c.state.digest()


def test_one_step_with_two_checkpoints_is_noticed_too():
    b, c = Node(b"b"), Node(b"c")
    b.state.set_checkpoint(CheckpointInfo(5, 1, HASH, b"b"))
    c.state.set_checkpoint(CheckpointInfo(5, 1, HASH, b"c"))
    want = b.state.want_since(c.state.context())
    assert want == c.state.want_since(b.state.context())
    assert want == {"v": 1, "writers": [], "checkpoint": True}
    exchange(b, c)
    assert b.state.digest() == c.state.digest()


# --- bounds ---


def test_the_members_silent_for_longest_make_room(monkeypatch):
    monkeypatch.setattr(state_module, "MAX_MEMBERS", 3)
    hub = Node(b"hub", NOW_MS + 100)
    wires = []
    for index in range(6):
        node = Node(b"%d" % index, NOW_MS + index)
        node.say()
        wires.append(node.state.to_wire())
    for wire in wires:
        hub.state.merge(wire)
    assert list(hub.state.members()) == [b"3", b"4", b"5"]
    assert not hub.state.merge(wires[0])
    hub.say()
    assert list(hub.state.members()) == [b"4", b"5", b"hub"]


@pytest.mark.parametrize(
    "build",
    [
        lambda: MemberInfo("x" * 65, ()),
        lambda: MemberInfo("x", ("a:1",) * 17),
        lambda: MemberInfo("x", ("a" * 265,)),
        lambda: MemberInfo("x", ("",)),
        lambda: MemberInfo("x\n", ()),
        lambda: MemberInfo("x", (), role="king"),
        lambda: MemberInfo("x", (), status="asleep"),
        lambda: MemberInfo("x", (), model=b"short"),
        lambda: Progress(-1, 0, None, 0, 0.0),
        lambda: Progress(2**63, 0, None, 0, 0.0),
        lambda: Progress(True, 0, None, 0, 0.0),
        lambda: Progress(0, 0, "low", 0, 0.0),
        lambda: CheckpointInfo(1, 1, b"", b"a"),
        lambda: CheckpointInfo(1, 1, HASH, b""),
        lambda: RunState(b"", HybridClock(b"x", lambda: 0)),
        lambda: RunState(b"x" * 33, HybridClock(b"x", lambda: 0)),
    ],
)
def test_values_out_of_bounds_cannot_be_made(build):
    with pytest.raises(CrdtError):
        build()


def test_a_diverged_run_can_still_report():
    report = Progress(1, 2, float("nan"), 3, float("inf"))
    assert (report.loss, report.tokens_per_s) == (None, 0.0)
    assert type(Progress(1, 2, 3, 4, 5).loss) is float


def test_a_record_too_large_is_refused_and_nothing_changes():
    node = Node(b"a")
    node.say()
    digest = node.state.digest()
    with pytest.raises(StateTooLarge) as caught:
        node.state.set_member(MemberInfo("x", tuple("é" * 250 + f":{n}" for n in range(16))))
    assert "addresses" in caught.value.hint
    assert node.state.digest() == digest


def spoil(wire, index, value):
    record = list(wire["records"][0])
    record[index] = value
    return {**wire, "records": [record]}


def test_malformed_wires_are_refused_whole():
    a, b = Node(b"a"), Node(b"b")
    b.say()
    b.report(5)
    b.state.set_checkpoint(CheckpointInfo(5, 1, HASH, b"b"))
    good = b.state.to_wire()
    other = Node(b"c")
    other.say()
    record, second = good["records"][0], other.state.to_wire()["records"][0]
    bad = [
        None,
        {},
        {**good, "v": 2},
        {**good, "records": None},
        {**good, "records": [second, record]},
        {**good, "records": [record, record]},
        {**good, "records": [record, second[:-1]]},
        {**good, "checkpoint": [5, [1, b"short", b"b"]]},
        {**good, "checkpoint": [5, ["1", HASH, b"b"]]},
        {**good, "checkpoint": [5]},
        spoil(good, 0, b""),
        spoil(good, 0, b"x" * 33),
        spoil(good, 1, 0),
        spoil(good, 1, 2**64),
        spoil(good, 2, -1),
        spoil(good, 4, ["n", ["a"] * 17, "trainer", "active", b"", ""]),
        spoil(good, 5, [0, 0, 1, 0, 0.0, b""]),  # an int where a float belongs
        spoil(good, 5, [0, 0, float("nan"), 0, 0.0, b""]),
        spoil(good, 5, [0, 0, None, 0, float("inf"), b""]),
    ]
    for wire in bad:
        with pytest.raises(CrdtError):
            a.state.merge(wire)
        assert len(a.state) == 0
        assert a.state.checkpoint() is None
        assert a.state.version == 0
    assert a.state.merge({**good, "later": "ignored"})
    assert not a.state.merge(good)


def test_malformed_contexts_and_wants_are_refused():
    node = Node(b"a")
    node.say()
    good = node.state.context()
    entry = good["seen"][0]
    for bad in [
        {**good, "seen": [entry, entry]},
        {**good, "seen": [[b"a", 0, entry[2]]]},
        {**good, "seen": [[b"a", 1, b"short"]]},
        {**good, "from": b"b"},
        {**good, "to": b"a"},
        {**good, "checkpoint": [1]},
        {**good, "checkpoint": [1, b"short"]},
    ]:
        for parse in (node.state.delta_since, node.state.want_since):
            with pytest.raises(MalformedState):
                parse(bad)
    for bad in [
        {"v": 1, "writers": [b"b", b"a"], "checkpoint": False},
        {"v": 1, "writers": []},
        {"v": 1, "writers": [], "checkpoint": 1},
    ]:
        with pytest.raises(MalformedState):
            node.state.delta_for(bad)
    assert node.state.delta_for({"v": 1, "writers": [b"zz"], "checkpoint": True}) is None


# --- pieces ---


def crowd(count, observer=b"observer"):
    hub = Node(observer)
    for index in range(count):
        node = Node(b"%04d" % index)
        node.say(f"node {index}")
        hub.state.merge(node.state.to_wire())
    return hub


def test_ranges_cover_every_writer_once():
    hub = crowd(10)
    for size in (1, 3, 10, 11):
        ranges = hub.state.ranges(size)
        assert ranges[0][0] == ranges[-1][1] == b""
        assert all(low[1] == high[0] for low, high in pairwise(ranges))
        seen = [row[0] for low, high in ranges for row in hub.state.context(low, high)["seen"]]
        assert seen == list(hub.state.members())
        assert all(len(hub.state.context(*each)["seen"]) <= size for each in ranges)
    assert Node(b"x").state.ranges(5) == [(b"", b"")]


def test_ranges_tell_where_two_documents_differ():
    one, two = crowd(20), crowd(20)
    node = Node(b"0007", NOW_MS + 1)
    node.say("changed")
    two.state.merge(node.state.to_wire())
    ranges = one.state.ranges(4)
    differ = [r for r in ranges if one.state.range_digest(*r) != two.state.range_digest(*r)]
    assert differ == [(b"0004", b"0008")]
    delta = two.state.delta_since(one.state.context(*differ[0]))
    assert [record[0] for record in delta["records"]] == [b"0007"]
    one.state.merge(delta)
    assert one.state.digest() == two.state.digest()


def test_a_large_delta_is_cut_into_pieces_that_merge_on_their_own():
    hub = crowd(50)
    hub.state.set_checkpoint(CheckpointInfo(5, 1, HASH, b"b"))
    whole = hub.state.to_wire()
    for max_bytes, max_records in ((5000, 1000), (10**6, 7)):
        pieces = split_delta(whole, max_bytes=max_bytes, max_records=max_records)
        assert len(pieces) > 1
        assert all(len(canonical(piece)) <= max_bytes for piece in pieces)
        assert all(len(piece["records"]) <= max_records for piece in pieces)
        other = Node(b"other")
        for piece in reversed(pieces):
            other.state.merge(piece)
        assert other.state.to_wire() == whole
    only_checkpoint = {"v": 1, "records": [], "checkpoint": whole["checkpoint"]}
    assert split_delta(only_checkpoint, max_bytes=5000, max_records=1) == [only_checkpoint]


def test_a_document_is_rebuilt_from_its_wire():
    hub = crowd(5)
    hub.say()
    again = RunState.from_wire(
        hub.state.to_wire(), node=hub.name, clock=HybridClock(hub.name, lambda: NOW_MS - 9)
    )
    assert again.digest() == hub.state.digest()
    again.set_progress(Progress(1, 1, None, 1, 1.0))  # continues above its own sequence
    assert hub.state.merge(again.own_delta())


# --- determinism ---

SCRIPT = """
from tests.crdt.test_state import crowd, Node, CheckpointInfo, HASH
hub = crowd(40)
hub.report(7)
hub.state.set_checkpoint(CheckpointInfo(5, 1, HASH, b"b"))
print(hub.state.digest().hex(), hub.state.range_digest(b"0003", b"0011").hex())
"""

GOLDEN = "643bf174232a584d211c90bec0d0a960270da4b72feef30dc9775edfb5c4a1b3"


def test_the_digest_depends_on_the_content_alone():
    outputs = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_golden_wire():
    # Digests are compared between releases: a change here needs a new version number.
    a = Node(b"a")
    a.say("alice")
    a.report(10)
    assert a.state.to_wire() == {
        "v": 1,
        "records": [
            [
                b"a",
                NOW_MS + 1,
                NOW_MS,
                1,
                ["alice", ["10.0.0.1:7447"], "trainer", "active", b"", ""],
                [1, 10, 1.5, 1000, 50.0, HASH],
            ]
        ],
        "checkpoint": [],
    }
    assert a.state.digest().hex() == GOLDEN
