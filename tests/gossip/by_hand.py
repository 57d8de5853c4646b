"""Machines in one epoch whose messages a test moves by hand."""

from __future__ import annotations

from gossip.collective.agreement.epoch_events import (
    EpochSettings,
)
from tests.gossip.epoch_world import World

D, ROOT = b"d" * 32, b"r" * 32


class Three:
    """Members in one epoch, three if not said otherwise, whose messages are moved by hand from there on."""

    def __init__(self, count: int = 3) -> None:
        self.world = World(count, seed=5, settings=EpochSettings(min_members=count))
        self.world.train = (1e9, 1e9)  # nobody begins anything by itself
        self.world.start()
        self.world.run(30, lambda: all(m.epoch is not None for m in self.machines))
        self.now = self.world.now
        for machine in self.machines:
            machine.outgoing()
            while machine.next_event() is not None:
                pass

    @property
    def machines(self):
        return [self.world.nodes[id_].machine for id_ in self.world.order]

    def deliver(self, *, keep=lambda _s, _t, _m: True) -> None:
        """Everything that is under way, until nothing is."""
        moved = True
        while moved:
            moved = False
            for source, machine in zip(self.world.order, self.machines, strict=True):
                for target, message in machine.outgoing():
                    if keep(source, target, message):
                        self.world.nodes[target].machine.receive(source, message, self.now)
                        moved = True

    def events(self, index: int) -> list[object]:
        found = []
        while (event := self.machines[index].next_event()) is not None:
            found.append(event)
        return found
