"""Swarms of 8, 64 and hundreds of members in simulation: how soon a death is seen, and that nobody else is thought dead.

    NODED_SLOW=1 python -m pytest tests/gossip/test_swim_simulation.py      500 members instead of 150

Run this file as a program for the tables (`python -m tests.gossip.test_swim_simulation`).
"""

from __future__ import annotations

import os

import pytest

from gossip.membership.messages import Gossip, Message, Probe
from gossip.membership.settings import LAN, WAN, SwimSettings
from gossip.membership.table import MemberState
from tests.gossip.swim_world import Node, World, quantiles
from tests.hash_seeds import same_under_two_hash_seeds

SLOW = os.environ.get("NODED_SLOW") == "1"


def busy(world: World, node: Node, stall_s: tuple[float, float] = (1.0, 3.0)) -> None:
    """A loop that stalls again and again, as beside a trainer on all cores; free for a moment between."""

    def again() -> None:
        world.stall(node, world.rng.uniform(*stall_s))
        world.at(node.stalled_until + world.rng.uniform(0.3, 3.0), again)

    world.at(world.now + 2.0, again)


def detection(world: World, *, frozen: bool) -> list[float]:
    """Seconds after which each of the others lists a dead member as lost."""
    world.run(world.now + 4.0 + world.rng.random())
    victim = world.nodes[len(world.nodes) // 2]
    died_at = world.now
    world.kill(victim, frozen=frozen)
    world.run(died_at + 20.0)
    assert len({by for _, by, who in world.lost if who == victim.name}) == len(world.nodes) - 1
    assert world.false_evictions() == []
    return [at - died_at for at, _, who in world.lost if who == victim.name]


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("preset", "most_s"), [(LAN, 5.0), (WAN, 15.0)])
def test_eight_members_list_a_dead_one_in_time(seed, frozen, preset, most_s):
    assert max(detection(World(seed, 8, settings=preset), frozen=frozen)) <= most_s


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize(("degree", "loss"), [(None, 0.0), (16, 0.0), (16, 0.03)])
def test_64_members_list_a_dead_one_in_time(degree, loss, frozen):
    world = World(7, 64, degree=degree, loss=loss, keep=64 if degree is None else 24)
    assert max(detection(world, frozen=frozen)) <= 5.0


def test_hundreds_of_members_each_connected_to_few_list_a_dead_one_in_time():
    world = World(1, 500 if SLOW else 150, degree=24, keep=32, encoded=False)
    assert max(detection(world, frozen=True)) <= 5.0


@pytest.mark.parametrize("minutes", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_busy_trainers_beside_the_nodes_evict_nobody(minutes):
    world = World(3, 8, encoded=False)
    for node in world.nodes[:3]:
        busy(world, node)
    world.run(minutes * 60.0)
    assert world.false_evictions() == []
    assert len(world.suspected) > 20 * minutes  # it was close often enough


def test_without_patience_the_same_stalls_evict():
    """The test can fail: with the times of a detector that knows no stalls, it does."""
    hasty = SwimSettings(quiet_s=1.2, probe_s=0.3, doubt_s=0.6, doubt_alone_s=0.9, gossip_s=0.2)
    world = World(3, 8, settings=hasty)
    busy(world, world.nodes[0])
    world.run(120.0)
    assert world.false_evictions()


def test_a_busy_member_does_not_evict_others_while_a_dead_one_is_found():
    world = World(11, 8)
    busy(world, world.nodes[0])
    times = detection(world, frozen=True)
    assert sorted(times)[-2] <= 5.0  # all but the busy one, which doubts itself


def test_both_sides_of_a_partition_lose_and_find_each_other():
    world = World(5, 8)
    world.run(5.0)
    halves = set(world.nodes[:4])
    world.cut = lambda a, b: (a in halves) != (b in halves)
    world.run(25.0)
    for node in world.nodes:
        for other in world.nodes:
            if other is not node:
                across = (node in halves) != (other in halves)
                expected = MemberState.LOST if across else MemberState.ALIVE
                assert world.state(node, other) is expected
    world.cut = lambda _a, _b: False
    world.run(40.0)
    for node in world.nodes:
        assert {view.state for view in node.swim.members()} == {MemberState.ALIVE}


@pytest.mark.parametrize("can_dial", [True, False])
@pytest.mark.parametrize("seed", range(2))
def test_a_liar_that_slanders_and_swallows_probes_evicts_nobody(seed, can_dial):
    """It tells everybody that its victim is lost, keeps all news of the victim to itself, and says of every probe that it tried."""
    world = World(seed, 16, degree=8, keep=12)
    world.can_dial = can_dial
    liar, victim = world.nodes[5], world.nodes[9]

    def tamper(sender: Node, _to: Node, said: Message) -> Message | None:
        if sender is not liar:
            return said
        if isinstance(said.body, Probe) and said.body.target == victim.id:
            return None
        kept = [news for news in said.news if news.member != victim.id]
        return Message(body=said.body, news=kept)

    def slander() -> None:
        for other in world.nodes:
            if liar.id in other.seen and other is not victim:
                for lost in (False, True):
                    claim = liar.keys.doubt(victim.id, victim.swim.incarnation, lost=lost)
                    said = Message(body=Gossip(), news=[claim])
                    world.at(world.now + 0.01, world._deliver, other, liar, said)
        world.at(world.now + 0.7, slander)

    world.tamper = tamper
    world.at(5.0, slander)
    world.run(60.0)
    assert [entry for entry in world.false_evictions() if entry[1] != liar.name] == []
    assert [
        entry for entry in world.suspected if entry[2] == victim.name
    ]  # it was believed at first
    assert victim.swim.counters["refuted"] > 10
    assert victim.swim.health.score == 0  # and cannot make its victim doubt itself


def test_one_way_loss_between_two_members_evicts_nobody():
    """A hears nothing from B, everybody else does: the helpers answer for B."""
    world = World(6, 8)
    world.run(3.0)
    a, b = world.nodes[:2]
    world.cut = lambda one, other: {one, other} == {a, b}
    world.run(60.0)
    assert world.lost == []
    assert world.state(a, b) is MemberState.ALIVE


def test_a_swarm_at_rest_in_which_all_are_connected_says_next_to_nothing():
    world = World(1, 8)
    world.run(30.0)
    before = world.counters["messages"]
    world.run(330.0)
    per_node_and_minute = (world.counters["messages"] - before) / 8 / 5
    assert per_node_and_minute <= 3  # the comparison of tables
    assert world.suspected == []


def trace(seed: int) -> str:
    world = World(seed, 8, loss=0.02)
    busy(world, world.nodes[0])
    world.at(20.0, world.kill, world.nodes[3])
    world.run(40.0)
    return world.digest()


def test_the_same_seed_gives_the_same_messages_under_any_hash_seed():
    code = "from tests.gossip.test_swim_simulation import trace; print(trace(4))"
    assert same_under_two_hash_seeds("-c", code) == trace(4) + "\n"
    assert trace(4) != trace(5)


def main() -> None:
    print("detection after a death, seconds (all observers)")
    for name, preset, count, degree, loss, seeds in (
        ("LAN", LAN, 8, None, 0.0, 40),
        ("LAN", LAN, 8, None, 0.05, 40),
        ("WAN", WAN, 8, None, 0.0, 40),
        ("LAN", LAN, 64, 16, 0.0, 8),
        ("LAN", LAN, 64, 16, 0.03, 8),
        ("WAN", WAN, 64, 16, 0.03, 8),
        ("LAN", LAN, 500, 24, 0.0, 1),
    ):
        for frozen in (True, False):
            times: list[float] = []
            for seed in range(seeds):
                world = World(
                    seed,
                    count,
                    settings=preset,
                    degree=degree,
                    loss=loss,
                    keep=128 if degree is None else degree + 8,
                    encoded=False,
                )
                times += detection(world, frozen=frozen)
            how = "frozen" if frozen else "killed"
            print(
                f"{name} {count:4} members, {degree or count - 1:3} connections, loss {loss:4.0%}, {how}: {quantiles(times)}",
                flush=True,
            )
    print("\nfalse evictions in 30 virtual minutes, 8 members, busy loops")
    for name, preset, stalls in (("LAN", LAN, 1), ("LAN", LAN, 4), ("WAN", WAN, 4)):
        for seed in range(3):
            world = World(seed, 8, settings=preset, encoded=False)
            for node in world.nodes[:stalls]:
                busy(world, node)
            world.run(1800.0)
            print(
                f"{name}, {stalls} busy, seed {seed}: {len(world.false_evictions())} (doubts {len(world.suspected)})",
                flush=True,
            )


if __name__ == "__main__":
    main()
