"""The tally of what others see us at: whom it believes, and what it concludes about the NAT."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.address import Address
from transport.errors import UsageError
from transport.reach.observed import MappingBehaviour, ObservedAddresses

TRUE = Address("198.51.100.1", 7447)
FALSE = Address("198.51.100.66", 66)


def tally(*seen: Address, **options: float) -> ObservedAddresses:
    observed = ObservedAddresses(**options)  # type: ignore[arg-type]
    for number, address in enumerate(seen):
        observed.report(f"203.0.113.{number}", address, 0.0)
    return observed


def test_three_networks_make_an_address() -> None:
    assert tally(TRUE, TRUE).believed(0.0) == ()
    assert tally(TRUE, TRUE, FALSE).believed(0.0) == ()
    assert tally(TRUE, TRUE, TRUE).believed(0.0) == (TRUE,)
    assert tally(TRUE, TRUE, observers_needed=2).believed(0.0) == (TRUE,)


def test_one_network_is_one_voice() -> None:
    observed = ObservedAddresses()
    for host in ("2001:db8:1:2::1", "2001:db8:1:3::9", "2001:db8:1:ff::7"):  # one /56, and two more
        observed.report(host, Address("2001:db8:5::1", 7), 0.0)
    assert observed.observers(0.0, six=True) == 1
    for _ in range(5):
        observed.report("203.0.113.1", TRUE, 0.0)
    observed.report("::ffff:203.0.113.1", TRUE, 0.0)
    assert observed.observers(0.0) == 1


def test_a_network_that_changes_its_mind_leaves_its_old_vote() -> None:
    observed = tally(TRUE, TRUE, TRUE)
    observed.report("203.0.113.0", FALSE, 1.0)
    assert observed.believed(1.0) == ()


def test_small_swarms_need_all_they_have() -> None:
    observed = tally(TRUE, TRUE)
    observed.networks_in_swarm = 2
    assert observed.believed(0.0) == (TRUE,)
    observed.networks_in_swarm = 0
    assert observed.believed(0.0) == (TRUE,)
    observed.networks_in_swarm = 50
    assert observed.believed(0.0) == ()


def test_reports_expire() -> None:
    observed = tally(TRUE, TRUE, TRUE, expiry_s=100)
    assert observed.next_deadline() == 100
    observed.report("203.0.113.1", TRUE, 50.0)
    assert observed.believed(99.9) == (TRUE,)
    assert observed.believed(100.0) == ()
    assert observed.next_deadline() == 150
    observed.clear()
    assert observed.next_deadline() is None


def test_our_own_addresses_are_no_news_but_prove_that_nothing_translates() -> None:
    observed = tally(TRUE, TRUE, TRUE)
    observed.set_own([TRUE.host])
    assert observed.believed(0.0) == ()
    assert observed.hosts(0.0) == ()
    assert observed.mapping(0.0) == MappingBehaviour.INDEPENDENT


@pytest.mark.parametrize(
    "seen",
    [
        Address("127.0.0.1", 1),
        Address("169.254.1.1", 1),
        Address("0.0.0.0", 1),
        Address("example.org", 1),
        Address("198.51.100.1", 0),
        Address("2001:db8::1", 1),
    ],
)
def test_what_cannot_be_a_way_to_us_is_ignored(seen: Address) -> None:
    assert tally(seen, seen, seen).observers(0.0) == 0
    assert tally(seen, seen, seen).observers(0.0, six=True) == 0


@pytest.mark.parametrize(
    ("ports", "expected"),
    [
        ([7], "unknown"),
        ([7, 7], "unknown"),
        ([7, 7, 7], "independent"),
        ([7, 7, 7, 9], "independent"),
        ([7, 7, 9], "unknown"),
        ([7, 8, 9], "dependent"),
        ([7, 7, 8, 8, 9, 9], "dependent"),
        ([7, 7, 7, 7, 8, 9, 10], "unknown"),
    ],
)
def test_the_mapping(ports: list[int], expected: str) -> None:
    observed = tally(*(Address(TRUE.host, port) for port in ports))
    assert observed.mapping(0.0) == expected
    if expected == "dependent":
        assert observed.believed(0.0) == ()
        assert observed.hosts(0.0) == (TRUE.host,)


def test_one_observer_cannot_show_a_difference() -> None:
    observed = tally(TRUE)
    observed.networks_in_swarm = 1
    assert observed.believed(0.0) == (TRUE,)
    assert observed.mapping(0.0) == MappingBehaviour.UNKNOWN
    observed.networks_in_swarm = 2
    observed.report("203.0.113.99", FALSE, 0.0)
    assert observed.mapping(0.0) == MappingBehaviour.DEPENDENT


@given(st.integers(0, 2), st.integers(0, 40), st.randoms(use_true_random=False))
def test_fewer_liars_than_needed_invent_nothing(liars: int, honest: int, rng: object) -> None:
    votes = [FALSE] * liars + [TRUE] * honest
    rng.shuffle(votes)  # type: ignore[attr-defined]
    assert tally(*votes).believed(0.0) == ((TRUE,) if honest >= 3 else ())


@given(
    st.lists(
        st.tuples(st.integers(0, 400), st.integers(1, 5), st.floats(0, 50, allow_nan=False)),
        max_size=300,
    )
)
def test_it_stays_within_its_bounds(reports: list[tuple[int, int, float]]) -> None:
    observed = ObservedAddresses(max_observers=16, expiry_s=100)
    now = 0.0
    for observer, port, pause_s in reports:
        now += pause_s
        observed.report(f"203.0.{observer >> 8}.{observer & 255}", Address(TRUE.host, port), now)
        assert observed.observers(now) <= 16
        assert len(observed.believed(now)) <= 3


@pytest.mark.parametrize(
    "options", [{"observers_needed": 0}, {"max_observers": 2}, {"expiry_s": 0.0}]
)
def test_nonsense_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        ObservedAddresses(**options)  # type: ignore[arg-type]
