"""Token buckets and turns: never more than burst + rate * time, equal shares, urgent first but not for ever."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.budget.rates import BURST_S, URGENT_RUN, Meter, Ticket, TokenBucket
from transport.errors import UsageError

RATE = 1_000_000


def test_a_bucket_starts_full_and_refills_at_its_rate():
    bucket = TokenBucket(10.0, 5.0, 100.0)
    assert bucket.take(5, 100.0)
    assert not bucket.take(1, 100.05)
    assert bucket.ready_at(1, 100.05) == pytest.approx(100.1, abs=1e-5)
    assert bucket.take(1, bucket.ready_at(1, 100.05))
    assert bucket.level(1e9) == 5.0


def test_a_bucket_gives_all_or_nothing():
    bucket = TokenBucket(1.0, 4.0, 0.0)
    assert bucket.take(3, 0.0)
    assert not bucket.take(2, 0.0)
    assert bucket.level(0.0) == 1.0
    bucket.give_back(100, 0.0)
    assert bucket.level(0.0) == 4.0


def test_a_clock_that_goes_back_gives_nothing():
    bucket = TokenBucket(10.0, 5.0, 100.0)
    assert bucket.take(5, 100.0)
    assert bucket.level(50.0) == 0.0
    assert bucket.level(100.1) == pytest.approx(1.0)


@pytest.mark.parametrize("amount", [-1, 6])
def test_senseless_amounts(amount):
    with pytest.raises(UsageError):
        TokenBucket(1.0, 5.0, 0.0).take(amount, 0.0)


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (1, 0), (-1, 1), (float("nan"), 1)])
def test_senseless_buckets(rate, burst):
    with pytest.raises(UsageError):
        TokenBucket(rate, burst, 0.0)


@pytest.mark.parametrize("amount", [0, -1, 10**9])
def test_senseless_turns(amount):
    with pytest.raises(UsageError):
        Meter(RATE, 0.0).ask(amount, 0.0)


def drained(now: float = 0.0) -> Meter:
    meter = Meter(RATE, now)
    while (ticket := meter.ask(meter.quantum, now)).granted:
        pass
    meter.withdraw(ticket, now)
    return meter


def test_those_who_wait_get_equal_shares():
    meter = drained()
    tickets = {meter.ask(meter.quantum, 0.0): name for name in "abc"}
    shares = dict.fromkeys("abc", 0)
    now = 0.0
    while now < 1.0:
        now = meter.ready_at(now)
        for ticket in meter.serve(now):
            name = tickets.pop(ticket, None)
            if name:
                shares[name] += ticket.amount
                tickets[meter.ask(meter.quantum, now)] = name
    assert max(shares.values()) - min(shares.values()) <= meter.quantum
    assert sum(shares.values()) == pytest.approx(RATE, rel=0.1)


def test_urgent_turns_go_first_and_starve_nobody():
    meter = drained()
    normal = meter.ask(meter.quantum, 0.0)
    urgent = [meter.ask(100, 0.0, urgent=True) for _ in range(3 * URGENT_RUN)]
    order: list[Ticket] = []
    now = 0.0
    while meter.waiting:
        now = meter.ready_at(now)
        order += meter.serve(now)
    order = [ticket for ticket in order if ticket in urgent or ticket is normal]
    assert order[0] is urgent[0]
    assert order.index(normal) == URGENT_RUN
    assert [ticket for ticket in order if ticket is not normal] == urgent


def test_a_withdrawn_turn_lets_the_next_one_through():
    meter = drained()
    first = meter.ask(meter.quantum, 0.0)
    second = meter.ask(100, 0.0)
    waiting = meter.waiting
    meter.withdraw(first, 0.0)
    meter.withdraw(first, 0.0)
    assert meter.waiting == waiting - 1
    assert meter.serve(meter.ready_at(0.0)) == [second]
    assert not first.granted


def test_an_unused_grant_goes_back():
    meter = Meter(RATE, 0.0)
    tickets = []
    while (ticket := meter.ask(meter.quantum, 0.0)).granted:
        tickets.append(ticket)
    meter.withdraw(tickets[0], 0.0)
    assert meter.serve(0.0) == [ticket]
    meter.withdraw(tickets[0], 0.0)  # once only
    assert not meter.ask(meter.quantum, 0.0).granted


@given(
    st.integers(8192, 10**9),
    st.lists(
        st.tuples(
            st.floats(0, 0.1),
            st.floats(0, 1),
            st.booleans(),
            st.sampled_from(["ask", "withdraw"]),
        ),
        max_size=80,
    ),
)
def test_no_more_than_the_rate_passes_and_nobody_is_lost(rate, steps):
    meter = Meter(rate, 0.0)
    now, passed = 0.0, 0.0
    waiting: list[Ticket] = []
    lines: dict[bool, list[Ticket]] = {True: [], False: []}
    for pause, part, urgent, action in steps:
        now += pause
        if action == "ask":
            ticket = meter.ask(max(1, int(part * meter.quantum)), now, urgent=urgent)
            waiting.append(ticket)
            lines[urgent].append(ticket)
        elif waiting:
            ticket = waiting.pop(int(part * (len(waiting) - 1)))
            if ticket.granted:
                passed -= ticket.amount
            lines[ticket.urgent].remove(ticket)
            meter.withdraw(ticket, now)
        meter.serve(now)
        held = sum(ticket.amount for ticket in waiting if ticket.granted)
        burst = max(2 * meter.quantum, rate * BURST_S)
        assert held <= burst + rate * now + 1
        for line in lines.values():  # granted in order
            states = [ticket.granted for ticket in line]
            assert states == sorted(states, reverse=True)
    for _ in range(len(waiting)):
        if meter.waiting:
            now = meter.ready_at(now)
            meter.serve(now)
    assert all(ticket.granted for ticket in waiting)
