"""Provider records: written, read, and what of others is not believed."""

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.errors import DhtError, InvalidKey
from dht.key import record_key
from dht.provider import Kind, provider_key, provider_value, read_providers
from dht.record import MAX_VALUE_BYTES
from tests.dht.test_store import SWARM, record

RELAYED = "[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535/via/nd-" + "-".join(["aaaa"] * 13) + "-a"


def test_round_trip() -> None:
    value = provider_value(["8.8.8.8:7447", "nonsense", "8.8.8.8:7447", "10.0.0.1:1"])
    (provider,) = read_providers([record(5, 7, value=value)], loopback=False)
    assert provider.public_key == (5).to_bytes(32, "big")
    assert provider.node_id == hashlib.sha256(provider.public_key).digest()
    assert provider.addresses == ("8.8.8.8:7447", "10.0.0.1:1")


def test_keys_differ_by_kind_and_name() -> None:
    assert provider_key(SWARM, Kind.RUN, b"r") == record_key(SWARM, "provider", "run", b"r")
    keys = {provider_key(SWARM, kind, name) for kind in Kind for name in (b"a", b"b")}
    assert len(keys) == 2 * len(Kind)
    for bad in (b"", bytes(65)):
        with pytest.raises(InvalidKey):
            provider_key(SWARM, Kind.BLOCK, bad)


def test_longest_value_fits_a_record() -> None:
    addresses = [RELAYED.replace("65535", str(60000 + n)) for n in range(9)]
    value = provider_value(addresses)
    assert len(value) <= MAX_VALUE_BYTES
    (provider,) = read_providers([record(1, 7, value=value)], loopback=False)
    assert len(provider.addresses) == 6


def test_provider_without_address_is_refused() -> None:
    for bad in ([], ["0.0.0.0:7447"], ["host.example:1"]):
        with pytest.raises(DhtError):
            provider_value(bad)


def test_loopback_counts_only_for_those_on_it() -> None:
    held = [record(1, 7, value=provider_value(["127.0.0.1:1"]))]
    assert read_providers(held, loopback=False) == []
    assert len(read_providers(held, loopback=True)) == 1


@given(st.binary(max_size=1000))
def test_any_value_is_read_or_left_out(value: bytes) -> None:
    read_providers([record(1, 7, value=value)], loopback=True)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\x91" * 1000,
        msgspec.msgpack.encode({"addresses": ["8.8.8.8:1"] * 7}),
        msgspec.msgpack.encode({"addresses": "8.8.8.8:1"}),
        msgspec.msgpack.encode({"addresses": ["x" * 900]}),
        b"\x81\xa4deep" + b"\x91" * 900,
    ],
)
def test_hostile_values_are_left_out(value: bytes) -> None:
    assert read_providers([record(1, 7, value=value)], loopback=True) == []
