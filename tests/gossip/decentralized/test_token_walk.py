"""The token walk as a whole: what it computes, one step for each (term, n), and what becomes of the token when nodes fail."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.decentralized.kit.conformance import check
from gossip.decentralized.kit.rehearsal import Links, Quadratic, World, idle, node_id, run_id
from gossip.decentralized.protocol import Completed, Context, LocalWork, Send, TensorSpec, Train
from gossip.errors import InvalidSettings
from gossip.protocols.token_walk import messages
from gossip.protocols.token_walk.lease import NO_TERM, Admission, Fence, Lease, Term, mark
from gossip.protocols.token_walk.protocol import RULES, Sending, TokenWalk
from gossip.protocols.token_walk.search import Search, State
from tests.hash_seeds import same_under_two_hash_seeds
from transport.codec import pack
from transport.errors import MalformedMessage

QUICK = {"lease": 3.0, "silence": 5.0, "ask_timeout": 0.5, "ack_timeout": 0.5, "visit_timeout": 0.5}


def quadratic(count, seed=0):
    rng = np.random.default_rng(seed)
    return Quadratic([rng.standard_normal(8) for _ in range(count)])


class Walked:
    """The token's way, as the legs of training show it."""

    def __init__(self, world):
        self.world = world
        self.steps = []
        """(node, term, step, parameters before it)"""
        self.done = []
        """(node, step, model)"""
        world.on_event = self.hear

    def hear(self, node, event, _now):
        core = self.world.nodes[node].core
        if isinstance(event, Train):
            self.steps.append((node, *core._state, event.params.copy()))
        if isinstance(event, Completed):
            self.done.append((node, event.round, event.model.copy()))

    def accepted(self):
        return Counter((core_term, n + 1) for _, core_term, n, _ in self.steps)


def holders(world):
    """Who has the token; not who waits for its receipt."""
    phases = {node.index: node.core._phase for node in world.alive}
    return [i for i, phase in phases.items() if phase != "away" and not isinstance(phase, Sending)]


def the_holder(world):
    """Let time pass until somebody trains; who that is."""
    training = lambda: [n.index for n in world.alive if n.core._phase == "training"]  # noqa: E731
    world.run(world.now + 100.0, stop=lambda: bool(training()))
    (index,) = training()
    return index


def walk(count=12, trainer=None, start=True, **options):
    settings = {**QUICK, **options.pop("settings", {})}
    world = World(TokenWalk, count, trainer or quadratic(count), settings=settings, **options)
    if start:
        world.start()
    return world


def newest(world):
    return max(node.round for node in world.alive)


# ---- what is computed ----------------------------------------------------------------------------


def test_the_model_is_that_of_gradient_steps_along_the_way():
    trainer = quadratic(12)
    world = walk(trainer=trainer)
    walked = Walked(world)
    world.run(60.0)
    theta = world.initial(0)
    for (node, _, before, params), (done_by, n, model) in zip(
        walked.steps, walked.done, strict=False
    ):
        assert (node, before + 1) == (done_by, n)
        assert params.tobytes() == theta.tobytes()
        gradient = trainer(node, Train(theta, 1, RULES["gradient"])).gradient
        theta = (theta - (n + 1) ** -0.9 * gradient.astype(np.float64)).astype(np.float32)
        assert model.tobytes() == theta.tobytes()
    assert len(walked.done) > 200
    optimum = np.mean(trainer.centres, axis=0)
    assert float(np.abs(theta - optimum).max()) < 0.2


def test_the_token_goes_along_edges_and_the_measure_sums_to_one():
    world = walk(settings={"graph": "ring"})
    walked = Walked(world)
    world.run(60.0)
    nodes = [node for node, *_ in walked.steps]
    edges = {node.index: {world.index[i] for i in node.core._neighbours()} for node in world.alive}
    assert all(b == a or b in edges[a] for a, b in itertools.pairwise(nodes))
    n = newest(world)
    assert sum(node.core._visits.at(n) for node in world.alive) == pytest.approx(1, abs=1e-9)
    assert world.models_sent <= n + 1


def test_repelled_visits_are_more_even_than_plain_ones():
    uneven = {}
    for alpha in (0.0, 10.0):
        world = walk(20, idle, settings={"alpha": alpha, "graph": "ring"}, numel=1)
        walked = Walked(world)
        world.run(200.0)
        visits = np.bincount([node for node, *_ in walked.steps], minlength=20)
        uneven[alpha] = np.abs(visits / visits.sum() - 1 / 20).sum() / 2
    assert uneven[10.0] < uneven[0.0] / 2


def test_the_same_walk_under_every_hash_seed():
    text = """
from gossip.decentralized.kit.rehearsal import Links, World
from gossip.protocols.token_walk.protocol import TokenWalk
settings = {"lease": 3.0, "silence": 5.0, "ask_timeout": 0.5, "ack_timeout": 0.5, "visit_timeout": 0.5}
world = World(TokenWalk, 10, settings=settings, links=Links(loss=0.1, noticed=0.5), seed=3)
world.start()
world.at(5.0, lambda: world.crash(3))
world.run(30.0)
print(world.fingerprint(), max(node.round for node in world.alive))
"""
    assert int(same_under_two_hash_seeds("-c", text).split()[1]) > 20


def test_other_settings_keep_all_rules_of_the_kit():
    check(TokenWalk, {"local": "task", "alpha": 0.0, "graph": "ring", **QUICK})


def test_settings_without_sense_are_refused():
    with pytest.raises(InvalidSettings, match="directions"):
        TokenWalk.parse_settings({"graph": "one-peer-exponential"})
    with pytest.raises(InvalidSettings, match="visit_exponent"):
        TokenWalk.parse_settings({"visit_exponent": 0.95})
    with pytest.raises(InvalidSettings, match="nothing to vote on"):
        TokenWalk.parse_settings({"mixing": "median"})


# ---- one token -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_no_step_of_a_term_is_accepted_twice(seed):
    """Losses, doubled messages, crashes, restarts and a partition at once."""
    links = Links(loss=0.05, noticed=0.5, duplicates=0.1)
    world = walk(12, links=links, seed=seed)
    walked, chance = Walked(world), random.Random(seed)
    for moment in range(10, 60, 10):

        def crash_and_restart():
            index = chance.choice(holders(world) or [0])
            if world.nodes[index].core is not None:
                world.crash(index)
                world.at(world.now + 4.0, lambda: world.restart(index))

        world.at(float(moment), crash_and_restart)
    world.at(62.0, lambda: world.part(range(6), range(6, 12)))
    world.at(80.0, world.heal)
    world.run(120.0)
    assert max(walked.accepted().values()) == 1
    assert len(walked.steps) > 100
    assert len({term for term, _ in walked.accepted()}) > 1
    before = newest(world)
    world.run(160.0)
    assert newest(world) > before


def test_a_lost_holder_costs_its_last_step():
    world = walk(12)
    world.run(20.0)
    holder, step = the_holder(world), newest(world)
    world.crash(holder)
    lost = world.now
    world.run(40.0)
    assert newest(world) > step + 20
    assert {node.core._fence.term.number for node in world.alive} == {2}
    done = [r for node in world.alive for at, r, _ in node.completed if at > lost]
    assert min(done) >= step


def test_holder_and_guard_are_lost_together():
    world = walk(12)
    world.run(20.0)
    holder = the_holder(world)
    guard = world.nodes[holder].core._guard
    world.crash(holder)
    world.crash(world.index[guard])
    step = newest(world)
    world.run(120.0)
    assert newest(world) > step + 20
    assert len(holders(world)) == 1


def test_two_parts_go_on_and_one_token_is_left_when_they_meet():
    world = walk(12)
    world.run(10.0)
    world.part(range(6), range(6, 12))
    world.run(60.0)
    assert len(holders(world)) == 2
    world.heal()
    world.run(120.0)
    assert len(holders(world)) <= 1
    terms = {node.core._fence.term for node in world.alive}
    assert len(terms) == 1
    before = newest(world)
    world.run(140.0)
    assert newest(world) > before


def test_whoever_leaves_hands_the_token_on_and_no_term_ends():
    world = walk(12)
    world.run(20.0)
    for _ in range(5):
        world.leave(the_holder(world))
        world.run(world.now + 5.0)
    step = newest(world)
    world.run(world.now + 10.0)
    assert newest(world) > step
    assert {node.core._fence.term.number for node in world.alive} == {1}


def test_all_are_stopped_and_start_again_from_the_newest_checkpoint():
    world = walk(8)
    world.run(20.0)
    step = newest(world)
    for index in range(8):
        world.crash(index)
    world.run(21.0)
    for index in range(8):
        world.restart(index)
    walked = Walked(world)
    world.run(40.0)
    assert walked.done[0][1] == step + 1
    assert len(holders(world)) == 1


def test_the_end_is_told_to_all_and_to_a_latecomer():
    world = walk(6, start=False, rounds=40)
    world.start(range(5))
    world.run_rounds(40, limit_s=200)
    assert all(node.finished for node in world.alive)
    world.join(5)
    world.run(world.now + 120.0)
    assert world.nodes[5].finished
    models = world.models()
    assert all(model.tobytes() == models[0].tobytes() for model in models)


def test_a_gradient_that_is_not_finite_is_left_out():
    good = quadratic(6)

    def trainer(node, leg):
        work = good(node, leg)
        if node == 2:
            work.gradient.fill(np.inf)
        return work

    world = walk(6, trainer)
    world.run(60.0)
    assert newest(world) > 100
    assert world.nodes[2].completed
    assert all(np.isfinite(model).all() for model in world.models())


def test_one_node_alone_walks_on_the_spot():
    world = walk(1)
    world.run(10.0)
    assert newest(world) > 50
    assert world.models_sent == 0


# ---- fence, lease, search ------------------------------------------------------------------------

ONE, OTHER = Term(1, bytes(node_id(1))), Term(1, bytes(node_id(2)))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.booleans()), max_size=40))
def test_a_fence_takes_each_step_of_a_term_once(tokens):
    fence, taken, highest = Fence(), Counter(), NO_TERM
    for number, n, first in tokens:
        term = Term(number, bytes(node_id(1 if first else 2)))
        admission = fence.admit(term, n)
        if admission is Admission.TAKE:
            taken[term, n + 1] += 1
            assert term >= highest
        highest = max(highest, term)
        assert fence.term == highest
    assert not taken or max(taken.values()) == 1


def test_terms_that_began_at_the_same_time_differ():
    assert ONE != OTHER
    assert max(ONE, OTHER).next(bytes(node_id(3))) > max(ONE, OTHER)
    assert len({mark(node_id(i), life) for i in range(2) for life in (1, 2)}) == 4


def test_a_lease_runs_out_unless_its_holder_lives():
    lease = Lease(9.0)
    lease.watch(node_id(1), ONE, 0.0)
    lease.renew(node_id(2), ONE, 5.0)
    lease.renew(node_id(1), OTHER, 5.0)
    assert lease.next_deadline() == 9.0
    lease.renew(node_id(1), ONE, 5.0)
    assert lease.next_deadline() == 14.0
    lease.release(node_id(2), ONE)
    assert lease.next_deadline() == 14.0
    lease.release(node_id(1), ONE)
    assert lease.next_deadline() is None
    assert lease.renew_every_s == 3.0


def state(index, term=ONE, step=5, fence=ONE, holding=False):
    return State(node_id(index), term, step, fence, holding)


def search(mine, others=(1, 2, 3)):
    ids = [node_id(i) for i in others]
    return Search(run_id(0), mine, ids, 0.0, nonce=1, timeout_s=2.0)


def test_a_search_finds_the_highest_state_by_term_then_step():
    asked = search(state(0, step=9))
    asked.answered(state(1, term=max(ONE, OTHER), step=4))
    asked.answered(state(2, term=min(ONE, OTHER), step=99))
    asked.answered(state(7, term=Term(9, b"x" * 32)))
    assert not asked.over(1.9)
    asked.unreachable(node_id(3))
    assert asked.over(1.9)
    expected = 1 if max(ONE, OTHER) == OTHER else 0
    assert asked.newest.node == node_id(expected)
    assert not asked.held
    assert search(state(0)).over(2.0)
    assert search(state(0), others=()).over(0.0)


def test_a_holder_counts_unless_its_term_is_over():
    asked = search(state(0))
    asked.answered(state(1, holding=True))
    assert asked.held
    asked.answered(state(2, fence=Term(2, bytes(32))))
    assert not asked.held


# ---- one core ------------------------------------------------------------------------------------


def started(index=0, others=(1, 2, 3), settings=None):
    context = Context(
        me=node_id(index),
        run=run_id(0),
        tensors=(TensorSpec("w", 0, (4,)),),
        numel=4,
        rng=random.Random(index),
    )
    settings = {"graph": "full", **QUICK, **(settings or {})}
    made = TokenWalk(TokenWalk.parse_settings(settings), context)
    made.members(sorted(node_id(i) for i in others), 0.0)
    made.start(np.zeros(4, np.float32), 0.0)
    events(made)
    return made


def events(made):
    found = []
    while (event := made.next_event()) is not None:
        found.append(event)
    return found


def said(found, kind):
    decoded = [messages.decode(event.message) for event in found if isinstance(event, Send)]
    return [message for message in decoded if isinstance(message, kind)]


MODEL = np.ones(4, np.float32)
HIGH = Term(5, bytes(32))


def token(n, term=HIGH, guard=1, life=messages.ANY_LIFE):
    return pack(messages.Token(term.number, term.starter, n, bytes(node_id(guard)), life))


def test_a_token_that_comes_twice_is_receipted_twice_and_trained_once():
    made = started()
    made.receive(node_id(1), token(7), [MODEL], 1.0)
    made.receive(node_id(1), token(7), [MODEL], 1.1)
    found = events(made)
    assert [message.taken for message in said(found, messages.Receipt)] == [True, True]
    assert len([event for event in found if isinstance(event, Train)]) == 1
    made.receive(node_id(1), token(5), [MODEL], 1.2)
    assert [message.taken for message in said(events(made), messages.Receipt)] == [False]


def test_a_token_for_an_earlier_life_is_refused():
    made = started()
    made.receive(node_id(1), token(7, life=made._life + 1), [MODEL], 1.0)
    assert [message.taken for message in said(events(made), messages.Receipt)] == [False]
    made.receive(node_id(1), token(7, life=made._life), [MODEL], 1.0)
    assert [message.taken for message in said(events(made), messages.Receipt)] == [True]


def test_a_higher_term_takes_the_token_away():
    made = started()
    made.receive(node_id(1), token(7), [MODEL], 1.0)
    events(made)
    made.receive(node_id(2), pack(messages.Fenced(6, bytes(32))), [], 1.1)
    assert [type(event).__name__ for event in events(made)] == ["Cancel"]
    made.receive(node_id(1), token(8), [MODEL], 1.2)
    (receipt,) = said(events(made), messages.Receipt)
    assert not receipt.taken
    assert receipt.term == Term(6, bytes(32))


def test_a_receipt_that_was_lost_is_made_up_for_by_the_answer():
    made = started(settings={"alpha": 0.0})
    made.receive(node_id(1), token(7), [MODEL], 1.0)
    while True:
        work = LocalWork(MODEL.copy(), 1, 1.0, None, np.zeros(4, np.float32))
        made.trained(work, 2.0)
        n = made._state[1]
        for i in (1, 2, 3):
            answer = messages.VisitA(5, bytes(32), n, 0.25, 3, 77)
            made.receive(node_id(i), pack(answer), [], 2.1)
        found = events(made)
        if said(found, messages.Token):
            break
    to = next(event.to for event in found if isinstance(event, Send) and event.vectors)
    for _ in range(3):
        now = made._phase.until
        made.tick(now)
    (ask, *_) = said(events(made), messages.Ask)
    answer = messages.Answer(5, bytes(32), ask.nonce, 5, bytes(32), n + 1, n + 1, holding=False)
    made.receive(to, pack(answer), [], now + 0.1)
    assert made.describe()["token"] == "away"
    assert made.describe()["terms"] == 0
    assert made.describe()["hops"] == 1


@pytest.mark.parametrize(
    ("message", "vectors"),
    [
        (token(7), []),
        (token(7), [np.ones(5, np.float32)]),
        (pack(messages.Ask(5, bytes(32), 3, 1)), [MODEL]),
        (
            pack(
                {"t": "visit-a", "number": 5, "starter": bytes(32), "n": 1, "degree": 1, "life": 1}
            ),
            [],
        ),
        (
            pack(
                {
                    "t": "visit-a",
                    "number": 5,
                    "starter": bytes(32),
                    "n": 1,
                    "degree": 1,
                    "life": 1,
                    "visits": float("nan"),
                }
            ),
            [],
        ),
        (pack({"t": "token", "number": 5, "starter": b"short", "n": 1}), [MODEL]),
        (b"\xc1", []),
    ],
)
def test_what_no_honest_node_sends_is_malformed_and_changes_nothing(message, vectors):
    made = started()
    before = made.describe()
    with pytest.raises(MalformedMessage):
        made.receive(node_id(1), message, vectors, 1.0)
    assert events(made) == []
    assert made.describe() == before


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_malformed(data):
    try:
        messages.decode(data)
    except MalformedMessage:
        pass


@pytest.mark.parametrize(
    "lie",
    [
        messages.VisitQ(2**62, b"\xff" * 32, 1),
        messages.VisitQ(1, b"\0" * 32, 2**62),
        messages.Token(2**62, b"\xff" * 32, 2**62, bytes(node_id(9)), 0),
        messages.Token(2, b"\xff" * 32, 2**62, bytes(node_id(9)), 0),
    ],
)
def test_one_liar_cannot_use_up_terms_or_steps(lie):
    world = World(TokenWalk, 10, quadratic(10), settings=QUICK)
    world.start()
    world.run(5.0)
    before = max(node.round for node in world.nodes)
    vectors = [np.zeros(8, np.float32)] if isinstance(lie, messages.Token) else []
    for index in range(9):
        world.inject(index, node_id(9), pack(lie), vectors)
    world.crash(9)
    world.run(60.0)  # a message that an honest node refuses fails the rehearsal
    assert before + 50 < max(node.round for node in world.alive) < 10_000
