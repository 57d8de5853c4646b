"""Token buckets by key: a burst and a rate for each, and a table that does not grow."""

from transport.budget.accounts import Accounts


def test_each_has_a_burst_and_a_rate() -> None:
    accounts: Accounts[bytes] = Accounts(1.0, 3.0, most=10)
    assert [accounts.take(b"a", 0.0) for _ in range(4)] == [True, True, True, False]
    assert accounts.take(b"b", 0.0)
    assert not accounts.take(b"a", 0.9)
    assert accounts.take(b"a", 1.9)
    assert [accounts.take(b"a", 1000.0) for _ in range(4)] == [True, True, True, False]
    assert not accounts.take(b"a", 500.0)  # a clock that goes back gives nothing


def test_the_one_not_used_for_longest_is_forgotten_first() -> None:
    accounts: Accounts[int] = Accounts(1.0, 1.0, most=10)
    for number in range(1000):
        assert accounts.take(number, 0.0)
        assert len(accounts) <= 10
    assert not accounts.take(990, 0.0)  # used again, so it outlives the nine others
    for number in range(2000, 2009):
        assert accounts.take(number, 0.0)
    assert not accounts.take(990, 0.0)
    assert accounts.take(991, 0.0)


def test_looking_is_not_using() -> None:
    accounts: Accounts[str] = Accounts(1.0, 1.0, most=2)
    assert accounts.remembered("a") is None
    assert len(accounts) == 0
    accounts.take("a", 0.0)
    accounts.take("b", 0.0)
    assert accounts.remembered("a") is not None
    accounts.take("c", 0.0)
    assert accounts.remembered("a") is None
