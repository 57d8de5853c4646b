"""What the laws do not say about the run's document: owners, crashes, clocks, bounds, comparisons."""

from itertools import pairwise
from pathlib import Path

import pytest

from crdt.clock import MAX_SKEW_MS
from crdt.entry import START
from crdt.errors import CrdtError, MalformedState, StateTooLarge
from crdt.record import MAX_LINKS, CheckpointInfo, LinkTime, MemberInfo, Metrics, Progress, RunInfo
from crdt.rules import LEASE_S, LEFT_LEASE_S
from crdt.state import MEETING_GAP, RESERVED
from crdt.wire import canonical
from tests.crdt.authors import DOCUMENT, HASH, NOW_MS, author, new_state
from tests.hash_seeds import same_under_two_hash_seeds

ROOT = Path(__file__).parents[2]


class Node:
    """A replica with its own wall clock."""

    def __init__(self, index, wall_ms=NOW_MS, **options):
        self.index, self.wall_ms, self.options = index, wall_ms, options
        self.name = author(index).writer
        self.restart()

    def restart(self):
        """Lose everything but the identity."""
        self.state = new_state(self.index, lambda: self.wall_ms, **self.options)

    def say(self, name="n", **fields):
        self.state.set_member(MemberInfo(name, ("10.0.0.1:7447",), **fields))

    def report(self, step, loss=1.5):
        self.state.set_progress(Progress(step // 10, step, loss, step * 100, 50.0, HASH))

    def hold(self, step, sha256=HASH):
        self.state.set_checkpoint(CheckpointInfo(step, step // 10, sha256, self.name))

    @property
    def status(self):
        return self.state.members()[self.name].status


def exchange(a, b):
    """One round of full comparison in both directions."""
    for mine, theirs in ((a.state, b.state), (b.state, a.state)):
        delta, _ = mine.delta(mine.they_lack(theirs.context()))
        if delta is not None:
            theirs.merge(delta)


def test_a_member_speaks_and_others_see_it():
    a, b = Node(1), Node(2)
    a.say("alice", role="observer", model=HASH)
    a.report(40)
    a.state.set_metrics(Metrics([("val_loss", 2.0), ("grad_norm", float("nan"))]))
    b.say("bob")
    exchange(a, b)
    for node in (a, b):
        assert set(node.state.members()) == {a.name, b.name}
        assert list(node.state.members()) == sorted(node.state.members())
        assert node.state.members()[a.name].role == "observer"
        assert node.state.members()[a.name].model == HASH
        assert node.state.progress() == {a.name: Progress(4, 40, 1.5, 4000, 50.0, HASH)}
        assert node.state.metrics() == {a.name: Metrics([("val_loss", 2.0)])}
    assert a.state.digest() == b.state.digest()


def test_links_are_told_ascending_and_of_too_many_the_slowest():
    a, b = Node(1), Node(2)
    many = [LinkTime(bytes([number]) * 32, number % 60, 3) for number in range(60)]
    a.state.set_links(reversed(many))
    exchange(a, b)
    (told,) = b.state.links().values()
    assert list(told) == many[60 - MAX_LINKS :]


def test_leaving_before_joining_says_nothing():
    a = Node(1)
    a.state.leave("why")
    assert a.state.edits == 0


def test_a_reason_is_cut_down_rather_than_refused():
    a = Node(1)
    a.say()
    a.state.leave("a\nb\x1b[2J" + "x" * 1000)
    member = a.state.members()[a.name]
    assert (member.status, member.reason[:3], len(member.reason)) == ("left", "a b", 256)
    assert a.state.ledger.entry(a.name, "member").lease_s == LEFT_LEASE_S


def test_saying_the_same_again_is_no_change():
    a = Node(1)
    a.say()
    a.report(1)
    version, edits = a.state.version, a.state.edits
    a.say()
    a.report(1)
    assert (a.state.version, a.state.edits) == (version, edits)


def test_own_entries_are_numbered_and_linked():
    a = Node(1)
    a.say()
    first = a.state.ledger.entry(a.name, "member")
    a.report(1)
    second = a.state.ledger.entry(a.name, "progress")
    assert (first.sequence, first.previous) == (NOW_MS, START)
    assert (second.sequence, second.previous) == (NOW_MS + 1, first.id)
    assert a.state.own_names(above=NOW_MS) == [(a.name, "progress")]


def test_the_index_has_the_newest_checkpoints_of_each_and_the_highest_is_known():
    a, b = Node(1), Node(2)
    for step in (10, 50, 20, 40, 30, 60):
        a.hold(step)
    b.hold(60, bytes(32))
    exchange(a, b)
    assert [each.step for each in b.state.checkpoints()[a.name]] == [60, 50, 40, 30]
    assert [each.holder for each in b.state.checkpoints()[b.name]] == [b.name]
    # One step with two contents: everybody picks the same.
    assert a.state.checkpoint() == b.state.checkpoint() == CheckpointInfo(60, 6, HASH, a.name)
    assert Node(3).state.checkpoint() is None


def test_the_creator_registers_and_revokes():
    creator = author(1).writer
    a, b = Node(1, creator=creator), Node(2, creator=creator)
    run = RunInfo("demo", DOCUMENT, "byte-gpt", "diloco", {"every": 32, "quorum": "any"}.items())
    a.state.register_run(run)
    a.state.revoke(b.name, "stolen key")
    a.wall_ms += 5
    a.state.revoke(b.name, "again")
    a.state.revoke(HASH)
    exchange(a, b)
    assert b.state.run() == run
    revoked = b.state.revoked()
    assert revoked[b.name].reason == "stolen key"
    assert (revoked[b.name].since_ms, revoked[HASH].since_ms) == (NOW_MS, NOW_MS + 5)


def test_a_killed_node_is_active_again_and_outranks_its_former_self():
    a, b = Node(1), Node(2)
    a.say()
    a.state.leave("stopped")
    exchange(a, b)
    a.wall_ms += 1000
    a.restart()
    a.say()
    exchange(a, b)
    assert a.status == "active"
    assert b.state.members()[a.name].status == "active"
    assert not b.state.convicted()


def test_a_restarted_node_that_says_nothing_yet_adopts_its_former_word():
    a, b = Node(1), Node(2)
    a.report(40)
    a.say("former")
    exchange(a, b)
    a.wall_ms += 1000
    a.restart()
    a.say("fresh")
    exchange(b, a)
    assert a.state.progress()[a.name].step == 40
    assert a.state.members()[a.name].name == "fresh"
    exchange(a, b)
    assert a.state.digest() == b.state.digest()
    # It keeps up what it adopted.
    a.wall_ms += LEASE_S * 600
    a.state.tend()
    assert a.state.ledger.entry(a.name, "progress").stamp.physical_ms == a.wall_ms


@pytest.mark.parametrize("back_ms", [1, 500, 20_000])
def test_after_a_clock_set_back_the_living_process_wins(back_ms):
    a, b = Node(1), Node(2)
    for step in range(20):
        a.report(step)
    a.say("former")
    exchange(a, b)
    former = b.state.ledger.entry(a.name, "member").sequence
    a.wall_ms -= back_ms + 100
    a.restart()
    a.say("fresh")
    exchange(b, a)
    exchange(a, b)
    assert b.state.members()[a.name].name == "fresh"
    assert b.state.ledger.entry(a.name, "member").sequence == former + MEETING_GAP
    assert not b.state.convicted()
    assert a.state.digest() == b.state.digest()


def test_numbers_are_reserved_before_they_are_used():
    told = []
    a = Node(1, reserve=told.append)
    a.say()
    assert told == [NOW_MS + RESERVED]
    for step in range(RESERVED + 5):
        a.report(step)
        assert a.state.sequence <= told[-1]
    assert len(told) == 2
    a.wall_ms -= 5_000  # set back, below what has been used: the reservation holds
    a.options["start"] = told[-1] + 1
    a.restart()
    a.say("fresh")
    assert a.state.sequence == told[1] + 1


def test_leases_are_renewed_at_half_and_those_who_left_are_let_go():
    a, b = Node(1), Node(2)
    a.say()
    a.report(1)
    a.state.tend()
    assert a.state.edits == 2
    a.wall_ms += LEASE_S * 500
    a.state.tend()
    a.state.tend()
    assert a.state.edits == 4
    a.state.leave("bye")
    b.wall_ms = a.wall_ms
    exchange(a, b)
    a.wall_ms = b.wall_ms = a.wall_ms + LEFT_LEASE_S * 1000
    for node in (a, b):
        node.state.tend()
        assert node.state.members() == {}
        assert list(node.state.progress()) == [a.name]
    assert a.state.digest() == b.state.digest()


def test_a_fast_clock_does_not_make_honest_members_unacceptable():
    fast, middle, slow = Node(1, NOW_MS + 50_000), Node(2), Node(3, NOW_MS - 30_000)
    fast.say()
    exchange(fast, middle)
    middle.say()  # its timestamp follows the fast clock, its sequence does not
    exchange(middle, slow)
    assert middle.name in slow.state.members()
    assert list(slow.state.ahead) == [fast.name]


def test_the_list_of_fast_clocks_is_bounded():
    slow = Node(0)
    for index in range(1, 100):
        fast = Node(index, NOW_MS + MAX_SKEW_MS + 1 + index)
        fast.say()
        with pytest.raises(CrdtError):
            slow.state.merge(fast.state.to_wire())
    assert len(slow.state.ahead) == 64


def test_the_members_silent_for_longest_make_room(monkeypatch):
    monkeypatch.setattr("crdt.ledger.MAX_WRITERS", 3)
    a = Node(0)
    nodes = [Node(index, NOW_MS + index) for index in range(1, 6)]
    for node in nodes:
        node.say()
        a.state.merge(node.state.to_wire())
    assert set(a.state.members()) == {node.name for node in nodes[2:]}
    assert not a.state.merge(nodes[0].state.to_wire())


@pytest.mark.parametrize(
    "build",
    [
        lambda: MemberInfo("x" * 65, ()),
        lambda: MemberInfo("a\nb", ()),
        lambda: MemberInfo("a", ("x:1",) * 17),
        lambda: MemberInfo("a", (), role="king"),
        lambda: Progress(-1, 0, None, 0, 0.0),
        lambda: Progress(0, 2**63, None, 0, 0.0),
        lambda: CheckpointInfo(0, 0, b"short", b"a"),
        lambda: LinkTime(b"", 1, 1),
        lambda: LinkTime(HASH, -1, 1),
        lambda: Metrics([(f"m{n}", 1.0) for n in range(17)]),
        lambda: RunInfo("n", b"", "t", "p"),
        lambda: RunInfo("n", HASH, "t", "p", {f"s{n}": 1 for n in range(49)}.items()),
    ],
)
def test_values_out_of_bounds_cannot_be_made(build):
    with pytest.raises(CrdtError):
        build()


def test_a_diverged_run_can_still_report():
    assert Progress(0, 0, float("nan"), 0, float("inf")).to_wire()[2:5] == [None, 0, 0.0]


GOOD_ROW = [b"w" * 32, b"m" * 8, "member", 5]


@pytest.mark.parametrize(
    "wire",
    [
        {"v": 2},
        {"v": 1, "seen": []},
        {"v": 2, "seen": [GOOD_ROW, GOOD_ROW]},
        {"v": 2, "seen": [GOOD_ROW[:1]]},
        {"v": 2, "seen": [GOOD_ROW[:3]]},
        {"v": 2, "seen": [[*GOOD_ROW, "a", 5]]},
        {"v": 2, "seen": [[*GOOD_ROW, 7, 5]]},
        {"v": 2, "seen": [[*GOOD_ROW[:3], 0]]},
        {"v": 2, "seen": [[b"w" * 31, *GOOD_ROW[1:]]]},
        {"v": 2, "seen": [[b"w" * 32, b"m" * 7]]},
        {"v": 2, "seen": [[*GOOD_ROW[:2], *(x for n in range(17) for x in (f"x/{n:02}", 5))]]},
        {"v": 2, "from": b"x", "to": b"", "seen": [GOOD_ROW]},
        {"v": 2, "from": b"a", "to": b"b", "seen": [GOOD_ROW]},
        {"v": 2, "from": b"x" * 33, "to": b"", "seen": []},
    ],
)
def test_malformed_contexts_and_wants_are_refused(wire):
    state = Node(1).state
    for read in (state.they_lack, state.we_lack):
        with pytest.raises((MalformedState, StateTooLarge)):
            read(wire)


def test_nothing_is_asked_for_that_would_be_left_out():
    a = Node(1)
    seen = [[b"w" * 32, b"m" * 8, "member", NOW_MS + MAX_SKEW_MS + 1]]
    assert a.state.we_lack({"v": 2, "seen": seen}) == []
    assert a.state.we_lack({"v": 2, "seen": [GOOD_ROW]}) == [b"w" * 32]


def crowd(count):
    hub = Node(0)
    for index in range(1, count + 1):
        node = Node(index)
        node.say()
        hub.state.merge(node.state.to_wire())
    return hub


@pytest.mark.parametrize("size", [1, 3, 7, 8, 100])
def test_ranges_cover_every_writer_once(size):
    ledger = crowd(8).state.ledger
    ranges = ledger.ranges(size)
    assert ranges[0][0] == ranges[-1][1] == b""
    assert all(one[1] == two[0] for one, two in pairwise(ranges))
    counts = [len(list(ledger.parts(*each))) for each in ranges]
    assert sum(counts) == 8
    assert max(counts) <= size


def test_ranges_tell_where_two_documents_differ():
    one, two = crowd(8).state, crowd(8).state
    changed = Node(3)
    changed.wall_ms += 1
    changed.say("changed")
    two.merge(changed.state.to_wire())
    differing = [
        each
        for each in one.ledger.ranges(2)
        if one.ledger.range_digest(*each) != two.ledger.range_digest(*each)
    ]
    assert len(differing) == 1
    assert two.they_lack(one.context(*differing[0])) == [(changed.name, "member")]


def test_a_large_delta_is_told_in_pieces():
    hub, other = crowd(30).state, Node(99).state
    names = hub.they_lack(other.context())
    pieces = 0
    while names:
        delta, told = hub.delta(names, max_bytes=1500)
        assert sum(map(len, delta["entries"])) <= 1500
        other.merge(delta)
        names = names[told:]
        pieces += 1
    assert pieces > 3
    assert other.digest() == hub.digest()
    assert hub.delta([(b"u" * 32, "member")]) == (None, 1)


DIGEST = """
from tests.crdt.test_state import crowd
print(crowd(5).state.digest().hex())
"""


def test_the_digest_depends_on_the_content_alone():
    assert same_under_two_hash_seeds("-c", DIGEST).strip() == crowd(5).state.digest().hex()


def test_golden_wire():
    a = Node(1)
    a.say("alice")
    context = a.state.context()
    part = a.state.ledger.part(a.name)
    assert canonical(context) == canonical(
        {"v": 2, "from": b"", "to": b"", "seen": [[a.name, part.digest[:8], "member", NOW_MS]]}
    )
    (raw,) = a.state.to_wire()["entries"]
    assert raw[88:-64] == b"member" + bytes.fromhex(
        "96a5616c69636591ad31302e302e302e313a37343437a7747261696e6572a6616374697665c400a0"
    )
