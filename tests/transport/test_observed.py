"""The tally of what others see us at: whom it believes, and what it concludes about the NAT."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.address import Address
from transport.errors import UsageError
from transport.identity import NodeId
from transport.reach.observed import MappingBehaviour, Observations

TRUE = Address("198.51.100.1", 7447)
FALSE = Address("198.51.100.66", 66)


def note(
    observed: Observations, host: str, seen: Address, now: float, *, observer: int | None = None
) -> None:
    """A peer at `host`, one of each unless its number is given, says where it sees us."""
    who = host.encode() if observer is None else bytes([observer])
    observed.note(NodeId(who.ljust(32, b"\0")), host, seen, now, from_listener=True)


def tally(*seen: Address, **options: float) -> Observations:
    observed = Observations(**options)  # type: ignore[arg-type]
    for number, address in enumerate(seen):
        note(observed, f"203.0.113.{number}", address, 0.0)
    return observed


def test_three_networks_make_an_address() -> None:
    assert tally(TRUE, TRUE).believed(0.0) == ()
    assert tally(TRUE, TRUE, FALSE).believed(0.0) == ()
    assert tally(TRUE, TRUE, TRUE).believed(0.0) == (TRUE,)
    assert tally(TRUE, TRUE, observers_needed=2).believed(0.0) == (TRUE,)


def test_one_network_is_one_voice() -> None:
    observed = Observations()
    for host in ("2001:db8:1:2::1", "2001:db8:1:3::9", "2001:db8:1:ff::7"):  # one /56, and two more
        note(observed, host, Address("2001:db8:5::1", 7), 0.0)
    assert observed.observers(0.0, six=True) == 1
    for _ in range(5):
        note(observed, "203.0.113.1", TRUE, 0.0)
    note(observed, "::ffff:203.0.113.1", TRUE, 0.0)
    assert observed.observers(0.0) == 1


def test_a_network_that_changes_its_mind_leaves_its_old_vote() -> None:
    observed = tally(TRUE, TRUE, TRUE)
    note(observed, "203.0.113.0", FALSE, 1.0)
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
    note(observed, "203.0.113.1", TRUE, 50.0)
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
        Address("198.51.100.1", 1, str(NodeId(bytes(32)))),
        Address("2001:db8::1%eth0", 1),
    ],
)
def test_what_cannot_be_a_way_to_us_is_ignored(seen: Address) -> None:
    assert tally(seen, seen, seen).observers(0.0) == 0
    assert tally(seen, seen, seen).observers(0.0, six=True) == 0
    assert tally(seen, seen, seen).candidates(0.0) == ()


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
    note(observed, "203.0.113.99", FALSE, 0.0)
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
    observed = Observations(max_observers=16, expiry_s=100)
    now = 0.0
    for observer, port, pause_s in reports:
        now += pause_s
        note(observed, f"203.0.{observer >> 8}.{observer & 255}", Address(TRUE.host, port), now)
        assert observed.observers(now) <= 16
        assert len(observed.believed(now)) <= 3


@pytest.mark.parametrize(
    "options", [{"observers_needed": 0}, {"max_observers": 2}, {"expiry_s": 0.0}]
)
def test_nonsense_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Observations(**options)  # type: ignore[arg-type]


# For punches: what to tell, and what must not be decided by one peer


def test_what_two_networks_agree_on_is_told_and_one_liar_is_not_heard() -> None:
    assert tally(TRUE, TRUE, FALSE).candidates(0.0) == (TRUE,)
    assert tally(TRUE, TRUE, FALSE).confirmed(0.0) == (TRUE,)
    assert tally(FALSE).confirmed(0.0) == ()


def test_without_agreement_one_address_is_told_the_newest_at_the_usual_host() -> None:
    assert tally(FALSE).candidates(0.0) == (FALSE,)
    observed = tally()
    for number in range(4):
        note(observed, f"203.0.113.{number}", Address(TRUE.host, 1000 + number), float(number))
    note(observed, "203.0.113.9", FALSE, 9.0)
    assert observed.candidates(9.0) == (Address(TRUE.host, 1003),)
    six = Address("2001:db8::5", 7)
    note(observed, "2001:db8:9::1", six, 9.0)
    assert observed.candidates(9.0) == (Address(TRUE.host, 1003), six)


def test_many_names_on_one_host_are_one_voice_and_push_nobody_out() -> None:
    observed = tally(TRUE, TRUE, TRUE, max_observers=16)
    for number in range(200):
        note(observed, "203.0.113.200", FALSE, 1.0, observer=number)
    assert observed.believed(1.0) == (TRUE,)
    assert observed.candidates(1.0) == (TRUE,)
    assert observed.observers(1.0) == 4


def test_the_word_of_who_is_gone_is_forgotten() -> None:
    observed = tally(TRUE, TRUE)
    ids = [NodeId(f"203.0.113.{number}".encode().ljust(32, b"\0")) for number in range(2)]
    assert observed.sees_us_at(ids[0], six=False) == TRUE.host
    observed.forget(ids[0])
    assert observed.sees_us_at(ids[0], six=False) is None
    assert observed.confirmed(0.0) == ()
    assert observed.candidates(0.0) == (TRUE,)
    observed.keep(())
    assert observed.candidates(0.0) == ()


def test_a_connection_from_another_port_says_nothing_of_the_listener() -> None:
    observed = Observations()
    who = NodeId(bytes(32))
    assert observed.note(who, "203.0.113.1", FALSE, 0.0, from_listener=False)
    assert observed.sees_us_at(who, six=False) == FALSE.host
    assert (observed.candidates(0.0), observed.observers(0.0)) == ((), 0)
    observed.note(who, "203.0.113.1", TRUE, 1.0, from_listener=True)
    observed.note(who, "203.0.113.1", FALSE, 2.0, from_listener=False)
    assert observed.candidates(2.0) == (TRUE,)  # it dialed us as well


def test_dials_leave_from_the_listener_until_enough_networks_have_spoken() -> None:
    observed = Observations()
    hosts = [f"203.0.113.{number}" for number in range(10)]
    assert not observed.wanted("192.168.1.7", 0.0)  # no NAT lies on the way
    assert [observed.wanted(host, 0.0) for host in hosts] == [True] * 4 + [False] * 6
    assert observed.wanted("2001:db8::1", 0.0)  # the other family
    note(observed, hosts[0], TRUE, 1.0)
    assert not observed.wanted(hosts[5], 1.0)  # three may still answer
    assert observed.wanted(hosts[5], 11.0)  # they have not
    assert not observed.wanted(hosts[5], 12.0)
    assert not observed.wanted(hosts[0], 12.0)  # it has spoken
    for host in hosts[1:4]:
        note(observed, host, TRUE, 12.0)
    assert not any(observed.wanted(host, 100.0) for host in hosts)
    observed.forget(NodeId(hosts[1].encode().ljust(32, b"\0")))
    assert observed.wanted(hosts[7], 100.0)
