import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.contact import (
    MAX_ADDRESSES,
    Contact,
    merge_addresses,
    on_loopback,
    peer_addresses,
    sane_address,
    split_address,
)
from transport.address import Address
from transport.identity import NodeId

RELAY = str(NodeId(bytes(range(32))))


@pytest.mark.parametrize(
    "text",
    [
        "10.1.2.3:7447",
        "192.168.0.9:1",
        "8.8.8.8:65535",
        "[2001:db8::1]:7447",
        "[fd00::1]:80",
        f"8.8.8.8:7447/via/{RELAY}",
        f"[2001:db8::1]:7447/via/{RELAY}",
    ],
)
def test_sane(text: str) -> None:
    assert sane_address(text, loopback=False)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "10.1.2.3",
        "10.1.2.3:0",
        "10.1.2.3:65536",
        "10.1.2.3:-1",
        "10.1.2.3:7 ",
        "10.1.2.3:٣",
        "0.0.0.0:7447",
        "[::]:7447",
        "224.0.0.1:7447",
        "255.255.255.255:7447",
        "169.254.169.254:80",
        "[fe80::1]:7447",
        "[fe80::1%eth0]:7447",
        "[fd00::1%eth0]:7447",
        "2001:db8::1:7447",
        "host.example:7447",
        "localhost:7447",
        "010.1.2.3:7447",
        "1" * 60 + ":1",
        "10.1.2.3:7447/via/",
        "10.1.2.3:7447/via/nd-aaaa",
        f"10.1.2.3:7447/via/{RELAY}x",
        f"10.1.2.3:7447/via/{RELAY.upper()}",
        f"10.1.2.3:7447/via/{RELAY}/via/{RELAY}",
        f"/via/{RELAY}",
        f"0.0.0.0:7447/via/{RELAY}",
        f"169.254.169.254:80/via/{RELAY}",
        f"relay.example:7447/via/{RELAY}",
    ],
)
def test_not_sane(text: str) -> None:
    assert not sane_address(text, loopback=True)


@pytest.mark.parametrize("text", ["127.0.0.1:7447", "127.9.9.9:1", "[::1]:7447"])
def test_loopback_means_something_only_on_this_machine(text: str) -> None:
    assert sane_address(text, loopback=True)
    assert not sane_address(text, loopback=False)


@given(st.text(max_size=60), st.booleans())
def test_any_text_is_judged_without_raising(text: str, loopback: bool) -> None:
    sane_address(text, loopback=loopback)
    split_address(text)


def test_unspecified_listener_is_read_as_the_host_we_see() -> None:
    seen = peer_addresses([Address("0.0.0.0", 7447)], Address("203.0.113.5", 51000), dialed=False)
    assert seen == ("203.0.113.5:7447",)
    seen = peer_addresses([Address("::", 7447)], Address("2001:db8::5", 51000), dialed=False)
    assert seen == ("[2001:db8::5]:7447",)


def test_dialed_address_comes_first() -> None:
    seen = peer_addresses([Address("10.0.0.5", 7447)], Address("203.0.113.5", 9000), dialed=True)
    assert seen == ("203.0.113.5:9000", "10.0.0.5:7447")
    assert peer_addresses([Address("10.0.0.5", 7447)], Address("10.0.0.5", 7447), dialed=True) == (
        "10.0.0.5:7447",
    )


def test_peer_without_listener_is_a_client() -> None:
    assert peer_addresses([], Address("203.0.113.5", 9000), dialed=True) == ()


def test_remote_peer_cannot_state_our_loopback() -> None:
    stated = [Address("127.0.0.1", 7447), Address("10.0.0.5", 7447)]
    assert peer_addresses(stated, Address("10.0.0.5", 50000), dialed=False) == ("10.0.0.5:7447",)
    assert peer_addresses(stated[:1], Address("127.0.0.1", 50000), dialed=False) == (
        "127.0.0.1:7447",
    )


def test_what_a_relayed_peer_tells_survives_and_the_relay_is_not_taken_for_it() -> None:
    relayed = Address("198.51.100.1", 7447, RELAY)
    other = Address("198.51.100.2", 7447, RELAY)
    stated = [Address("0.0.0.0", 7447), Address("10.0.0.5", 7447), relayed, other]
    seen = peer_addresses(stated, relayed, dialed=True)
    assert seen == (str(relayed), "10.0.0.5:7447", str(other))
    # It reached us through a relay of ours: that says nothing about where it is.
    assert peer_addresses(stated[:2], relayed, dialed=False) == ("10.0.0.5:7447",)
    assert peer_addresses([Address("0.0.0.0", 1, RELAY)], other, dialed=False) == ()


def test_merge_keeps_order_and_bound() -> None:
    texts = [f"10.0.0.{i}:1" for i in range(9)]
    assert merge_addresses(texts[:2], texts) == tuple(texts[:MAX_ADDRESSES])


def test_on_loopback() -> None:
    assert on_loopback(Contact(bytes(32), ("10.0.0.1:1", "127.0.0.1:1")))
    assert not on_loopback(Contact(bytes(32), ("10.0.0.1:1",)))
