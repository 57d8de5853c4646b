from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt.clock import MAX_COUNTER, MAX_PHYSICAL_MS, MAX_SKEW_MS, HybridClock, Timestamp
from crdt.errors import ClockSkew, CrdtError, MalformedState


class Wall:
    def __init__(self, ms=1_000_000):
        self.ms = ms

    def __call__(self):
        return self.ms


@given(
    st.lists(
        st.tuples(st.integers(-(10**5), 10**5), st.none() | st.integers(-(10**5), MAX_SKEW_MS)),
        max_size=20,
    )
)
def test_now_is_above_everything_given_out_or_observed(steps):
    wall = Wall()
    clock = HybridClock(b"n", wall)
    highest = Timestamp(0, 0, b"n")
    for step_ms, observed in steps:
        wall.ms += step_ms
        if observed is not None:
            stamp = Timestamp(max(0, wall.ms + observed), 7, b"zz")
            clock.observe(stamp)
            highest = max(highest, stamp)
        stamp = clock.now()
        assert stamp > highest
        assert stamp.physical_ms >= wall.ms
        highest = stamp


def test_it_follows_the_wall_while_that_advances():
    wall = Wall(5)
    clock = HybridClock(b"n", wall)
    assert clock.now() == Timestamp(5, 0, b"n")
    assert clock.now() == Timestamp(5, 1, b"n")
    wall.ms = 9
    assert clock.now() == Timestamp(9, 0, b"n")
    wall.ms = 3
    assert clock.now() == Timestamp(9, 1, b"n")


def test_the_future_beyond_a_minute_is_refused_and_changes_nothing():
    wall = Wall(1000)
    clock = HybridClock(b"n", wall)
    clock.now()
    with pytest.raises(ClockSkew) as caught:
        clock.observe(Timestamp(1000 + MAX_SKEW_MS + 1, 0, b"m"))
    assert caught.value.ahead_ms == MAX_SKEW_MS + 1
    assert "clocks" in caught.value.hint
    assert clock.now() == Timestamp(1000, 1, b"n")
    clock.observe(Timestamp(1000 + MAX_SKEW_MS, 3, b"m"))
    assert clock.now() == Timestamp(1000 + MAX_SKEW_MS, 4, b"n")


def test_a_full_counter_borrows_a_millisecond():
    clock = HybridClock(b"n", Wall(1000))
    clock.observe(Timestamp(1000, MAX_COUNTER, b"m"))
    assert clock.now() == Timestamp(1001, 0, b"n")


def test_a_broken_wall_clock_stays_within_the_format():
    clock = HybridClock(b"n", Wall(-5))
    assert clock.now() == Timestamp(0, 1, b"n")
    assert HybridClock(b"n", Wall(2**60)).now().physical_ms == MAX_PHYSICAL_MS


def test_order_is_time_then_counter_then_node():
    ordered = [Timestamp(1, 9, b"z"), Timestamp(2, 0, b"z"), Timestamp(2, 1, b"a")]
    ordered.append(Timestamp(2, 1, b"b"))
    assert all(low < high for low, high in pairwise(ordered))


@pytest.mark.parametrize(
    "wire", [[2**48, 0, b"n"], [0, 2**16, b"n"], [0, 0, b""], [0, 0, b"x" * 65], [True, 0, b"n"]]
)
def test_malformed_timestamps_are_refused(wire):
    with pytest.raises(CrdtError):
        Timestamp.from_wire(wire)


def test_a_clock_needs_a_name():
    with pytest.raises(MalformedState):
        HybridClock(b"", Wall())
