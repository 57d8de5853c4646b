"""Exchanges happen on both sides or on neither, over links that lose, double and overtake."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.decentralized.asynchronous.exchange import (
    MAX_KEPT,
    Asked,
    Exchanges,
    Outcome,
    Refused,
    Settled,
    Void,
    Word,
)
from gossip.decentralized.kit.rehearsal import node_id
from gossip.decentralized.protocol import Send
from transport.codec import pack
from transport.errors import MalformedMessage
from transport.identity import NodeId

FORGET_S = 50.0
A, B = node_id(0), node_id(1)


@attrs.define(eq=False)
class Node:
    """A number and an account by peer of what was added to it; exchanges swap numbers, which is exact in integers."""

    id: NodeId
    core: Exchanges
    value: int
    accounts: dict[NodeId, int] = attrs.field(factory=dict)
    applied: list[tuple[str, NodeId, int, int]] = attrs.field(factory=list)

    def vector(self) -> np.ndarray:
        return np.array([self.value], np.float32)

    def apply(self, outcomes: list[Outcome], now: float) -> None:
        for outcome in outcomes:
            match outcome:
                case Asked():
                    mine = self.vector()
                    self.core.accept(outcome, mine, now)
                    self.applied.append(("answer", outcome.peer, outcome.session, outcome.seq))
                    self._move(outcome.peer, mine, outcome.theirs)
                case Settled():
                    self.applied.append(("offer", outcome.peer, 0, self.core.counts.settled))
                    self._move(outcome.peer, outcome.mine, outcome.theirs)
                case Void():
                    self.value -= self.accounts.pop(outcome.peer, 0)

    def _move(self, peer: NodeId, mine: np.ndarray, theirs: np.ndarray) -> None:
        moved = -int(mine[0]) + int(theirs[0])
        self.value += moved
        self.accounts[peer] = self.accounts.get(peer, 0) + moved


class World:
    """Nodes that offer exchanges at random moments over bad links."""

    def __init__(
        self,
        seed: int,
        count: int,
        *,
        loss: float,
        doubled: float,
        slow: float = 1.0,
        forget_s: float = FORGET_S,
    ):
        self.forget_s = forget_s
        self.rng = random.Random(seed)
        self.loss, self.doubled, self.slow = loss, doubled, slow
        self.now = 0.0
        self.heap: list[tuple[float, int, Callable[[], None]]] = []
        self.sequence = 0
        self.nodes: dict[NodeId, Node] = {}
        self.cut: set[frozenset[NodeId]] = set()
        for index in range(count):
            self.birth(node_id(index), 100 * (index + 1))
        self.tell()

    def birth(self, who: NodeId, value: int) -> None:
        core = Exchanges(1, random.Random(7), patience_s=3.0, forget_s=self.forget_s)
        core.start(self.now)
        self.nodes[who] = Node(who, core, value)

    def tell(self) -> None:
        for node in list(self.nodes.values()):
            near = [
                o for o in self.nodes if o != node.id and frozenset({o, node.id}) not in self.cut
            ]
            node.core.members(sorted(near), self.now)
            self.flush(node)

    def push(self, after: float, action: Callable[[], None]) -> None:
        self.sequence += 1
        heapq.heappush(self.heap, (self.now + after, self.sequence, action))

    def flush(self, node: Node) -> None:
        for send in node.core.outgoing():
            for _ in range(2 if self.rng.random() < self.doubled else 1):
                if self.rng.random() >= self.loss:
                    self.push(self.slow * self.rng.expovariate(2.0), self.arrival(node, send))
        deadline = node.core.next_deadline()
        if deadline is not None:
            self.push(max(0.0, deadline - self.now), lambda: self.tick(node))

    def arrival(self, sender: Node, send: Send) -> Callable[[], None]:
        def arrive() -> None:
            receiver = self.nodes.get(send.to)
            apart = frozenset({sender.id, send.to}) in self.cut
            if receiver is None or apart or self.nodes.get(sender.id) is not sender:
                return
            receiver.apply(
                receiver.core.receive(sender.id, send.message, send.vectors, self.now), self.now
            )
            self.flush(receiver)

        return arrive

    def tick(self, node: Node) -> None:
        deadline = node.core.next_deadline()
        if self.nodes.get(node.id) is node and deadline is not None and deadline <= self.now:
            node.apply(node.core.tick(self.now), self.now)
            self.flush(node)

    def offer(self, node: Node) -> None:
        if self.nodes.get(node.id) is not node:
            return
        peers = [peer for peer in sorted(self.nodes) if peer != node.id and node.core.free(peer)]
        if peers and not node.core.locked:
            node.core.offer(self.rng.choice(peers), node.vector(), self.now)
            self.flush(node)

    def offers(self, count: int, within_s: float) -> None:
        for _ in range(count):
            who = self.rng.choice(sorted(self.nodes))
            node = self.nodes[who]
            self.push(self.rng.uniform(0, within_s), lambda node=node: self.offer(node))

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self.heap and self.heap[0][0] <= until:
            self.now, _, action = heapq.heappop(self.heap)
            action()
        self.now = until

    @property
    def total(self) -> int:
        return sum(node.value for node in self.nodes.values())


@given(
    st.integers(0, 10_000),
    st.integers(2, 5),
    st.sampled_from([0.0, 0.1, 0.4]),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from([0.2, 1.0, 3.0]),
)
def test_without_crashes_the_sum_comes_out_exactly(seed, count, loss, doubled, slow):
    world = World(seed, count, loss=loss, doubled=doubled, slow=slow, forget_s=1e4)
    before = world.total
    world.offers(60, 100.0)
    world.run(130.0)
    world.loss = 0.0
    world.run(300.0)
    assert all(not node.core.counts.unsettled for node in world.nodes.values())
    assert world.total == before
    for node in world.nodes.values():
        assert len(node.applied) == len(set(node.applied)), "applied twice"
        for peer, account in node.accounts.items():
            assert world.nodes[peer].accounts[node.id] == -account
    settled = sum(node.core.counts.settled for node in world.nodes.values())
    assert settled == sum(node.core.counts.answered for node in world.nodes.values())
    if loss < 0.4:
        assert settled > 0


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.integers(3, 5), st.sampled_from([0.0, 0.2]))
def test_accounts_of_the_living_agree_after_crashes_restarts_and_partitions(seed, count, loss):
    """What a protocol that keeps accounts relies on: taken back on one side is taken back on the other."""
    world = World(seed, count, loss=loss, doubled=0.2)
    ids = sorted(world.nodes)
    own = {who: world.nodes[who].value for who in ids}
    world.offers(60, 60.0)
    world.run(world.rng.uniform(10, 50))
    crashed = world.rng.choice(ids)
    del world.nodes[crashed]
    world.tell()
    world.run(world.rng.uniform(0, 2 * FORGET_S))
    world.birth(crashed, own[crashed])
    one, other = world.rng.sample(ids, 2)
    world.cut = {frozenset({one, other})}
    world.tell()
    world.offers(40, 20.0)
    world.run(world.rng.uniform(0, 2 * FORGET_S))
    world.cut = set()
    world.loss = 0.0
    world.tell()
    for _ in range(8):  # everybody hears of everybody again
        world.offers(60, 20.0)
        world.run(21.0)
    world.run(2 * FORGET_S)
    for who, node in world.nodes.items():
        assert node.value == own[who] + sum(node.accounts.values())
        for peer, account in node.accounts.items():
            assert world.nodes[peer].accounts.get(who, 0) == -account
    assert world.total == sum(own.values())


def pair(*, patience_s: float = 1.0) -> tuple[Exchanges, Exchanges]:
    a = Exchanges(2, random.Random(1), patience_s=patience_s, forget_s=FORGET_S)
    b = Exchanges(2, random.Random(2), patience_s=patience_s, forget_s=FORGET_S)
    for core, other in ((a, B), (b, A)):
        core.start(0.0)
        core.members([other], 0.0)
    return a, b


def vec(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def give(core: Exchanges, sender: NodeId, send: Send, now: float) -> list[Outcome]:
    return core.receive(sender, send.message, send.vectors, now)


def accepted(a: Exchanges, b: Exchanges, now: float = 0.0) -> tuple[Send, Send]:
    """An offer of a's and b's answer to it."""
    a.offer(B, vec(1, 2), now, gain=0.5)
    (offer,) = a.outgoing()
    (asked,) = give(b, A, offer, now)
    assert isinstance(asked, Asked)
    assert asked.gain == 0.5
    b.accept(asked, vec(5, 4), now)
    (answer,) = b.outgoing()
    return offer, answer


def test_both_see_the_same_two_vectors():
    a, b = pair()
    _, answer = accepted(a, b)
    (settled,) = give(a, B, answer, 0.1)
    assert isinstance(settled, Settled)
    assert (settled.mine.tolist(), settled.theirs.tolist(), settled.gain) == ([1, 2], [5, 4], 0.5)
    (done,) = a.outgoing()
    assert give(b, A, done, 0.2) == []
    assert b.next_deadline() is None
    assert a.next_deadline() is None


def test_an_answer_that_is_lost_is_asked_for_and_said_again_bit_for_bit():
    a, b = pair()
    accepted(a, b)
    deadline = a.next_deadline()
    assert deadline == 1.0
    assert a.locked
    assert a.tick(deadline) == []
    assert not a.locked, "one timeout, then it goes on with others"
    assert not a.free(B)
    (query,) = a.outgoing()
    assert not query.vectors
    assert give(b, A, query, 1.1) == []
    (again,) = b.outgoing()
    (settled,) = give(a, B, again, 1.2)
    assert isinstance(settled, Settled)
    assert settled.theirs.tolist() == [5, 4]
    assert give(a, B, again, 1.3) == [], "the copy that was only late"


def test_an_offer_that_a_question_overtakes_is_refused_for_good():
    a, b = pair()
    a.offer(B, vec(1, 2), 0.0)
    (offer,) = a.outgoing()
    a.tick(1.0)
    (query,) = a.outgoing()
    assert give(b, A, query, 1.1) == []
    (refusal,) = b.outgoing()
    assert give(b, A, offer, 1.2) == [], "must not be accepted any more"
    assert give(a, B, refusal, 1.3) == [Refused(B)]
    assert a.free(B)
    assert a.wait_s == 1.0, "it may have been lost"
    (late,) = b.outgoing()
    assert give(a, B, late, 2.0) == []
    assert a.wait_s == 8.0, "it was not: the link is slower than was believed"


def test_a_node_whose_offer_is_out_refuses_and_nobody_waits_for_anybody():
    a, b = pair()
    a.offer(B, vec(1, 2), 0.0)
    b.offer(A, vec(3, 4), 0.0)
    (to_b,), (to_a,) = a.outgoing(), b.outgoing()
    assert give(b, A, to_b, 0.1) == []
    assert give(a, B, to_a, 0.1) == []
    (no_a,), (no_b,) = b.outgoing(), a.outgoing()
    assert give(a, B, no_a, 0.2) == [Refused(B)]
    assert give(b, A, no_b, 0.2) == [Refused(A)]
    assert not a.locked
    assert not b.locked


def test_an_answer_is_kept_until_it_is_known_to_have_arrived():
    a, b = pair()
    _, answer = accepted(a, b)
    give(a, B, answer, 0.1)
    a.outgoing()  # the DONE is lost
    deadline = b.next_deadline()
    assert deadline == 2.0
    b.tick(deadline)
    (check,) = b.outgoing()
    assert give(a, B, check, 2.1) == []
    (done,) = a.outgoing()
    give(b, A, done, 2.2)
    assert b.next_deadline() is None


def test_what_is_never_settled_is_given_up_counted_and_void_on_both_sides():
    a, b = pair()
    accepted(a, b)
    outcomes: list[Outcome] = []
    while (deadline := a.next_deadline()) is not None:
        outcomes += a.tick(deadline)
    a.outgoing()
    assert outcomes == [Void(B)]
    assert a.counts.unsettled == 1
    a.offer(B, vec(0, 0), 60.0)
    (offer,) = a.outgoing()
    void, asked = give(b, A, offer, 60.1)
    assert void == Void(A)
    assert isinstance(asked, Asked)


def test_a_restart_voids_and_messages_of_the_life_before_are_known_as_such():
    a, b = pair()
    old_offer, answer = accepted(a, b)
    give(a, B, answer, 0.1)
    a.outgoing()
    again = Exchanges(2, random.Random(1), patience_s=1.0, forget_s=FORGET_S)
    again.start(9.0)  # the same seed at another moment
    again.members([B], 9.0)
    again.offer(B, vec(7, 7), 9.0)
    (offer,) = again.outgoing()
    void, asked = give(b, A, offer, 9.1)
    assert void == Void(A)
    assert isinstance(asked, Asked)
    b.accept(asked, vec(0, 0), 9.1)
    b.outgoing()
    assert give(b, A, old_offer, 9.2) == []
    assert b.outgoing() == []


def test_who_leaves_says_so_and_its_late_messages_count_for_nothing():
    a, b = pair()
    offer, answer = accepted(a, b)
    give(a, B, answer, 0.1)
    a.outgoing()
    a.leave()
    (bye,) = a.outgoing()
    assert give(b, A, bye, 0.2) == [Void(A)]
    assert b.counts.unsettled == 0
    assert give(b, A, offer, 0.3) == []
    assert b.outgoing() == []
    assert b.next_deadline() is None


def test_who_leaves_while_it_is_asked_leaves_one_exchange_unsettled():
    a, b = pair()
    a.offer(B, vec(1, 2), 0.0)
    b.offer(A, vec(1, 2), 0.0)
    a.leave()
    _, bye = a.outgoing()
    assert give(b, A, bye, 0.2) == [Void(A)], "a may have applied its half"
    assert b.counts.unsettled == 1
    assert b.free(A)


def test_answers_kept_are_bounded_and_what_does_not_fit_is_refused():
    b = Exchanges(2, random.Random(2), patience_s=1.0, forget_s=FORGET_S)
    b.start(0.0)
    for index in range(MAX_KEPT + 3):
        offer = pack(Word("offer", index + 1, 1))
        outcomes = b.receive(node_id(index), offer, [vec(1, 1)], 0.0)
        if index < MAX_KEPT:
            (asked,) = outcomes
            assert isinstance(asked, Asked)
            b.accept(asked, vec(0, 0), 0.0)
        else:
            assert outcomes == []
    assert b.counts.busy == 3
    again = b.receive(node_id(0), pack(Word("offer", 1, 2)), [vec(1, 1)], 0.1)
    assert isinstance(again[0], Asked), "a later number says that the one before is settled"


@pytest.mark.parametrize(
    ("word", "vectors"),
    [
        (Word("offer", 1, 1), []),
        (Word("offer", 1, 1), [np.zeros(3, np.float32)]),
        (Word("offer", 1, 1), [np.zeros(2, np.float64)]),
        (Word("offer", 1, 1, gain=float("nan")), [np.zeros(2, np.float32)]),
        (Word("accept", 1, 1), [np.zeros(2, np.float32)] * 2),
        (Word("query", 1, 1), [np.zeros(2, np.float32)]),
        (Word("done", 1, 1 << 60), []),
        (Word("done", -1, 1), []),
    ],
)
def test_what_no_honest_peer_sends_is_malformed(word, vectors):
    a, _ = pair()
    with pytest.raises(MalformedMessage):
        a.receive(B, pack(word), vectors, 0.0)


@given(st.binary(max_size=100))
def test_bytes_are_a_message_or_malformed(data):
    a, _ = pair()
    try:
        a.receive(B, data, [], 0.0)
    except MalformedMessage:
        pass


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["offer", "accept", "refuse", "query", "done", "check", "bye"]),
            st.integers(0, 3),
            st.integers(0, 3),
            st.integers(0, 2),
            st.booleans(),
        ),
        max_size=30,
    )
)
def test_no_sequence_of_a_peers_messages_breaks_it_or_makes_it_hold_more(words):
    a, _ = pair()
    session = a._session
    a.offer(B, vec(1, 2), 0.0)
    a.outgoing()
    for now, (op, seq, me, generation, mine) in enumerate(words):
        word = Word(op, me, seq, generation, session if mine else 0)
        vectors = [vec(0, 0)] if op in {"offer", "accept"} else []
        for outcome in a.receive(B, pack(word), vectors, float(now)):
            if isinstance(outcome, Asked):
                a.accept(outcome, vec(9, 9), float(now))
        assert a.counts.settled <= 1
        assert len(a.outgoing()) <= 2
