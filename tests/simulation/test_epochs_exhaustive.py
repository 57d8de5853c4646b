"""Crash, freeze and partition at every protocol message, of every member.

The run without faults is counted first; then it is repeated once for each (message, member, fault).
The default suite makes every `STRIDE`th of them; all 8,932 (six minutes of one core) are made by

    NODED_SLOW=1 python -m pytest tests/simulation/test_epochs_exhaustive.py
"""

from __future__ import annotations

import functools
import os

import pytest

from gossip.collective.agreement.epoch_events import EpochSettings
from gossip.collective.agreement.messages import Message
from tests.simulation.epoch_node import fast_signatures  # noqa: F401
from tests.simulation.epoch_swarm import Swarm
from transport.identity import NodeId

SLOW = os.environ.get("NODED_SLOW") == "1"
STRIDE = {3: 1, 4: 1, 5: 1} if SLOW else {3: 11, 4: 67, 5: 181}
ROUNDS = 2
FAULTS = ("crash", "host crash", "blip", "freeze", "stall", "isolate", "halves")


def strike(swarm: Swarm, victim: NodeId, fault: str) -> None:
    others = [node for node in swarm.order if node != victim]
    match fault:
        case "crash" | "host crash":
            swarm.crash(victim, host=fault == "host crash")
            swarm.after(1.0, lambda: swarm.restart(victim))
        case "blip":
            swarm.crash(victim)
            swarm.restart(victim)
        case "freeze":
            swarm.freeze(victim, 7.0)
        case "stall":
            swarm.freeze(victim, 1.0)
        case "isolate":
            swarm.isolate(victim, 8.0)
        case "halves":
            side = [victim, *others[: len(others) // 2 - 1 + len(others) % 2]]
            swarm.cut([(a, b) for a in side for b in swarm.order if b not in side], 6.0)


def swarm_of(count: int, collect_from: int) -> Swarm:
    settings = EpochSettings(min_members=count, collect_from=collect_from)
    return Swarm(count, f"exhaustive/{count}", settings=settings, wanted_rounds=10_000)


def run_with(count: int, collect_from: int, index: int, victim: int, fault: str) -> Swarm:
    swarm = swarm_of(count, collect_from)

    def on_message(_source: NodeId, _target: NodeId, _message: Message) -> None:
        if swarm.delivered == index:
            strike(swarm, swarm.order[victim], fault)

    swarm.on_message = on_message
    swarm.start()
    swarm.run(60, lambda: swarm.all_reach(ROUNDS))
    swarm.run(swarm.now + 1.0)
    swarm.recovers()
    return swarm


@functools.cache
def messages_of(count: int, collect_from: int) -> int:
    """How many messages an undisturbed run delivers until everybody has done `ROUNDS` rounds."""
    swarm = swarm_of(count, collect_from)
    swarm.start()
    swarm.run(60, lambda: swarm.all_reach(ROUNDS))
    assert swarm.all_reach(ROUNDS)
    return swarm.delivered


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    ("count", "collect_from"), [(3, 9), (3, 3), (4, 4), (5, 5)], ids=["3", "3c", "4c", "5c"]
)
def test_a_fault_at_every_message(count: int, collect_from: int, fault: str) -> None:
    """With all votes to all, and with one member that collects them ("c")."""
    for case in range(0, messages_of(count, collect_from) * count, STRIDE[count]):
        index, victim = divmod(case, count)
        try:
            run_with(count, collect_from, index + 1, victim, fault)
        except AssertionError as error:
            raise AssertionError(f"{count} members, {fault} of {victim} at {index + 1}") from error
