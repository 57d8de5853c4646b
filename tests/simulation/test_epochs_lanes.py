"""Several operations at once, under every fault: the same worlds as without, with calls of other lanes all the time.

What is checked beside the rules of `Checker`, which hold in every lane: a call of a tag ends once and by its deadline; what a
member signed and saw cut off is not done again while a member of its new epoch holds the certificate; who waits and calls nothing more is
told of members that call different tags only where a circle of them waits, seen from outside; and a
newcomer gets in though something always runs, at the price of no running operation.

All of it (about half an hour of one core, half of that for a fault at every message) is made by

    NODED_SLOW=1 python -m pytest tests/simulation/test_epochs_lanes.py
"""

from __future__ import annotations

import functools
import os
import random
from collections import Counter

import msgspec
import pytest

from gossip.collective.agreement.epoch_events import EpochSettings
from gossip.collective.agreement.messages import Answer, Ask, Message
from tests.simulation.epoch_node import fast_signatures  # noqa: F401
from tests.simulation.epoch_swarm import Swarm
from tests.simulation.test_epochs_exhaustive import FAULTS, strike
from tests.simulation.test_epochs_hostile import (
    LIE,
    Tamper,
    assert_honest_go_on,
    crash_one,
    hostile,
    liar_of,
    signs_nonsense,
    votes_nonsense,
)
from tests.simulation.test_epochs_random import CLASSES, churn
from transport.identity import NodeId

SLOW = os.environ.get("NODED_SLOW") == "1"
STRIDE = {3: 1, 4: 5} if SLOW else {3: 307, 4: 1613}
"""Every message for three members, every fifth (message, member) for four: 5 and 4 have no common factor, so each member is struck."""
COLLECT = ((3, 9), (3, 2), (4, 9), (4, 4))
"""Members, and from how many on one collects the votes: all to all, and collected, of three and of four."""
SEEDS, BATCHES = (25, 12) if SLOW else (4, 2)
OPERATIONS = 100 if SLOW else 15
TAGS = 3

SOMETIMES = ("tag settled", "tag redone", "Ask", "Answer", "tag call certified", "aborted")


def swarm_of(count: int, collect_from: int) -> Swarm:
    settings = EpochSettings(min_members=count, collect_from=collect_from)
    collected = collect_from <= count
    return Swarm(
        count,
        f"lanes/{count}",
        settings=settings,
        wanted_rounds=10_000,
        tags=TAGS,
        sole=collected,
    )


def run_with(count: int, collect_from: int, index: int, victim: int, fault: str) -> Swarm:
    swarm = swarm_of(count, collect_from)

    def on_message(_source: NodeId, _target: NodeId, _message: Message) -> None:
        if swarm.delivered == index:
            strike(swarm, swarm.order[victim], fault)

    swarm.on_message = on_message
    swarm.start()
    swarm.run(60, lambda: swarm.all_reach(2))
    swarm.run(swarm.now + 1.0)
    swarm.recovers()
    return swarm


@functools.cache
def messages_of(count: int, collect_from: int) -> int:
    """How many messages an undisturbed run delivers until everybody has done two rounds."""
    swarm = swarm_of(count, collect_from)
    swarm.start()
    swarm.run(60, lambda: swarm.all_reach(2))
    return swarm.delivered


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("count", "collect_from"), COLLECT, ids=["3", "3c", "4", "4c"])
def test_a_fault_at_every_message(count: int, collect_from: int, fault: str) -> None:
    """With all votes to all; and with one member that collects them, and one caller for all tags that waits and says so ("c")."""
    for case in range(0, messages_of(count, collect_from) * count, STRIDE[count]):
        index, victim = divmod(case, count)
        try:
            run_with(count, collect_from, index + 1, victim, fault)
        except AssertionError as error:
            raise AssertionError(f"{count} members, {fault} of {victim} at {index + 1}") from error


def run_seed(seed: int, operations: int) -> Swarm:
    rng = random.Random(f"lanes/{seed}")
    count = rng.choice([3, 4, 5])
    classes = {name for name in CLASSES if rng.random() < 0.5} - {"disk"} or {"crash"}
    swarm = Swarm(
        count,
        f"lanes/{seed}",
        settings=EpochSettings(min_members=count, collect_from=(2, 4, 9)[seed % 3]),
        tags=rng.choice([1, TAGS, 15]) if SLOW else TAGS,
        sole=seed % 2 == 1,
    )
    swarm.calm_s = rng.choice([0.3, 1.0, 3.0])
    swarm.start()
    swarm.after(0.5, lambda: churn(swarm, rng, classes))
    swarm.run(400.0, lambda: swarm.markers["certified"] >= operations * count)
    swarm.recovers(3, 120.0)
    return swarm


@pytest.mark.parametrize("batch", range(BATCHES))
def test_random_faults(batch: int) -> None:
    markers: Counter[str] = Counter()
    for seed in range(batch * SEEDS, (batch + 1) * SEEDS):
        try:
            markers += run_seed(seed, OPERATIONS).markers
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    missing = [marker for marker in SOMETIMES if not markers[marker]]
    assert not missing, "these seeds never met the hard cases"


@pytest.mark.parametrize("seed", range(4 if SLOW else 2))
def test_a_newcomer_gets_in_though_something_always_runs(seed: int) -> None:
    """Every lane begins again at once: without the rule that nothing new starts beside what runs, no gap would ever come."""
    swarm = Swarm(
        4,
        f"joins/{seed}",
        settings=EpochSettings(min_members=3, collect_from=(2, 4, 9)[seed % 3]),
        train=(0.0, 0.001),
        tags=TAGS,
    )
    swarm.tag_pause = (0.0, 0.001)
    new = swarm.nodes[swarm.order[seed]]
    new.alive = False
    swarm.start()
    swarm.run(1.0)
    done = dict(swarm.markers)
    swarm.restart(new.id)
    swarm.run(swarm.now + 20, lambda: new.round > 0 and new.epoch is not None)
    assert new.epoch is not None, "it never got in"
    assert swarm.now < 1.0 + 5.0
    running = len(swarm.order) * (1 + TAGS)
    assert swarm.markers["aborted"] - done.get("aborted", 0) <= running, "each at most once"
    entered = swarm.markers["entered"] - done["entered"]
    assert entered <= 4, "one epoch takes it in, and no other is formed for it"
    before = swarm.markers["tag certified"]
    swarm.run(swarm.now + 0.5)
    assert swarm.markers["tag certified"] > before + 25


def denies(_swarm: Swarm, message: Message) -> list[Message]:
    """It holds certificates and says that it does not: the operation is done again, and that is all."""
    return [
        msgspec.structs.replace(message, certificate=None)
        if isinstance(message, Answer)
        else message
    ]


def forges(_swarm: Swarm, message: Message) -> list[Message]:
    if isinstance(message, Answer) and message.certificate is not None:
        forged = msgspec.structs.replace(message.certificate, root=LIE)
        return [msgspec.structs.replace(message, certificate=forged)]
    return [message]


def asks_on_and_on(swarm: Swarm, message: Message) -> list[Message]:
    epochs = sorted(swarm.checker.epochs)
    return [message, *(Ask(epoch, lane, 0) for epoch in epochs[-2:] for lane in range(1, 4))]


@pytest.mark.parametrize("count", [3, 5] if SLOW else [3])
@pytest.mark.parametrize(
    ("tamper", "caught"),
    [
        (signs_nonsense, True),
        (votes_nonsense, True),
        (denies, False),
        (forges, False),  # only if it is asked for what it holds, which chance decides
        (asks_on_and_on, False),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_liar_moves_nobody(count: int, tamper: Tamper, *, caught: bool) -> None:
    active = [False]
    swarm = hostile(
        count,
        lambda swarm, message: tamper(swarm, message) if active[0] else [message],
        f"lanes/{count}/{tamper.__name__}",
    )
    swarm.tags = TAGS
    swarm.start()
    swarm.run(20, lambda: swarm.all_reach(3))
    active[0] = True
    for _ in range(2):
        crash_one(swarm)
        swarm.run(swarm.now + 6.0)
    before = swarm.markers["tag certified"]
    assert_honest_go_on(swarm, 90)
    assert swarm.markers["tag certified"] > before
    assert swarm.accusations is not None
    assert set(swarm.accusations) <= {liar_of(swarm)}, "nobody honest is accused"
    if caught:
        assert swarm.accusations[liar_of(swarm)] >= 1
