"""The simulator tells the truth: real daemons and the simulation of them end every run with the same bits in their models.

    NODED_SLOW=1 python -m pytest tests/real/test_as_simulated.py

Same protocol class, same task in torch, same parts of the data, same node ids, same run: where timing decides nothing (no
loss, nobody comes or goes, and every round waits for all that it mixes), nothing else may differ either.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from node.simulation.run import Simulation
from node.simulation.scenario import parse_scenario
from tests.real.cluster import Cluster, finished

NODES, ROUNDS, EVERY = 4, 6, 5

PROTOCOLS: dict[str, dict[str, Any]] = {
    "dpsgd": {"graph": "ring"},
    "modest": {"sample_size": NODES, "aggregators": 2, "success_fraction": 1.0},
}

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        os.environ.get("NODED_SLOW") != "1", reason="half a minute of CPU; NODED_SLOW=1 runs it"
    ),
]


def values(number: int, protocol: str) -> dict[str, Any]:
    """Configuration of the node that has this part of the data; the first creates the run."""
    creates: dict[str, Any] = {
        "run__create": True,
        "run__task": "digits",
        "run__protocol": protocol,
        "run__protocol_settings": PROTOCOLS[protocol],
        "run__every": EVERY,
        "run__steps": EVERY * ROUNDS,
        "run__min_members": NODES,
    }
    return {
        "run__name": "demo",
        "run__part": f"{number}/{NODES}",
        "network__port_mapping": False,
        **(creates if number == 1 else {}),
    }


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_real_daemons_and_their_simulation_agree_to_the_last_bit(tmp_path, protocol):
    with Cluster(tmp_path) as cluster:
        first = cluster.node("n1", **values(1, protocol)).start()
        nodes = [first]
        for number in range(2, NODES + 1):
            node = cluster.node(f"n{number}", bootstrap=first, **values(number, protocol))
            nodes.append(node.start())
        cluster.until_all(finished, "end of the run")
        status = [node.status() for node in nodes]
    scenario = parse_scenario(
        {
            "protocol": protocol,
            "protocol_settings": PROTOCOLS[protocol],
            "nodes": NODES,
            "rounds": ROUNDS,
            "every": EVERY,
            "engine": "exact",
            "ids": [one["node"]["id"] for one in status],
            "run_id": status[0]["run"]["id"],
        }
    )
    end = Simulation(scenario).run()
    assert end.reason == "rounds"
    real = {str(index): one["run"]["state_sha256"] for index, one in enumerate(status)}
    assert real == end.models
    assert len(set(real.values())) == (NODES if protocol == "dpsgd" else 1)
