"""PCP: the bytes of RFC 6887 written out by hand, hostile answers, result codes in words, the epoch rule."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.errors import MalformedMessage, UsageError
from transport.nat import pcp

NONCE = bytes.fromhex("000102030405060708090a0b")
U32 = st.integers(0, 2**32 - 1)

# version 2, MAP, reserved, 3600 s, ::ffff:10.1.0.2
REQUEST = (
    "02 01 0000 00000e10 00000000000000000000ffff0a010002"
    # nonce, TCP, reserved, internal 7447, external 7448, ::ffff:0.0.0.0
    "000102030405060708090a0b 06 000000 1d17 1d18 00000000000000000000ffff00000000"
)
# version 2, answer to MAP, reserved, success, 1800 s, epoch 300, zeros
HEAD = "02 81 00 00 00000708 0000012c 000000000000000000000000"
BODY = "000102030405060708090a0b 06 000000 1d17 c001 00000000000000000000ffff0b010102"


def parse(text: str) -> pcp.Mapped:
    return pcp.parse_map(bytes.fromhex(text), NONCE, 7447)


def test_a_map_request_is_the_bytes_of_the_rfc():
    made = pcp.map_request(
        "10.1.0.2", NONCE, internal_port=7447, external_port=7448, lifetime_s=3600
    )
    assert made == bytes.fromhex(REQUEST)
    assert len(made) == 60


def test_a_request_for_ipv6_has_no_zone_and_asks_for_any_ipv6_address():
    made = pcp.map_request("fe80::5%eth0", NONCE, internal_port=1, external_port=2, lifetime_s=0)
    assert made[8:24] == ipaddress.IPv6Address("fe80::5").packed
    assert made[44:60] == bytes(16)


def test_an_announce_request_is_a_header():
    made = pcp.announce_request("10.1.0.2")
    assert made == bytes.fromhex("02 00 0000 00000000 00000000000000000000ffff0a010002")


def test_an_answer_is_read():
    assert parse(HEAD + BODY) == pcp.Mapped(
        epoch=300, external_host="11.1.1.2", external_port=49153, lifetime_s=1800
    )


def test_options_after_the_answer_are_skipped():
    assert parse(HEAD + BODY + "80000004 deadbeef").external_port == 49153


def test_an_ipv6_answer_is_read():
    body = BODY[: -len("00000000000000000000ffff0b010102")] + "20010db8000000000000000000000001"
    assert parse(HEAD + body).external_host == "2001:db8::1"


@pytest.mark.parametrize(
    "data",
    [
        "",
        "02",
        HEAD,  # success without a mapping
        HEAD + BODY[:-2],  # no multiple of four
        HEAD + BODY + "00" * 1044,  # 1104 bytes
        "02 80" + HEAD[5:] + BODY,  # answer to ANNOUNCE
        "02 01" + HEAD[5:] + BODY,  # a request
        "03 81" + HEAD[5:] + BODY,  # another version that claims success
        HEAD + "ff" + BODY[2:],  # another nonce
        HEAD + BODY.replace(" 06 ", " 11 "),  # UDP
        HEAD + BODY.replace("1d17", "1d18"),  # another port
        HEAD + BODY.replace("c001", "0000"),  # no port
        "02 81 00 02" + HEAD[11:] + "ff" + BODY[2:],  # a refusal of somebody else's request
    ],
)
def test_what_does_not_fit_is_no_answer(data):
    with pytest.raises(MalformedMessage):
        parse(data)


@pytest.mark.parametrize("result", range(1, 16))
@pytest.mark.parametrize("body", ["", BODY], ids=["bare", "whole"])
def test_every_refusal_has_words(result, body):
    with pytest.raises(pcp.PcpRefused) as caught:
        parse(f"02 81 00 {result:02x}" + HEAD[11:] + body)
    assert caught.value.result == result
    assert caught.value.lifetime_s == 1800
    assert caught.value.epoch == 300
    words = str(caught.value)
    assert words.startswith(("the ", "this ", "another "))
    assert ("code" in words) == (result > 13)


@pytest.mark.parametrize(
    "data",
    [
        "00 81 0001 00000005",  # NAT-PMP: unsupported version (RFC 6887, appendix A)
        "00 80 0001 00000005 00000000",
        "01 81 00 01 00000708 0000012c 000000000000000000000000",  # PCP version 1 says the same
    ],
)
def test_another_version_is_a_refusal(data):
    with pytest.raises(pcp.PcpRefused) as caught:
        parse(data)
    assert caught.value.result == pcp.Result.UNSUPP_VERSION
    assert caught.value.epoch is None


def test_an_announcement_is_an_epoch_even_when_it_refuses():
    assert pcp.parse_announce(bytes.fromhex("02 80 00 00 00000000 0000012c" + "00" * 12)) == 300
    assert pcp.parse_announce(bytes.fromhex("02 80 00 04 00000000 0000012c" + "00" * 12)) == 300
    with pytest.raises(MalformedMessage):
        pcp.parse_announce(bytes.fromhex(HEAD + BODY))


def test_a_nonce_of_another_length_is_our_own_mistake():
    with pytest.raises(UsageError):
        pcp.map_request("10.1.0.2", b"short", internal_port=1, external_port=1, lifetime_s=1)


@given(st.one_of(st.binary(max_size=80), st.binary(max_size=80).map(lambda d: b"\x02\x81\0\0" + d)))
def test_garbage_raises_what_is_promised_and_nothing_else(data):
    for read in (pcp.parse_announce, lambda d: pcp.parse_map(d, NONCE, 7447)):
        try:
            read(data)
        except (MalformedMessage, pcp.PcpRefused):
            pass


@given(
    client=st.ip_addresses().map(str),
    wanted=st.ip_addresses().filter(lambda ip: getattr(ip, "ipv4_mapped", None) is None),
    nonce=st.binary(min_size=12, max_size=12),
    internal=st.integers(0, 65535),
    external=st.integers(1, 65535),
    lifetime=U32,
    epoch=U32,
)
def test_a_mapping_reads_back(client, wanted, nonce, internal, external, lifetime, epoch):
    request = pcp.map_request(
        client,
        nonce,
        internal_port=internal,
        external_port=external,
        lifetime_s=lifetime,
        external_host=str(wanted),
    )
    head = bytes([2, 129, 0, 0]) + request[4:8] + epoch.to_bytes(4, "big") + bytes(12)
    read = pcp.parse_map(head + request[24:], nonce, internal)
    assert read == pcp.Mapped(epoch, str(wanted), external, lifetime)


def test_an_epoch_that_keeps_pace_is_no_restart():
    epoch = pcp.Epoch()
    assert epoch.observe(1000, 0.0)
    assert epoch.observe(999, 0.5)  # one second back is forgiven
    assert epoch.observe(1099, 100.0)
    assert epoch.observe(1099 + 1600 + 100, 1700.0)  # a clock that runs 6 % fast


@pytest.mark.parametrize(("epoch", "now"), [(998, 0.0), (5, 100.0), (1000, 100.0), (1200, 100.0)])
def test_an_epoch_that_falls_stands_still_or_leaps_is_a_restart(epoch, now):
    watch = pcp.Epoch()
    assert watch.observe(1000, 0.0)
    assert not watch.observe(epoch, now)
