"""What the world owes to cores, and to the laws of links and deaths."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.decentralized.protocol import Cancel, Context, LocalRule, Send, Train
from node.simulation import heap as heap_module
from node.simulation.heap import EventHeap, SimulationFault
from node.simulation.scenario import Discovery, Links, Speed
from node.simulation.trace import Kind
from tests.node.simulation.toys import NUMEL, Shout, ToyEngine, toy_world
from transport.errors import MalformedMessage


def context(index, names, rounds=3):
    import random

    return Context(
        me=names[index],
        run=bytes(32),
        tensors=ToyEngine.tensors,
        numel=NUMEL,
        rng=random.Random(index),
        every=2,
        rounds=rounds,
    )


def shout(fan=2, rounds=3):
    return lambda index, names: Shout(Shout.Settings(fan=fan), context(index, names, rounds))


def until(world, when):
    while (upcoming := world.heap.next_s()) is not None and upcoming <= when:
        world.heap.instant()


def kinds(happened, *which):
    return [one for one in happened if one.kind in which]


# ---- time and messages ---------------------------------------------------------------------------


def test_a_message_takes_its_latency_and_no_more():
    world, happened = toy_world(shout())
    world.begin()
    until(world, 100)
    sends, delivers = kinds(happened, Kind.SEND), kinds(happened, Kind.DELIVER)
    assert len(sends) == len(delivers) == 4 * 2 * 3
    assert sorted(one.time_s + 1.0 for one in sends) == sorted(one.time_s for one in delivers)
    assert world.totals.bytes == sum(one.size for one in sends)
    assert world.totals.values == NUMEL * len(sends)
    assert world.finished == world.present == 4


def test_a_leg_takes_its_steps_and_those_that_overlap_are_computed_together():
    engine = ToyEngine()
    world, happened = toy_world(shout(), engine=engine)
    world.begin()
    until(world, 100)
    assert {one.time_s for one in kinds(happened, Kind.TRAINED)} == {2.0, 4.0, 6.0}
    assert engine.calls == [[0, 1, 2, 3]] * 3
    assert [node.steps for node in world.nodes] == [6] * 4
    assert world.totals.steps == 24


def test_batching_changes_nothing():
    class OneByOne(ToyEngine):
        def train(self, jobs):
            return [super(OneByOne, self).train([job])[0] for job in jobs]

    digests = set()
    for engine in (ToyEngine(), OneByOne()):
        speed = Speed(kind="lognormal", jitter=0.5)
        world, _ = toy_world(shout(rounds=9), speed=speed, engine=engine)
        world.begin()
        until(world, 1e9)
        for node in world.alive():
            world.trace.add_model(node.index, node.model)
        digests.add(world.trace.hexdigest())
    assert len(digests) == 1


class Still(Shout):
    """Does nothing but what a test puts into its hands."""

    def start(self, params, now, *, round_=0):
        self.params = params.copy()
        self.starts = getattr(self, "starts", [])
        self.starts.append((now, round_))
        self.got = []
        self.ticks = []
        self.deadline = None

    def trained(self, work, now):
        self.got.append(("trained", work.steps, now))

    def receive(self, sender, message, vectors, now):
        self.got.append((message, now))

    def next_deadline(self):
        return self.deadline

    def tick(self, now):
        self.ticks.append(now)
        self.deadline = None


def still(index, names):
    return Still(Still.Settings(), context(index, names))


def say(world, index, *events):
    core = world.nodes[index].core
    for event in events:
        core._emit(event)
    world.carry_out(index)


def still_world(count=3, **options):
    world, happened = toy_world(still, count, **options)
    world.begin()
    until(world, 0)
    return world, happened, [node.id for node in world.nodes]


def test_a_deadline_is_kept_and_one_that_moves_leaves_nothing_behind():
    world, _, _ = still_world()
    core = world.nodes[0].core
    for deadline in (50.0, 40.0, 60.0, 30.0, 45.0):
        core.deadline = deadline
        say(world, 0)
    assert len(world.heap) == 3  # 50, 40 and 30: a later one costs no entry
    until(world, 44)
    assert core.ticks == []
    until(world, 100)
    assert core.ticks == [45.0]
    assert len(world.heap) == 0


def test_a_sam_step_takes_two_passes():
    world, _, _ = still_world()
    say(world, 0, Train(np.zeros(NUMEL, np.float32), 3, LocalRule("sam", 0.05)))
    until(world, 100)
    assert world.nodes[0].core.got == [("trained", 3, 6.0)]


def test_a_cancelled_leg_counts_the_steps_that_were_done():
    world, happened, _ = still_world()
    say(world, 0, Train(np.zeros(NUMEL, np.float32), 4))
    world.heap.at(2.5, say, world, 0, Cancel())
    until(world, 100)
    assert world.nodes[0].core.got == []
    assert world.nodes[0].steps == world.totals.steps == 2
    assert kinds(happened, Kind.TRAINED) == []


def test_vectors_under_way_cannot_be_written_to():
    world, _, names = still_world()
    vector = np.zeros(NUMEL, np.float32)
    say(world, 0, Send(names[1], b"", (vector,)))
    with pytest.raises(ValueError, match="read-only"):
        vector[0] = 1


def test_vectors_that_are_not_finite_go_nowhere():
    world, _, names = still_world()
    say(world, 0, Send(names[1], b"", (np.array([1, np.nan], np.float32),), key=7))
    until(world, 100)
    assert world.nodes[1].core.got == []
    assert [key for _, key, _ in world.nodes[0].core.failed] == [7]
    assert world.totals.refused == world.totals.lost == 1


@pytest.mark.parametrize(
    ("events", "says"),
    [
        ([Train(np.zeros(NUMEL, np.float32), 1)] * 2, "while one runs"),
        ([Train(np.zeros(3, np.float32), 1)], "train 1 steps from"),
        ([Train(np.zeros(NUMEL, np.float32), 0)], "train 0 steps"),
        ([Send(bytes(32), b"")], "no other member"),
        ([Send(None, b"x" * 70_000)], "sends 70000 bytes"),
    ],
)
def test_a_core_that_breaks_its_contract_is_named(events, says):
    from transport.identity import NodeId

    world, _, names = still_world()
    fixed = [
        Send(NodeId(one.to) if one.to else names[1], one.message) if isinstance(one, Send) else one
        for one in events
    ]
    with pytest.raises(SimulationFault, match="protocol 'shout' at node 0") as caught:
        say(world, 0, *fixed)
    assert says in str(caught.value)


def test_a_refused_message_ends_the_simulation_with_both_names():
    class Picky(Still):
        def receive(self, sender, message, vectors, now):
            raise MalformedMessage("no verb")

    world, _ = toy_world(lambda index, names: Picky(Picky.Settings(), context(index, names)), 2)
    world.begin()
    until(world, 0)
    say(world, 0, Send(world.nodes[1].id, b""))
    with pytest.raises(SimulationFault, match="refuses a message of node 0: no v"):
        until(world, 10)


def test_a_deadline_that_never_moves_ends_the_simulation():
    class Stuck(Still):
        def tick(self, now):
            self.deadline = now

    world, _ = toy_world(lambda index, names: Stuck(Stuck.Settings(), context(index, names)), 1)
    world.begin()
    until(world, 0)
    world.nodes[0].core.deadline = 1.0
    say(world, 0)
    with pytest.raises(SimulationFault, match="never moves its deadline"):
        until(world, 10)


def test_an_instant_without_end_is_found(monkeypatch):
    monkeypatch.setattr(heap_module, "MAX_AT_ONCE", 1000)
    heap = EventHeap()

    def again():
        heap.at(heap.now, again)

    heap.at(1.0, again)
    with pytest.raises(SimulationFault, match="more than 1000 things happen"):
        heap.instant()


# ---- coming and going ----------------------------------------------------------------------------


def test_a_crash_takes_everything_in_flight_with_it_and_senders_hear_of_it():
    world, _, names = still_world(discovery=Discovery(lost_s=5.0))
    say(world, 0, Send(names[1], b"from the dying"))
    say(world, 2, Send(names[0], b"to the dying", key=9))
    world.heap.at(0.5, world.crash, (0,))
    world.heap.at(2.0, say, world, 2, Send(names[0], b"to the dead", key=10))
    until(world, 100)
    assert world.nodes[1].core.got == []
    assert world.nodes[2].core.failed == [(names[0], 9, 2.0), (names[0], 10, 4.0)]
    assert world.nodes[2].core.others == tuple(sorted([names[1]]))


def test_a_silent_node_answers_nothing_and_nobody_hears_of_it():
    world, _, names = still_world(discovery=Discovery(lost_s=5.0))
    say(world, 2, Send(names[0], b"on its way", key=9))
    world.heap.at(0.5, lambda: world.crash((0,), silent=True))
    world.heap.at(2.0, say, world, 2, Send(names[0], b"later", key=10))
    until(world, 100)
    assert world.nodes[2].core.failed == []
    assert names[0] not in world.nodes[2].core.others


def test_who_leaves_in_good_order_is_heard_to_the_last_word():
    world, _, names = still_world(discovery=Discovery(leave_s=3.0))
    world.heap.at(1.0, world.leave, 0)
    until(world, 3.9)
    assert world.nodes[1].core.got == [(b"bye", 2.0)]
    assert names[0] in world.nodes[1].core.others
    until(world, 4.0)
    assert names[0] not in world.nodes[1].core.others


def test_without_rewiring_nobody_hears_of_a_death():
    world, _, names = still_world(discovery=Discovery(rewire=False))
    world.crash((0,))
    until(world, 1e6)
    assert names[0] in world.nodes[1].core.others


def test_a_newcomer_fetches_a_model_and_the_others_hear_of_it():
    world, _ = toy_world(still, 3, discovery=Discovery(join_s=2.0))
    world.begin(frozenset({2}))
    world.heap.at(1.0, world.join, 2)
    until(world, 1.9)
    assert world.nodes[2].core is None
    until(world, 2.0)  # the model's way
    core = world.nodes[2].core
    assert core.starts == [(2.0, 0)]
    assert core.params[0] in {0.0, 1.0}
    assert core.others == tuple(sorted(node.id for node in world.nodes[:2]))
    assert len(world.nodes[0].core.others) == 1
    until(world, 4.0)
    assert len(world.nodes[0].core.others) == 2
    assert world.totals.bytes == 4 * NUMEL


def test_a_newcomer_whose_source_dies_begins_without():
    world, _ = toy_world(still, 2, discovery=Discovery(rewire=False))
    world.begin(frozenset({1}))
    world.heap.at(1.0, world.join, 1)
    world.heap.at(1.5, world.crash, (0,))
    until(world, 10.0)
    assert world.nodes[1].core.params[0] == 1.0


def test_who_comes_back_goes_on_with_its_last_round():
    world, _ = toy_world(shout(rounds=10), 2)
    world.begin()
    world.heap.at(5.0, world.crash, (0,))
    world.heap.at(7.0, world.join, 0)
    until(world, 7.0)
    node = world.nodes[0]
    assert node.round == node.core.round == 2
    assert np.array_equal(node.core.params, node.model)
    until(world, 1000)
    assert [one.round for one in world.nodes] == [10, 10]
    assert node.steps == 21  # 4 before the death, 1 of the leg that died, 16 after it
    assert node.life == 2


def test_a_short_absence_is_not_taken_for_a_death_afterwards():
    world, happened, names = still_world(discovery=Discovery(lost_s=8.0, join_s=1.0))
    world.heap.at(1.0, world.crash, (0,))
    world.heap.at(3.0, world.join, 0)
    until(world, 100)
    assert names[0] in world.nodes[1].core.others
    told = [one for one in kinds(happened, Kind.MEMBERS) if one.node == 1]
    assert len(told) == 1  # at its own start


def test_news_spreads_to_each_node_at_its_own_time():
    world, happened, _ = still_world(12, discovery=Discovery(lost_s=2.0, spread_s=4.0))
    world.heap.at(1.0, world.crash, (0,))
    until(world, 100)
    told = [one.time_s for one in kinds(happened, Kind.MEMBERS) if one.time_s]
    assert len(set(told)) == len(told) == 11
    assert 3.0 <= min(told) < max(told) <= 7.0


CHANGES = st.lists(
    st.tuples(
        st.floats(0, 30),
        st.integers(0, 4),
        st.sampled_from(["join", "leave", "crash", "silence"]),
    ),
    max_size=20,
)


@settings(max_examples=40, deadline=None)
@given(changes=CHANGES, rewire=st.booleans(), spread=st.sampled_from([0.0, 3.0]))
def test_no_dead_node_speaks_or_is_spoken_to(changes, rewire, spread):
    discovery = Discovery(rewire=rewire, spread_s=spread)
    world, happened = toy_world(
        shout(rounds=8),
        5,
        links=Links(latency_s=0.4, up=60.0, down=60.0, loss=0.1, jitter_s=0.2),
        discovery=discovery,
    )
    world.begin(frozenset({4}))
    for at_s, node, change in changes:
        if change == "join":
            world.heap.at(at_s, world.join, node)
        elif change == "leave":
            world.heap.at(at_s, world.leave, node)
        else:
            world.heap.at(at_s, lambda n, s: world.crash((n,), silent=s), node, change == "silence")
    until(world, 1e5)
    here: set[int] = set()
    for one in happened:
        if one.kind is Kind.START:
            assert one.node not in here
            here.add(one.node)
        elif one.kind in {Kind.CRASH, Kind.SILENCE, Kind.LEAVE}:
            here.remove(one.node)
        elif one.kind is not Kind.LOST:
            assert one.node in here, one
    assert world.present == len(world.alive())
    assert world.finished == sum(node.finished for node in world.alive())
    totals = world.totals
    delivered = sum(one.kind is Kind.DELIVER for one in happened)
    assert totals.messages == delivered + totals.lost


@pytest.mark.parametrize("spread", [0.0, 2.0])
def test_two_that_come_one_after_the_other_hear_of_each_other(spread):
    world, _ = toy_world(still, 4, discovery=Discovery(join_s=3.0, spread_s=spread))
    world.begin(frozenset({2, 3}))
    world.heap.at(1.0, world.join, 2)
    world.heap.at(2.0, world.join, 3)
    until(world, 3.5)
    assert len(world.nodes[3].core.others) == 2
    until(world, 20.0)
    assert [len(node.core.others) for node in world.nodes] == [3, 3, 3, 3]


def test_a_newcomer_may_begin_with_a_model_of_its_own():
    world, _ = toy_world(still, 3, fetch=False)
    world.begin(frozenset({2}))
    world.heap.at(1.0, world.join, 2)
    until(world, 1.0)
    assert world.nodes[2].core.params[0] == 2.0
    assert world.totals.bytes == 0
