"""Epidemic learning: one graph for all in every round, or everybody's own draw and a round that ends by the clock."""

from __future__ import annotations

import numpy as np
import pytest

from gossip.decentralized.kit.rehearsal import Links, World, idle
from gossip.decentralized.protocol import Send
from gossip.decentralized.rounds.inbox import Received
from gossip.decentralized.rounds.messages import Model
from gossip.protocols.epidemic import EpidemicLearning
from transport.codec import pack


def start_of(index):
    return np.random.default_rng(index).standard_normal(8).astype(np.float32)


def world(count=16, trainer=idle, **options):
    made = World(EpidemicLearning, count, trainer, initial=start_of, **options)
    made.start()
    return made


def record_sends(made):
    """(sender, stamp) -> receivers of models, as they leave."""
    seen = {}

    def on_event(node, event, _now):
        if isinstance(event, Send) and event.vectors:
            seen.setdefault((node, event.key), []).append(made.index[event.to])

    made.on_event = on_event
    return seen


def test_oracle_is_one_regular_graph_for_all_and_another_in_every_round():
    made = World(EpidemicLearning, 16, initial=start_of, rounds=8, settings={"fanout": 3})
    seen = record_sends(made)
    made.start()
    made.run_rounds(8)
    graphs = []
    for stamp in range(1, 9):
        edges = {node: sorted(seen[node, stamp]) for node in range(16)}
        assert all(len(near) == 3 and node not in near for node, near in edges.items())
        assert all(node in edges[other] for node, near in edges.items() for other in near)
        graphs.append(str(edges))
    assert len(set(graphs)) == 8


@pytest.mark.parametrize(("count", "fanout"), [(16, 4), (15, 3), (7, 1), (2, 1), (5, 9)])
def test_oracle_conserves_the_mean(count, fanout):
    made = world(count, rounds=12, settings={"fanout": fanout})
    made.run_rounds(12)
    before = np.mean([start_of(i) for i in range(count)], axis=0, dtype=np.float64)
    np.testing.assert_allclose(np.mean(made.models(), axis=0, dtype=np.float64), before, atol=1e-6)
    assert made.sent == made.models_sent, "nobody had to be told anything"


def test_local_draws_exactly_so_many_others():
    made = World(
        EpidemicLearning,
        16,
        initial=start_of,
        rounds=8,
        settings={"sampling": "local", "fanout": 5},
    )
    seen = record_sends(made)
    made.start()
    made.run_rounds(8)
    for (node, _), receivers in seen.items():
        assert len(receivers) == len(set(receivers)) == 5
        assert node not in receivers
    assert len(seen) == 16 * 8
    drawn = [receivers for (node, _), receivers in sorted(seen.items()) if node == 0]
    assert len({tuple(r) for r in drawn}) > 1, "anew in each round"


def test_the_default_fanout_is_the_logarithm():
    for count, expected in ((2, 1), (3, 2), (4, 2), (5, 3), (16, 4), (17, 5)):
        made = world(count, rounds=1)
        assert made.nodes[0].core.fanout == expected


def test_local_weights_are_equal_parts_of_what_is_there():
    made = world(8, settings={"sampling": "local", "fanout": 3}, rounds=1)
    made.run(2.0)
    core = made.nodes[0].core
    for models in range(4):
        received = [made_up(core, j) for j in range(models)]
        row = core.weights(3, received)
        assert set(row.values()) == {1 / (1 + models)}
        assert sum(row.values()) == pytest.approx(1, abs=1e-15)


def made_up(core, j):
    return Received(core.others[j], 0, 3, ())


def test_local_mean_drifts_a_little_and_agreement_comes_fast():
    drifts = []
    for seed in range(3):
        made = world(32, seed=seed, rounds=20, settings={"sampling": "local", "fanout": 5})
        made.run_rounds(20)
        start = np.array([start_of(i) for i in range(32)], np.float64)
        models = np.array(made.models(), np.float64)
        spread = np.sqrt(np.square(start - start.mean(axis=0)).sum(axis=1).mean())
        left = np.sqrt(np.square(models - models.mean(axis=0)).sum(axis=1).mean())
        assert left < 1e-4 * spread
        drifts.append(np.linalg.norm(models.mean(axis=0) - start.mean(axis=0)) / spread)
    assert 0.005 < np.mean(drifts) < 0.3


def test_a_local_round_lasts_its_window_and_late_models_are_dropped():
    made = world(
        8,
        rounds=10,
        settings={"sampling": "local", "fanout": 7, "window": 0.5},
        links=Links(delay_s=(0.4, 0.7)),
    )
    made.run(20.0)
    for node in made.nodes:
        times = [time for time, _, _ in node.completed]
        assert np.allclose(np.diff(times), 0.1 + 0.5, atol=1e-9)
    mixed = sum(members - 1 for node in made.nodes for _, _, members in node.completed)
    late = sum(node.core.late for node in made.nodes)
    assert late > 0
    assert mixed + late == pytest.approx(8 * 7 * 10, rel=0.02), (
        "the last round's are still under way"
    )


def test_a_slow_node_finds_back_to_the_others_round():
    for sampling in ("local", "oracle"):
        made = world(
            8,
            rounds=40,
            settings={"sampling": sampling, "fanout": 4, "window": 0.3, "patience": 1.0},
            step_s=lambda node: 2.5 if node == 0 else 0.1,
        )
        made.run_rounds(40)
        slow = made.nodes[0]
        assert slow.core.jumps > 3
        assert max(members for _, _, members in slow.completed) > 1
        end = max(node.completed[-1][0] for node in made.nodes[1:])
        assert slow.completed[-1][0] < end + 2 * 2.5 + 1


def test_a_flood_of_models_is_bounded():
    made = world(64, rounds=1, settings={"sampling": "local", "fanout": 2}, step_s=lambda _: 100.0)
    core = made.nodes[0].core
    packed = pack(Model(0, 2))
    for other in made.nodes[1:]:
        core.receive(other.id, packed, [start_of(1)], 0.0)
    kept = sum(peer.holds for peer in core._inbox.peers.values())
    assert kept == core.capacity() == 16 + 4 * 2
