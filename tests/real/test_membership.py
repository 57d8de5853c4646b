"""What is said about members that die, freeze, leave, or compute: on real daemons, and in the time that is promised.

NODED_SLOW=1 python -m pytest -s tests/real/test_membership.py      NODED_BUSY_S=600 makes the half hour shorter
"""

import os
import signal
import time

import pytest

from node.schema import PRESETS
from tests.real.cluster import Node
from tests.real.swarm import Swarm, complete, report, row_of, slow, status_of

pytestmark = [pytest.mark.real, slow]

PROMISE_S = {"lan": 5.0, "wan": 15.0}
COUNT = 8


def preset_values(preset: str) -> dict:
    """What `noded init --preset` would write, the listen address excepted."""
    return {key.replace(".", "__"): value for key, value in PRESETS[preset].items()}


def eight(swarm: Swarm, **values) -> list[Node]:
    """A seed that made the run, and seven more; `values` are everybody's."""
    seed = swarm.observer("n0", run__create=True, **values).start()
    for number in range(1, COUNT):
        swarm.observer(f"n{number}", seed.address(), **values).start()
    swarm.until_each(swarm.nodes, complete(COUNT - 1), "the swarm")
    return list(swarm.nodes)


def listed_after(watchers: list[Node], name: str, state: str, patience_s: float) -> list[float]:
    """Seconds until each of the others lists the node of that name in that state, with a reason."""
    begun, found = time.monotonic(), dict[str, float]()
    while len(found) < len(watchers):
        for node in watchers:
            status = None if node.name in found else status_of(node)
            row = None if status is None else row_of(status, name)
            if row is not None and row["state"] == state and agreed(status, row, state):
                found[node.name] = time.monotonic() - begun
        assert time.monotonic() - begun < patience_s, (found, name, state)
        time.sleep(0.05)
    return sorted(found.values())


def agreed(status, row, state: str) -> bool:
    """Whether it is the membership's verdict, and not merely a connection that ended."""
    return bool(row["reason"]) and status["membership"][state] > 0


@pytest.mark.parametrize("preset", PROMISE_S)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM], ids=str)
def test_who_is_gone_is_listed_by_all_in_time(tmp_path, preset, how):
    with Swarm(tmp_path) as swarm:
        nodes = eight(swarm, **preset_values(preset))
        gone = nodes.pop(3)
        gone.send(how)
        state = "left" if how == signal.SIGTERM else "lost"
        took = listed_after(nodes, gone.name, state, 60.0)
        reason = row_of(nodes[0].status(), gone.name)["reason"]
        figures = {"first_s": round(took[0], 2), "last_s": round(took[-1], 2), "reason": reason}
        report(test="gone", preset=preset, how=how.name, nodes=COUNT, listed=state, **figures)
        for node in nodes:
            membership = node.status()["membership"]
            assert membership["alive"] == COUNT - 2, "nobody else is thought to be gone"
        assert took[-1] <= PROMISE_S[preset]


@pytest.mark.parametrize("preset", PROMISE_S)
def test_half_an_hour_beside_a_busy_trainer_evicts_nobody(tmp_path, preset):
    """Eight daemons share the machine with one trainer that has as many threads as there are cores."""
    busy_s = float(os.environ.get("NODED_BUSY_S", "1800"))
    with Swarm(tmp_path) as swarm:
        values = preset_values(preset)
        seed = swarm.plain("n0", **busy_trainer(swarm), **values).start()
        for number in range(1, COUNT):
            swarm.observer(f"n{number}", seed.address(), **values).start()
        swarm.until_each(swarm.nodes, complete(COUNT - 1), "the swarm")
        seed.until(lambda status: status["trainer"]["state"] == "running", "the trainer")
        time.sleep(busy_s)
        statuses = [node.status() for node in swarm.nodes]
        counters = [status["membership"]["counters"] for status in statuses]
        total = {
            name: sum(each.get(name, 0) for each in counters)
            for name in ("evicted", "looks", "refuted", "stalls")
        }
        logs = [node.log_text() for node in swarm.nodes]
        report(
            test="busy",
            preset=preset,
            nodes=COUNT,
            cores=os.cpu_count(),
            seconds=busy_s,
            trained_steps=statuses[0]["run"]["step"],
            loop_lag_max_ms=max(status["process"]["loop_lag_max_ms"] for status in statuses),
            said_lost=sum(log.count(" is lost") for log in logs),
            **total,
        )
        assert total["evicted"] == 0
        assert all(" is lost" not in log for log in logs)
        assert all(status["membership"]["alive"] == COUNT - 1 for status in statuses)
        assert statuses[0]["run"]["step"] > 0  # on a machine that others use too it may be few


def busy_trainer(swarm: Swarm) -> dict:
    """Values of a node that creates the run and trains for ever a model that keeps every core busy."""
    model = {"layers": 4, "width": 256, "context": 128, "batch": 16}
    return swarm.creates(
        run__steps=0,
        run__every=8,
        run__task_settings=model,
        trainer__threads=os.cpu_count() or 1,
        trainer__checkpoint_every=16,
    )
