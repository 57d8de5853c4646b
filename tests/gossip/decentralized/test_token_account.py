"""Token accounts: never in debt, never above the capacity, one message per period in the long run."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.decentralized.asynchronous.token_account import TokenAccount


@st.composite
def accounts(draw: st.DrawFn) -> TokenAccount:
    low = draw(st.integers(1, 30))
    capacity = draw(st.integers(low, 60))
    balance = draw(st.integers(0, capacity))
    return TokenAccount(low, capacity, random.Random(draw(st.integers(0, 99))), balance=balance)


@given(accounts(), st.lists(st.booleans(), max_size=200))
def test_the_balance_stays_within_its_bounds_and_every_message_is_paid_for(account, periods):
    earned = sent = 0
    opening = account.balance
    for period in periods:
        earned += period
        sent += account.earn() if period else account.react()
        assert 0 <= account.balance <= account.capacity
    assert opening + earned - sent == account.balance


def test_the_published_example_of_probabilities():
    """A = 10, C = 20."""
    rng = random.Random(0)
    at = {a: TokenAccount(10, 20, rng, balance=a).proactive() for a in (0, 8, 9, 10, 15, 20)}
    assert at == pytest.approx({0: 0, 8: 0, 9: 0, 10: 1 / 11, 15: 6 / 11, 20: 1})


def test_a_full_account_sends_in_every_period_and_a_poor_one_in_none():
    rng = random.Random(1)
    rich = TokenAccount(10, 20, rng, balance=20)
    assert [rich.earn() for _ in range(50)] == [1] * 50
    poor = TokenAccount(10, 20, rng)
    assert [poor.earn() for _ in range(9)] == [0] * 9
    assert poor.balance == 9


def test_reactions_have_the_mean_of_the_balance_over_the_low_mark():
    rng = random.Random(2)
    total = sum(TokenAccount(10, 40, rng, balance=25).react() for _ in range(4000))
    assert total / 4000 == pytest.approx(2.5, abs=4 * 0.5 / 4000**0.5)
    assert TokenAccount(10, 40, rng).react() == 0
    assert TokenAccount(1, 1, rng, balance=1).react() == 1


def test_a_swarm_that_reacts_to_each_other_sends_one_message_per_node_and_period():
    rng = random.Random(3)
    nodes = [TokenAccount(10, 20, rng) for _ in range(50)]
    sent_late = 0
    for period in range(400):
        arriving = sum(node.earn() for node in nodes)
        sent = 0
        while arriving:
            sent += arriving
            arriving = sum(rng.choice(nodes).react() for _ in range(arriving))
        if period >= 200:
            sent_late += sent
    assert sent_late / (50 * 200) == pytest.approx(1.0, abs=0.05)
