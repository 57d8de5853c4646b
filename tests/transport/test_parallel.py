"""How many links: as many as pay, on modelled paths."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.bulk.parallel import CARRIED, IDLE_S, MAX_HOLD_S, LinkCount, links_for
from transport.network import PathState


class Path:
    """A path whose goodput depends on the number of links, watched at ten looks a second."""

    def __init__(self, count: LinkCount, goodput: Callable[[int], float], rtt_s: float) -> None:
        self.count, self.goodput, self.rtt_s = count, goodput, rtt_s
        self.now, self.acknowledged, self.links = 0.0, 0.0, 0
        self.seen: list[int] = []

    def run(self, seconds: float) -> int:
        end = self.now + seconds
        while self.now < end:
            self.now += 0.1
            self.acknowledged += 0.1 * self.goodput(self.links)
            self.links = self.count.busy(self.now, int(self.acknowledged), self.links, self.rtt_s)
            self.seen.append(self.links)
        return self.links


def test_links_that_each_add_their_share_are_all_used() -> None:
    path = Path(LinkCount(), lambda links: 1.5e6 * links, 0.05)
    assert path.run(12) == 8


def test_a_path_that_one_link_fills_keeps_one() -> None:
    path = Path(LinkCount(), lambda links: 25e6 if links else 0, 0.01)
    path.run(120)
    assert path.seen.count(1) > 0.9 * len(path.seen)
    assert path.seen[-1] == 1


def test_a_path_that_suffers_from_more_links_keeps_one() -> None:
    path = Path(LinkCount(), lambda links: 1e9 / max(1, links), 0.0001)
    path.run(60)
    assert path.seen.count(1) > 0.9 * len(path.seen)


def test_a_limit_in_between_is_found_and_kept() -> None:
    path = Path(LinkCount(), lambda links: 4e6 * min(links, 3), 0.02)
    path.run(300)
    assert sum(links in {3, 4} for links in path.seen[600:]) > 0.9 * len(path.seen[600:])


def test_a_path_that_changes_is_tried_again() -> None:
    path = Path(LinkCount(), lambda links: 25e6 if links else 0, 0.01)
    path.run(600)
    path.goodput = lambda links: 1e6 * links
    path.run(30)
    assert path.links == 8


def test_trials_that_do_not_pay_become_rare() -> None:
    path = Path(LinkCount(), lambda links: 25e6 if links else 0, 0.01)
    path.run(MAX_HOLD_S * 4)
    before = len(path.seen)
    path.run(MAX_HOLD_S)
    trials = sum(
        one == 1 and other == 2
        for one, other in zip(path.seen[before:], path.seen[before + 1 :], strict=False)
    )
    assert trials <= 2


def test_nothing_to_do_closes_all_and_remembers_the_number() -> None:
    count = LinkCount()
    path = Path(count, lambda links: 1e6 * links, 0.05)
    assert path.run(12) == 8
    assert count.idle(path.now + 1) == 8
    assert count.idle(path.now + IDLE_S + 1) == 0
    assert count.busy(path.now + 60, int(path.acknowledged), 0, 0.05) == 8


def test_what_cannot_be_opened_is_not_asked_for() -> None:
    count = LinkCount()
    path = Path(count, lambda links: 1e6 * links, 0.05)
    path.run(4)
    assert count.target > 2
    assert count.cannot_open(path.now, 2) == 2
    path.links = 2
    assert path.run(1) == 2


@given(
    st.integers(1, 8),
    st.lists(st.tuples(st.floats(0, 3), st.integers(0, 10**8), st.integers(0, 9), st.booleans())),
)
def test_the_target_stays_in_bounds(most: int, looks: list[tuple[float, int, int, bool]]) -> None:
    count, now, acknowledged = LinkCount(most=most), 0.0, 0
    for step, more, links, busy in looks:
        now += step
        acknowledged += more
        if busy:
            assert 1 <= count.busy(now, acknowledged, links, 0.01) <= most
        else:
            assert 0 <= count.idle(now) <= most


@pytest.mark.parametrize("rtt_s", [0.0001, 0.019])
def test_a_measurement_takes_ten_round_trips_at_least(rtt_s: float) -> None:
    path = Path(LinkCount(), lambda links: 4e6 if links else 0, rtt_s)
    path.run(4 + 4 * rtt_s)  # the start is over: it found that two links are not better
    assert path.seen[-1] == 1
    path.run(40)
    trial = len("".join(map(str, path.seen)).strip("1").rpartition("1")[2])  # looks at two links
    assert 0.1 * trial >= max(0.7, 20 * rtt_s - 0.2)


def test_the_start_doubles_within_the_first_second() -> None:
    path = Path(LinkCount(), lambda links: 3e6 * links, 0.1)
    path.run(0.75)
    assert path.links >= 2
    path.run(1.25)
    assert path.links == 8


def test_a_start_that_went_too_far_is_taken_back() -> None:
    """One connection's slow start looks like a gain of the second."""
    count = LinkCount()
    path = Path(count, lambda links: min(25e6, 2e6 * 2 ** (path.now / 0.1)) if links else 0, 0.1)
    path.run(3)
    assert path.links >= 2
    path.run(60)
    assert path.links == 1


def test_the_start_waits_for_the_first_acknowledgement() -> None:
    path = Path(LinkCount(), lambda links: 3e6 * links if path.now > 5 else 0, 0.01)
    path.run(5)
    assert max(path.seen) == 1
    path.run(2.5)
    assert path.links == 8


def test_slow_start_of_new_links_is_waited_for() -> None:
    """What made two links of the eight that pay: 1 Gbit/s over 100 ms, where one connection carries 29 MB/s."""
    count = LinkCount()
    born: list[float] = []

    def goodput(links: int) -> float:
        while len(born) < links:
            born.append(path.now)
        del born[links:]
        return min(115e6, sum(min(29e6, 1e5 * 2 ** ((path.now - at) / 0.1)) for at in born))

    path = Path(count, goodput, 0.1)
    path.run(4)
    assert path.links >= 4
    path.run(6)
    assert path.links >= 4


@pytest.mark.parametrize(
    ("rtt_s", "links"),
    [(None, 1), (0.0, 1), (0.001, 1), (0.02, 1), (0.03, 2), (0.1, 5), (3.0, 8)],
)
def test_a_long_path_begins_with_as_many_as_a_line_of_1_gbit_needs(
    rtt_s: float | None, links: int
) -> None:
    assert links_for(rtt_s) == links
    if rtt_s is not None:
        assert LinkCount().busy(0.0, 0, 0, rtt_s) == links
        assert LinkCount(most=2).busy(0.0, 0, 0, rtt_s) == min(2, links)


class Line:
    """A line of a rate and a round trip, seen by links whose kernel says what their windows carry."""

    WINDOW = 3.5e6
    """Bytes that a link may have on its way; 5/6 of them it has."""

    def __init__(self, rate: float, rtt_s: float, *, loss_limit: float = math.inf) -> None:
        self.rate, self.rtt_s, self.loss_limit = rate, rtt_s, loss_limit
        self.count = LinkCount()
        self.now = self.acknowledged = 0.0
        self.seen: list[int] = []
        self.born: list[float] = []

    def run(self, seconds: float) -> int:
        end = self.now + seconds
        while self.now < end:
            self.now += 0.1
            offered = sum(
                min(
                    CARRIED * self.WINDOW / self.rtt_s,
                    self.loss_limit,
                    1e5 * 2 ** min(20.0, (self.now - at) / self.rtt_s),
                )
                for at in self.born
            )
            self.acknowledged += 0.1 * min(self.rate, offered)
            path = PathState(self.WINDOW / self.rtt_s, max(1.0, offered / self.rate))
            links = self.count.busy(
                self.now, int(self.acknowledged), len(self.born), self.rtt_s, path
            )
            self.born = [*self.born[:links], *[self.now] * (links - len(self.born))]
            self.seen.append(links)
        return len(self.born)


@pytest.mark.parametrize(
    ("rate", "rtt_s", "least", "most"),
    [
        (1.25e8, 0.1, 5, 5),  # five windows are its bandwidth-delay product and a little more
        (1.25e8, 0.03, 2, 2),
        (2.5e8, 0.1, 8, 8),
        (2.5e8, 0.05, 5, 5),
        (1.25e9, 0.1, 8, 8),
    ],
)
def test_there_are_windows_for_the_bandwidth_delay_product_and_no_more(
    rate: float, rtt_s: float, least: int, most: int
) -> None:
    line = Line(rate, rtt_s)
    line.run(20)
    line.run(100)
    assert {least, most} >= set(line.seen[200:])


def test_a_line_that_fewer_windows_fill_loses_the_others() -> None:
    line = Line(1.25e7, 0.1)
    assert line.run(300) == 1


def test_a_path_that_loses_packets_gets_more_links_than_windows_tell() -> None:
    line = Line(1.25e8, 0.1, loss_limit=3e6)
    assert line.run(20) == 8


def test_what_stands_in_queues_is_no_reason_for_more_links() -> None:
    count, now, acknowledged = LinkCount(), 0.0, 0
    for _ in range(3000):
        now += 0.1
        acknowledged += 100_000
        assert count.busy(now, acknowledged, count.target, 0.001, PathState(1e9, 1.5)) == 1
