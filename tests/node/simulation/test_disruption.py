"""One blow: whom it strikes, that the struck are silent, and that without it nothing is different."""

import pytest

from gossip.decentralized.arithmetic import model_digest
from gossip.decentralized.topology import graph
from node.errors import ConfigError
from node.simulation.disruption import struck
from node.simulation.engine import Job, open_engine
from node.simulation.records import End, Header, Point
from node.simulation.run import Simulation
from node.simulation.scenario import Disruption, parse_scenario
from node.simulation.trace import Kind
from tests.node.simulation.toys import Shout, ids, simulate


def degrees(chosen, settings, names, run):
    edges = graph(settings.graph, names, run, degree=settings.degree)
    return [len(edges[names[index]]) for index in chosen], [len(edges[name]) for name in names]


def test_hubs_and_leaves_are_those_of_the_graph_of_the_run():
    settings = Shout.Settings(graph="barabasi-albert", degree=2)
    names, run = ids(30), bytes(32)
    hubs = struck(Disruption(case="hub-data", share=0.1), names, run, settings, 1)
    leaves = struck(Disruption(case="leaf", share=0.1), names, run, settings, 1)
    mine, all_ = degrees(hubs, settings, names, run)
    assert sorted(mine) == sorted(all_)[-3:]
    mine, _ = degrees(leaves, settings, names, run)
    assert sorted(mine) == sorted(all_)[:3]
    assert struck(Disruption(case="hub-relay", share=0.1), names, run, settings, 1) == hubs


def test_random_ones_follow_the_seed():
    def chosen(seed):
        return struck(Disruption(case="random", share=0.4), ids(30), b"", Shout.Settings(), seed)

    assert len(chosen(1)) == 12
    assert chosen(1) == chosen(1) != chosen(2)
    assert struck(Disruption(), ids(3), b"", Shout.Settings(), 1) == []


def test_a_protocol_without_a_graph_has_no_hubs():
    with pytest.raises(ConfigError, match="no lasting graph"):
        struck(Disruption(case="leaf"), ids(3), b"", Shout.Settings(graph=""), 1)


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize(
    "when", [{"disruption__at_round": 3}, {"disruption__at_s": 1.3}, {"disruption__at_round": 0}]
)
def test_the_struck_say_and_hear_nothing_more(silent, when):
    happened = []
    records = simulate(
        watch=happened.append,
        nodes=10,
        rounds=8,
        disruption__case="random",
        disruption__share=0.3,
        disruption__silent=silent,
        links__latency_s=0.3,
        **when,
    )
    gone = set(records[0].struck)
    kind = Kind.SILENCE if silent else Kind.CRASH
    blow = next(at for at, one in enumerate(happened) if one.kind is kind)
    later = happened[blow + len(gone) :]
    assert [one.node for one in happened[blow : blow + len(gone)]] == sorted(gone)
    touched = {Kind.SEND, Kind.DELIVER, Kind.TRAINED, Kind.COMPLETED, Kind.TICK, Kind.UNDELIVERED}
    assert not [one for one in later if one.kind in touched and one.node in gone]
    assert not [one for one in later if one.kind is Kind.DELIVER and one.peer in gone]
    last = [record for record in records if isinstance(record, Point)][-1]
    assert (last.alive, records[-1].reason) == (7, "rounds")
    noticed = [one for one in later if one.kind is Kind.UNDELIVERED]
    assert bool(noticed) != silent


@pytest.mark.parametrize("case", ["random", "hub-data", "leaf"])
def test_a_blow_that_never_comes_changes_nothing(case):
    without = simulate(seed=4)[-1]
    with_ = simulate(seed=4, disruption__case=case, disruption__share=0.3)[-1]
    assert isinstance(without, End)
    assert (with_.digest, with_.models) == (without.digest, without.models)


def test_rewiring_is_what_the_survivors_hear_of_it():
    def told(rewire):
        happened = []
        simulate(
            watch=happened.append,
            rounds=40,
            disruption__case="random",
            disruption__at_round=1,
            discovery__rewire=rewire,
            discovery__lost_s=1.0,
        )
        return [one.time_s for one in happened if one.kind is Kind.MEMBERS and one.time_s]

    assert told(False) == []
    assert told(True) == [1.5] * 5


def test_relays_hold_no_data_and_their_part_goes_to_the_others():
    records = []
    scenario = parse_scenario(
        {"protocol": "dpsgd", "nodes": 10, "rounds": 2, "seed": 1},
        {"protocol_settings.graph": "barabasi-albert", "disruption.case": "hub-relay"},
    )
    simulation = Simulation(scenario, write=records.append)
    header_struck = simulation.struck
    assert len(header_struck) == 1
    start = simulation.engine.initial(0, common=True)
    for index in range(10):
        (work,) = simulation.engine.train([Job(index, start, 1)])
        assert (work.samples == 0) == (index in header_struck)
    simulation.run()
    assert isinstance(records[0], Header)
    assert records[0].struck == header_struck


@pytest.mark.parametrize("rewire", [False, True])
def test_who_is_left_alone_trains_as_a_plain_loop_does(rewire):
    scenario = parse_scenario(
        {"protocol": "dpsgd", "nodes": 3, "rounds": 4, "every": 2, "seed": 2},
        {
            "protocol_settings": {"graph": "full", "patience": 1.0},
            "disruption": {"case": "random", "share": 0.67, "at_round": 0},
            "discovery": {"rewire": rewire, "lost_s": 0.1},
        },
    )
    simulation = Simulation(scenario)
    (left,) = set(range(3)) - set(simulation.struck)
    end = simulation.run()
    engine = open_engine(
        "batched",
        task="digits",
        settings={},
        nodes=[str(one) for one in simulation.ids],
        seed=2,
        steps=8,
    )
    model = engine.initial(left, common=True)
    for round_ in range(4):
        (work,) = engine.train([Job(left, model, 2, cursor=2 * round_)])
        model = work.params
    assert (end.reason, end.models) == ("rounds", {str(left): model_digest(model).hex()})
