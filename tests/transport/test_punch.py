"""The punch protocol without sockets: who says what when, hostile messages, and whom not to dial."""

import ipaddress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.address import Address
from transport.codec import pack
from transport.errors import MalformedMessage, TransportError, UsageError
from transport.punch.agreement import (
    MAX_GAP_S,
    MAX_REVERSE_S,
    MAX_ROUNDS,
    MIN_GAP_S,
    MIN_REVERSE_S,
    ROUND_S,
    PunchSession,
    gap_s,
)
from transport.punch.messages import (
    MAX_ADDRESSES,
    MAX_MESSAGE_BYTES,
    TOKEN_BYTES,
    Connect,
    End,
    EndReason,
    Sync,
    decode,
    encode,
)
from transport.punch.targets import MAX_PUBLIC_HOSTS, MAX_PUBLIC_PLACES, Screen, tellable

A = Address("192.0.2.1", 7001)
B = Address("198.51.100.7", 7002)
RELAY = "nd-aaaq-eaye-auda-ocaj-bifq-ydio-b4ib-ceqt-cqkr-mfyy-denb-wha5-dypq-j"


def token(number=0):
    return bytes([number]) * TOKEN_BYTES


def pair():
    return (
        PunchSession(coordinates=True, addresses=[A]),
        PunchSession(coordinates=False, addresses=[B]),
    )


@given(
    st.lists(
        st.tuples(st.floats(0, 2), st.floats(0, 2), st.floats(0, 1)),
        min_size=1,
        max_size=MAX_ROUNDS,
    ),
    st.floats(0, 1e9),
)
def test_each_round_measures_anew_and_both_dial_at_the_same_moment(rounds, now):
    """With a relay as slow one way as the other: half a round trip after the signal, and on its receipt."""
    coordinator, follower = pair()
    for number, (there, pause, _) in enumerate(rounds, 1):
        hello = coordinator.begin(token(number), now)
        answer = follower.receive(hello, now + there)
        assert coordinator.receive(answer, now + 2 * there) == b""
        assert coordinator.rtt_s == pytest.approx(2 * there, abs=1e-6)
        assert (coordinator.theirs, follower.theirs) == ((B,), (A,))
        assert MIN_REVERSE_S <= coordinator.reverse_s <= MAX_REVERSE_S
        now += 2 * there + pause
        assert follower.receive(coordinator.sync(now), now + there) == b""
        assert coordinator.dial_at == pytest.approx(follower.dial_at, abs=1e-6)
        assert coordinator.dial_until - coordinator.dial_at == pytest.approx(ROUND_S, abs=1e-6)
        assert coordinator.round == follower.round == number
        now = coordinator.dial_until
    assert coordinator.may_go_on == follower.may_go_on == (len(rounds) < MAX_ROUNDS)
    follower.receive(coordinator.end(EndReason.CANCELLED), now)
    assert coordinator.over
    assert follower.over
    assert follower.ended is EndReason.CANCELLED
    assert coordinator.ended is None


def test_no_fourth_round_on_either_side():
    coordinator, follower = pair()
    for number in range(MAX_ROUNDS):
        coordinator.receive(follower.receive(coordinator.begin(token(number), 0), 0), 0)
        follower.receive(coordinator.sync(0), 0)
    with pytest.raises(UsageError):
        coordinator.begin(token(), 0)
    with pytest.raises(MalformedMessage):
        follower.receive(encode(Connect(token())), 0)
    assert follower.over


def test_calls_out_of_turn_are_refused():
    coordinator, follower = pair()
    with pytest.raises(UsageError):
        coordinator.sync(0)
    with pytest.raises(UsageError):
        follower.begin(token(), 0)
    coordinator.begin(token(), 0)
    with pytest.raises(UsageError):
        coordinator.begin(token(), 0)


def in_state(name):
    """A session in the given state, and what it last saw."""
    coordinator, follower = pair()
    if name == "follower idle":
        return follower
    hello = coordinator.begin(token(), 0)
    if name == "coordinator connecting":
        return coordinator
    answer = follower.receive(hello, 0)
    if name == "follower connecting":
        return follower
    coordinator.receive(answer, 0)
    if name == "coordinator ready":
        return coordinator
    follower.receive(coordinator.sync(0), 0)
    return {"coordinator dialing": coordinator, "follower dialing": follower}[name]


GOOD = {
    "follower idle": {"connect"},
    "coordinator connecting": {"connect"},
    "follower connecting": {"sync"},
    "coordinator ready": set(),
    "coordinator dialing": set(),
    "follower dialing": {"connect"},
}
MESSAGES = {"connect": Connect(token()), "sync": Sync(token())}


@pytest.mark.parametrize("state", GOOD)
@pytest.mark.parametrize("kind", MESSAGES)
def test_a_message_out_of_order_ends_the_session(state, kind):
    session = in_state(state)
    if kind in GOOD[state]:
        session.receive(encode(MESSAGES[kind]), 1)
        assert not session.over
        return
    with pytest.raises(MalformedMessage):
        session.receive(encode(MESSAGES[kind]), 1)
    assert session.over
    with pytest.raises(MalformedMessage):
        session.receive(encode(End("done")), 1)


@pytest.mark.parametrize("state", GOOD)
def test_either_side_may_end_at_any_time(state):
    session = in_state(state)
    assert session.receive(encode(End("enough\x1b[2J")), 1) == b""  # of a later release, perhaps
    assert session.over
    assert session.ended is EndReason.OTHER


@pytest.mark.parametrize("state", ["coordinator connecting", "follower connecting"])
def test_a_message_of_another_round_is_refused(state):
    session = in_state(state)
    kind = Connect if session.coordinates else Sync
    with pytest.raises(MalformedMessage, match="another round"):
        session.receive(encode(kind(token(9))), 1)


@given(st.sampled_from(sorted(GOOD)), st.binary(max_size=300))
def test_garbage_raises_only_malformed_message(state, data):
    session = in_state(state)
    with pytest.raises(MalformedMessage):
        session.receive(data, 1)
    assert session.over


@pytest.mark.parametrize(
    "message",
    [
        {"type": "connect", "token": bytes(15)},
        {"type": "connect", "token": bytes(17)},
        {"type": "connect", "token": "x" * 16},
        {"type": "connect"},
        {"type": "connect", "token": bytes(16), "addresses": [1]},
        {"type": "connect", "token": bytes(16), "addresses": ["nowhere"]},
        {"type": "other", "token": bytes(16)},
        {"type": "end"},
        {"type": "end", "reason": "x" * 33},
        {"token": bytes(16)},
        ["connect"],
    ],
)
def test_a_malformed_message_is_refused(message):
    with pytest.raises(MalformedMessage):
        in_state("follower idle").receive(pack(message), 0)


def test_too_long_a_message_is_refused_before_it_is_decoded():
    message = {"type": "end", "reason": "x" * MAX_MESSAGE_BYTES}
    with pytest.raises(MalformedMessage, match="limit"):
        decode(pack(message))


def test_of_many_addresses_the_first_eight_count_on_both_ends():
    many = [Address("192.0.2.1", port) for port in range(1, 30)]
    session = PunchSession(coordinates=True, addresses=many)
    follower = PunchSession(coordinates=False, addresses=[])
    follower.receive(session.begin(token(), 0), 0)
    assert follower.theirs == tuple(many[:MAX_ADDRESSES])
    follower = PunchSession(coordinates=False, addresses=[])
    follower.receive(encode(Connect(token(), tuple(map(str, many)))), 0)
    assert follower.theirs == tuple(many[:MAX_ADDRESSES])


def test_the_largest_messages_fit():
    long = ".".join(["x" * 60] * 4)
    hello = Connect(token(), tuple(f"{long}:{port}/via/{RELAY}" for port in range(50000, 50008)))
    assert decode(encode(hello)) == hello


@given(st.floats(0, 1, exclude_max=True))
def test_gaps_are_between_20_and_300_ms(chance):
    assert MIN_GAP_S <= gap_s(chance) <= MAX_GAP_S
    assert gap_s(0) == 0.02
    assert gap_s(1) == pytest.approx(0.3)


# Whom to dial

OURS = [Address("0.0.0.0", 7447), Address("192.0.2.1", 7447), Address("192.168.1.5", 7447)]
INTERFACES = [ipaddress.ip_interface("192.168.1.5/24"), ipaddress.ip_interface("2001:db8::5/64")]


def split(*theirs):
    return Screen().split(theirs, own=OURS, interfaces=INTERFACES, advertised=theirs)


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        ("198.51.100.7:7002", ""),
        ("11.1.1.3:40000", ""),
        ("[2001:db8::9]:1", ""),
        ("192.0.2.1:7448", ""),  # another node behind our own NAT
        ("192.168.1.6:7447", ""),  # a neighbour
        ("192.168.1.5:7448", ""),  # another node on this machine
        ("192.0.2.1:7447", "our own"),
        ("192.168.1.5:7447", "our own"),
        ("[2001:db8::5]:7447", "our own"),
        ("192.168.2.6:7447", "not in"),
        ("10.0.0.1:22", "not in"),
        ("100.64.0.1:7447", "not in"),
        ("[fd00::1]:7447", "not in"),
        ("127.0.0.1:22", "not in"),
        ("[::1]:22", "not in"),
        ("240.0.0.1:1", "not in"),
        ("0.0.0.0:7447", "one machine"),
        ("[::]:7447", "one machine"),
        ("224.0.0.1:7447", "one machine"),
        ("[ff02::1]:7447", "one machine"),
        ("255.255.255.255:7447", "one machine"),
        ("169.254.169.254:80", "one machine"),
        ("[fe80::1]:7447", "one machine"),
        ("[::ffff:127.0.0.1]:22", "disguise"),
        ("a-name:7447", "name"),
        ("192.0.2.9:0", "no port"),
        (f"192.0.2.9:1/via/{RELAY}", "relayed"),
    ],
)
def test_a_peer_cannot_make_us_dial_anything(named, reason):
    good, refused = split(Address.parse(named))
    assert bool(good) == (not reason)
    assert [reason in text for _, text in refused] == ([True] if reason else [])


def test_loopback_is_dialed_by_who_lives_there():
    loopback = [ipaddress.ip_interface("127.0.0.1/8")]
    there = Address("127.0.0.1", 1)
    good, _ = Screen().split(
        [there], own=[Address("127.0.0.1", 2)], interfaces=loopback, advertised=[there]
    )
    assert good == [there]


def test_a_private_address_is_dialed_only_if_the_peer_tells_it_to_everybody():
    there = Address("192.168.1.6", 22)
    good, refused = Screen().split([there], own=OURS, interfaces=INTERFACES, advertised=[B])
    assert good == []
    assert "does not advertise" in refused[0][1]


def test_a_session_leads_to_few_public_places_whatever_is_named_in_its_rounds():
    screen = Screen()
    dialed = set()
    for number in range(MAX_ROUNDS):
        named = [Address(f"11.{number}.{host}.1", port) for port in (1, 2, 3) for host in range(9)]
        good, refused = screen.split(named, own=OURS, interfaces=INTERFACES, advertised=named)
        dialed.update(good)
        assert len(good) + len(refused) == len(named)
    assert len({address.host for address in dialed}) == MAX_PUBLIC_HOSTS
    assert len(dialed) == MAX_PUBLIC_PLACES
    again, _ = screen.split(dialed, own=OURS, interfaces=INTERFACES, advertised=[])
    assert set(again) == dialed  # what was let through stays so


@given(st.lists(st.ip_addresses(), max_size=20), st.integers(0, 65535))
def test_every_address_is_either_dialed_or_refused_with_a_reason(hosts, port):
    theirs = [Address(str(host), port) for host in hosts]
    good, refused = split(*theirs)
    assert sorted([*good, *(address for address, _ in refused)]) == sorted(theirs)
    assert all(reason for _, reason in refused)
    assert all(not ipaddress.ip_address(address.host).is_multicast for address in good)


def test_what_peers_see_is_told_first_and_wildcards_never():
    advertised = [
        Address("0.0.0.0", 7447),
        Address("192.168.1.5", 7447),
        Address("name", 7447),
        Address("192.0.2.50", 1, RELAY),
        Address("fe80::1", 7447),
        B,
    ]
    observed = [A, Address("10.0.0.1", 7447), B]
    assert tellable(advertised, observed) == (A, B, Address("192.168.1.5", 7447))
    assert len(tellable([Address("192.0.2.1", port) for port in range(1, 20)], [])) == MAX_ADDRESSES


def test_errors_are_of_the_transport():
    assert issubclass(MalformedMessage, TransportError)


def test_the_messages_are_those_of_the_document():
    document = "".join((Path(__file__).parents[2] / "docs" / "wire.md").read_text().split())
    hello = Connect(bytes(range(16)), ("198.51.100.1:7447",))
    for message in (hello, Sync(bytes(range(16))), End("done")):
        assert encode(message).hex() in document
        assert decode(encode(message)) == message
    assert all(f"`{reason}`" in document for reason in EndReason if reason != "other")
