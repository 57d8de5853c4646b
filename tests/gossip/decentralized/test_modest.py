"""MoDeST as a whole, equal to a one-process reference, with its invariants; and one core by direct calls."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from gossip.decentralized import arithmetic
from gossip.decentralized.kit.conformance import check
from gossip.decentralized.kit.rehearsal import Links, Quadratic, World, idle, node_id, run_id
from gossip.decentralized.protocol import Context, LocalWork, Send, TensorSpec, Train
from gossip.errors import InvalidSettings
from gossip.protocols.modest import messages
from gossip.protocols.modest.protocol import MoDeST
from gossip.protocols.modest.view import Entry, View
from tests.gossip.decentralized.modest_kit import EXACT, IMPATIENT, quadratic
from tests.hash_seeds import same_under_two_hash_seeds
from transport.codec import pack
from transport.errors import MalformedMessage


class Watch:
    """Everything that was sent, by kind and round."""

    def __init__(self, world):
        self.models = defaultdict(list)
        self.kinds = Counter()
        world.on_event = self.hear

    def hear(self, node, event, _now):
        if isinstance(event, Send):
            said = messages.decode(event.message)
            self.kinds[type(said).__name__] += 1
            if event.vectors:
                self.models[type(said).__name__, said.round].append((node, event.vectors[0]))


def reference(count, trainer, initial, rounds, sample_size):
    """Federated averaging over the samples that the hash gives, in one process."""
    index = {node_id(i): i for i in range(count)}
    view = View((node, Entry(10**6, 0)) for node in index)
    model = initial
    for k in range(1, rounds + 1):
        trained = [
            trainer(index[node], Train(model, 1)).params
            for node in sorted(view.order(k, 50)[:sample_size])
        ]
        model = arithmetic.mean(trained)
    return model


# ---- what is computed ----------------------------------------------------------------------------


@pytest.mark.parametrize("aggregators", [1, 2, 3])
def test_it_is_federated_averaging_over_hashed_samples_to_the_last_bit(aggregators):
    trainer = quadratic(20)
    settings = {"sample_size": 5, "aggregators": aggregators, **EXACT}
    world = World(MoDeST, 20, trainer, settings=settings, rounds=12)
    world.start()
    world.run_rounds(12, limit_s=100)
    expected = reference(20, trainer, world.initial(0), 12, 5)
    assert all(model.tobytes() == expected.tobytes() for model in world.models())
    assert all(node.finished for node in world.nodes)
    assert world.bytes_sent < 12 * 200_000


def test_aggregators_agree_bit_for_bit_and_transfers_are_bounded():
    world = World(MoDeST, 20, quadratic(20), settings={"sample_size": 5, "aggregators": 2, **EXACT})
    watch = Watch(world)
    world.start()
    world.run_rounds(20, limit_s=200)
    for k in range(2, 20):
        means = watch.models["Aggregated", k]
        assert len({sender for sender, _ in means}) == 2
        assert len({model.tobytes() for _, model in means}) == 1
        assert len(means) + len(watch.models["Trained", k]) <= 2 * 5 * 2


def test_rounds_of_training_never_fall():
    settings = {"sample_size": 4, **IMPATIENT}
    world = World(MoDeST, 12, quadratic(12), settings=settings, links=Links(loss=0.05))
    last = Counter()

    def hear(node, _event, _now):
        k_train = world.nodes[node].core._k_train
        assert k_train >= last[node]
        last[node] = k_train

    world.on_event = hear
    world.start()
    world.run(200.0)
    assert max(last.values()) > 20


def test_nodes_are_drawn_equally_often():
    world = World(
        MoDeST, 20, settings={"sample_size": 5}, numel=1, links=Links(delay_s=(0.01, 0.02))
    )
    world.start()
    world.run(1000.0, stop=lambda: max(node.round for node in world.alive) >= 120)
    draws = [node.core.describe()["draws"] for node in world.alive]
    assert sum(draws) >= 115 * 5
    expected = sum(draws) / 20
    assert sum((d - expected) ** 2 / expected for d in draws) / (1 - 5 / 20) < 44, "99.9 % point"


def test_the_same_run_under_every_hash_seed():
    text = """
from gossip.decentralized.kit.rehearsal import Links, World
from gossip.protocols.modest.protocol import MoDeST
settings = {"sample_size": 4, "aggregators": 2, "aggregation_timeout": 3.0, "stall_timeout": 3.0}
world = World(MoDeST, 15, settings=settings, links=Links(loss=0.1, noticed=0.5), seed=3)
world.start()
world.at(5.0, lambda: world.crash(3))
world.run(30.0)
print(world.fingerprint(), max(node.round for node in world.alive))
"""
    assert int(same_under_two_hash_seeds("-c", text).split()[1]) > 5


def test_a_robust_mean_bears_a_lying_trainer_and_the_plain_one_does_not():
    centres = [np.full(8, 1.0)] * 9 + [np.full(8, 1e6)]
    error = {}
    for mixing in ("mean", "median", "trimmed-mean"):
        settings = {"sample_size": 10, "mixing": mixing, **EXACT}
        world = World(MoDeST, 10, Quadratic(centres), settings=settings, rounds=30)
        world.start()
        world.run_rounds(30, limit_s=100)
        error[mixing] = float(np.abs(world.models()[0] - 1.0).max())
    assert error["median"] < 0.1
    assert error["trimmed-mean"] < 0.1
    assert error["mean"] > 1000


def test_combinations_without_sense_are_refused():
    with pytest.raises(InvalidSettings, match="one line of models"):
        MoDeST.parse_settings({"mixing": "variance-corrected"})
    with pytest.raises(InvalidSettings, match="trim"):
        MoDeST.parse_settings({"trim": 2})
    with pytest.raises(InvalidSettings, match="sample_size"):
        MoDeST.parse_settings({"sample_size": 0})


def test_careful_settings_keep_all_rules_of_the_kit():
    check(MoDeST, {"aggregators": 3, "sample_size": 3, "mixing": "median"})


def test_idle_learns_nothing_and_all_stay_where_they_began():
    world = World(MoDeST, 6, idle, settings={"sample_size": 3}, rounds=5)
    world.start()
    world.run_rounds(5)
    assert all(model.tobytes() == world.initial(0).tobytes() for model in world.models())


# ---- one core ------------------------------------------------------------------------------------


def core(index=0, settings=None, rounds=0, others=range(1, 10)):
    settings = {"sample_size": 4, **(settings or {})}
    context = Context(
        me=node_id(index),
        run=run_id(0),
        tensors=(TensorSpec("w", 0, (4,)),),
        numel=4,
        rng=random.Random(index),
        rounds=rounds,
    )
    made = MoDeST(MoDeST.parse_settings(settings), context)
    made.members(sorted(node_id(i) for i in others), 0.0)
    return made


def events(made):
    found = []
    while (event := made.next_event()) is not None:
        found.append(event)
    return found


def said(found, kind):
    decoded = [(e, messages.decode(e.message)) for e in found if isinstance(e, Send)]
    return [(event, message) for event, message in decoded if isinstance(message, kind)]


def aggregated(k, view=b"", sample=4):
    return pack(messages.Aggregated(k, view, sample, 4))


MODEL = np.ones(4, np.float32)


def started(**options):
    made = core(**options)
    made.start(np.zeros(4, np.float32), 0.0, round_=1)
    events(made)
    return made


def test_a_joiner_does_not_enter_the_sample_that_is_being_formed():
    made = started()
    made.receive(node_id(3), aggregated(5), [MODEL], 1.0)
    assert type(events(made)[-1]) is Train
    made.receive(node_id(30), pack(messages.Membership(5, 1)), [], 1.5)
    made.trained(LocalWork(MODEL.copy(), 1, 1.0), 2.0)
    asked = {event.to for event, _ in said(events(made), messages.Ping)}
    order = made._standing.view.order(6, 50)
    assert node_id(30) not in order
    assert asked <= set(order[:2])
    for node in list(asked):
        nonce = made._errands.handing.nonce
        made.receive(node, pack(messages.Pong(5, 0, nonce, 0)), [], 2.1)
    sent = said(events(made), messages.Trained)
    assert len(sent) == 1 or order[0] == made.context.me
    assert node_id(30) in made._standing.view, "from now on it counts"


def test_the_first_aggregated_wins_and_a_newer_round_stops_an_older():
    made = started()
    made.receive(node_id(3), aggregated(5), [MODEL], 1.0)
    events(made)
    made.receive(node_id(4), aggregated(5), [MODEL * 2], 1.1)
    assert not [e for e in events(made) if isinstance(e, Train)]
    made.receive(node_id(4), aggregated(4), [MODEL * 2], 1.1)
    assert not [e for e in events(made) if isinstance(e, Train)]
    made.receive(node_id(4), aggregated(7), [MODEL * 3], 1.2)
    assert [type(e).__name__ for e in events(made) if not isinstance(e, Send)] == [
        "Cancel",
        "Completed",
        "Train",
    ]


def test_a_model_too_late_is_answered_so_and_one_too_many_too():
    made = started(settings={"aggregation_floor": 1, "success_fraction": 0.5})
    for sender in (1, 2, 3):
        made.receive(node_id(sender), pack(messages.Trained(5, b"", 4)), [MODEL], 1.0)
    assert made.describe()["aggregated"] == 1
    (late,) = said(events(made), messages.Ack)
    assert late[1] == messages.Ack(5, ok=False)
    assert late[0].to == node_id(3)


def test_a_round_closes_at_its_timeout_with_the_floor_and_not_below():
    made = started(settings={"success_fraction": 1.0, "aggregation_timeout": 10.0})
    for sender in (1, 2):
        made.receive(node_id(sender), pack(messages.Trained(5, b"", 4)), [MODEL], 1.0)
    made.tick(11.0)
    assert made.describe()["aggregated"] == 0
    made.receive(node_id(3), pack(messages.Trained(5, b"", 4)), [MODEL], 12.0)
    assert made.describe()["aggregated"] == 0
    made.tick(21.0)
    assert made.describe()["aggregated"] == 1


def test_nothing_is_answered_before_the_start_and_after_leaving():
    made = core()
    made.receive(node_id(1), pack(messages.Ping(1, 0, 5)), [], 0.0)
    made.receive(node_id(1), aggregated(5), [MODEL], 0.0)
    assert events(made) == []
    assert made.next_deadline() is None
    made = started()
    made.receive(node_id(3), aggregated(5), [MODEL], 1.0)
    events(made)
    made.leave(2.0)
    found = events(made)
    assert type(found[0]).__name__ == "Cancel"
    assert all(message.left for _, message in said(found, messages.Membership))
    made.receive(node_id(1), pack(messages.Ping(5, 0, 5)), [], 3.0)
    made.receive(node_id(3), aggregated(9), [MODEL], 3.0)
    assert events(made) == []
    assert made.next_deadline() is None


def test_one_who_came_back_without_its_counter_is_told():
    made = started()
    made.receive(node_id(1), pack(messages.Membership(3, 4, left=True)), [], 1.0)
    made.receive(node_id(1), pack(messages.Membership(3, 0)), [], 2.0)
    ((event, answer),) = said(events(made), messages.Behind)
    assert (event.to, answer.counter) == (node_id(1), 4)
    other = started(index=1, others=[0, 2])
    other.receive(node_id(0), event.message, [], 3.0)
    (again,) = said(events(other), messages.Membership)
    made.receive(node_id(1), again[0].message, [], 4.0)
    made._standing.flush()
    assert node_id(1) in made._standing.view.candidates(3, 50)


@pytest.mark.parametrize(
    ("message", "vectors"),
    [
        (aggregated(5), []),
        (aggregated(5), [np.ones(5, np.float32)]),
        (aggregated(5), [MODEL, MODEL]),
        (aggregated(5, view=b"x"), [MODEL]),
        (pack(messages.Ping(1, 0, 1)), [MODEL]),
        (pack({"t": "trained", "round": -1, "view": b"", "sample": 1}), [MODEL]),
        (pack({"t": "nonsense"}), []),
        (b"\xc1", []),
    ],
)
def test_what_no_honest_node_sends_is_malformed_and_changes_nothing(message, vectors):
    made = started()
    before = made.describe()
    with pytest.raises(MalformedMessage):
        made.receive(node_id(1), message, vectors, 1.0)
    assert events(made) == []
    assert made._k_train == 0
    assert {**made.describe(), "newest_round": 0} == {**before, "newest_round": 0}
