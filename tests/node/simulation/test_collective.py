"""Certified rounds as a model: the mean is that of the real halves, and deaths, newcomers and links cost what they cost."""

from types import SimpleNamespace

import numpy as np
import pytest

from gossip.collective.links.carriage import wire_bytes
from gossip.decentralized.arithmetic import model_digest
from gossip.protocol import ReduceMean
from gossip.protocols.averaging import ParameterAveraging
from gossip.protocols.diloco import DiLoCo
from node.simulation.collective import _mean, ring_s
from node.simulation.engine import Job
from node.simulation.links import Network
from node.simulation.records import Completion, Point
from node.simulation.run import Simulation
from node.simulation.scenario import LinkClass, Links, parse_scenario
from node.simulation.trace import Kind
from tests.node.simulation.toys import NUMEL, ToyEngine


def together(plugin=ParameterAveraging, *, watch=None, hashes=False, **changes):
    records = []
    values = {"nodes": 6, "rounds": 5, **{k.replace("__", "."): v for k, v in changes.items()}}
    simulation = Simulation(
        parse_scenario({"protocol": plugin.name}, values),
        write=records.append,
        watch=watch,
        hashes=hashes,
        engine=ToyEngine(),
        protocol=plugin,
    )
    simulation.run()
    return records


def test_averaging_is_the_mean_of_the_local_work():
    records = together(nodes=5, rounds=3, every=4, hashes=True)
    engine = ToyEngine()
    model = engine.initial(0, common=True)
    for round_ in range(3):
        jobs = [Job(node, model, 4, cursor=4 * round_) for node in range(5)]
        model = np.mean([work.params for work in engine.train(jobs)], axis=0)
    assert len(set(records[-1].models.values())) == 1
    last = [one for one in records if isinstance(one, Point)][-1]
    assert last.loss.mean == pytest.approx(engine.score([model])[0].loss, rel=1e-6)
    assert last.consensus == 0.0
    done = [one.sha256 for one in records if isinstance(one, Completion) and one.round == 3]
    assert set(done) == set(records[-1].models.values())


def test_changes_in_fewer_bits_are_fewer_bytes_and_other_models():
    exact, bf16 = together(rounds=3), together(rounds=3, protocol_settings__wire="bf16")
    points = [[one for one in records if isinstance(one, Point)][-1] for records in (exact, bf16)]
    numel = ToyEngine().initial(0, common=True).size
    assert points[0].bytes == 3 * 2 * 5 * 4 * numel
    assert points[1].bytes == 3 * 2 * 5 * wire_bytes(numel, "bf16")
    assert points[1].consensus == 0.0
    assert points[1].loss.mean == pytest.approx(points[0].loss.mean, rel=0.05)
    assert points[1].loss.mean != points[0].loss.mean


def test_diloco_remembers_its_momentum_when_a_newcomer_takes_over():
    records = together(
        DiLoCo,
        rounds=30,
        churn__kind="exponential",
        churn__session_s=4.0,
        churn__absence_s=2.0,
        discovery__lost_s=1.0,
        hashes=True,
    )
    by_round = {}
    for one in records:
        if isinstance(one, Completion):
            by_round.setdefault(one.round, set()).add(one.sha256)
    assert max(by_round) == 30
    assert all(len(models) == 1 for models in by_round.values())
    assert records[-1].reason == "rounds"


def test_a_death_costs_its_detection_and_the_exchange_is_made_again():
    def ends(**changes):
        happened = []
        together(watch=happened.append, nodes=4, rounds=2, links__latency_s=0.1, **changes)
        return [(one.time_s, one.size) for one in happened if one.kind is Kind.TOGETHER]

    ring = 2 * 3 * 0.2
    assert ends() == [(pytest.approx(0.5 + ring), 4), (pytest.approx(1.0 + 2 * ring), 4)]
    blow = {"disruption__case": "random", "disruption__share": 0.25, "discovery__lost_s": 3.0}
    short = 2 * 2 * 0.2
    struck = 0.5 + 0.2  # in the middle of the exchange
    first = struck + 3.0 + short
    second = first + 0.5 + short
    assert ends(**blow, disruption__at_s=struck) == [
        (pytest.approx(first), 3),
        (pytest.approx(second), 3),
    ]


def test_the_last_one_left_goes_on_alone():
    records = together(
        nodes=2,
        rounds=6,
        disruption__case="random",
        disruption__share=0.5,
        disruption__at_round=2,
        discovery__lost_s=1.0,
    )
    assert (records[-1].reason, records[-1].round) == ("rounds", 6)


def test_bytes_are_those_of_a_ring():
    end = together(nodes=6, rounds=5)[-1]
    assert end.bytes == 5 * 2 * 5 * 4 * NUMEL
    assert end.transfers == 50.0
    assert end.messages == 0


def test_who_has_values_that_are_not_finite_is_left_out_as_in_a_real_round():
    values = [[1.0, 2.0], [np.nan, 0.0], [4.0, 8.0], [9.0, 9.0]]
    cores = [SimpleNamespace(views={"delta": np.array(one, np.float32)}) for one in values]
    asked = [ReduceMean(0, "delta", "reduced", weight) for weight in (1.0, 5.0, 3.0, 0.0)]
    reduced, weight = _mean(cores, asked)
    assert (reduced.tolist(), weight) == ([3.25, 6.5], 4.0)
    reduced, weight = _mean(cores[1:2], asked[1:2])
    assert (reduced.tolist(), weight) == ([0.0, 0.0], 0.0)


def test_the_slowest_link_sets_the_pace():
    network = Network(Links(latency_s=0.1, up=1000.0), 4, seed=0)
    assert ring_s(network, [0, 1, 2, 3], 4000) == pytest.approx(6 * (0.2 + 1.0))
    assert ring_s(network, [2], 4000) == 0.0
    classes = (LinkClass(latency_s=0.0, up=1000.0), LinkClass(latency_s=0.0, up=10.0))
    mixed = Network(Links(classes=classes), 30, seed=0)
    assert ring_s(mixed, list(range(30)), 3000) == pytest.approx(58 * 10.0)


def test_real_training_with_the_real_protocol():
    records = []
    scenario = parse_scenario({"protocol": "averaging", "nodes": 5, "rounds": 12})
    Simulation(scenario, write=records.append).run()
    points = [one for one in records if isinstance(one, Point)]
    assert points[-1].accuracy.mean > 0.85 > points[0].accuracy.mean
    assert len(set(records[-1].models.values())) == 1


def test_models_of_the_start_are_hashed_like_all_others():
    assert model_digest(np.zeros(2, np.float32)).hex() == (
        "af5570f5a1810b7af78caf4bc70a660f0df51e42baf91d4de5b2328de0e83dfc"
    )
