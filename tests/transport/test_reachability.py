"""The verdict on an address: who makes it, who cannot flip it, and when the next question is due."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.address import Address
from transport.errors import UsageError
from transport.reach.reachability import Reachability, ReachabilitySettings, Verdict

AT = Address("198.51.100.1", 7447)
OTHER = Address("198.51.100.1", 7448)


def server(number: int) -> str:
    return f"203.0.113.{number}"


def tally(**settings: float) -> Reachability:
    reachability = Reachability(ReachabilitySettings(**settings), random.Random(1))  # type: ignore[arg-type]
    reachability.set_addresses([AT], 0.0)
    return reachability


def test_three_networks_make_a_verdict() -> None:
    for reached, expected in ((True, Verdict.REACHABLE), (False, Verdict.UNREACHABLE)):
        reachability = tally()
        assert reachability.verdict(AT, 0.0) == Verdict.UNKNOWN
        for number in range(2):
            assert reachability.vote(AT, server(number), reached, 0.0) == Verdict.UNKNOWN
        assert reachability.vote(AT, server(1), reached, 0.0) == Verdict.UNKNOWN  # the same again
        assert reachability.reached(AT, 0.0) is None
        assert reachability.vote(AT, server(2), reached, 0.0) == expected
        assert reachability.reached(AT, 0.0) is reached
        assert reachability.verdict(OTHER, 0.0) == Verdict.UNKNOWN


def test_a_small_swarm_has_fewer_voices() -> None:
    reachability = tally()
    reachability.networks_in_swarm = 1
    assert reachability.vote(AT, server(1), True, 0.0) == Verdict.REACHABLE
    assert reachability.vote(AT, server(1), False, 0.0) == Verdict.UNREACHABLE


@pytest.mark.parametrize("first", [True, False])
def test_a_verdict_stays_until_the_opposite_is_clear(first: bool) -> None:
    reachability = tally()
    before, after = Verdict.REACHABLE, Verdict.UNREACHABLE
    if not first:
        before, after = after, before
    for number in range(5):
        reachability.vote(AT, server(number), first, 0.0)
    verdicts = [reachability.vote(AT, server(10 + number), not first, 0.0) for number in range(6)]
    # The nine latest count: after the fifth it stands four to five, which is no lead.
    assert verdicts == [before] * 5 + [after]


def test_a_vote_is_as_old_as_its_last_confirmation() -> None:
    reachability = tally(expiry_s=100)
    for number in (0, 1, 2):
        reachability.vote(AT, server(number), True, 0.0)
    reachability.vote(AT, server(0), True, 50.0)
    verdicts = [reachability.vote(AT, server(number), False, 120.0) for number in (5, 6, 7)]
    assert verdicts == [Verdict.REACHABLE, Verdict.REACHABLE, Verdict.UNREACHABLE]


def test_a_change_is_noticed_within_minutes() -> None:
    reachability = tally()
    now = drive(reachability, dict.fromkeys(range(12), True), 0.0, 36000.0)
    assert reachability.verdict(AT, now) == Verdict.REACHABLE
    at = reachability.next_deadline()
    assert at is not None
    drive(reachability, dict.fromkeys(range(12), True), at, at)
    quiet_until = reachability.next_deadline()
    assert quiet_until is not None
    assert quiet_until - at > 3000
    at = quiet_until
    changed = drive(reachability, dict.fromkeys(range(12), False), at, at + 300.0)
    assert reachability.verdict(AT, changed) == Verdict.UNREACHABLE


def drive(reachability: Reachability, truth: dict[int, bool], now: float, until: float) -> float:
    """Ask whenever a question is due; server n always answers truth[n]."""
    while True:
        at = reachability.next_deadline()
        assert at is not None
        if at > until:
            return until
        now = max(now, at)
        for address in reachability.due(now):
            chosen = reachability.choose(address, [server(number) for number in truth], now)
            assert chosen is not None
            reachability.vote(
                address, server(list(truth)[chosen]), list(truth.values())[chosen], now
            )


@given(st.integers(3, 9), st.data(), st.booleans(), st.integers(0, 2**32))
def test_a_minority_of_liars_cannot_flip_the_verdict(
    servers: int, data: st.DataObject, truth: bool, seed: int
) -> None:
    liars = data.draw(st.integers(0, (servers - 1) // 2))
    expected = Verdict.REACHABLE if truth else Verdict.UNREACHABLE
    reachability = Reachability(ReachabilitySettings(), random.Random(seed))
    reachability.set_addresses([AT], 0.0)
    for number in range(
        servers
    ):  # an honest start, then liars who answer as often as they are asked
        reachability.vote(AT, server(number), truth, 0.0)
    answers = {number: truth ^ (number < liars) for number in range(servers)}
    now = 0.0
    for _ in range(60):
        at = reachability.next_deadline()
        assert at is not None
        now = drive(reachability, answers, at, at)
        assert reachability.verdict(AT, now) == expected


def test_liars_never_make_a_verdict_when_they_are_fewer_than_must_agree() -> None:
    for seed in range(50):
        reachability = Reachability(ReachabilitySettings(), random.Random(seed))
        reachability.set_addresses([AT], 0.0)
        answers = {number: number >= 2 for number in range(6)}
        now = 0.0
        while now < 5000:
            at = reachability.next_deadline()
            assert at is not None
            now = drive(reachability, answers, at, at)
            assert reachability.verdict(AT, now) != Verdict.UNREACHABLE
        assert reachability.verdict(AT, now) == Verdict.REACHABLE


def test_votes_expire_and_with_the_last_the_verdict() -> None:
    reachability = tally(expiry_s=100)
    for number in range(3):
        reachability.vote(AT, server(number), True, float(number))
    assert reachability.verdict(AT, 101.9) == Verdict.REACHABLE
    assert reachability.verdict(AT, 102.0) == Verdict.UNKNOWN


def test_questions_come_fast_then_slowly_then_fast_again() -> None:
    reachability = tally(jitter=0.0, fast_s=10, slow_s=100)
    pauses = []
    now = 0.0
    for number, reached in enumerate([True] * 8 + [False, True]):
        assert reachability.due(now) == (AT,)
        assert reachability.choose(AT, [server(number)], now) == 0
        assert reachability.due(now) == ()
        reachability.vote(AT, server(number), reached, now)
        at = reachability.next_deadline()
        assert at is not None
        pauses.append(at - now)
        now = at
    assert pauses == [10, 10, 10, 20, 40, 80, 100, 100, 10, 20]


def test_questions_without_an_answer_slow_down_too() -> None:
    reachability = tally(jitter=0.0, fast_s=10, slow_s=100)
    for pause_s in (20, 40, 80, 100, 100):
        reachability.no_vote(AT, 0.0)
        assert reachability.next_deadline() == pause_s
    reachability.vote(AT, server(1), True, 0.0)
    assert reachability.next_deadline() == 10


def test_somebody_new_is_asked_soon_while_the_verdict_is_open() -> None:
    reachability = tally(jitter=0.0, fast_s=10, slow_s=100)
    for _ in range(5):
        reachability.no_vote(AT, 0.0)
    reachability.hasten(5.0)
    assert reachability.next_deadline() == 15
    reachability.hasten(9.0)
    assert reachability.next_deadline() == 15  # never later for it
    for number in range(5):
        reachability.vote(AT, server(number), True, 20.0)
    quiet_until = reachability.next_deadline()
    reachability.hasten(21.0)
    assert reachability.next_deadline() == quiet_until


def test_everybody_is_asked_in_turn() -> None:
    reachability = tally()
    hosts = [server(number) for number in range(5)]
    asked = [reachability.choose(AT, hosts, float(now)) for now in range(15)]
    assert all(sorted(asked[start : start + 5]) == [0, 1, 2, 3, 4] for start in (0, 5, 10))  # type: ignore[type-var]
    assert reachability.choose(AT, [], 20.0) is None
    assert reachability.choose(OTHER, hosts, 20.0) is None


def test_addresses_come_and_go() -> None:
    reachability = tally(max_addresses=2, fast_s=10.0)
    for number in range(3):
        reachability.vote(AT, server(number), True, 0.0)
    reachability.set_addresses([OTHER, AT, OTHER, Address("198.51.100.1", 1)], 5.0)
    assert reachability.due(5.0) == (OTHER,)
    assert reachability.verdict(AT, 5.0) == Verdict.REACHABLE
    reachability.restart(6.0)
    assert reachability.verdict(AT, 6.0) == Verdict.UNKNOWN
    assert set(reachability.due(6.0)) == {AT, OTHER}
    reachability.set_addresses([], 7.0)
    assert reachability.next_deadline() is None
    assert reachability.vote(AT, server(1), True, 7.0) == Verdict.UNKNOWN
    reachability.no_vote(AT, 7.0)


@pytest.mark.parametrize(
    "settings", [{"agree": 0}, {"agree": 10}, {"fast_s": 0}, {"slow_s": 1}, {"jitter": 1}]
)
def test_nonsense_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        tally(**settings)
