"""What becomes of a run of MoDeST when nodes come, go, fail and lie."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from gossip.decentralized.kit.rehearsal import Links, World, node_id
from gossip.decentralized.protocol import Send, Train
from gossip.protocols.modest import messages
from gossip.protocols.modest.protocol import MoDeST
from gossip.protocols.modest.view import ENTRY, MAX_COUNTER, MAX_ENTRIES, MAX_ROUND
from tests.gossip.decentralized.modest_kit import EXACT, IMPATIENT, quadratic
from transport.codec import pack

# ---- aggregators that lie ------------------------------------------------------------------------


class LyingAggregator(MoDeST):
    """Node 0 sends, as an aggregator, a model that is far off."""

    def _send_model(self, receivers, k, model, members, sample):
        if self.context.me == node_id(0):
            model = model + np.float32(1e6)
        return super()._send_model(receivers, k, model, members, sample)


@pytest.mark.parametrize(("aggregators", "harmed"), [(1, True), (3, False)])
def test_no_single_aggregator_of_three_is_trusted(aggregators, harmed):
    trainer = quadratic(12)
    settings = {"sample_size": 4, "aggregators": aggregators, "vote_timeout": 2.0, **EXACT}
    world = World(LyingAggregator, 12, trainer, settings=settings)
    largest = 0.0

    def hear(node, event, _now):
        nonlocal largest
        if isinstance(event, Train) and node != 0:
            largest = max(largest, float(np.abs(event.params).max()))

    world.on_event = hear
    world.start()
    world.run(1000.0, stop=lambda: max(node.round for node in world.alive) >= 30)
    lies = world.nodes[0].core.describe()["aggregated"]
    assert lies > 0
    assert (largest > 1e5) is harmed


# ---- nodes that come, go and fail ----------------------------------------------------------------


def candidates_after(rounds, **settings):
    world = World(
        MoDeST,
        60,
        settings={"sample_size": 6, **settings},
        numel=1,
        links=Links(delay_s=(0.01, 0.02)),
    )
    world.start()
    world.run(10_000.0, stop=lambda: max(node.round for node in world.alive) >= rounds)
    best = max(world.alive, key=lambda node: node.round).core
    return best.describe()["candidates"]


def test_undrawn_nodes_are_forgotten_unless_they_say_that_they_are_there():
    without = candidates_after(100, inactivity_window=16, readvertise=False)
    with_it = candidates_after(100, inactivity_window=16)
    assert without < 40
    assert with_it >= 58


def test_eighty_of_a_hundred_are_silenced_and_the_run_goes_on():
    settings = {
        "sample_size": 10,
        "inactivity_window": 20,
        "ping_timeout": 1.0,
        "stall_timeout": 5.0,
    }
    trainer = quadratic(100)
    world = World(
        MoDeST, 100, trainer, settings=settings, links=Links(delay_s=(0.01, 0.02)), notice_s=1e6
    )
    world.start()
    world.run(1000.0, stop=lambda: max(node.round for node in world.alive) >= 15)
    for index in range(80):
        world.crash(index)
    before = Counter({n.index: n.core.describe()["pings"] for n in world.alive})
    world.run(3000.0, stop=lambda: max(node.round for node in world.alive) >= 22)
    during = Counter({n.index: n.core.describe()["pings"] for n in world.alive})
    world.run(3000.0, stop=lambda: max(node.round for node in world.alive) >= 50)
    middle = Counter({n.index: n.core.describe()["pings"] for n in world.alive})
    world.run(3000.0, stop=lambda: max(node.round for node in world.alive) >= 60)
    after = Counter({n.index: n.core.describe()["pings"] for n in world.alive})
    assert max(node.round for node in world.alive) >= 60
    optimum = np.mean(trainer.centres[80:], axis=0)
    best = max(world.alive, key=lambda node: node.round).core
    assert float(np.abs(best.model - optimum).max()) < 0.8
    while_dead = sum((during - before).values()) / 7
    later = sum((after - middle).values()) / 10
    assert while_dead > 1.7 * later, "the dead are pinged until the window has passed, not for ever"


@pytest.mark.parametrize("aggregators", [1, 3])
def test_a_round_whose_aggregators_are_lost_is_tried_again(aggregators):
    settings = {"sample_size": 4, "aggregators": aggregators, "stall_timeout": 5.0}
    settings |= {"ping_timeout": 1.0, "aggregation_timeout": 5.0}
    world = World(MoDeST, 16, quadratic(16), settings=settings)
    world.start()
    world.run(100.0, stop=lambda: max(node.round for node in world.alive) >= 5)
    lost = set()

    def lose(
        index, event, _now
    ):  # each aggregator of the next round dies as soon as it has a model
        if isinstance(event, Send) and event.vectors and len(lost) < aggregators:
            receiver = world.index[event.to]
            if type(messages.decode(event.message)) is messages.Trained and receiver not in lost:
                lost.add(receiver)
                world.at(world.now + 0.06, lambda: world.crash(receiver))

    world.on_event = lose
    reached = max(node.round for node in world.alive)
    world.run(world.now + 600.0, stop=lambda: max(n.round for n in world.alive) >= reached + 20)
    assert len(lost) == aggregators
    assert max(node.round for node in world.alive) >= reached + 20


def test_nodes_join_leave_crash_and_come_back_with_losses_on_the_way():
    settings = {"sample_size": 4, "aggregators": 2, "stall_timeout": 10.0, "ping_timeout": 1.0}
    settings |= {"aggregation_timeout": 10.0}
    links = Links(loss=0.03, noticed=0.3)
    world = World(MoDeST, 14, quadratic(14), settings=settings, links=links)
    world.start(range(8))
    for index in range(8, 12):
        world.at(5.0 + index, lambda index=index: world.join(index))
    world.at(20.0, lambda: world.leave(0))
    world.at(22.0, lambda: world.crash(1))
    world.at(24.0, lambda: world.crash(8))
    world.at(40.0, lambda: world.restart(1))
    world.at(45.0, lambda: world.restart(0))
    world.run(60.0)
    drawn = {node.index: node.core.describe()["draws"] for node in world.alive}
    world.run(200.0)
    for node in world.alive:
        assert node.core.describe()["draws"] > drawn[node.index], f"{node.index} takes part"
    assert len(world.alive) == 11
    assert min(node.round for node in world.alive) > 50


def test_a_run_that_was_stopped_as_a_whole_goes_on_from_its_newest_model():
    world = World(MoDeST, 8, quadratic(8), settings={"sample_size": 3, "stall_timeout": 10.0})
    world.start()
    world.run(10.0)
    rounds = sorted(node.round for node in world.alive)
    for index in range(8):
        world.crash(index)
    world.run(11.0)
    for index in range(8):
        world.restart(index)
    world.run(300.0, stop=lambda: min(node.round for node in world.alive) > rounds[-1] + 5)
    first = min(done for node in world.nodes for at, done, _ in node.completed if at > 11.0)
    assert min(node.round for node in world.alive) > rounds[-1] + 5
    assert first >= rounds[len(rounds) // 2], "what most have is not done again"


def test_one_node_alone_trains_and_others_come_to_it():
    world = World(MoDeST, 3, quadratic(3), settings={"sample_size": 3})
    world.start([0])
    world.run(3.0)
    assert world.nodes[0].round >= 20
    world.join(1)
    world.join(2)
    world.run(20.0)
    assert all(node.core.describe()["draws"] > 10 for node in world.alive[1:])


def test_careful_trainers_whose_rounds_are_far_apart_find_together_again():
    """Three nodes have each gone on alone. With three aggregators nobody believes one of them, and yet they go on."""
    settings = {"sample_size": 4, "aggregators": 3, "success_fraction": 0.6, **IMPATIENT}
    world = World(MoDeST, 3, quadratic(3), settings=settings, step_s=lambda i: 0.5 * (1 + i))
    world.part([0], [1, 2])
    world.part([1], [2])
    world.start()
    world.run(30.0)
    assert len({node.round for node in world.alive}) == 3
    draws = [node.core.describe()["draws"] for node in world.alive]
    world.heal()
    more = lambda: [n.core.describe()["draws"] - draws[n.index] for n in world.alive]  # noqa: E731
    world.run(2000.0, stop=lambda: min(more()) > 15)
    assert min(more()) > 15
    rounds = [node.core._k_train for node in world.alive]
    assert max(rounds) - min(rounds) <= 2


def test_two_lines_that_meet_become_one():
    world = World(MoDeST, 6, quadratic(6), settings={"sample_size": 3})
    world.part([0, 1, 2], [3, 4, 5])
    world.start()
    world.run(20.0)
    assert min(node.round for node in world.alive) > 10
    world.heal()
    world.run(60.0)
    models = world.models()
    newest = max(node.round for node in world.alive)
    assert all(node.round > newest - 12 for node in world.alive)
    assert max(float(np.abs(a - models[0]).max()) for a in models) < 0.7


def test_a_latecomer_of_a_finished_run_is_given_the_last_model():
    world = World(
        MoDeST, 5, quadratic(5), settings={"sample_size": 3, "stall_timeout": 4.0}, rounds=6
    )
    world.start(range(4))
    world.run_rounds(6)
    world.join(4)
    world.run(world.now + 60.0)
    assert world.nodes[4].finished
    assert world.models()[4].tobytes() == world.models()[0].tobytes()


def test_a_trainer_that_diverges_is_done_without():
    good = quadratic(6)

    def trainer(node, leg):
        work = good(node, leg)
        if node == 2:
            work.params.fill(np.nan)
        return work

    world = World(MoDeST, 6, trainer, settings={"sample_size": 6, "success_fraction": 0.8})
    world.start()
    world.run_rounds(10, limit_s=100)
    assert all(np.isfinite(model).all() for model in world.models())


# ---- lies that would outlive the liar ------------------------------------------------------------


def lied_to(send, *, seconds=400.0, **settings):
    """Ten nodes, of which the last lies to the others and is gone; how far the rest has come."""
    world = World(
        MoDeST, 10, quadratic(10), settings={"sample_size": 4, **settings}, rounds=100_000
    )
    world.start()
    world.run(5.0)
    before = max(node.round for node in world.nodes)
    for index in range(9):
        for message, vectors in send:
            world.inject(index, node_id(9), pack(message), vectors)
    world.crash(9)
    goal = before + 20
    world.run(seconds, stop=lambda: min(node.round for node in world.alive) > goal)
    assert min(node.round for node in world.alive) > goal


def test_a_round_without_a_successor_ends_no_run():
    zeros = [np.zeros(8, np.float32)]
    lied_to(
        [(messages.Aggregated(MAX_ROUND, b"", 4, 4), zeros), (messages.Ping(MAX_ROUND, 0, 1), [])]
    )
    lied_to([(messages.Trained(MAX_ROUND, b"", 1), zeros)], aggregators=3)


@pytest.mark.parametrize("aggregators", [1, 2])
def test_one_trainer_of_a_round_to_come_does_not_silence_the_aggregators(aggregators):
    zeros = [np.zeros(8, np.float32)]
    lied_to([(messages.Trained(1000, b"", 4), zeros)], seconds=30.0, aggregators=aggregators)


def test_nobody_can_be_declared_gone_for_good():
    gone = b"".join(ENTRY.pack(node_id(i), 1, MAX_COUNTER << 1 | 1) for i in range(9))
    zeros = [np.zeros(8, np.float32)]
    behind = messages.Behind(1, MAX_COUNTER - 1)
    lied_to([(behind, []), (messages.Aggregated(1, gone, 4, 4), zeros)])


def test_nodes_that_do_not_exist_crowd_nobody_out():
    views = [
        b"".join(ENTRY.pack(node_id(10**6 + at), MAX_ROUND, 0) for at in range(start, start + 1600))
        for start in range(0, MAX_ENTRIES + 1600, 1600)
    ]
    zeros = [np.zeros(8, np.float32)]
    send = [(messages.Aggregated(1, view, 4, 4), zeros) for view in views]
    world = World(MoDeST, 10, quadratic(10), settings={"sample_size": 4})
    world.start()
    world.run(3.0)
    for message, vectors in send:
        world.inject(0, node_id(9), pack(message), vectors)
    world.crash(9)
    world.run(100.0, stop=lambda: min(node.round for node in world.alive) > 30)
    assert min(node.round for node in world.alive) > 30
    assert all(node_id(at) in world.nodes[0].core._standing.view for at in range(9))


def test_one_trainer_that_names_the_last_round_does_not_end_the_run():
    """Where undrawn nodes do not say that they are there, nobody but the liar is known in a round far ahead."""
    world = World(
        MoDeST,
        12,
        quadratic(12),
        settings={"sample_size": 6, "aggregators": 3, "mixing": "median", "readvertise": False},
        rounds=1000,
    )
    world.start()
    world.run(5.0)
    for index in range(11):
        lie = [np.full(8, 666, np.float32)]
        world.inject(index, node_id(11), pack(messages.Trained(1001, b"", 1)), lie)
    world.run(30.0)
    assert not any(node.finished for node in world.nodes)
    assert max(np.abs(model).max() for model in world.models()) < 10
