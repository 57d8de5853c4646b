"""NAT-PMP: the bytes of RFC 6886 written out by hand, hostile answers, the retry schedule, the epoch rule."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.errors import MalformedMessage
from transport.nat import natpmp

PORTS = st.integers(0, 65535)
U32 = st.integers(0, 2**32 - 1)


def test_requests_are_the_bytes_of_the_rfc():
    assert natpmp.address_request() == bytes.fromhex("0000")
    # version 0, op 2 (TCP), reserved, internal 7447, external 7448, 3600 s
    assert natpmp.map_request(7447, 7448, 3600) == bytes.fromhex("00 02 0000 1d17 1d18 00000e10")
    assert natpmp.map_request(7447, 0, 0) == bytes.fromhex("00 02 0000 1d17 0000 00000000")


def test_answers_are_the_bytes_of_the_rfc():
    address = natpmp.parse_address(bytes.fromhex("00 80 0000 0000012c 0b010102"))
    assert address == natpmp.ExternalAddress(epoch=300, host="11.1.1.2")
    mapped = natpmp.parse_map(bytes.fromhex("00 82 0000 0000012c 1d17 c001 00000e10"), 7447)
    assert mapped == natpmp.Mapped(epoch=300, external_port=49153, lifetime_s=3600)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("", "short"),
        ("00", "short"),
        ("00 82 0000 000000", "short"),
        ("00 82 0000 0000012c 1d17 c001 00000e", "short"),
        ("00 80 0000 0000012c 1d17 c001 00000e10", "not an answer"),  # op of the other request
        ("00 81 0000 0000012c 1d17 c001 00000e10", "not an answer"),  # UDP
        ("00 02 0000 0000012c 1d17 c001 00000e10", "not an answer"),  # a request
        ("02 82 0000 0000012c 1d17 c001 00000e10", "not an answer"),  # another version
        ("00 82 0000 0000012c 1d18 c001 00000e10", "another port"),
        ("00 82 0000 0000012c 1d17 0000 00000e10", "maps no port"),
    ],
)
def test_what_does_not_fit_is_no_answer(data, why):
    with pytest.raises(MalformedMessage, match=why):
        natpmp.parse_map(bytes.fromhex(data), 7447)


@pytest.mark.parametrize("result", range(1, 8))
def test_every_refusal_has_words_and_may_be_short(result):
    data = bytes([0, 130, 0, result, 0, 0, 0, 9])
    with pytest.raises(natpmp.NatPmpRefused) as caught:
        natpmp.parse_map(data, 7447)
    assert caught.value.result == result
    assert caught.value.epoch == 9
    assert str(caught.value).startswith("the gateway")


def test_the_retries_double_from_a_quarter_of_a_second():
    assert list(natpmp.retry_delays()) == [0.25, 0.5, 1, 2, 4, 8, 16, 32, 64]
    assert sum(natpmp.retry_delays(4)) == 3.75


HEADS = st.sampled_from([b"", b"\0\x80\0\0", b"\0\x82\0\0", b"\0\x82\0\0\0\0\0\0\x1d\x17"])


@given(st.tuples(HEADS, st.binary(max_size=40)).map(b"".join))
def test_garbage_raises_what_is_promised_and_nothing_else(data):
    for parse in (natpmp.parse_address, lambda d: natpmp.parse_map(d, 7447)):
        try:
            parse(data)
        except (MalformedMessage, natpmp.NatPmpRefused):
            pass


@given(epoch=U32, internal=PORTS, external=st.integers(1, 65535), lifetime=U32, tail=st.binary())
def test_a_mapping_reads_back(epoch, internal, external, lifetime, tail):
    request = natpmp.map_request(internal, external, lifetime)
    answer = bytes([0, 130, 0, 0]) + epoch.to_bytes(4, "big") + request[4:] + tail
    assert natpmp.parse_map(answer, internal) == natpmp.Mapped(epoch, external, lifetime)


def test_an_epoch_that_keeps_pace_is_no_restart():
    epoch = natpmp.Epoch()
    assert epoch.observe(1000, 0.0)
    assert epoch.observe(1080, 80.0)
    assert epoch.observe(1080 + 69, 160.0)  # 7/8 of 80 s are 70, and 2 s are forgiven
    assert epoch.observe(9999, 161.0)  # ahead is no sign of a restart


def test_an_epoch_that_falls_or_lags_is_a_restart():
    epoch = natpmp.Epoch()
    assert epoch.observe(1000, 0.0)
    assert not epoch.observe(5, 100.0)
    assert epoch.observe(15, 110.0)  # judged from the new one on
    assert not epoch.observe(15 + 67, 190.0)
