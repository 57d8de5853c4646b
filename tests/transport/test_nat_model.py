"""NATs and firewalls as tables: what is mapped where, who comes in, and when it is forgotten."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.address import Address
from transport.errors import UsageError
from transport.simulated.nat_model import Nat, NatKind, Refusal, Session
from transport.simulated.nat_topology import Arrival, Departure, Realm, arrive, depart

PUBLIC = "198.51.100.1"
INSIDE = Address("192.168.1.2", 7447)
FAR = Address("203.0.113.5", 7447)
SAME_HOST = Address("203.0.113.5", 9)
STRANGER = Address("203.0.113.6", 7447)

CONES = (
    NatKind.FULL_CONE,
    NatKind.ADDRESS_RESTRICTED,
    NatKind.PORT_RESTRICTED,
    NatKind.PORT_RESTRICTED_RST,
)


def box(kind: NatKind | str, **options: float) -> Nat:
    return Nat(PUBLIC, kind, rng=random.Random(1), **options)  # type: ignore[arg-type]


def out(nat: Nat, inside: Address = INSIDE, far: Address = FAR, now: float = 0.0) -> Session:
    session = nat.outbound(inside, far, now)
    assert session is not None
    return session


def gets_in(nat: Nat, far: Address, outside: Address, now: float = 0.0) -> bool:
    return isinstance(nat.inbound(far, outside, now), Session)


@pytest.mark.parametrize("kind", CONES)
def test_a_cone_lends_one_port_and_keeps_its_number(kind: NatKind) -> None:
    nat = box(kind)
    assert out(nat).outside == Address(PUBLIC, 7447)
    assert out(nat, far=STRANGER).outside == Address(PUBLIC, 7447)
    assert nat.outside_of(INSIDE, 0.0) == Address(PUBLIC, 7447)


def test_a_symmetric_nat_lends_another_random_port_for_each_far_address() -> None:
    nat = box("symmetric")
    ports = {out(nat, far=Address("203.0.113.5", port)).outside.port for port in range(1, 50)}
    assert len(ports) == 49
    assert 7447 not in ports
    assert out(nat, far=Address("203.0.113.5", 1)).outside.port in ports
    assert nat.outside_of(INSIDE, 0.0) is None


@pytest.mark.parametrize("kind", CONES)
def test_the_second_host_with_the_same_port_gets_another_one(kind: NatKind) -> None:
    nat = box(kind)
    second = Address("192.168.1.3", 7447)
    assert out(nat).outside.port == 7447
    lent = out(nat, second).outside
    assert lent.port != 7447
    assert out(nat, second, STRANGER).outside == lent


@pytest.mark.parametrize(
    ("kind", "same_address", "same_host", "stranger"),
    [
        ("full-cone", True, True, True),
        ("address-restricted", True, True, False),
        ("port-restricted", True, False, False),
        ("port-restricted-rst", True, False, False),
        ("symmetric", True, False, False),
        ("firewall", True, False, False),
    ],
)
def test_who_comes_in(kind: str, same_address: bool, same_host: bool, stranger: bool) -> None:
    nat = box(kind)
    lent = out(nat).outside
    assert gets_in(nat, FAR, lent) == same_address
    assert gets_in(nat, SAME_HOST, lent) == same_host
    assert gets_in(nat, STRANGER, lent) == stranger


@pytest.mark.parametrize("kind", list(NatKind))
def test_nobody_comes_in_unasked_and_only_one_kind_says_so(kind: NatKind) -> None:
    nat = box(kind)
    expected = Refusal.RESET if kind == NatKind.PORT_RESTRICTED_RST else Refusal.DROP
    assert nat.inbound(FAR, Address(PUBLIC, 7447), 0.0) == expected
    assert nat.inbound(FAR, INSIDE, 0.0) == expected


def test_a_firewall_changes_no_address() -> None:
    session = out(box("firewall"))
    assert session.outside == session.inside == INSIDE


def test_a_reset_as_first_answer_closes_the_hole_and_a_later_one_does_not() -> None:
    nat = box("port-restricted")
    session = out(nat)
    nat.reset(session)
    assert not gets_in(nat, FAR, session.outside)
    session = out(nat)
    assert gets_in(nat, FAR, session.outside)
    nat.reset(session)
    assert gets_in(nat, FAR, session.outside)


def test_sessions_are_forgotten_in_their_time() -> None:
    nat = box("port-restricted", syn_timeout_s=10, idle_timeout_s=100, closed_timeout_s=5)
    session = out(nat)
    assert gets_in(nat, FAR, session.outside, 9.9)  # from then on another 10 s
    assert nat.carry(session, 19.0)
    assert nat.carry(session, 118.9)
    nat.close(session, 120.0)
    assert gets_in(nat, FAR, session.outside, 124.9)
    assert not nat.carry(session, 150.0)
    assert not nat.sessions(150.0)
    assert nat.outside_of(INSIDE, 150.0) is None
    assert not nat.carry(session, 150.0)


def test_a_reboot_forgets_all_and_may_change_the_address() -> None:
    nat = box("full-cone")
    nat.forward(Address("192.168.1.9", 80))
    session = out(nat)
    nat.reboot("198.51.100.77")
    assert not nat.carry(session, 0.0)
    assert not nat.sessions(0.0)
    assert not gets_in(nat, FAR, Address(PUBLIC, 80))
    assert out(nat).outside == Address("198.51.100.77", 7447)


@pytest.mark.parametrize("kind", list(NatKind))
def test_a_forward_lets_anybody_in(kind: NatKind) -> None:
    nat = box(kind)
    outside = nat.forward(INSIDE, 8000)
    assert outside == (INSIDE if kind == NatKind.FIREWALL else Address(PUBLIC, 8000))
    session = nat.inbound(STRANGER, outside, 0.0)
    assert isinstance(session, Session)
    assert session.inside == INSIDE
    assert out(nat, far=STRANGER).outside == outside  # answers leave as they came
    if kind in CONES:
        assert out(nat).outside == outside
    nat.unforward(outside)
    assert not gets_in(nat, Address("203.0.113.7", 1), outside) or kind == NatKind.FULL_CONE


def test_a_forward_takes_no_port_of_somebody_else() -> None:
    nat = box("full-cone")
    out(nat)
    with pytest.raises(UsageError):
        nat.forward(Address("192.168.1.3", 7447))
    nat.forward(Address("192.168.1.3", 8000))
    with pytest.raises(UsageError):
        nat.forward(Address("192.168.1.4", 8000))
    assert out(nat, Address("192.168.1.5", 8000)).outside.port != 8000


def test_one_far_address_comes_in_by_one_way_only() -> None:
    nat = box("full-cone")
    mapped = out(nat).outside
    forwarded = nat.forward(INSIDE, 8000)
    assert gets_in(nat, FAR, mapped)
    assert nat.inbound(FAR, forwarded, 0.0) == Refusal.DROP  # the host could not tell the two apart
    assert gets_in(nat, STRANGER, forwarded)


def test_a_full_table_drops() -> None:
    nat = box("full-cone", max_sessions=2)
    lent = out(nat).outside
    out(nat, far=STRANGER)
    assert nat.outbound(INSIDE, SAME_HOST, 0.0) is None
    assert nat.inbound(SAME_HOST, lent, 0.0) == Refusal.DROP
    assert nat.outbound(INSIDE, SAME_HOST, 500.0) is not None


hosts = st.builds(Address, st.sampled_from(["192.168.1.2", "192.168.1.3"]), st.integers(1, 3))
fars = st.builds(Address, st.sampled_from(["203.0.113.5", "203.0.113.6"]), st.integers(1, 3))


@given(
    st.sampled_from(list(NatKind)),
    st.lists(
        st.tuples(st.sampled_from(["out", "in", "reset", "close", "wait"]), hosts, fars),
        max_size=60,
    ),
)
def test_a_port_belongs_to_one_host_whatever_happens(
    kind: NatKind, steps: list[tuple[str, Address, Address]]
) -> None:
    nat = box(kind, syn_timeout_s=5, idle_timeout_s=20, closed_timeout_s=2)
    now = 0.0
    for step, inside, far in steps:
        known = nat.sessions(now)
        match step:
            case "out":
                nat.outbound(inside, far, now)
            case "in" if known:
                nat.inbound(far, known[0].outside, now)
            case "reset" if known:
                nat.reset(known[0])
            case "close" if known:
                nat.close(known[-1], now)
            case "wait":
                now += 3.0
        owners: dict[Address, Address] = {}
        pairs = set()
        for session in nat.sessions(now):
            assert owners.setdefault(session.outside, session.inside) == session.inside
            assert (session.outside, session.far) not in pairs
            pairs.add((session.outside, session.far))


# Topology


class Host:
    def __init__(self, name: str) -> None:
        self.name = name


def realm_with(host: str, nat: Nat, outer: Realm) -> tuple[Realm, Host]:
    inner = outer.behind(nat).inner
    place = Host(inner.name_of(host))
    inner.put(host, place)
    return inner, place


def syn(realm: Realm, source: Address, target: Address) -> Arrival | Refusal | None:
    departure = depart(realm, source, target, 0.0)
    return arrive(departure, target, 0.0) if isinstance(departure, Departure) else departure


def test_a_double_nat_translates_twice_and_lets_answers_in_twice() -> None:
    internet = Realm()
    server = Host("203.0.113.5")
    internet.put("203.0.113.5", server)
    outer = Nat("198.51.100.1", "port-restricted", rng=random.Random(1))
    middle = internet.behind(outer).inner
    inner, home = realm_with(
        "192.168.1.2", Nat("10.0.0.9", "port-restricted", rng=random.Random(2)), middle
    )
    assert home.name == "198.51.100.1/10.0.0.9/192.168.1.2"
    there = syn(inner, INSIDE, FAR)
    assert isinstance(there, Arrival)
    assert there.place is server
    assert there.source == Address("198.51.100.1", 7447)
    assert len(there.way.near) == 2
    back = syn(internet, FAR, there.source)
    assert isinstance(back, Arrival)
    assert back.place is home
    assert back.target == INSIDE
    assert syn(internet, STRANGER, there.source) == Refusal.DROP


def hairpin_world(hairpin: bool) -> Arrival | Refusal | None:
    internet = Realm()
    nat = Nat(PUBLIC, "full-cone", rng=random.Random(1), hairpin=hairpin)
    inner, _ = realm_with("192.168.1.2", nat, internet)
    inner.put("192.168.1.3", Host("other"))
    mapped = out(nat).outside
    return syn(inner, Address("192.168.1.3", 5), mapped)


def test_hairpin() -> None:
    assert hairpin_world(hairpin=False) == Refusal.DROP
    arrival = hairpin_world(hairpin=True)
    assert isinstance(arrival, Arrival)
    assert arrival.target == INSIDE
    assert arrival.source == Address(PUBLIC, 5)


def test_neighbours_meet_without_their_nat_and_faces_name_lines() -> None:
    internet = Realm()
    nat = box("symmetric")
    inner, home = realm_with("192.168.1.2", nat, internet)
    inner.put("192.168.1.3", Host("other"))
    near = depart(inner, Address("192.168.1.3", 5), INSIDE, 0.0)
    assert isinstance(near, Departure)
    assert near.face == f"{PUBLIC}/192.168.1.3"
    assert not nat.sessions(0.0)
    far = depart(inner, INSIDE, FAR, 0.0)
    assert isinstance(far, Departure)
    assert far.face == PUBLIC
    with pytest.raises(UsageError):
        inner.put("192.168.1.2", Host("again"))
    assert inner.at("192.168.1.2") is home


def test_hosts_behind_a_firewall_are_known_outside_by_their_own_address() -> None:
    internet = Realm()
    wall = Nat("2001:db8::1", "firewall", rng=random.Random(1))
    inner, home = realm_with("2001:db8:1::2", wall, internet)
    mine, theirs = Address("2001:db8:1::2", 1), Address("2001:db8:9::9", 2)
    assert syn(internet, theirs, mine) == Refusal.DROP
    departure = depart(inner, mine, theirs, 0.0)
    assert isinstance(departure, Departure)
    assert departure.face == "2001:db8:1::2"
    assert departure.source == mine
    arrival = syn(internet, theirs, mine)
    assert isinstance(arrival, Arrival)
    assert arrival.place is home


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (Realm, None),
        (lambda: realm_with("192.168.1.2", box("full-cone"), Realm())[0], "drop"),
    ],
)
def test_packets_to_nowhere(make: Callable[[], Realm], expected: str | None) -> None:
    assert syn(make(), INSIDE, STRANGER) == expected
