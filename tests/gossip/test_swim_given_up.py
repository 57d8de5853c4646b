"""Who doubts itself follows three others that have given a member up, and nobody else: after one look of the usual length."""

from gossip.membership.messages import Gossip, Message
from gossip.membership.settings import LAN, WAN
from gossip.membership.suspicion import Suspicion
from tests.gossip.swim_world import World
from tests.gossip.test_swim_simulation import busy

STALL_S = 2.0


def others_with_a_death(
    seed: int, preset, *, frozen: bool, loss: float
) -> tuple[World, list[float]]:
    """Eight members, two of them with loops that stall; one of the others dies."""
    world = World(seed, 8, settings=preset, loss=loss, latency_s=(0.01, 0.15), encoded=False)
    for node in world.nodes[:2]:
        busy(world, node, (0.5, STALL_S))
    world.run(4.0 + seed / 7)
    world.kill(world.nodes[5], frozen=frozen)
    died_at = world.now
    world.run(died_at + 40.0)
    return world, [at - died_at for at, _, who in world.lost if who == 5]


def test_a_member_whose_loop_stalls_lists_a_dead_one_soon_after_the_others():
    """Self-doubt alone would have it wait up to nine times as long: half a minute and more."""
    for preset, most_s in ((LAN, 5.0), (WAN, 15.0)):
        for seed in range(4):
            world, took = others_with_a_death(seed, preset, frozen=seed % 2 == 0, loss=0.02)
            assert len(took) == 7
            assert max(took) <= most_s + 1.5 * STALL_S
            assert world.false_evictions() == []


def test_three_others_are_needed():
    doubted = Suspicion(10.0, 3, 2.5, 5.0, "why")
    for author in (b"a", b"b", b"b"):
        doubted.confirm(author, lost=True)
        assert not doubted.given_up
    doubted.confirm(b"c", lost=False)
    assert not doubted.given_up
    doubted.confirm(b"c", lost=True)
    assert doubted.given_up
    small = Suspicion(10.0, 2, 2.5, 5.0, "why")
    for author in (b"a", b"b", b"c"):
        small.confirm(author, lost=True)
    assert not small.given_up


def test_the_last_look_still_stands_between_the_word_of_others_and_the_verdict():
    """Three liars say that a member is lost; whoever hears from it does not believe them, however busy."""
    world = World(2, 8, settings=LAN, encoded=False)
    busy(world, world.nodes[0])
    liars, victim = world.nodes[4:7], world.nodes[1]

    def slander() -> None:
        for liar in liars:
            claim = liar.keys.doubt(victim.id, victim.swim.incarnation, lost=True)
            world._deliver(world.nodes[0], liar, Message(body=Gossip(), news=[claim]))
        world.at(world.now + 0.5, slander)

    world.at(3.0, slander)
    world.run(60.0)
    assert [entry for entry in world.lost if entry[2] == victim.name] == []
