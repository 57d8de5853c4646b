"""Two replicas by direct calls, then many over links that lose, repeat, reorder and part."""

import hashlib
import heapq
import itertools
import math
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt.entry import parse
from crdt.record import CheckpointInfo, MemberInfo, Progress
from gossip import antientropy
from gossip.antientropy import FANOUT, PUSH_GAP_S, RUMOUR_ENTRIES, AntiEntropy, RefusedUpdate
from tests.crdt.authors import DOCUMENT, HASH, NOW_MS, author, new_state
from tests.hash_seeds import same_under_two_hash_seeds
from transport.codec import MAX_MESSAGE_BYTES, pack, unpack_untrusted

ROOT = Path(__file__).parents[2]


def name_of(index):
    return author(index).writer


observers = itertools.count(10_000)


def crowd(count, first=1):
    """A document with that many members, held by somebody who is none of them."""
    hub = new_state(next(observers))
    for index in range(first, first + count):
        state = new_state(index)
        state.set_member(MemberInfo(f"node {index}", ("10.0.0.1:7447", "[2001:db8::1]:7447")))
        hub.merge(state.to_wire())
    return hub


class Pair:
    """Two conversations joined by a wire that counts; messages cross as bytes."""

    def __init__(self, left, right):
        self.states = (left, right)
        self.sides = [
            AntiEntropy(state, interval_s=2.0, rng=random.Random(seed), now=0.0)
            for seed, state in enumerate(self.states)
        ]
        self.kinds = []
        self.bytes = 0

    def run(self, now, who=(0, 1)):
        """Tick both (or some), then deliver until nobody has anything to say."""
        for side in who:
            self.sides[side].tick(now)
        for _ in range(1000):
            quiet = True
            for here, there in ((0, 1), (1, 0)):
                for message in self.sides[here].outgoing():
                    quiet = False
                    data = pack(message)
                    assert len(data) <= MAX_MESSAGE_BYTES
                    self.bytes += len(data)
                    self.kinds.append(message["t"])
                    self.sides[there].receive(unpack_untrusted(data), now)
            if quiet:
                return
        raise AssertionError("the conversation does not end")

    @property
    def equal(self):
        return self.states[0].digest() == self.states[1].digest()


def test_two_that_agree_exchange_digests_only():
    pair = Pair(crowd(5), crowd(5))
    pair.run(0.0)
    assert pair.kinds == ["digest", "digest"]
    pair.kinds.clear()
    for tenth in range(1, 401):
        pair.run(tenth / 10)
    assert set(pair.kinds) == {"digest"}
    # One comparison spares the other side its own: about one per interval, not two.
    assert 15 <= len(pair.kinds) <= 27


@pytest.mark.parametrize(
    ("left", "right"), [(0, 1), (0, 32), (3, 32), (0, 33), (32, 33), (0, 700), (699, 700)]
)
def test_two_that_differ_are_equal_after_one_comparison(left, right):
    for sizes in ((left, right), (right, left)):
        pair = Pair(*(crowd(size) for size in sizes))
        pair.run(0.0)
        assert pair.equal
        assert len(pair.states[0]) == right


@pytest.mark.parametrize("size", [5, 200])
@pytest.mark.parametrize("asks", [0, 1])
def test_one_comparison_from_one_side_finds_what_either_lacks(size, asks):
    pair = Pair(crowd(size), crowd(size))
    pair.run(0.0)
    for side, first in ((0, 1000), (1, 2000)):
        pair.states[side].merge(crowd(5, first=first).to_wire())
    pair.run(pair.sides[asks].next_deadline(), who=(asks,))
    assert pair.equal
    assert len(pair.states[0]) == size + 10


def test_both_directions_at_once():
    pair = Pair(crowd(300), crowd(300, first=200))
    pair.run(0.0)
    assert pair.equal
    assert len(pair.states[0]) == 499


@pytest.mark.parametrize("size", [3, 100])
def test_a_checkpoint_alone_is_found_too(size):
    for holder in (0, 1):
        pair = Pair(crowd(size), crowd(size))
        pair.run(0.0)  # from here on no push of own edits carries it
        other = new_state(1, lambda: NOW_MS + 1)
        other.set_checkpoint(CheckpointInfo(320, 4, HASH, name_of(1)))
        pair.states[holder].merge(other.to_wire())
        pair.run(10.0, who=(0,))
        assert pair.equal
        assert pair.states[1 - holder].checkpoint() == CheckpointInfo(320, 4, HASH, name_of(1))


def test_one_difference_among_many_costs_little():
    left, right = crowd(1000), crowd(1000)
    changed = new_state(500, lambda: NOW_MS + 1)
    changed.set_member(MemberInfo("changed", ()))
    right.merge(changed.to_wire())
    pair = Pair(left, right)
    pair.run(0.0)
    assert pair.equal
    whole = len(b"".join(left.to_wire()["entries"]))
    assert pair.bytes < whole / 8


def test_large_documents_travel_in_pieces():
    big = new_state()
    for index in range(1, 60):
        state = new_state(index)
        addresses = tuple(f"{number:0>220}:7447" for number in range(16))
        state.set_member(MemberInfo("n", addresses))
        big.merge(state.to_wire())
    pair = Pair(big, new_state(99))
    pair.run(0.0)
    assert pair.equal
    assert pair.kinds.count("delta") >= 4


def test_edits_are_pushed_at_once_and_then_together():
    pair = Pair(crowd(2), crowd(2))
    pair.run(0.0)
    pair.kinds.clear()
    state = pair.states[0]
    state.set_progress(Progress(1, 1, 1.0, 1, 1.0))
    state.set_checkpoint(CheckpointInfo(1, 1, HASH, state.node))
    pair.run(1.0)
    assert pair.kinds == ["delta"]
    assert pair.equal
    for step in range(2, 50):
        state.set_progress(Progress(1, step, 1.0, 1, 1.0))
        pair.run(1.0)
    assert pair.kinds == ["delta"]
    due = pair.sides[0].next_deadline()
    assert due == 1.0 + PUSH_GAP_S
    pair.run(due)
    assert pair.kinds == ["delta", "delta"]
    assert pair.equal
    assert pair.sides[0].next_deadline() > due


def test_a_slow_peer_gets_the_newest_word_not_the_history():
    state = new_state()
    side = AntiEntropy(state, interval_s=2.0, rng=random.Random(0), now=0.0)
    for step in range(100):
        state.set_progress(Progress(1, step, 1.0, 1, 1.0))
        side.tick(float(step))
    messages = list(itertools.chain.from_iterable(iter(side.outgoing, [])))
    assert [message["t"] for message in messages] == ["delta", "digest"]
    entries = [parse(raw, DOCUMENT) for raw in messages[0]["entries"]]
    assert [entry.value[1] for entry in entries] == [99]


def test_a_record_dropped_meanwhile_is_not_sent(monkeypatch):
    state = crowd(2)
    side = AntiEntropy(state, interval_s=2.0, rng=random.Random(0), now=0.0)
    ask = {"t": "want", **new_state(9).want(state.members())}
    side.receive(ask, 0.0)
    newer = new_state(7, lambda: NOW_MS + 1)
    newer.set_member(MemberInfo("newer", ()))
    with monkeypatch.context() as patch:
        patch.setattr("crdt.ledger.MAX_WRITERS", 1)
        state.merge(newer.to_wire())
    assert side.outgoing() == []
    side.receive({"t": "want", **new_state(9).want([b"u" * 32])}, 0.0)
    assert side.outgoing() == []


def test_a_clock_ahead_is_counted_and_ends_nothing():
    fast = new_state(1, lambda: NOW_MS + 3_600_000)
    fast.set_member(MemberInfo("fast", ()))
    slow = new_state(2)
    slow.set_member(MemberInfo("slow", ()))
    pair = Pair(fast, slow)
    pair.run(0.0)
    assert len(fast) == 2
    assert len(slow) == 1
    assert pair.sides[1].counters["clock_skew"] >= 1


# --- hostile input ---

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["v", "digest", "ranges", "entries", "evidence", "seen", "from", "to"]),
            inner,
        )
    ),
    max_leaves=10,
)


@given(
    JUNK | st.dictionaries(st.text(max_size=3), JUNK, max_size=3),
    st.sampled_from(["digest", "ranges", "context", "want", "delta", "nonsense", None, 5]),
    st.booleans(),
)
def test_junk_is_refused_with_one_error(junk, kind, version):
    state = crowd(2)
    before = state.digest()
    side = AntiEntropy(state, interval_s=2.0, rng=random.Random(0), now=0.0)
    if isinstance(junk, dict):
        junk = {**junk, "t": kind, **({"v": 2} if version else {})}
    try:
        side.receive(junk, 0.0)
    except RefusedUpdate:
        assert state.digest() == before
    for _ in range(5):
        side.outgoing()


@pytest.mark.parametrize(
    "ranges",
    [
        [[b"", b"x" * 15]],
        [[b"", b"x" * 17]],
        [[b"b", b"x" * 16], [b"a", b"x" * 16]],
        [[b""]],
        [[b"x" * 33, b"x" * 16]],
        [[b"%04d" % index, b"x" * 16] for index in range(513)],
    ],
)
def test_malformed_ranges_are_refused(ranges):
    side = AntiEntropy(crowd(2), interval_s=2.0, rng=random.Random(0), now=0.0)
    with pytest.raises(RefusedUpdate):
        side.receive({"t": "ranges", "v": 2, "ranges": ranges}, 0.0)


def test_what_a_peer_can_make_us_remember_is_bounded(monkeypatch):
    monkeypatch.setattr(antientropy, "MAX_PAGES", 100)
    side = AntiEntropy(crowd(3), interval_s=2.0, rng=random.Random(0), now=0.0)
    for batch in range(40):
        names = sorted(name_of(1000 + batch * 500 + index) for index in range(500))
        seen = [[name, b"x" * 8, "member", NOW_MS] for name in names]
        context = {"v": 2, "from": b"", "to": b"", "seen": seen}
        side.receive({"t": "context", **context}, 0.0)
        ranges = [[name, b"x" * 16] for name in names]
        side.receive({"t": "ranges", "v": 2, "ranges": ranges}, 0.0)
    assert len(side._pages) == 100
    assert len(side._wanted) <= 4096 + 500


# --- many replicas ---


class World:
    """Replicas on a random graph, one event heap, one seed. Links fail as told."""

    def __init__(self, seed, count, degree=3, edges=None):
        self.rng = random.Random(seed)
        self.now = 0.0
        self.heap = []
        self.order = itertools.count()
        self.loss = self.repeat = 0.0
        self.delay_s = 0.02
        self.part = 0  # replicas below this number hear only each other
        self.trace = hashlib.sha256()
        self.messages = 0
        self.edges = edges or {(a, (a + 1) % count) for a in range(count)}
        while edges is None and len(self.edges) < count * degree // 2:
            self.edges.add(tuple(self.rng.sample(range(count), 2)))
        self.states = [None] * count
        self.sides = {}
        self.neighbours = [[] for _ in range(count)]  # in ascending order
        for here, there in sorted(self.edges | {(b, a) for a, b in self.edges}):
            self.neighbours[here].append(there)
        self.due = {}  # of each side: when its next tick comes
        self.said = [None] * count
        # Clocks off by up to 20 s each way.
        self.offsets_ms = [self.rng.randint(-20_000, 20_000) for _ in range(count)]
        for index in range(count):
            self.start(index)

    def start(self, index):
        """Begin (again) with nothing but the identity."""
        wall_ms = lambda: NOW_MS + self.offsets_ms[index] + int(self.now * 1000)  # noqa: E731
        self.states[index] = new_state(index, wall_ms)
        for other in self.neighbours[index]:
            self.sides[index, other] = AntiEntropy(
                self.states[index],
                interval_s=2.0,
                rng=random.Random(self.rng.random()),
                now=self.now,
            )
            self.wake(index, other)

    def at(self, when, action):
        heapq.heappush(self.heap, (when, next(self.order), action))

    def wake(self, here, there):
        """Have a tick at the deadline, unless one comes no later than that anyway."""
        side = self.sides[here, there]
        when = max(self.now, side.next_deadline())
        if when >= self.due.get(side, math.inf):
            return
        self.due[side] = when

        def fire():
            # Else it was restarted, or is woken earlier.
            if self.sides[here, there] is side and self.due[side] == when:
                del self.due[side]
                self.tick(here, there)
                self.wake(here, there)

        self.at(when, fire)

    def tick(self, here, there):
        self.sides[here, there].tick(self.now)
        self.flush(here, there)

    def flush(self, here, there):
        for message in itertools.chain.from_iterable(iter(self.sides[here, there].outgoing, [])):
            data = pack(message)
            self.messages += 1
            self.trace.update(b"%d>%d@%.6f:" % (here, there, self.now) + data)
            if (here < self.part) != (there < self.part) or self.rng.random() < self.loss:
                continue
            for _ in range(1 + (self.rng.random() < self.repeat)):
                when = self.now + self.rng.uniform(0.001, self.delay_s)
                self.at(when, lambda data=data: self.deliver(here, there, data))

    def deliver(self, here, there, data):
        news = self.sides[there, here].receive(unpack_untrusted(data), self.now)
        self.flush(there, here)
        if not news:
            return
        others = [other for other in self.neighbours[there] if other != here]
        for other in self.rng.sample(others, min(FANOUT, len(others))):
            self.sides[there, other].pass_on(news, self.now)
            self.wake(there, other)

    def edit(self, index):
        state = self.states[index]
        if state.node not in state.members():
            state.set_member(MemberInfo(f"n{index}", ("10.0.0.1:1",)))
        elif self.rng.random() < 0.1:
            state.leave("tired")
        elif self.rng.random() < 0.1:
            state.set_checkpoint(CheckpointInfo(int(self.now), 1, HASH, state.node))
        else:
            step = self.rng.randrange(1000)
            state.set_progress(Progress(step // 10, step, self.rng.random(), step, 1.0, HASH))
        self.said[index] = (state.members().get(state.node), state.progress().get(state.node))
        for other in self.neighbours[index]:
            self.tick(index, other)

    def run(self, until):
        while self.heap and self.heap[0][0] <= until:
            self.now, _, action = heapq.heappop(self.heap)
            action()
        self.now = until

    @property
    def equal(self):
        return len({state.digest() for state in self.states}) == 1


def connected(count, edges):
    """A world at peace whose members all know each other, with these connections and no more."""
    world = World(5, count, edges=edges)
    for index in range(count):
        world.edit(index)
    world.run(60.0)
    assert world.equal
    return world


def arrival_s(world, at, of):
    """Seconds until an edit is known at a node, and how many deltas all nodes have sent by then and a little later."""
    before = sum(side.counters["sent delta"] for side in world.sides.values())
    began, step = world.now, 10**6
    world.states[of].set_progress(Progress(1, step, 0.5, 1, 1.0, HASH))
    for here, there in sorted(world.sides):
        if here == of:
            world.tick(here, there)
    while world.states[at].progress().get(name_of(of), Progress(0, 0, 0, 0, 0)).step != step:
        world.run(world.now + 0.01)
        assert world.now < began + 60
    took_s = world.now - began
    world.run(began + 1.5)
    return took_s, sum(side.counters["sent delta"] for side in world.sides.values()) - before


def test_news_runs_along_a_line_without_waiting_for_comparisons():
    count = 12
    world = connected(count, {(n, n + 1) for n in range(count - 1)})
    took_s, deltas = arrival_s(world, at=count - 1, of=0)
    assert took_s <= (count - 1) * (world.delay_s + PUSH_GAP_S)
    assert took_s < 2.0, "one comparison's interval; along a line it took eleven of them"
    assert deltas == count - 1


def test_where_all_are_connected_news_costs_a_few_deltas_more_and_no_storm():
    count = 16
    everybody = {(a, b) for a in range(count) for b in range(a)}
    world = connected(count, everybody)
    took_s, deltas = arrival_s(world, at=count - 1, of=0)
    assert took_s <= world.delay_s + 0.01  # the writer's own push
    assert deltas <= (count - 1) * (1 + FANOUT)


def test_a_catching_up_is_nobodys_news():
    side = AntiEntropy(new_state(1), interval_s=2.0, rng=random.Random(1), now=0.0)
    few, many = crowd(RUMOUR_ENTRIES), crowd(RUMOUR_ENTRIES + 1, first=1000)
    assert len(side.receive({"t": "delta", **few.to_wire()}, 0.0)) == RUMOUR_ENTRIES
    assert side.receive({"t": "delta", **few.to_wire()}, 0.0) == []  # heard already
    assert side.receive({"t": "delta", **many.to_wire()}, 0.0) == []


def test_what_a_partner_has_said_itself_is_not_passed_on_to_it():
    news = crowd(3)
    state = new_state(1)
    sides = [AntiEntropy(state, interval_s=9.0, rng=random.Random(n), now=0.0) for n in (1, 2)]
    for side in sides:
        side.tick(0.0)
        assert [message["t"] for message in side.outgoing()] == ["digest"]
    names = [(writer, "member") for writer in sorted(news.members())]
    sides[1].pass_on(names, 0.1)
    sides[1].receive({"t": "delta", **news.to_wire()}, 0.1)
    sides[1].tick(0.2)
    assert sides[1].outgoing() == []


def test_rumours_for_a_partner_that_takes_none_are_bounded():
    side = AntiEntropy(new_state(1), interval_s=2.0, rng=random.Random(1), now=0.0)
    for number in range(2 * antientropy.BATCH):
        side.pass_on([(name_of(1), f"x/{number}")], 0.0)
    assert len(side._rumours) == antientropy.BATCH


def storm(seed, count, edits):
    """Ten seconds of edits and crashes under faults, then peace."""
    world = World(seed, count)
    world.loss, world.repeat, world.delay_s = 0.3, 0.2, 3.0
    for index in range(count):
        world.at(0.1, lambda index=index: world.edit(index))
    for _ in range(edits):
        index = world.rng.randrange(count)
        world.at(world.rng.uniform(0.2, 10), lambda index=index: world.edit(index))
    world.at(3.0, lambda: setattr(world, "part", count // 3))
    for _ in range(3):
        index = world.rng.randrange(count)

        def crash(index=index):
            world.start(index)
            world.edit(index)

        world.at(world.rng.uniform(4, 9), crash)
    world.run(10.0)
    return world


@pytest.mark.parametrize("seed", range(3))
def test_a_storm_ends_in_equal_documents(seed):
    world = storm(seed, count=30, edits=120)
    assert not world.equal  # the storm was one
    world.loss, world.repeat, world.delay_s, world.part = 0.0, 0.0, 0.05, 0
    world.run(40.0)
    assert world.equal
    state = world.states[0]
    for index, (member, progress) in enumerate(world.said):
        assert state.members()[name_of(index)] == member
        # A crashed node may have got its former progress back; otherwise its last word holds.
        assert progress in (None, state.progress().get(name_of(index)))
    best = max((s.checkpoint() for s in world.states), key=lambda c: c.step if c else -1)
    assert state.checkpoint() == best


def test_losses_alone_delay_but_do_not_prevent():
    world = World(seed=5, count=30)
    world.loss, world.delay_s = 0.5, 1.0
    for index in range(30):
        world.edit(index)
    world.run(30.0)
    assert not world.equal
    world.run(200.0)
    assert world.equal


TRACE = """
from tests.gossip.test_antientropy import storm
print(storm(1, 10, 40).trace.hexdigest())
"""


def test_a_seed_fixes_every_message_whatever_the_hash_seed():
    same_under_two_hash_seeds("-c", TRACE)
    assert storm(1, 10, 40).trace.hexdigest() != storm(2, 10, 40).trace.hexdigest()
