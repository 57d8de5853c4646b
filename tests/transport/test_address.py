"""Addresses: canonical spelling, order, and texts that must not reach a resolver."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.address import Address
from transport.errors import InvalidAddress
from transport.identity import NodeId


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("127.0.0.1:7447", "127.0.0.1:7447"),
        ("  Host.Example:1 ", "host.example:1"),
        ("[::1]:0", "[::1]:0"),
        ("[2001:DB8:0:0:0:0:0:1]:65535", "[2001:db8::1]:65535"),
        ("[fe80::1%eth0]:22", "[fe80::1%eth0]:22"),
        ("node_7:80", "node_7:80"),
    ],
)
def test_parse_gives_one_spelling(text, canonical):
    address = Address.parse(text)
    assert str(address) == canonical
    assert Address.parse(str(address)) == address
    assert hash(Address.parse(canonical)) == hash(address)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        ":1",
        "host:",
        "host:65536",
        "host:-1",
        "host:1x",
        "host:٣",
        "::1:80",
        "[::1]",
        "[::1]80",
        "[host]:1",
        "256.1.1.1:1",
        "1.2.3:1",
        "0x7f000001 :1",
        "a b:1",
        "-x:1",
        "x-:1",
        "a..b:1",
        "é:1",
        "x" * 254 + ":1",
        "h:1:2",
        "[fe80::1%a b]:1",
        "host\n:1",
        "host\x00:1",
        "127.1:1",
        "1:1",
        "h:000001",
    ],
)
def test_bad_texts(text):
    with pytest.raises(InvalidAddress):
        Address.parse(text)


@given(st.text(max_size=60))
def test_random_text_parses_or_raises_the_typed_error(text):
    try:
        address = Address.parse(text)
    except InvalidAddress:
        return
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize("port", [-1, 65536, True, 1.0, "1"])
def test_bad_ports(port):
    with pytest.raises(InvalidAddress):
        Address("h", port)


@pytest.mark.parametrize("host", [None, 5, b"h", "x" * 1000])
def test_bad_hosts(host):
    with pytest.raises(InvalidAddress):
        Address(host, 1)


def test_order_and_kinds():
    assert sorted([Address("b", 1), Address("a", 2), Address("a", 1)]) == [
        Address("a", 1),
        Address("a", 2),
        Address("b", 1),
    ]
    assert Address("1.2.3.4", 5).is_ip
    assert Address("::1", 5).is_ip
    assert not Address("h", 5).is_ip
    assert Address("127.3.2.1", 1).is_loopback
    assert Address("localhost", 1).is_loopback
    assert not Address("10.0.0.1", 1).is_loopback


@pytest.mark.parametrize(
    "value",
    [{"host": "BAD host!", "port": 1}, {"host": "UPPER", "port": 1}, {"host": "h", "port": 70000}],
)
def test_msgspec_cannot_build_what_the_constructor_refuses(value):
    with pytest.raises((InvalidAddress, msgspec.ValidationError)):
        msgspec.convert(value, Address)


def test_a_relayed_address_says_whom_to_ask():
    relay = NodeId(bytes(range(32)))
    address = Address("192.0.2.1", 7447, str(relay).upper())
    assert str(address) == f"192.0.2.1:7447/via/{relay}"
    assert Address.parse(str(address)) == address
    assert address.relay_id == relay
    assert address.direct == Address("192.0.2.1", 7447)
    assert address.direct.relay_id is None
