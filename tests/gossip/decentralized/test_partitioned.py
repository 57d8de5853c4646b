"""Partitioned gossip: parts cover the model, ages only grow, accounts hold, bytes per message are those of a part."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.decentralized.kit.conformance import CHECKS, Subject
from gossip.decentralized.kit.rehearsal import Quadratic, World, node_id, run_id
from gossip.decentralized.protocol import Context, LocalWork, Send, TensorSpec, Train
from gossip.errors import InvalidSettings
from gossip.protocols.partitioned import MOST_AGE, MOST_LEAD, QUIET_PERIODS, Part, Partitioned
from transport.codec import decode_untrusted, pack
from transport.errors import MalformedMessage

NUMEL = 11


@pytest.mark.parametrize(
    "check", ["finite_rounds_finish", "losses_stop_nobody", "nodes_come_and_go"]
)
@pytest.mark.parametrize(
    "settings",
    [
        {"parts": 1, "mixing": "variance-corrected", "low": 1, "capacity": 1},
        {"period": 0.05, "graph": "ring"},
    ],
)
def test_conformance_with_other_settings(check, settings):
    CHECKS[check](Subject(Partitioned, settings))


def core(
    *, numel: int = NUMEL, tensors: tuple[TensorSpec, ...] = (), **options: object
) -> Partitioned:
    context = Context(
        me=node_id(0),
        run=run_id(0),
        tensors=tensors or (TensorSpec("weight", 0, (numel,)),),
        numel=numel,
        rng=random.Random(1),
    )
    made = Partitioned(Partitioned.parse_settings({"parts": 4, **options}), context)
    made.members(sorted([node_id(1), node_id(2)]), 0.0)
    return made


def started(round_: int = 0, **options: object) -> Partitioned:
    made = core(**options)
    made.start(np.arange(NUMEL, dtype=np.float32), 0.0, round_=round_)
    return made


def legs(made: Partitioned) -> list[Train]:
    return [event for event in iter(made.next_event, None) if isinstance(event, Train)]


def values(made: Partitioned, part: int, value: float) -> np.ndarray:
    return np.full(made.bounds[part + 1] - made.bounds[part], value, np.float32)


@given(st.integers(1, 300), st.integers(1, 400))
def test_parts_are_disjoint_cover_the_model_and_are_nearly_equal(numel, parts):
    bounds = core(numel=numel, parts=parts).bounds
    sizes = np.diff(bounds)
    assert (bounds[0], bounds[-1]) == (0, numel)
    assert sizes.min() >= 1
    assert sizes.max() - sizes.min() <= 1
    assert len(sizes) == min(parts, numel)


@given(st.integers(0, 3), st.integers(0, 1000), st.integers(0, 1000))
def test_a_part_is_weighted_by_its_age_and_the_others_are_untouched(part, own_age, their_age):
    made = started(own_age)
    before = made.model.copy()
    theirs = values(made, part, 100.0)
    made.receive(node_id(1), pack(Part(part, 4, their_age)), [theirs], 0.5)
    start, stop = made.bounds[part : part + 2]
    their_age = min(their_age, 2 * own_age + MOST_LEAD)
    share = their_age / (own_age + their_age) if own_age + their_age else 0.5
    expected = (1 - share) * before[start:stop] + share * 100
    np.testing.assert_allclose(made.model[start:stop], expected, rtol=1e-6, atol=1e-5)
    rest = np.delete(np.arange(NUMEL), np.arange(start, stop))
    np.testing.assert_array_equal(made.model[rest], before[rest])
    assert made.ages == [max(own_age, their_age) if p == part else own_age for p in range(4)]


def test_an_age_that_is_made_up_does_not_take_over_every_model():
    swarm = World(Partitioned, 6, numel=NUMEL, settings={"parts": 1})
    swarm.start()
    swarm.run(20.0)
    before = max(max(node.core.ages) for node in swarm.nodes)
    swarm.crash(5)
    lie = np.full(NUMEL, 1e6, np.float32)
    assert swarm.inject(0, node_id(5), pack(Part(0, 1, MOST_AGE)), [lie])
    assert np.abs(swarm.nodes[0].core.model).max() < 0.75e6
    swarm.run(21.0)
    assert max(max(node.core.ages) for node in swarm.alive) <= 2 * before + MOST_LEAD + 100


def test_who_begins_late_catches_up_within_some_messages():
    made = started(0)
    for _ in range(12):
        made.receive(node_id(1), pack(Part(0, 4, 10_000)), [values(made, 0, 100.0)], 0.5)
    np.testing.assert_allclose(made.model[made.bounds[0] : made.bounds[1]], 100.0)
    assert made.ages[0] == 10_000


def test_a_part_that_comes_during_a_leg_is_merged_at_once_and_another_leg_follows():
    made = started()
    (leg,) = legs(made)
    before = made.model.copy()
    made.receive(node_id(1), pack(Part(0, 4, 5)), [values(made, 0, 50.0)], 0.5)
    assert legs(made) == [], "one leg at a time"
    change = np.ones(NUMEL, np.float32)
    made.trained(LocalWork(leg.params + change, 1, 1.0), 1.0)
    (following,) = legs(made)
    np.testing.assert_array_equal(following.params[made.bounds[1] :], before[made.bounds[1] :] + 1)
    np.testing.assert_array_equal(following.params[: made.bounds[1]], values(made, 0, 51.0))
    assert made.ages == [6, 1, 1, 1]
    made.trained(LocalWork(following.params.copy(), 1, 1.0), 2.0)
    assert legs(made) == [], "nothing has come since"
    made.receive(node_id(2), pack(Part(1, 4, 5)), [values(made, 1, 0.0)], 2.5)
    assert len(legs(made)) == 1


def test_ages_only_grow_and_balances_stay_within_the_capacity():
    world = World(
        Partitioned,
        10,
        settings={"parts": 4, "low": 3, "capacity": 6, "graph": "random-regular"},
        numel=NUMEL,
        step_s=lambda node: 0.1 * (1 + node % 3),
    )
    world.start()
    last = [[0] * 4] * 10
    for _ in range(150):
        world.run(world.now + 0.11)
        for index, node in enumerate(world.alive):
            assert all(now >= then for now, then in zip(node.core.ages, last[index], strict=True))
            assert 0 <= node.core.account.balance <= 6
        last = [list(node.core.ages) for node in world.alive]
    assert min(map(min, last)) > 10


def test_a_message_is_one_part_and_each_node_sends_one_per_period_in_the_long_run():
    world = World(Partitioned, 12, settings={"parts": 4, "period": 0.2}, numel=400)
    sends: list[Send] = []

    def hear(_node: int, event: object, now: float) -> None:
        if isinstance(event, Send) and now > 20:
            sends.append(event)

    world.on_event = hear
    world.start()
    world.run(40.0)
    assert {vector.nbytes for send in sends for vector in send.vectors} == {400}
    assert len(sends) / (12 * 20 / 0.2) == pytest.approx(1.0, abs=0.1)
    drawn = [decode_untrusted(send.message, Part).part for send in sends]
    for part in range(4):
        assert drawn.count(part) / len(drawn) == pytest.approx(1 / 4, abs=0.05)


def test_the_last_one_to_train_does_not_stand_still():
    made = started()
    (leg,) = legs(made)
    made.trained(LocalWork(leg.params.copy(), 1, 1.0), 1.0)
    ticks = 0
    while not legs(made):
        made.tick(made.next_deadline())
        ticks += 1
    assert ticks == QUIET_PERIODS


def test_training_brings_all_near_the_common_optimum():
    centres = np.random.default_rng(1).standard_normal((10, NUMEL))
    world = World(
        Partitioned, 10, Quadratic(centres, 0.02), settings={"low": 2, "capacity": 4}, numel=NUMEL
    )
    world.start()
    far = np.abs(np.mean(world.models(), axis=0) - centres.mean(axis=0)).max()
    world.run(30.0)
    assert np.abs(np.mean(world.models(), axis=0) - centres.mean(axis=0)).max() < 0.2 * far


def test_statistics_of_a_node_are_its_own():
    tensors = (TensorSpec("a.weight", 0, (5,)), TensorSpec("a.running_mean", 5, (6,)))
    made = started(tensors=tensors, parts=2)
    before = made.model.copy()
    for part in (0, 1):
        made.receive(node_id(1), pack(Part(part, 2, 9)), [values(made, part, 100.0)], 0.5)
    np.testing.assert_array_equal(made.model[5:], before[5:])
    np.testing.assert_array_equal(made.model[:5], np.full(5, 100.0))


@pytest.mark.parametrize(
    ("message", "vectors"),
    [
        (Part(0, 4, 1), []),
        (Part(0, 4, 1), [np.zeros(9, np.float32)]),
        (Part(0, 4, 1), [np.zeros(2)]),
        (Part(3, 3, 1), [np.zeros(3, np.float32)]),
        (Part(0, 8, 1), [np.zeros(1, np.float32)]),
        (Part(0, 4, MOST_AGE + 1), [np.zeros(2, np.float32)]),
        (Part(0, 4, -1), [np.zeros(2, np.float32)]),
    ],
)
def test_what_no_honest_peer_sends_is_malformed(message, vectors):
    with pytest.raises(MalformedMessage):
        started().receive(node_id(1), pack(message), vectors, 0.5)


def test_the_number_of_parts_follows_from_what_mixing_needs():
    assert Partitioned.parse_settings({}).cut == 8
    assert Partitioned.parse_settings({"mixing": "variance-corrected"}).cut == 1


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"mixing": "variance-corrected", "parts": 8}, "parts cut through"),
        ({"low": 30}, "less than low"),
        ({"mixing": "median"}, "does not combine"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_with_the_reason(settings, reason):
    with pytest.raises(InvalidSettings, match=reason):
        Partitioned.parse_settings(settings)
