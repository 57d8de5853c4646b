"""The rehearsal world: it delivers what it says, sees what the contract forbids, and repeats itself."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from gossip.decentralized.kit.rehearsal import Links, Quadratic, World, node_id
from gossip.decentralized.protocol import Cancel, Completed, DecentralizedProtocol, Send, Train
from gossip.rehearsal import Nonconforming


class Chatter(DecentralizedProtocol):
    """Trains, sends its model to everybody, and keeps the mean of its own and the last one received."""

    name = "chatter"

    class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        pass

    def start(self, params, now, *, round_=0):
        self.x, self.round, self.lost = params.copy(), round_, 0
        self.train()

    def train(self):
        self._emit(Train(self.x.copy(), self.context.every))

    def members(self, others, now):
        self.others = tuple(others)

    def trained(self, work, now):
        self.x = work.params.copy()
        self.round += 1
        for other in self.others:
            self._emit(Send(other, b"model", (self.x.copy(),), key=self.round))
        self._emit(Completed(self.round, self.x.copy()))
        if self.round < self.context.rounds:
            self.train()

    def receive(self, sender, message, vectors, now):
        self.x = (self.x + vectors[0]) / np.float32(2)

    def undelivered(self, to, key, now):
        self.lost += 1

    @property
    def model(self):
        return self.x


def world(protocol=Chatter, count=4, **options):
    options.setdefault("rounds", 5)
    made = World(protocol, count, Quadratic(np.eye(count, 8)), **options)
    made.start()
    return made


def test_same_seed_same_fingerprint_and_another_seed_another():
    def digest(seed):
        made = world(seed=seed, links=Links(loss=0.2, noticed=0.5))
        made.run(10)
        return made.fingerprint()

    assert digest(1) == digest(1) != digest(2)


def test_all_messages_arrive_between_the_delays_and_lost_ones_are_counted():
    made = world(links=Links(delay_s=(0.2, 0.3)))
    made.run(10)
    assert made.sent == made.models_sent == 4 * 3 * 5
    assert made.bytes_sent == made.sent * (5 + 32)
    assert made.lost == 0
    lossy = world(links=Links(loss=0.5, noticed=1.0))
    lossy.run(10)
    assert sum(node.core.lost for node in lossy.alive) == lossy.lost > 10


def test_dead_and_parted_nodes_hear_nothing_and_the_sender_is_told():
    made = world(rounds=100)
    made.at(1.0, lambda: made.crash(3))
    made.at(2.0, lambda: made.part([0], [1, 2]))
    made.run(5)
    assert [node.index for node in made.alive] == [0, 1, 2]
    assert made.nodes[0].others == ()
    assert made.nodes[1].others == (min(node_id(1 + 1), node_id(2)),)
    assert made.nodes[1].core.lost > 3
    made.heal()
    made.run(6)
    assert len(made.nodes[0].others) == 2


def test_restart_goes_on_from_the_checkpoint_and_old_legs_are_forgotten():
    made = world(rounds=10)
    made.run(0.35)
    made.crash(1)
    made.restart(1)
    made.run(0.36)
    assert made.nodes[1].round == 3
    made.run_rounds(10)
    assert [round_ for _, round_, _ in made.nodes[1].completed] == [*range(1, 11)]


class TrainsTwice(Chatter):
    def start(self, params, now, *, round_=0):
        super().start(params, now)
        self.train()


class WritesToSent(Chatter):
    sent = np.zeros(0)

    def trained(self, work, now):
        self.sent[:] += 1
        self.sent = work.params.copy()
        self._emit(Send(self.others[0], b"", (self.sent,)))
        self.train()


class WritesToLeg(Chatter):
    def train(self):
        self._emit(Train(self.x, 1))

    def receive(self, sender, message, vectors, now):
        self.x[0] += 1


class KeepsLent(Chatter):
    def trained(self, work, now):
        self._emit(Completed(1, work.params))


class LivesInThePast(Chatter):
    def next_deadline(self):
        return 0.5


class CancelsNothing(Chatter):
    def start(self, params, now, *, round_=0):
        self._emit(Cancel())


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        (TrainsTwice, "trains while it trains"),
        (WritesToSent, "wrote to a vector"),
        (WritesToLeg, "wrote to the parameters"),
        (KeepsLent, "not finite"),
        (LivesInThePast, "again and again"),
        (CancelsNothing, "no leg runs"),
    ],
)
def test_what_the_contract_forbids_is_seen(fault, seen):
    with pytest.raises(Nonconforming, match=seen):
        world(fault, links=Links(delay_s=(0.12, 0.15))).run(10)
