"""Rounds among nodes that are slow, silent, late, gone or liars: what the barrier waits for, and what it gives up."""

from __future__ import annotations

import numpy as np
import pytest

from gossip.decentralized.kit.rehearsal import Links, Quadratic, World, idle, node_id
from gossip.decentralized.protocol import Cancel, Completed, LocalWork, Send, Train
from gossip.decentralized.rounds.base import WAITED_ALONE
from gossip.decentralized.rounds.inbox import MAX_STRANGERS, Inbox, Received
from gossip.decentralized.rounds.messages import AnyMessage, Model, Skip, Taken, Waiting
from gossip.decentralized.topology import graph
from gossip.protocols.dpsgd import DPSGD
from gossip.protocols.noloco import NoLoCo
from tests.gossip.decentralized.spectra import mixing_matrix
from transport.codec import decode_untrusted, pack
from transport.errors import MalformedMessage


def start_of(index):
    return np.random.default_rng(index).standard_normal(8).astype(np.float32)


def world(count=8, trainer=idle, nodes=None, **options):
    options.setdefault("initial", start_of)
    settings = {"graph": "ring", "patience": 5.0, **options.pop("settings", {})}
    made = World(DPSGD, count, trainer, settings=settings, **options)
    made.start(nodes)
    return made


def mean_of(models):
    return np.mean(models, axis=0, dtype=np.float64)


STARTS = [start_of(i) for i in range(8)]


# ---- the matrix ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ring", "random-regular", "barabasi-albert", "full"])
def test_rounds_are_products_with_the_matrix(kind):
    made = world(rounds=4, settings={"graph": kind, "degree": 3})
    made.run_rounds(4)
    order = sorted(node.id for node in made.nodes)
    matrix = mixing_matrix(graph(kind, order, made.nodes[0].core.context.run, degree=3))
    expected = np.linalg.matrix_power(matrix, 4) @ np.array(
        [STARTS[made.index[node]] for node in order], np.float64
    )
    models = [made.nodes[made.index[node]].core.model for node in order]
    np.testing.assert_allclose(models, expected, atol=1e-6)


@pytest.mark.parametrize("count", [2, 3, 7, 8])
def test_on_the_full_graph_all_models_are_one_bit_for_bit_after_every_round(count):
    made = world(count, rounds=6, trainer=Quadratic(np.eye(8)), settings={"graph": "full"})
    seen = {}
    made.on_event = lambda _node, event, _now: (
        seen.setdefault(event.round, set()).add(event.model.tobytes())
        if isinstance(event, Completed)
        else None
    )
    made.run_rounds(6)
    assert {round_: len(models) for round_, models in seen.items()} == dict.fromkeys(range(1, 7), 1)


def test_models_that_overtake_each_other_change_nothing():
    slow = world(rounds=10, links=Links(delay_s=(0.0, 3.0)), settings={"patience": 100.0})
    slow.run_rounds(10)
    fast = world(rounds=10)
    fast.run_rounds(10)
    assert [m.tobytes() for m in slow.models()] == [m.tobytes() for m in fast.models()]


def test_the_optimum_of_all_is_reached_by_each():
    centres = np.random.default_rng(0).standard_normal((8, 8))
    made = world(rounds=150, trainer=Quadratic(centres, 0.02), settings={"graph": "exponential"})
    made.run_rounds(150)
    for model in made.models():
        np.testing.assert_allclose(model, centres.mean(axis=0), atol=0.05)


# ---- messages by hand ----------------------------------------------------------------------------


class Hand:
    """One core of a ring of three, whose two neighbours are the test."""

    def __init__(self, **settings):
        made = World(DPSGD, 3, settings={"graph": "ring", "patience": 5.0, **settings}, rounds=50)
        self.core = DPSGD(made.settings, made.context(0))
        self.a, self.b = node_id(1), node_id(2)
        self.core.members(sorted([self.a, self.b]), 0.0)
        self.core.start(np.zeros(8, np.float32), 0.0)

    def events(self):
        found = []
        while (event := self.core.next_event()) is not None:
            found.append(event)
        return found

    def leg(self, now, value=0.0):
        self.core.trained(LocalWork(np.full(8, value, np.float32), 1, 1.0), now)

    def model(self, sender, stamp, value, now, degree=2):
        self.core.receive(sender, pack(Model(stamp, degree)), [np.full(8, value, np.float32)], now)

    def skip(self, sender, stamp, now, since=-1):
        self.core.receive(sender, pack(Skip(stamp, since)), [], now)


def sent(events):
    return [
        (event.to, decode_untrusted(event.message, AnyMessage))
        for event in events
        if isinstance(event, Send)
    ]


def alone(hand, rounds):
    """Each round's models come a moment after it was closed."""
    now = 0.0
    for stamp in range(rounds):
        hand.leg(now)
        while hand.core.next_deadline() is not None:
            now = hand.core.next_deadline()
            hand.core.tick(now)
        now += 0.1
        hand.model(hand.a, stamp, 1.0, now)
        hand.model(hand.b, stamp, 1.0, now)
    return now


def test_a_patience_shorter_than_the_way_of_a_model_is_said_and_not_suffered():
    hand = Hand()
    alone(hand, WAITED_ALONE - 1)
    assert hand.core.solitude() is None, "a hitch"
    hand = Hand()
    now = alone(hand, WAITED_ALONE)
    told = hand.core.solitude()
    assert told.rounds == WAITED_ALONE
    assert told.reason == f"{hand.core.late} models came too late: this node waits 5 s for them"
    assert hand.core.late >= WAITED_ALONE
    assert "patience" in told.hint
    stamp = hand.core.stamp
    hand.leg(now)
    hand.model(hand.a, stamp, 1.0, now)
    hand.model(hand.b, stamp, 1.0, now)
    assert hand.core.solitude() is None


def test_who_has_nobody_to_wait_for_is_not_told_so():
    made = world(1, rounds=3 * WAITED_ALONE)
    made.run_rounds(3 * WAITED_ALONE)
    assert made.nodes[0].core.solitude() is None
    odd = World(NoLoCo, 3, rounds=60)
    odd.start()
    said = []
    odd.on_event = lambda node, event, _now: said.append(odd.nodes[node].core.solitude())
    odd.run_rounds(60)
    assert set(said) == {None}, "one of three has no partner in each round"


def test_a_round_in_single_steps():
    hand = Hand()
    (train,) = hand.events()
    assert isinstance(train, Train)
    hand.leg(1.0, value=3.0)
    assert sent(hand.events()) == [(to, Model(0, 2)) for to in sorted([hand.a, hand.b])]
    assert hand.core.next_deadline() == 3.5, "half-way to 6"
    hand.model(hand.a, 0, 6.0, 2.0)
    assert hand.events() == []
    hand.model(hand.b, 0, 0.0, 2.5)
    completed, train = hand.events()
    assert (completed.round, completed.members) == (1, 3)
    np.testing.assert_allclose(completed.model, 3.0)  # a third of each
    assert isinstance(train, Train)
    assert hand.core.next_deadline() is None


def test_who_is_missing_at_the_deadline_is_told_and_its_weight_stays():
    hand = Hand()
    hand.leg(1.0, value=3.0)
    hand.model(hand.a, 0, 6.0, 2.0)
    hand.events()
    hand.core.tick(5.9)
    assert sent(hand.events()) == [(hand.a, Waiting(0))]
    assert hand.core.next_deadline() == 6.0
    hand.core.tick(6.0)
    first, completed, _train = hand.events()
    assert sent([first]) == [(hand.b, Skip(0, -1))]
    np.testing.assert_allclose(completed.model, 4.0)  # 6/3 + 3 * 2/3
    assert completed.members == 2
    assert hand.core.missing == 1


def test_one_that_closed_without_this_node_is_left_out_although_its_model_is_here():
    """The weight of an edge goes back to both ends, or the mean would move."""
    hand = Hand()
    hand.model(hand.a, 0, 6.0, 0.5)
    hand.skip(hand.a, 0, 0.6)
    hand.leg(1.0, value=3.0)
    hand.model(hand.b, 0, 9.0, 2.0)
    completed = next(event for event in hand.events() if isinstance(event, Completed))
    np.testing.assert_allclose(completed.model, 5.0)  # 9/3 + 3 * 2/3, nothing of the six


def test_who_waits_says_so_and_is_given_as_much_time_again_once():
    hand = Hand()
    hand.leg(1.0)
    hand.model(hand.a, 0, 6.0, 2.0)
    hand.events()
    assert hand.core.next_deadline() == 3.5
    hand.core.tick(3.5)
    assert sent(hand.events()) == [(hand.a, Waiting(0))]
    assert hand.core.next_deadline() == 6.0
    for now, deadline in ((5.0, 10.0), (9.0, 11.0), (10.5, 11.0)):
        hand.core.receive(hand.a, pack(Waiting(0)), [], now)
        hand.core.receive(hand.b, pack(Waiting(0)), [], now)
        assert hand.core.next_deadline() == deadline
    hand.core.tick(11.0)
    assert any(isinstance(event, Completed) for event in hand.events())


def test_one_that_opens_late_asks_whether_its_model_still_counts():
    """Its neighbour may be giving up at this moment: neither mixes before the other is sure to."""
    hand = Hand()
    hand.events()
    hand.model(hand.a, 0, 6.0, 0.5)
    hand.model(hand.b, 0, 6.0, 3.4)
    hand.leg(3.5, value=3.0)  # half the patience after a's
    asked = {to: message.confirm for to, message in sent(hand.events())}
    assert asked == {hand.a: True, hand.b: False}
    hand.core.receive(hand.a, pack(Taken(0)), [], 3.6)
    completed, _train = hand.events()
    assert completed.members == 3
    hand.model(hand.a, 1, 6.0, 3.7)
    hand.model(hand.b, 1, 6.0, 3.7)
    hand.leg(7.0)
    hand.events()
    hand.core.receive(hand.a, pack(Taken(1)), [], 7.1)
    hand.core.tick(12.0)
    found = hand.events()
    assert (hand.b, Skip(1, 0)) in sent(found)
    completed = next(event for event in found if isinstance(event, Completed))
    assert completed.members == 2, "without an answer it does not count"


def test_who_is_asked_says_yes_while_it_waits_and_no_afterwards():
    hand = Hand()
    hand.leg(1.0)
    hand.events()
    vectors = [np.zeros(8, np.float32)]
    hand.core.receive(hand.a, pack(Model(0, 2, confirm=True)), vectors, 2.0)
    assert sent(hand.events()) == [(hand.a, Taken(0))]
    hand.core.tick(6.0)
    hand.events()
    hand.core.receive(hand.b, pack(Model(0, 2, confirm=True)), vectors, 6.1)
    assert sent(hand.events()) == [(hand.b, Skip(0, -1))]


def test_a_skip_of_later_rounds_says_nothing_about_one_that_was_shared():
    hand = Hand()
    hand.leg(0.1)
    for peer in (hand.a, hand.b):
        hand.model(peer, 0, 1.0, 0.2)
    hand.leg(0.3)
    hand.model(hand.a, 1, 6.0, 0.4)
    hand.skip(hand.a, 5, 0.5, since=1)
    hand.events()
    hand.model(hand.b, 1, 0.0, 0.6)
    assert next(e for e in hand.events() if isinstance(e, Completed)).members == 3


def test_a_skip_while_waiting_ends_the_wait():
    hand = Hand()
    hand.leg(1.0)
    hand.model(hand.a, 0, 6.0, 2.0)
    hand.skip(hand.b, 0, 2.5)
    assert any(isinstance(event, Completed) for event in hand.events())


def test_a_model_over_an_edge_that_is_not_there_is_answered():
    stranger = node_id(9)
    hand = Hand()
    hand.model(stranger, 0, 1.0, 0.5)
    hand.leg(1.0)
    assert (stranger, Skip(0, -1)) in sent(hand.events())
    hand.model(node_id(8), 0, 1.0, 1.5)
    assert sent(hand.events()) == [(node_id(8), Skip(0, -1))]


def test_a_late_model_is_answered_with_how_far_this_node_is():
    hand = Hand()
    hand.core.start(np.zeros(8, np.float32), 0.0, round_=5)
    hand.events()
    hand.model(hand.a, 2, 1.0, 0.1)
    assert sent(hand.events()) == [(hand.a, Skip(4, -1))]
    assert hand.core.late == 1


def test_a_model_of_the_next_round_waits_for_it():
    hand = Hand()
    hand.leg(1.0)
    for stamp in (0, 1):
        hand.model(hand.a, stamp, 3.0, 2.0)
        hand.model(hand.b, stamp, 3.0, 2.0)
    hand.events()
    hand.leg(3.0, value=3.0)
    completed = next(event for event in hand.events() if isinstance(event, Completed))
    assert (completed.round, completed.members) == (2, 3)


def test_a_reported_loss_is_sent_again_three_times_and_only_while_it_matters():
    hand = Hand()
    hand.leg(1.0)
    first = next(event for event in hand.events() if isinstance(event, Send))
    for _ in range(3):
        hand.core.undelivered(first.to, first.key, 1.5)
        (again,) = hand.events()
        assert (again.to, again.message) == (first.to, first.message)
        assert again.vectors[0].tobytes() == first.vectors[0].tobytes()
    hand.core.undelivered(first.to, first.key, 1.5)
    hand.core.undelivered(node_id(9), first.key, 1.5)
    hand.core.undelivered(first.to, first.key + 1, 1.5)
    assert hand.events() == []
    hand.core.tick(6.0)
    hand.events()
    hand.core.undelivered(first.to, first.key, 7.0)
    (again,) = hand.events()
    assert again.message == first.message, "the other one may still wait for it"
    hand.leg(7.0)
    hand.core.tick(20.0)
    hand.leg(20.0)
    hand.events()
    hand.core.undelivered(first.to, first.key, 20.5)
    assert hand.events() == []


def test_one_liar_ahead_moves_nobody_and_most_do():
    hand = Hand()
    hand.events()
    hand.skip(hand.a, 40, 0.5)
    hand.model(hand.a, 40, 1.0, 0.5)
    hand.leg(1.0)
    assert hand.core.stamp == 0
    hand = Hand()
    hand.leg(0.1)
    for peer in (hand.a, hand.b):
        hand.model(peer, 0, 1.0, 0.2)
    hand.events()
    for peer in (hand.a, hand.b):
        hand.skip(peer, 7, 0.5)
        hand.model(peer, 8, 1.0, 0.6)
    hand.leg(1.0, value=1.0)
    assert hand.core.stamp == 9, "it offers its work where the others will be next"
    models = [(to, message) for to, message in sent(hand.events()) if isinstance(message, Model)]
    assert models == [(to, Model(9, 2)) for to in sorted([hand.a, hand.b])]
    assert hand.core.jumps == 1


def test_one_that_begins_far_behind_listens_and_says_so():
    hand = Hand()
    hand.events()
    for peer in (hand.a, hand.b):
        hand.model(peer, 8, 4.0, 0.6)
    cancel, *rest, completed, train = hand.events()
    assert isinstance(cancel, Cancel)
    assert sent(rest) == [(to, Skip(8, -1)) for to in sorted([hand.a, hand.b])]
    assert completed.round == 9
    np.testing.assert_array_equal(completed.model, np.full(8, 4.0, np.float32))
    np.testing.assert_array_equal(train.params, completed.model)


@pytest.mark.parametrize(
    ("message", "vectors"),
    [
        (pack(Model(-1, 2)), 1),
        (pack(Model(1 << 48, 2)), 1),
        (pack(Model(0, -1)), 1),
        (pack(Model(0, 1 << 21)), 1),
        (pack(Model(0, 2)), 0),
        (pack(Model(0, 2)), 2),
        (pack(Skip(0, -1)), 1),
        (pack(Skip(0, 1)), 0),
        (pack(Skip(0, -2)), 0),
        (pack(Taken(-1)), 0),
        (pack(Waiting(1 << 60)), 0),
        (b"", 0),
        (pack({"type": "model", "stamp": "x", "degree": 2}), 1),
        (pack({"type": "else", "stamp": 1}), 0),
    ],
)
def test_malformed_messages_are_refused_and_change_nothing(message, vectors):
    hand = Hand()
    hand.events()
    before = repr(hand.core._inbox.peers)
    with pytest.raises(MalformedMessage):
        hand.core.receive(hand.a, message, [np.zeros(8, np.float32)] * vectors, 0.5)
    for wrong in (np.zeros(7, np.float32), np.zeros(8, np.float64)):
        with pytest.raises(MalformedMessage):
            hand.core.receive(hand.a, pack(Model(0, 2)), [wrong], 0.5)
    assert repr(hand.core._inbox.peers) == before
    assert hand.events() == []


def test_golden_messages():
    assert pack(Model(7, 4)).hex() == "83a474797065a56d6f64656ca57374616d7007a664656772656504"
    assert pack(Waiting(1)).hex() == "82a474797065a777616974696e67a57374616d7001"
    assert pack(Skip(300, 7)).hex() == "83a474797065a4736b6970a57374616d70cd012ca573696e636507"
    assert pack(Taken(2)).hex() == "82a474797065a574616b656ea57374616d7002"


# ---- among many ----------------------------------------------------------------------------------


def test_a_silent_edge_costs_patience_and_leaves_the_mean_alone():
    """Neither end hears the other: both give the edge's weight to themselves."""
    made = world(rounds=6, settings={"patience": 1.0})
    one = made.nodes[0]
    other = made.index[one.core.plan(0).targets[0]]
    made.notice_s = 1e9  # nobody is told
    made.part([0], [other])
    made.run_rounds(6)
    np.testing.assert_allclose(mean_of(made.models()), mean_of(STARTS), atol=1e-6)
    assert one.core.missing >= 6
    assert made.nodes[other].core.missing >= 6
    assert 1 < made.now < 3, "it is waited for once"


@pytest.mark.parametrize("graph_kind", ["ring", "random-regular", "barabasi-albert"])
@pytest.mark.parametrize("seed", range(3))
def test_an_edge_counts_at_both_ends_or_at_neither(graph_kind, seed):
    """Legs that last now and then fifty times as long as others, and messages that take up to a quarter of the patience."""
    mixed = {}

    class Watched(DPSGD):
        def mix(self, own, degree, received):
            mixed[self.stamp, self.context.me] = {one.sender for one in received}
            return super().mix(own, degree, received)

    rng = np.random.default_rng(seed)
    made = World(
        Watched,
        8,
        settings={"graph": graph_kind, "degree": 2 + seed, "patience": 0.5},
        seed=seed,
        rounds=40,
        links=Links(delay_s=(0.01, 0.12)),
        step_s=lambda _node: 0.1 * rng.uniform(0.5, 1.5) * (50 if rng.random() < 0.03 else 1),
    )
    made.start()
    made.run_rounds(40)
    edges = [(stamp, me, other) for (stamp, me), near in mixed.items() for other in near]
    assert len(edges) > 150
    assert sum(node.core.missing for node in made.nodes) > 20
    assert [e for e in edges if e[1] not in mixed.get((e[0], e[2]), ())] == []


def test_losses_that_are_reported_are_repaired():
    made = world(rounds=30, links=Links(loss=0.1, noticed=1.0))
    made.run_rounds(30)
    assert made.lost > 20
    assert sum(node.core.missing for node in made.nodes) <= 1
    np.testing.assert_allclose(mean_of(made.models()), mean_of(STARTS), atol=1e-3)


def test_a_node_that_becomes_slow_takes_part_in_rounds_of_the_others():
    made = World(
        DPSGD,
        8,
        settings={"graph": "random-regular", "patience": 0.5},
        rounds=60,
        initial=start_of,
        step_s=lambda node: 1.3 if node == 0 and made.now > 0.5 else 0.1,
    )
    made.start()
    made.run_rounds(60)
    slow = made.nodes[0]
    assert slow.core.jumps >= 5
    late = [members for time, _, members in slow.completed if time > 2]
    assert len(late) >= 5
    assert late.count(5) >= len(late) - 3, (
        "but for races and the end, all four neighbours mix its legs"
    )
    others = max(node.completed[-1][0] for node in made.nodes[1:])
    assert others < 60 * (0.1 + 0.1) + 0.6 * len(late), "it was waited for when it was heard"
    np.testing.assert_allclose(mean_of(made.models()), mean_of(STARTS), atol=1e-6)


def test_a_node_that_is_known_to_be_gone_is_not_waited_for():
    made = world(rounds=20, settings={"patience": 1000.0}, notice_s=0.2)
    made.at(0.33, lambda: made.crash(3))
    made.at(0.77, lambda: made.leave(5))
    made.run_rounds(20)
    assert len(made.alive) == 6
    assert max(node.completed[-1][0] for node in made.alive) < 20 * 0.2 + 2 * 0.3 + 1


def test_a_latecomer_learns_from_the_others_and_they_nothing_from_it():
    made = world(
        9,
        nodes=range(8),
        rounds=60,
        initial=lambda node: start_of(node) if node < 8 else np.full(8, 1e6, np.float32),
    )
    made.at(2.0, lambda: made.join(8))
    made.run_rounds(60)
    assert np.abs(made.models()).max() < 10
    late = made.nodes[8].completed
    assert late[0][1] > 5, "it goes on where the others are"
    assert [round_ for _, round_, _ in late] == list(range(late[0][1], 61))


def test_two_parts_go_on_and_come_together_again():
    made = world(
        rounds=120,
        settings={"graph": "full", "patience": 0.5},
        step_s=lambda node: 0.1 + 0.05 * (node > 3),
    )
    made.at(1.0, lambda: made.part(range(4), range(4, 8)))
    made.at(4.0, made.heal)
    made.run_rounds(120)
    models = np.array(made.models(), np.float64)
    assert np.abs(models - models.mean(axis=0)).max() < 1e-4
    assert all(node.round == 120 for node in made.nodes)


def test_the_same_seed_gives_the_same_run():
    def digest(seed):
        made = world(
            rounds=20, seed=seed, links=Links(loss=0.1, noticed=0.5), settings={"patience": 1.0}
        )
        made.at(0.4, lambda: made.crash(1))
        made.at(0.9, lambda: made.restart(1))
        made.run_rounds(20)
        return made.fingerprint()

    assert digest(1) == digest(1) != digest(2)


# ---- the inbox -----------------------------------------------------------------------------------


def received(sender, stamp):
    return Received(sender, stamp, 2, ())


def test_an_inbox_keeps_the_current_and_the_newest_later_model():
    inbox, a = Inbox(), node_id(1)
    inbox.peer(a)
    for stamp in (0, 3, 2, 5):
        if inbox.wants(a, stamp):
            inbox.keep(received(a, stamp))
    assert inbox.current(a).stamp == 0
    inbox.advance(2)
    assert inbox.current(a) is None
    assert inbox.late == 1
    inbox.advance(5)
    assert inbox.take(a).stamp == 5
    assert inbox.take(a) is None
    assert not inbox.wants(a, 4)


def test_members_that_go_are_forgotten_and_strangers_are_few():
    inbox, a = Inbox(), node_id(1)
    inbox.set_members(frozenset([a]))
    inbox.skip(a, 3, -1)
    inbox.hear(a, 9)
    assert inbox.has_skipped(a)
    assert inbox.reached(3) == 9
    inbox.set_members(frozenset())
    assert not inbox.has_skipped(a)
    assert inbox.reached(3) == -1
    made = [inbox.peer(node_id(i)) for i in range(100)]
    assert sum(peer is not None for peer in made) == MAX_STRANGERS


def test_how_far_the_others_are_is_a_majority_of_the_last_heard():
    inbox = Inbox()
    heard = [(1, 4), (2, 9), (3, 9), (4, 100), (2, 3)]
    for index, stamp in heard:
        inbox.hear(node_id(index), stamp)
    assert inbox.reached(3) == -1, "of strangers alone none counts"
    inbox.set_members(frozenset(node_id(index) for index in range(1, 7)))
    assert inbox.reached(3) == 9, "of 9, 100 and 9: a report never takes one back"
    assert inbox.reached(1) == 9
    assert inbox.reached(4) == 9, "of 4, 9, 9, 100, three are there"
    assert inbox.reached(6) == 4, "two were not heard"
    assert inbox.reached(60) == 4
