"""The epoch machine in a simulated world: agreement, progress, and one outcome per operation."""

from __future__ import annotations

import random

import pytest

from gossip.collective.agreement.epoch_events import EpochSettings
from gossip.collective.agreement.formation import proposer_of
from tests.gossip.epoch_world import World


def all_reach(world: World, rounds: int) -> bool:
    alive = world.rounds()
    return bool(alive) and min(alive) >= rounds


def assert_consistent(world: World) -> None:
    by_round: dict[int, set[bytes]] = {}
    for id_ in world.order:
        node = world.nodes[id_]
        if node.alive:
            by_round.setdefault(node.round, set()).add(node.state)
    assert all(len(states) == 1 for states in by_round.values())


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8])
def test_members_agree_and_make_progress(count: int) -> None:
    world = World(count, seed=count, settings=EpochSettings(min_members=count))
    world.start()
    world.run(60, lambda: all_reach(world, 10))
    assert all_reach(world, 10)
    assert_consistent(world)
    assert len(world.epochs) == 1, "nothing happened that needs a second epoch"
    assert world.markers["aborted"] == 0


def test_first_epoch_waits_for_the_members_it_was_told_to_wait_for() -> None:
    world = World(3, seed=1, settings=EpochSettings(min_members=3))
    a, b, c = world.order
    world.connect(a, b)
    for id_ in (a, b):
        world.ready(world.nodes[id_])
    world.run(20)
    assert not world.epochs
    world.connect(a, c)
    world.connect(b, c)
    world.ready(world.nodes[c])
    world.run(40, lambda: all_reach(world, 2))
    assert all_reach(world, 2)


@pytest.mark.parametrize("seed", range(6))
def test_any_member_may_crash_at_any_time(seed: int) -> None:
    world = World(4, seed=seed, settings=EpochSettings(min_members=4))
    world.start()
    victim = world.order[seed % 4]
    world.at(1.0 + 0.137 * seed, lambda: world.crash(victim))
    world.run(60, lambda: all_reach(world, 15))
    assert all_reach(world, 15)
    assert len(world.rounds()) == 3
    assert_consistent(world)


@pytest.mark.parametrize("seed", range(4))
def test_a_lost_proposer_is_not_waited_for_by_those_who_hear_of_its_end_late(seed: int) -> None:
    world = World(4, seed=seed, settings=EpochSettings(min_members=4))
    world.start()
    machines = {id_: world.nodes[id_].machine for id_ in world.order}
    world.run(60, lambda: all_reach(world, 2) and all(m.operation for m in machines.values()))
    present = machines[world.order[0]].epoch
    assert present is not None
    victim = proposer_of(present.members, present.number + 1, 0)
    first, *others = [id_ for id_ in world.order if id_ != victim]
    world.nodes[victim].alive = False
    world.disconnect(victim, first)
    world.run(world.now + 0.05)  # its word that the operation is aborted arrives everywhere
    assert [machines[id_].epoch for id_ in (first, *others)] == [None] * 3
    for id_ in others:
        world.disconnect(victim, id_)

    def together() -> bool:
        return all(machines[i].epoch and victim not in machines[i].epoch.members for i in others)

    world.run(world.now + 0.3, together)  # less than anybody's patience with a proposer
    assert together()


@pytest.mark.parametrize("seed", range(4))
def test_crashed_member_comes_back_and_catches_up(seed: int) -> None:
    world = World(4, seed=seed, settings=EpochSettings(min_members=4))
    world.start()
    victim = world.order[seed]
    world.at(1.5, lambda: world.crash(victim))
    world.at(4.0, lambda: world.restart(victim))
    world.run(90, lambda: world.now > 4.5 and all_reach(world, 25))
    assert all_reach(world, 25)
    assert world.markers["synced"] >= 1
    assert_consistent(world)


def test_minority_part_pauses_and_catches_up_after_healing() -> None:
    world = World(5, seed=9, settings=EpochSettings(min_members=5))
    world.start()
    minority, majority = world.order[:2], world.order[2:]

    def cut() -> None:
        for a in minority:
            for b in majority:
                world.disconnect(a, b)

    world.at(2.0, cut)
    world.run(20)
    paused = [world.nodes[id_].round for id_ in minority]
    ahead = [world.nodes[id_].round for id_ in majority]
    assert min(ahead) > max(paused) + 5
    world.run(25)
    assert [world.nodes[id_].round for id_ in minority] == paused
    world.connect_all()
    target = max(world.rounds()) + 5
    world.run(80, lambda: all_reach(world, target))
    assert all_reach(world, target)
    assert_consistent(world)


def test_with_quorum_any_both_parts_go_on_and_the_one_with_more_progress_wins() -> None:
    world = World(4, seed=3, settings=EpochSettings(min_members=4, quorum="any"))
    world.start()
    a, b, c, d = world.order

    def cut() -> None:
        for x in (a,):
            for y in (b, c, d):
                world.disconnect(x, y)

    world.at(2.0, cut)
    world.run(20)
    assert min(world.rounds()) > 10
    world.connect_all()
    target = max(world.rounds()) + 5
    world.run(80, lambda: all_reach(world, target))
    assert all_reach(world, target)
    assert_consistent(world)
    assert world.markers["synced"] >= 1


def test_newcomer_is_taken_in_without_aborting_anything() -> None:
    world = World(4, seed=5, settings=EpochSettings(min_members=3))
    new = world.order[3]
    world.nodes[new].alive = False
    world.connect_all()
    for id_ in world.order[:3]:
        world.ready(world.nodes[id_])
    world.at(3.0, lambda: world.restart(new))
    world.run(60, lambda: world.now > 3.1 and all_reach(world, 25))
    assert all_reach(world, 25)
    assert world.markers["aborted"] <= 3, "at most one operation, once per member"
    assert_consistent(world)


@pytest.mark.parametrize("seed", range(40))
def test_random_faults_never_give_two_outcomes_and_end_in_progress(seed: int) -> None:
    rng = random.Random(seed)
    count = rng.choice([3, 4, 5])
    world = World(count, seed=seed, settings=EpochSettings(min_members=count))
    world.start()
    when = 0.5
    for _ in range(12):
        when += rng.uniform(0.2, 2.0)
        victim = rng.choice(world.order)
        other = rng.choice(world.order)
        kind = rng.choice(["crash", "pause", "cut"])
        if kind == "crash":
            world.at(when, lambda v=victim: world.crash(v))
            world.at(when + rng.uniform(0.1, 3), lambda v=victim: world.restart(v))
        elif kind == "pause":
            world.at(when, lambda v=victim, s=rng.uniform(0.1, 3): world.pause(v, s))
        elif victim != other:
            world.at(when, lambda v=victim, o=other: world.disconnect(v, o))
            world.at(when + rng.uniform(0.05, 3), lambda v=victim, o=other: world.connect(v, o))
    world.run(when + 4)
    for id_ in world.order:
        world.restart(id_)
    world.connect_all()
    target = max(world.rounds()) + 5
    world.run(world.now + 120, lambda: all_reach(world, target))
    assert all_reach(world, target), (seed, world.rounds(), world.markers)
    assert_consistent(world)


def test_recovery_branches_really_run() -> None:
    """Without these the tests above could pass by never meeting the hard cases."""
    seen: dict[str, int] = {}
    for seed in range(25):
        world = World(4, seed=seed, settings=EpochSettings(min_members=4))
        world.start()
        rng = random.Random(seed)
        for step in range(10):
            victim = rng.choice(world.order)
            world.at(1 + step * 0.7 + rng.random() * 0.5, lambda v=victim: world.crash(v))
            world.at(1.3 + step * 0.7 + rng.random(), lambda v=victim: world.restart(v))
        world.run(15)
        for marker, times in world.markers.items():
            seen[marker] = seen.get(marker, 0) + times
    for marker in ("aborted", "behind", "synced", "certified", "certified late", "waiting"):
        assert seen.get(marker, 0) > 0, (marker, seen)


def test_same_seed_gives_the_same_trace() -> None:
    def digest() -> bytes:
        world = World(4, seed=11, settings=EpochSettings(min_members=4))
        world.start()
        world.at(1.2, lambda: world.crash(world.order[1]))
        world.at(2.5, lambda: world.restart(world.order[1]))
        world.run(8)
        return world.trace.digest()

    assert digest() == digest()


def test_a_connected_member_that_never_begins_is_left_out() -> None:
    """Its daemon answers, its trainer does not: nobody may wait for it for ever."""
    world = World(3, seed=2, settings=EpochSettings(min_members=3, straggler_s=5.0))
    stuck = world.nodes[world.order[1]]
    world.start()
    world.run(10, lambda: all_reach(world, 2))
    begin = world.begin
    world.begin = lambda node, life: None if node is stuck else begin(node, life)
    before = stuck.round
    world.run(world.now + 60)
    others = [world.nodes[id_].round for id_ in world.order if id_ != stuck.id]
    assert min(others) > before + 20
    assert stuck.round <= before + 1
    world.begin = begin
    stuck.machine.set_not_ready("stuck", world.now)
    world.pump(stuck)
    world.ready(stuck)
    target = max(others) + 5
    world.run(world.now + 60, lambda: all_reach(world, target))
    assert all_reach(world, target), "it comes back after stepping back"
    assert_consistent(world)
