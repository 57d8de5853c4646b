"""Many replicas under loss, repeats, reordering and a partition: all end with one document.

    NODED_SLOW=1 python -m pytest tests/crdt/test_convergence.py      two hundred instead of 64

No event loop and no real signatures: the cores on one heap, signed by hashes. The world is that of the
anti-entropy's own tests.
"""

import hashlib
import os

from crdt.clock import Timestamp
from crdt.entry import START, write
from crdt.record import Progress
from crdt.rules import LEASE_S
from tests.crdt.authors import DOCUMENT, NOW_MS, author
from tests.gossip.test_antientropy import World

COUNT = 200 if os.environ.get("NODED_SLOW") == "1" else 64


def story(who, sequence, step):
    """One of the two stories that a liar tells."""
    return write(
        author(who),
        DOCUMENT,
        sequence=sequence,
        previous=START,
        stamp=Timestamp(NOW_MS, 0, author(who).writer),
        lease_s=LEASE_S,
        key="progress",
        value=Progress(step, step, None, 0, 0.0).to_wire(),
    )


def until_equal(world, within_s):
    """Run in steps of a quarter second; returns when the replicas were first found equal."""
    end = world.now + within_s
    while world.now < end:
        world.run(world.now + 0.25)
        if world.equal:
            return world.now
    raise AssertionError(f"{len({s.digest() for s in world.states})} documents after {within_s} s")


def test_all_replicas_end_with_one_document():
    world = World(7, COUNT, degree=4)
    world.loss, world.repeat, world.delay_s = 0.2, 0.1, 1.0
    for index in range(COUNT):
        world.at(world.rng.uniform(0, 2), lambda index=index: world.edit(index))
    for _ in range(COUNT // 2):
        index = world.rng.randrange(COUNT)
        world.at(world.rng.uniform(2, 5), lambda index=index: world.edit(index))
    world.at(2.0, lambda: setattr(world, "part", COUNT // 2))
    # A liar tells one half this and the other half that while they cannot compare.
    liar = 1000
    for index, step in ((3, 1), (COUNT - 3, 2)):
        told = {"v": 2, "entries": [story(liar, NOW_MS, step).raw], "evidence": []}
        world.at(3.0, lambda index=index, told=told: world.states[index].merge(told))
    world.run(5.0)
    assert not world.equal
    assert not any(state.convicted() for state in world.states)
    world.part = 0
    until_equal(world, 30.0)  # losses, repeats and delays go on
    for state in world.states:
        assert list(state.convicted()) == [author(liar).writer]
        assert author(liar).writer not in state.progress()
        assert len(state.members()) == COUNT
    contents = {hashlib.sha256(b"".join(s.to_wire()["entries"])).digest() for s in world.states}
    assert len(contents) == 1
