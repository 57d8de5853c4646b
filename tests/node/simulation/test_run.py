"""A whole simulation: the same every time, ended as asked, measured as it is."""

import json

import numpy as np
import pytest

from gossip.decentralized.arithmetic import combine, model_digest
from gossip.decentralized.topology import graph, metropolis
from node.errors import ConfigError
from node.simulation.contacts import Contacts
from node.simulation.engine import Job, open_engine
from node.simulation.metrics import distance
from node.simulation.records import Completion, End, Header, Point
from node.simulation.run import Simulation, identities, run_id_of
from node.simulation.scenario import parse_scenario
from tests.hash_seeds import same_under_two_hash_seeds
from tests.node.simulation.toys import Shout, ToyEngine, simulate

WEATHER = {
    "speed__kind": "lognormal",
    "speed__jitter": 0.3,
    "links__jitter_s": 0.05,
    "links__loss": 0.1,
    "links__loss_noticed": 0.5,
    "links__up": 4000.0,
    "links__bandwidth_sigma": 0.7,
    "churn__kind": "exponential",
    "churn__session_s": 6.0,
    "churn__absence_s": 3.0,
    "discovery__spread_s": 1.0,
}


def points(records):
    return [record for record in records if isinstance(record, Point)]


# ---- the same run --------------------------------------------------------------------------------


def test_the_same_scenario_is_the_same_run_to_the_last_record():
    one, two = (simulate(nodes=12, rounds=15, seed=3, **WEATHER) for _ in range(2))
    assert one[:-1] == two[:-1]
    assert (one[-1].digest, one[-1].models) == (two[-1].digest, two[-1].models)
    other = simulate(nodes=12, rounds=15, seed=4, **WEATHER)
    assert other[-1].digest != one[-1].digest


PRINTS_A_RUN = """
import msgspec
from node.simulation.records import End, encode
from node.simulation.run import Simulation
from node.simulation.scenario import parse_scenario

def show(record):
    if isinstance(record, End):
        record = msgspec.structs.replace(record, cost=None)
    print(encode(record).decode())

scenario = {
    "protocol": "dpsgd", "protocol_settings": {"patience": 2.0}, "nodes": 8, "rounds": 6,
    "links": {"loss": 0.1, "loss_noticed": 0.5}, "churn": {"kind": "diurnal", "day_s": 8.0},
    "discovery": {"spread_s": 1.0},
}
Simulation(parse_scenario(scenario), write=show, hashes=True).run()
"""


def test_the_order_of_sets_and_dicts_plays_no_part():
    lines = same_under_two_hash_seeds("-c", PRINTS_A_RUN).splitlines()
    assert json.loads(lines[-1])["kind"] == "end"


def test_without_faults_dpsgd_is_its_definition_bit_for_bit():
    scenario = parse_scenario(
        {"protocol": "dpsgd", "nodes": 7, "rounds": 3, "every": 2, "seed": 5},
        {"protocol_settings.degree": 3, "common_start": False},
    )
    records = []
    Simulation(scenario, write=records.append, hashes=True).run()

    names = identities(scenario)
    engine = open_engine(
        "batched", task="digits", settings={}, nodes=[str(one) for one in names], seed=5, steps=6
    )
    weights = metropolis(graph("random-regular", names, run_id_of(scenario), degree=3))
    models = {name: engine.initial(index, common=False) for index, name in enumerate(names)}
    for round_ in range(3):
        jobs = [Job(i, models[name], 2, cursor=2 * round_) for i, name in enumerate(names)]
        trained = dict(zip(names, (work.params for work in engine.train(jobs)), strict=True))
        models = {
            name: combine(
                [trained[other] for other in sorted(weights[name])],
                [weights[name][other] for other in sorted(weights[name])],
            )
            for name in names
        }
        expected = {i: model_digest(models[name]).hex() for i, name in enumerate(names)}
        said = {
            record.node: record.sha256
            for record in records
            if isinstance(record, Completion) and record.round == round_ + 1
        }
        assert said == expected
    assert records[-1].models == {str(index): sha for index, sha in expected.items()}


# ---- its end -------------------------------------------------------------------------------------


def test_it_ends_when_all_rounds_are_done():
    records = simulate(rounds=5, every=2, speed__kind="two-class", speed__slow_share=0.5)
    end = records[-1]
    assert isinstance(records[0], Header)
    assert isinstance(end, End)
    assert (end.reason, end.round, end.steps) == ("rounds", 5, 60)
    assert points(records)[-1].round_mean == 5.0


def test_it_ends_when_the_time_is_up():
    end = simulate(rounds=0, stop__time_s=3.2)[-1]
    assert end.reason == "time"
    assert 2.9 < end.time_s <= 3.2


def test_it_ends_when_the_models_are_good_enough():
    records = simulate(rounds=100, stop__accuracy=0.5)
    assert records[-1].reason == "accuracy"
    accuracies = [point.accuracy.mean for point in points(records)]
    assert accuracies[-1] >= 0.5
    assert max(accuracies[:-1]) < 0.5


def test_a_swarm_that_stands_still_is_noticed():
    class Waits(Shout):
        """For a second round that nobody begins."""

        def _next(self):
            if self.round == 0:
                super()._next()

    assert simulate(protocol=Waits)[-1].reason == "stalled"

    class Fidgets(Waits):
        """And looks at the clock meanwhile."""

        def next_deadline(self):
            return self.looked + 10.0

        looked = 0.0

        def tick(self, now):
            self.looked = now

    end = simulate(protocol=Fidgets, stop__patience_s=100.0)[-1]
    assert end.reason == "stalled"
    assert 90 <= end.time_s <= 110


def test_nobody_left_is_an_end_of_its_own():
    records = simulate(
        rounds=50, disruption__case="random", disruption__share=1.0, disruption__at_s=2
    )
    assert (records[-1].reason, records[-1].models) == ("empty", {})


def test_who_interrupts_it_gets_what_there_is():
    records = []
    simulation = Simulation(
        parse_scenario({"protocol": "shout", "rounds": 50}),
        write=records.append,
        watch=lambda one: simulation.interrupt() if one.time_s > 4 else None,
        engine=ToyEngine(),
        protocol=Shout,
    )
    end = simulation.run()
    assert (end.reason, records[-1]) == ("interrupted", end)
    assert 4 < points(records)[-1].time_s < 5


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"protocol": "nonsense"}, "protocol"),
        ({"protocol_settings": {"nonsense": 1}}, "protocol"),
        ({"ids": ["nd-x", "nd-y"], "nodes": 2}, "ids"),
        ({"disruption": {"case": "hub-relay", "share": 1.0}}, "disruption.share"),
    ],
)
def test_what_cannot_be_run_is_refused_before_it_begins(changes, key):
    with pytest.raises(ConfigError) as caught:
        Simulation(parse_scenario({"protocol": "dpsgd", **changes}))
    assert caught.value.key == key


# ---- its figures ---------------------------------------------------------------------------------


def test_points_are_taken_when_all_nodes_of_equal_speed_have_done_a_round():
    found = points(simulate(rounds=12, evaluate_every=3))
    assert [(point.round, point.round_mean) for point in found] == [
        (0, 0.0), (3, 3.0), (6, 6.0), (9, 9.0), (12, 12.0),
    ]  # fmt: skip
    assert [point.steps for point in found] == [0, 90, 180, 270, 360]
    assert all(point.alive == 6 for point in found)
    assert [point.parts for point in found] == [6, 1, 1, 1, 1]


def test_slow_nodes_get_points_when_the_fast_ones_are_done():
    found = points(
        simulate(rounds=10, evaluate_every=5, speed__kind="two-class", speed__slow_share=0.5)
    )
    done = [point.round_mean for point in found if point.round == 10]
    assert len(done) >= 2
    assert done == sorted(done)
    assert done[-1] == 10.0


def test_only_a_sample_is_scored_if_asked():
    class Counting(ToyEngine):
        scored = 0

        def score(self, models):
            Counting.scored = max(Counting.scored, len(models))
            return super().score(models)

    simulate(nodes=20, common_start=False, evaluate_nodes=5, engine=Counting())
    assert Counting.scored == 6  # and the newest


def test_distance_is_that_of_the_definition():
    models = list(np.random.default_rng(1).normal(size=(5, 70_000)).astype(np.float32))
    exact = np.array(models, np.float64)
    expected = np.sqrt(np.mean(np.sum((exact - exact.mean(axis=0)) ** 2, axis=1)))
    assert distance(models) == pytest.approx(expected, rel=1e-12)
    assert distance([np.array([np.nan], np.float32)]) == np.inf


def test_parts_are_those_of_the_graph_of_contacts():
    contacts = Contacts(6)
    for one, other in ((0, 1), (1, 0), (1, 2), (4, 5)):
        contacts.met(one, other)
    parts = contacts.look([0, 1, 2, 3, 4])
    assert (parts.count, parts.largest, parts.alone) == (3, 3, 2)
    assert contacts.look([0, 1]).alone == 2
