"""Every installed protocol in bad weather: losses, queues, slow machines, nodes that come and go while views differ."""

import pytest

from gossip.protocol import installed_protocols
from node.simulation.records import End, Point
from node.simulation.run import Simulation
from node.simulation.scenario import parse_scenario

SETTINGS = {
    "dpsgd": {"patience": 3.0},
    "epidemic": {"patience": 3.0},
    "dfedsam": {"patience": 3.0},
    "modest": {"sample_size": 4, "aggregators": 2, "success_fraction": 0.7},
}
WEATHER = {
    "nodes": 8,
    "rounds": 6,
    "every": 2,
    "speed": {"kind": "two-class", "jitter": 0.2},
    "links": {
        "loss": 0.05,
        "loss_noticed": 0.5,
        "jitter_s": 0.1,
        "up": 2e5,
        "down": 2e5,
        "bandwidth_sigma": 0.5,
    },
    "churn": {"kind": "exponential", "session_s": 10.0, "absence_s": 4.0, "until_s": 60.0},
    "discovery": {"spread_s": 2.0, "lost_s": 3.0},
    "stop": {"time_s": 200.0},
}


def weathered(name):
    records = []
    scenario = {"protocol": name, "protocol_settings": SETTINGS.get(name, {}), **WEATHER}
    Simulation(parse_scenario(scenario), write=records.append).run()
    return records


@pytest.mark.parametrize("name", sorted(installed_protocols()))
def test_a_protocol_gets_through_bad_weather_and_the_same_way_each_time(name):
    records = weathered(name)
    end = records[-1]
    assert isinstance(end, End)
    points = [record for record in records if isinstance(record, Point)]
    assert end.round >= 3
    assert end.refused == 0
    assert points[-1].newest_loss < points[0].newest_loss
    assert weathered(name)[-1].digest == end.digest
