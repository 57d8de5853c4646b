"""Push-sum: mass is conserved whatever links do, the weight stays positive, and the exponential graph averages exactly."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.decentralized.kit.conformance import CHECKS, Subject
from gossip.decentralized.kit.rehearsal import Links, Quadratic, World, node_id, run_id
from gossip.decentralized.protocol import Context, LocalWork, Send, TensorSpec, Train, Wide
from gossip.errors import InvalidSettings
from gossip.protocols.push_sum import MOST_HELD, MOST_WEIGHT, PushSum, Word, exponential_peer
from transport.codec import decode_untrusted, pack
from transport.errors import MalformedMessage

NUMEL = 5


@pytest.mark.parametrize(
    "check", ["finite_rounds_finish", "nodes_come_and_go", "mean_is_conserved"]
)
def test_conformance_on_a_random_graph(check):
    CHECKS[check](Subject(PushSum, {"graph": "random-regular", "out": 2, "scaling": "plain"}))


def starts(count: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((count, NUMEL)).astype(np.float32)


def world(count: int, *, links: Links | None = None, rounds: int = 0, **options: object) -> World:
    return World(
        PushSum,
        count,
        settings=options,
        numel=NUMEL,
        rounds=rounds,
        initial=lambda index: starts(count)[index].copy(),
        links=links,
    )


def held(of: World) -> tuple[Wide, float]:
    """All mass at nodes, without what is in flight."""
    masses = [node.core.mass for node in of.alive]
    return sum(x for x, _ in masses), sum(w for _, w in masses)


def flying(of: World) -> tuple[Wide, float]:
    """What was given and has not arrived: the difference of both ends of every link."""
    x, weight = np.zeros(NUMEL), 0.0
    for node in of.alive:
        for peer, link in node.core._out.items():
            if link.sum is None:
                continue
            receiver = of.nodes[of.index[peer]].core
            other = receiver._in.get(node.id) if receiver is not None else None
            arrived = other is not None and other.sum is not None
            x += link.sum - (other.sum if arrived else 0)
            weight += link.weight - (other.weight if arrived else 0)
    return x, weight


@settings(max_examples=20)
@given(
    st.integers(0, 1000),
    st.integers(2, 9),
    st.sampled_from([0.0, 0.3, 0.6]),
    st.sampled_from([0.0, 0.2]),
    st.sampled_from(["one-peer-exponential", "random-regular", "full"]),
)
def test_mass_is_conserved_at_every_moment(seed, count, loss, doubled, graph):
    of = world(count, links=Links(loss=loss, duplicates=doubled), graph=graph, out=2)
    of._rng = random.Random(seed)
    of.start()
    total = starts(count).sum(axis=0, dtype=np.float64)
    for _ in range(8):
        of.run(of.now + 0.37)
        (x, weight), (more_x, more) = held(of), flying(of)
        np.testing.assert_allclose(x + more_x, total, rtol=0, atol=1e-12)
        assert weight + more == pytest.approx(count, abs=1e-12)
        assert all(node.core.weight > 0 for node in of.alive)


@pytest.mark.parametrize("graph", ["one-peer-exponential", "random-regular"])
def test_with_losses_and_duplicates_the_estimate_becomes_exact(graph):
    """30 % lost, 20 % doubled; when the last message has arrived, nothing is missing or there twice."""
    of = world(8, links=Links(loss=0.3, duplicates=0.2), rounds=600, graph=graph, patience=0.5)
    of.start()
    of.run(200.0)
    assert of.lost > 100
    assert all(node.finished for node in of.nodes)
    mean = starts(8).mean(axis=0, dtype=np.float64)
    x, weight = held(of)
    assert weight == pytest.approx(8, abs=1e-12)
    np.testing.assert_allclose(x / weight, mean, rtol=0, atol=1e-12)
    for node in of.alive:
        own_x, own = node.core.mass
        np.testing.assert_allclose(own_x / own, mean, rtol=0, atol=1e-12)
        assert node.core.in_flight == 0


def core(index: int, count: int, **options: object) -> PushSum:
    context = Context(
        me=sorted(node_id(i) for i in range(count))[index],
        run=run_id(0),
        tensors=(TensorSpec("weight", 0, (NUMEL,)),),
        numel=NUMEL,
        rng=random.Random(index),
    )
    made = PushSum(PushSum.parse_settings(options), context)
    made.members(sorted({node_id(i) for i in range(count)} - {context.me}), 0.0)
    return made


def leg(made: PushSum, now: float = 1.0) -> list[Send]:
    """End the running leg without a change; what is sent then."""
    (train,) = [event for event in iter(made.next_event, None) if isinstance(event, Train)]
    made.trained(LocalWork(train.params.copy(), 1, 1.0), now)
    sends = [event for event in made._events if isinstance(event, Send)]
    for send in sends:
        made._events.remove(send)
    return sends


@pytest.mark.parametrize("count", [2, 4, 8, 16])
def test_the_one_peer_exponential_graph_averages_exactly_in_log_n_rounds(count):
    cores = [core(index, count) for index in range(count)]
    by_id = {made.context.me: made for made in cores}
    for index, made in enumerate(cores):
        made.start(starts(count)[index].copy(), 0.0)
    for _ in range((count - 1).bit_length()):
        sent = [(made.context.me, send) for made in cores for send in leg(made)]
        for sender, send in sent:
            by_id[send.to].receive(sender, send.message, send.vectors, 1.0)
    mean = starts(count).mean(axis=0, dtype=np.float64)
    for made in cores:
        x, weight = made.mass
        assert weight == pytest.approx(1.0, abs=1e-15)
        np.testing.assert_allclose(x / weight, mean, rtol=0, atol=4e-16)


@given(st.integers(2, 40), st.integers(0, 200))
def test_the_exponential_graph_sends_everybody_one_message_per_turn(count, turn):
    nodes = sorted(node_id(i) for i in range(count))
    targets = [
        exponential_peer([other for other in nodes if other != me], me, turn) for me in nodes
    ]
    assert sorted(targets) == nodes
    assert all(target != me for me, target in zip(nodes, targets, strict=True))


def test_the_estimate_does_not_depend_on_the_scale_of_the_mass():
    a, b = core(0, 2), core(1, 2)
    for made in (a, b):
        made.start(starts(2)[0].copy(), 0.0)
    before = a.model.copy()
    for turn in range(100):
        for push in leg(a, float(turn)):
            b.receive(a.context.me, push.message, push.vectors, float(turn))
        for ack in answers(b):
            a.receive(b.context.me, ack.message, ack.vectors, float(turn))
    assert 1e-7 < a.weight < 1e-6, "it keeps the last of it where nothing comes back"
    np.testing.assert_array_equal(a.model, before)


def test_a_peer_that_takes_nothing_gets_no_more_than_is_left():
    a = core(0, 2)
    a.start(starts(2)[0].copy(), 0.0)
    given = [len(leg(a, float(turn))) for turn in range(20)]
    assert given == [1, 1] + [0] * 18
    assert a.weight == 0.25


def test_a_change_moves_the_estimate_by_itself_or_as_published_by_more():
    for scaling, moved in (("weight", 8), ("plain", 16)):
        a = core(0, 2, scaling=scaling)
        a.start(np.zeros(NUMEL, np.float32), 0.0)
        leg(a)
        assert a.weight == 0.5
        a.next_event()
        a.trained(LocalWork(np.full(NUMEL, 8, np.float32), 1, 1.0), 1.0)
        np.testing.assert_array_equal(a.model, np.full(NUMEL, moved))


def test_training_reaches_the_common_optimum_on_nodes_of_unequal_speed():
    centres = np.random.default_rng(1).standard_normal((8, NUMEL))
    of = World(
        PushSum,
        8,
        Quadratic(centres, 0.02),
        numel=NUMEL,
        step_s=lambda node: 0.1 * (1 + node % 3),
    )
    of.start()
    of.run(40.0)
    mean = np.mean(of.models(), axis=0)
    assert np.abs(mean - centres.mean(axis=0)).max() < 0.15


def test_a_change_is_clipped_to_its_length():
    a = core(0, 2, clip=0.5)
    a.start(np.zeros(NUMEL, np.float32), 0.0)
    a.next_event()
    a.trained(LocalWork(np.array([3, 0, 4, 0, 0], np.float32), 1, 1.0), 1.0)
    np.testing.assert_allclose(a.model, np.array([0.3, 0, 0.4, 0, 0]), rtol=1e-6)


def test_a_crash_takes_its_mass_along_and_the_others_still_agree():
    of = world(8, forget=5.0)
    of.start()
    of.run(2.03)
    of.crash(3)
    of.run(20.0)
    _, weight = held(of)
    assert 6.0 < weight + flying(of)[1] < 8.0
    models = np.array(of.models())
    assert np.ptp(models, axis=0).max() < 1e-5


def test_a_node_that_leaves_hands_its_mass_over():
    of = world(6, forget=5.0)
    of.start()
    of.run(3.0)
    of.leave(2)
    of.run(15.0)
    total = starts(6).sum(axis=0, dtype=np.float64)
    (x, weight), (more_x, more) = held(of), flying(of)
    assert weight + more == pytest.approx(6.0, abs=1e-9)
    np.testing.assert_allclose(x + more_x, total, atol=1e-9)


def test_a_partition_that_is_over_before_links_are_forgotten_loses_nothing():
    of = world(6, forget=1000.0)
    of.start()
    of.run(1.0)
    of.part([0, 1, 2], [3, 4, 5])
    of.run(20.0)
    of.heal()
    of.run(40.0)
    (x, weight), (more_x, more) = held(of), flying(of)
    assert weight + more == pytest.approx(6.0, abs=1e-9)
    np.testing.assert_allclose(x + more_x, starts(6).sum(axis=0, dtype=np.float64), atol=1e-9)
    assert sum(node.core.unsettled for node in of.alive) == 0


def given_to_b() -> tuple[PushSum, PushSum, Send]:
    a, b = core(0, 2), core(1, 2)
    for made in (a, b):
        made.start(np.full(NUMEL, 8, np.float32), 0.0)
    (push,) = leg(a)
    return a, b, push


def answers(made: PushSum) -> list[Send]:
    return [event for event in iter(made.next_event, None) if isinstance(event, Send)]


def test_a_link_that_closes_returns_what_was_not_acknowledged_and_raises_its_generation():
    a, b, push = given_to_b()
    me, other = a.context.me, b.context.me
    b.receive(me, push.message, push.vectors, 1.0)
    (ack,) = answers(b)
    a.receive(other, ack.message, ack.vectors, 1.1)
    (second,) = leg(a, 2.0)  # lost
    assert a.weight == 0.25
    a.members([], 3.0)
    deadline = 3.0 + 300.0
    while (at := a.next_deadline()) is not None:
        a.tick(at)
        assert at <= deadline
    assert a.weight == 0.5
    assert a.unsettled == 0.25
    a.members([other], 400.0)
    (third,) = leg(a, 400.0)
    assert decode_untrusted(third.message, Word).generation == 1
    b.receive(me, third.message, third.vectors, 401.0)
    assert b.weight == 1.75
    b.receive(me, second.message, second.vectors, 402.0)
    assert b.weight == 1.75, "of a generation that is over"


def test_a_receiver_that_began_again_refuses_sums_that_its_earlier_life_had():
    a, b, push = given_to_b()
    me, other = a.context.me, b.context.me
    b.receive(me, push.message, push.vectors, 1.0)
    (ack,) = answers(b)
    a.receive(other, ack.message, ack.vectors, 1.1)
    again = core(1, 2)
    again.start(np.full(NUMEL, 8, np.float32), 1.5)
    (second,) = leg(a, 2.0)
    again.receive(me, second.message, second.vectors, 2.1)
    (reset,) = answers(again)
    assert decode_untrusted(reset.message, Word).type == "reset"
    assert again.weight == 1.0
    a.receive(other, reset.message, reset.vectors, 2.2)
    assert a.weight == 0.5, (
        "what only the second message had is back; the rest died with the earlier life"
    )
    (third,) = leg(a, 3.0)
    again.receive(me, third.message, third.vectors, 3.1)
    assert again.weight == 1.25


@pytest.mark.parametrize(
    ("word", "vectors"),
    [
        (Word("push", 1, 0, weight=0.5), []),
        (Word("push", 1, 0, weight=0.5), [np.zeros(NUMEL, np.float32)]),
        (Word("push", 1, 0, weight=0.5), [np.zeros(NUMEL - 1)]),
        (Word("push", 1, 0, weight=float("nan")), [np.zeros(NUMEL)]),
        (Word("push", 1, 0, weight=-0.5), [np.zeros(NUMEL)]),
        (Word("ack", 1, 0), [np.zeros(NUMEL)]),
        (Word("ack", 1, -1), []),
    ],
)
def test_what_no_honest_peer_sends_is_malformed(word, vectors):
    a = core(0, 2)
    a.start(np.zeros(NUMEL, np.float32), 0.0)
    with pytest.raises(MalformedMessage):
        a.receive(node_id(1), pack(word), vectors, 0.0)


def test_mass_that_is_made_up_does_not_make_honest_nodes_say_what_no_honest_one_says():
    """A liar with life after life, each with as much mass as can be said."""
    swarm = world(5)
    swarm.start()
    for session in range(1, 12):
        for weight in (MOST_HELD, 0.4 * MOST_HELD, MOST_WEIGHT):
            word = Word("push", 2 * session + (weight != MOST_HELD), 0, weight=weight)
            swarm.inject(0, node_id(9), pack(word), [np.zeros(NUMEL)])
            swarm.run(swarm.now + 0.3)  # a message that a node refuses fails the rehearsal
    assert max(node.core.weight for node in swarm.nodes) <= MOST_HELD
    rounds = [node.round for node in swarm.nodes]
    swarm.run(swarm.now + 3)
    assert all(node.round > before for node, before in zip(swarm.nodes, rounds, strict=True))


@pytest.mark.parametrize("mixing", ["variance-corrected", "median", "trimmed-mean"])
def test_no_other_rule_than_the_sum_is_accepted(mixing):
    with pytest.raises(InvalidSettings, match="destroys their mass"):
        PushSum.parse_settings({"mixing": mixing})
