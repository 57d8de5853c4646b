"""Poisson timers are Poisson, and a node's clock counts its own legs."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.decentralized.asynchronous.poisson import LATE_EVENTS, PoissonTimers, UnitClock


def test_counts_have_the_mean_and_the_variance_of_a_poisson_process():
    timers: PoissonTimers[str] = PoissonTimers(random.Random(7))
    rates = {"a": 1.0, "b": 0.25, "c": 3.0}
    timers.set_rates(rates, 0.0)
    windows = 4000
    counts: dict[str, list[int]] = {key: [] for key in rates}
    for window in range(1, windows + 1):
        fired: list[str] = []
        while (at := timers.next_at()) is not None and at <= window:
            fired += timers.due(at)
        for key in rates:
            counts[key].append(fired.count(key))
    for key, rate in rates.items():
        mean = sum(counts[key]) / windows
        spread = sum((count - mean) ** 2 for count in counts[key]) / (windows - 1)
        # Four standard deviations: of the mean sqrt(rate/n), of the dispersion index sqrt(2/n).
        assert abs(mean - rate) < 4 * (rate / windows) ** 0.5
        assert abs(spread / mean - 1) < 4 * (2 / windows) ** 0.5
    together = [sum(row) for row in zip(counts["a"], counts["c"], strict=True)]
    mean = sum(together) / windows
    assert abs(mean - 4.0) < 4 * (4.0 / windows) ** 0.5, "they are independent of each other"


def test_events_come_in_the_order_of_their_times():
    timers: PoissonTimers[int] = PoissonTimers(random.Random(3))
    timers.set_rates({1: 2.0, 2: 2.0}, 0.0)
    one_by_one: list[int] = []
    other: PoissonTimers[int] = PoissonTimers(random.Random(3))
    other.set_rates({1: 2.0, 2: 2.0}, 0.0)
    while (at := other.next_at()) is not None and at < 3:
        one_by_one += other.due(at)
    assert len(one_by_one) > 4
    first = one_by_one[0]
    assert timers.due(3.0)[0] == first


def test_a_rate_that_stays_keeps_its_next_event_and_one_that_goes_fires_no_more():
    timers: PoissonTimers[str] = PoissonTimers(random.Random(1))
    timers.set_rates({"a": 0.001, "b": 50.0}, 0.0)
    timers.set_rates({"a": 0.001}, 0.0)
    before = timers.next_at()
    timers.set_rates({"a": 0.001}, 0.5)
    assert timers.next_at() == before
    timers.set_rates({"a": 0.5}, 0.5)
    assert timers.next_at() != before
    timers.set_rates({}, 1.0)
    assert timers.next_at() is None
    assert timers.due(1e9) == []


def test_a_node_that_slept_does_not_make_up_for_all_of_it():
    timers: PoissonTimers[str] = PoissonTimers(random.Random(1))
    timers.set_rates({"a": 1.0}, 0.0)
    assert len(timers.due(1e6)) == LATE_EVENTS
    after = timers.next_at()
    assert after is not None
    assert after > 1e6


def test_the_clock_stands_until_a_leg_was_measured_and_then_counts_legs():
    clock = UnitClock()
    assert not clock.running
    assert clock.read(50.0) == 0
    clock.measured(2.0, 52.0)
    assert clock.read(52.0) == 0
    assert clock.read(58.0) == pytest.approx(3.0)
    assert clock.when(4.0) == pytest.approx(60.0)
    clock.measured(4.0, 58.0)
    assert clock.read(58.0) == pytest.approx(3.0)
    assert clock.read(57.0) == pytest.approx(3.0), "never back behind a measurement"
    assert clock.when(1.0) == pytest.approx(58.0), "what is over is due now"
    assert clock.read(58.0 + 2.2) == pytest.approx(4.0), "the unit is longer now"


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=20), st.floats(1, 4))
def test_its_unit_is_the_running_mean_of_the_legs(legs, stretch):
    clock = UnitClock(stretch)
    now, mean, last = 100.0, legs[0], 0.0
    for seconds in legs:
        mean += 0.1 * (seconds - mean)
        now += seconds
        clock.measured(seconds, now)
        assert clock.unit_s == pytest.approx(mean * stretch)
        assert clock.read(now) >= last
        last = clock.read(now)
