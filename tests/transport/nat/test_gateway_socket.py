"""Datagrams to the gateway: floods, closed ports, no way there."""

import pytest

from tests.transport.nat.fake_gateway import HOST, fake_gateway
from transport.nat import natpmp
from transport.nat.gateway_socket import MAX_STRAY, GatewaySilent, GatewaySocket

pytestmark = pytest.mark.real


async def test_a_flood_is_waited_out_and_not_read():
    async with fake_gateway() as fake:
        fake.spoil = lambda answer: [b"junk"] * MAX_STRAY + [answer]
        with GatewaySocket(HOST, fake.port) as sock, pytest.raises(GatewaySilent) as caught:
            await sock.exchange(natpmp.address_request(), natpmp.parse_address, [0.2])
        assert str(caught.value) == "no usable answer (a NAT-PMP answer is too short)"


async def test_a_refusal_is_passed_on():
    async with fake_gateway() as fake:
        fake.spoil = lambda _: [bytes([0, 128, 0, 2, 0, 0, 0, 1])]
        with GatewaySocket(HOST, fake.port) as sock, pytest.raises(natpmp.NatPmpRefused):
            await sock.exchange(natpmp.address_request(), natpmp.parse_address, [5])


async def test_a_closed_port_is_known_at_once():
    async with fake_gateway() as fake:
        port = fake.port
    with GatewaySocket(HOST, port) as sock, pytest.raises(GatewaySilent, match="port closed"):
        await sock.exchange(natpmp.address_request(), natpmp.parse_address, [5, 5])


@pytest.mark.parametrize("host", ["fe80::1%no-such-interf", "fe80::1"])
async def test_no_way_to_the_gateway_is_an_error_of_ours(host):
    with pytest.raises(GatewaySilent):
        GatewaySocket(host)


async def test_it_knows_the_address_that_the_gateway_will_see():
    with GatewaySocket(HOST, 5351) as sock:
        assert sock.local_host == HOST
