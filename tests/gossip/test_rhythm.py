"""Slow members and links are named from synthetic rhythms in which the fault is known; quiet ones raise no alarm."""

import math
import random

import pytest

from gossip.collective.placing.rhythm import (
    ALARM_IN,
    HISTORY,
    LEAST_HISTORY,
    MAX_OPERATIONS,
    MAX_SERIES,
    Ailment,
    Measure,
    Rhythm,
)
from transport.identity import NodeId

MEMBERS = [NodeId(bytes([number]) * 32) for number in range(1, 9)]
NOISE = 0.2
"""Of the logarithm: what was measured on real links."""
MIB = 1 << 20


class Swarm:
    """Eight members whose links differ by orders of magnitude, with faults to plant."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.base = {
            (a, b): self.rng.lognormvariate(-8, 1.5) for a in MEMBERS for b in MEMBERS if a != b
        }
        self.slow: dict[tuple[NodeId, NodeId], float] = {}
        self.late: dict[NodeId, float] = {}
        self.now, self.number = 0.0, 0
        self.rhythm = Rhythm(MEMBERS[0])

    def operation(self, *, bytes_each: int = MIB) -> None:
        self.now += 10.0
        self.number += 1
        for member in MEMBERS:
            lag = self.rng.lognormvariate(math.log(0.2), NOISE) + self.late.get(member, 0.0)
            self.rhythm.began(self.number, member, self.now + lag)
        measures = [
            Measure(
                a,
                b,
                base * self.slow.get((a, b), 1.0) * self.rng.lognormvariate(0, NOISE) * 1e-3,
                bytes_each,
            )
            for (a, b), base in self.base.items()
        ]
        self.rhythm.ended(self.number, MEMBERS, measures)

    def run(self, count: int) -> "Swarm":
        for _ in range(count):
            self.operation()
        return self


def named(swarm: Swarm) -> set[tuple[Ailment, NodeId, NodeId | None]]:
    return {(each.ailment, each.member, each.other) for each in swarm.rhythm.findings()}


@pytest.mark.parametrize("seed", range(10))
def test_a_slow_uplink_is_the_member_s_and_no_link_s(seed):
    swarm = Swarm(seed).run(30)
    victim = MEMBERS[seed % 8]
    swarm.slow = {(a, b): 3.0 for a, b in swarm.base if a == victim}
    swarm.run(ALARM_IN + 2)
    assert (Ailment.UPLINK, victim, None) in named(swarm)
    assert not [each for each in named(swarm) if each[0] is Ailment.DOWNLINK]


@pytest.mark.parametrize("seed", range(10))
def test_a_slow_downlink_is_found(seed):
    swarm = Swarm(seed).run(30)
    victim = MEMBERS[seed % 8]
    swarm.slow = {(a, b): 3.0 for a, b in swarm.base if b == victim}
    swarm.run(ALARM_IN + 2)
    assert (Ailment.DOWNLINK, victim, None) in named(swarm)
    assert not [each for each in named(swarm) if each[0] is Ailment.UPLINK]


@pytest.mark.parametrize("seed", range(10))
def test_one_slow_link_is_that_link(seed):
    swarm = Swarm(seed).run(30)
    a, b = MEMBERS[seed % 8], MEMBERS[(seed + 3) % 8]
    swarm.slow = {(a, b): 10.0}
    swarm.run(ALARM_IN + 2)
    assert named(swarm) == {(Ailment.LINK, a, b)}
    (finding,) = swarm.rhythm.findings()
    assert 5 < finding.factor < 20


@pytest.mark.parametrize("seed", range(10))
def test_a_member_that_computes_slowly_is_late_and_its_links_are_not_blamed(seed):
    swarm = Swarm(seed).run(30)
    swarm.late = {MEMBERS[seed % 8]: 5.0}  # half of what lies between two operations
    swarm.run(ALARM_IN + 2)
    assert named(swarm) == {(Ailment.LATE, MEMBERS[seed % 8], None)}


def test_a_fault_that_lasts_stays_found_and_ends_when_it_ends():
    swarm = Swarm(1).run(30)
    victim = MEMBERS[2]
    swarm.slow = {(a, b): 5.0 for a, b in swarm.base if a == victim}
    for _ in range(5 * HISTORY):
        swarm.operation()
    assert (Ailment.UPLINK, victim, None) in named(swarm)
    swarm.slow = {}
    swarm.run(ALARM_IN + 1)
    assert named(swarm) == set()


def test_noise_alone_raises_hardly_an_alarm():
    swarm = Swarm(7)
    alarmed = 0
    for _ in range(300):
        swarm.operation()
        alarmed += bool(swarm.rhythm.findings())
    # 56 links and 8 members in 300 rounds: the reference's rate is 1 in 5,000 rounds of one series.
    assert alarmed <= 300 * 64 // 5_000 + 3


def test_who_was_always_slower_is_not_sick_but_its_lateness_is_known():
    swarm = Swarm(3)
    swarm.late = {MEMBERS[4]: 2.0}
    swarm.run(30)
    assert named(swarm) == set()
    late = swarm.rhythm.lateness_s()
    assert max(late, key=lambda member: late[member]) == MEMBERS[4]
    assert 1.5 < late[MEMBERS[4]] < 2.5


def test_rates_are_the_usual_ones_whatever_the_sizes_were():
    swarm = Swarm(5)
    for number, size in enumerate((MIB, 4 * MIB) * 10):
        measures = [Measure(a, b, size / 1e6, size) for a, b in swarm.base]
        swarm.rhythm.ended(number, MEMBERS, measures)
    assert all(rate == pytest.approx(1e6) for rate in swarm.rhythm.rates().values())


def test_an_operation_that_failed_says_nothing_about_who_began_late():
    rhythm = Rhythm(MEMBERS[0])
    rhythm.began(0, MEMBERS[0], 0.0)
    rhythm.began(0, MEMBERS[1], 9.0)
    rhythm.given_up()
    rhythm.began(0, MEMBERS[0], 20.0)
    rhythm.began(0, MEMBERS[1], 20.1)
    rhythm.ended(0, MEMBERS[:2])
    assert rhythm.lateness_s()[MEMBERS[1]] == pytest.approx(0.1)


def test_a_member_that_comes_back_begins_anew():
    swarm = Swarm(2).run(10)
    swarm.rhythm.forget(MEMBERS[3])
    assert MEMBERS[3] not in swarm.rhythm.lateness_s()
    assert not [link for link in swarm.rhythm.rates() if MEMBERS[3] in link]


def test_what_is_followed_is_bounded():
    rhythm = Rhythm(MEMBERS[0])
    for number in range(MAX_SERIES + 100):
        rhythm.measured(Measure(NodeId(number.to_bytes(32, "big")), MEMBERS[0], 1.0, MIB))
    rates = rhythm.rates()
    assert len(rates) == MAX_SERIES
    assert (NodeId((MAX_SERIES + 99).to_bytes(32, "big")), MEMBERS[0]) in rates


@pytest.mark.parametrize(("seconds", "size"), [(0.0, MIB), (-1.0, MIB), (1.0, 0)])
def test_a_measurement_of_nothing_is_left_out(seconds, size):
    rhythm = Rhythm(MEMBERS[0])
    rhythm.measured(Measure(MEMBERS[1], MEMBERS[0], seconds, size))
    assert rhythm.rates() == {}


def test_who_has_gone_on_to_the_next_operation_is_not_early_in_this_one():
    rhythm = Rhythm(MEMBERS[0])
    for number in range(LEAST_HISTORY):
        rhythm.began(number, MEMBERS[0], 10.0 * number)
        rhythm.began(number, MEMBERS[1], 10.0 * number)
        # Its certificate was complete earlier, and what it began next is heard before this one ends here.
        rhythm.began(number + 1, MEMBERS[1], 10.0 * number + 10.0)
        rhythm.ended(number, MEMBERS[:2])
    assert rhythm.lateness_s() == {MEMBERS[0]: pytest.approx(0), MEMBERS[1]: pytest.approx(0)}


def test_word_of_operations_that_nobody_runs_is_not_kept():
    rhythm = Rhythm(MEMBERS[0])
    for number in range(10_000):
        rhythm.began(number, MEMBERS[1], 0.0)
    assert len(rhythm._begun) == MAX_OPERATIONS


def test_word_of_operations_far_ahead_does_not_crowd_out_the_present_ones():
    rhythm = Rhythm(MEMBERS[0])
    for far in range(10 * MAX_OPERATIONS):
        rhythm.began(2**40 + far, MEMBERS[3], 0.0)
    for number in range(LEAST_HISTORY):
        for late, member in enumerate(MEMBERS[:3]):
            rhythm.began(number, member, 10.0 * number + late)
        rhythm.ended(number, MEMBERS[:3])
    assert list(rhythm.lateness_s().values()) == [0.0, 1.0, 2.0]
