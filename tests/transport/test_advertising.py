"""Which addresses a node tells: proved ones, plausible ones, and relays only while they are needed."""

from hypothesis import given
from hypothesis import strategies as st

from transport.address import Address
from transport.identity import NodeId
from transport.reach.advertising import (
    KnownAddresses,
    addresses_to_tell,
    bound_addresses,
)

RELAY = str(NodeId(bytes(32)))
ANY4, ANY6 = Address("0.0.0.0", 7447), Address("::", 7447)
LAN, PUBLIC4, PUBLIC6 = "192.168.1.7", "11.1.1.7", "2600::7"
VIA = Address("11.1.1.1", 7447, RELAY)


def told(known, verdicts=None):
    return [str(address) for address in addresses_to_tell(known, (verdicts or {}).get)]


def test_wildcards_stand_for_the_interfaces_of_their_family():
    interfaces = [LAN, PUBLIC6, "fe80::1", "127.0.0.1"]
    assert bound_addresses([ANY4, ANY6], interfaces) == [
        Address(LAN, 7447),
        Address(PUBLIC6, 7447),
    ]
    assert bound_addresses([Address("127.0.0.1", 5)], interfaces) == [Address("127.0.0.1", 5)]


def test_private_first_then_ipv6_then_ipv4_then_relays():
    known = KnownAddresses(bound=[ANY4, ANY6], interfaces=[PUBLIC4, PUBLIC6, LAN], relayed=[VIA])
    assert told(known) == [
        f"{LAN}:7447",
        f"[{PUBLIC6}]:7447",
        f"{PUBLIC4}:7447",
        str(VIA),
    ]


def test_a_proved_public_address_needs_no_relay():
    public = Address(PUBLIC4, 7447)
    known = KnownAddresses(bound=[ANY4], interfaces=[PUBLIC4], relayed=[VIA])
    assert told(known, {public: True}) == [str(public), str(VIA)]  # perhaps only from some hosts
    known = KnownAddresses(bound=[ANY4], interfaces=[PUBLIC4], relayed=[VIA], open=[public])
    assert told(known, {public: True}) == [str(public)]


def test_what_dial_backs_did_not_reach_is_not_told():
    public = Address(PUBLIC4, 7447)
    known = KnownAddresses(bound=[ANY4], interfaces=[PUBLIC4], mapped=[Address(PUBLIC4, 9)])
    assert told(known, {public: False}) == [f"{PUBLIC4}:9"]


def test_an_observed_address_is_told_only_once_reached():
    seen = Address(PUBLIC4, 40000)
    known = KnownAddresses(bound=[ANY4], interfaces=[LAN], observed=[seen], relayed=[VIA])
    assert told(known) == [f"{LAN}:7447", str(VIA)]
    assert told(known, {seen: True}) == [f"{LAN}:7447", str(seen), str(VIA)]


def test_the_operator_knows_best_but_relays_stay():
    known = KnownAddresses(
        configured=[Address("node.example", 7447)],
        bound=[ANY4],
        interfaces=[PUBLIC4],
        relayed=[VIA],
    )
    assert told(known) == ["node.example:7447", str(VIA)]


hosts = st.ip_addresses().map(str)
addresses = st.builds(Address, hosts, st.integers(1, 65535))
relayed = st.builds(Address, hosts, st.integers(1, 65535), st.just(RELAY))


@given(
    configured=st.lists(addresses, max_size=20),
    bound=st.lists(st.one_of(addresses, st.sampled_from([ANY4, ANY6])), max_size=4),
    interfaces=st.lists(hosts, max_size=30),
    mapped=st.lists(addresses, max_size=3),
    observed=st.lists(addresses, max_size=3),
    via=st.lists(relayed, max_size=6),
    verdict=st.sampled_from([True, False, None]),
    limit=st.integers(1, 16),
)
def test_never_too_many_and_a_relay_survives(
    configured, bound, interfaces, mapped, observed, via, verdict, limit
):
    known = KnownAddresses(
        configured=configured,
        bound=bound,
        interfaces=interfaces,
        mapped=mapped,
        observed=observed,
        relayed=via,
    )
    chosen = addresses_to_tell(known, lambda _: verdict, limit=limit)
    assert len(chosen) <= limit
    assert len(set(chosen)) == len(chosen)
    if via:
        assert any(address.relay for address in chosen)
    if not configured:
        assert not any(a.is_wildcard for a in chosen if a in bound)
