"""Default gateways, as the kernel's tables show them; kinds of addresses."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.address_kinds import AddressKind, kind_of
from transport.nat.gateway import Gateway, default_gateway, parse_v4, parse_v6

V4 = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
eth0\t00000000\tFE00010A\t0003\t0\t0\t100\t00000000\t0\t0\t0
tun0\t00000000\t00000000\t0001\t0\t0\t50\t00000000\t0\t0\t0
eth0\t0000010A\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
tun0\t00000000\t0100080A\t0003\t0\t0\t0\t00000080\t0\t0\t0
"""
ZERO = "0" * 32
V6 = f"""{ZERO} 00 {ZERO} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00450003 wlan0
{ZERO} 00 {ZERO} 00 20010db8000000000000000000000001 00000100 00000001 00000000 00000003 eth0
fe800000000000000000000000000000 40 {ZERO} 00 {ZERO} 00000100 00000001 00000000 00000001 eth0
{ZERO} 00 {ZERO} 00 {ZERO} ffffffff 00000001 00000000 00200200 lo
"""


@pytest.mark.skipif(sys.byteorder != "little", reason="the sample is of a little-endian machine")
def test_the_default_gateway_of_ipv4_with_the_lowest_metric_is_first():
    assert parse_v4(V4) == [
        Gateway("10.1.0.254", "eth0", 100),
        Gateway("192.168.1.1", "wlan0", 600),
    ]


def test_a_link_local_gateway_of_ipv6_carries_its_zone():
    assert parse_v6(V6) == [
        Gateway("2001:db8::1", "eth0", 256),
        Gateway("fe80::1%wlan0", "wlan0", 1024),
    ]
    assert [gateway.family for gateway in parse_v6(V6) + parse_v4(V4)] == [6, 6, 4, 4]


@given(st.text(alphabet="0123456789abcdef -\tgz\n", max_size=300))
def test_no_text_makes_a_parser_raise(text):
    parse_v4("\n" + text)
    parse_v6(text)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_the_tables_of_this_machine_are_read():
    for family in (4, 6):
        gateway = await default_gateway(family)
        assert gateway is None or gateway.family == family


@pytest.mark.parametrize(
    ("host", "kind"),
    [
        ("11.1.1.2", AddressKind.GLOBAL),
        ("10.0.0.1", AddressKind.PRIVATE),
        ("172.31.255.255", AddressKind.PRIVATE),
        ("172.32.0.0", AddressKind.GLOBAL),
        ("192.168.0.1", AddressKind.PRIVATE),
        ("100.64.0.1", AddressKind.CGNAT),
        ("100.127.255.255", AddressKind.CGNAT),
        ("100.128.0.0", AddressKind.GLOBAL),
        ("169.254.1.1", AddressKind.LINK_LOCAL),
        ("127.0.0.1", AddressKind.LOOPBACK),
        ("0.0.0.0", AddressKind.OTHER),
        ("224.0.0.1", AddressKind.OTHER),
        ("240.0.0.1", AddressKind.OTHER),
        ("255.255.255.255", AddressKind.OTHER),
        ("203.0.113.7", AddressKind.OTHER),
        ("2a00::1", AddressKind.GLOBAL),
        ("fd00::1", AddressKind.ULA),
        ("fe80::1%eth0", AddressKind.LINK_LOCAL),
        ("::1", AddressKind.LOOPBACK),
        ("::", AddressKind.OTHER),
        ("ff02::1", AddressKind.OTHER),
        ("2001:db8::1", AddressKind.OTHER),
        ("::ffff:10.0.0.1", AddressKind.PRIVATE),
        ("example.org", AddressKind.OTHER),
        ("", AddressKind.OTHER),
    ],
)
def test_kinds_of_addresses(host, kind):
    assert kind_of(host) is kind
