"""Provider records: who is in run R, who holds block B, where node N is.

A provider record is an ordinary signed record whose key is derived from what is provided and whose value lists the
addresses of its signer, so "who provides it" is the list of signers under one key. The addresses are a hint: the
handshake with whoever answers there proves that it is the signer.

    key    record_key(swarm id, "provider", kind, name)         kind: "run", "block" or "node", name: 1 to 64 bytes, usually a hash
    value  msgpack {"addresses": ["host:port", ...]}            at most 6; relayed IPv6 ones fit into 1000 bytes

A value that is none, or an address that leads nowhere (see `contact`), is left out on reading; the signer still counts as a provider
if it names at least one good address. At most 32 providers of one thing are held by one node, the most recently heard of
from as many address groups as there are (see `store`): enough to join a run, whose members tell of the rest.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable, Sequence
from typing import Annotated

import attrs
import msgspec

from dht.contact import MAX_ADDRESS_CHARS, merge_addresses, sane_address
from dht.errors import InvalidKey, NoUsableAddress
from dht.key import record_key
from dht.record import MAX_VALUE_BYTES, SignedRecord

MAX_PROVIDED_ADDRESSES = 6
MAX_NAME_BYTES = 64


class Kind(enum.StrEnum):
    """What can be provided."""

    RUN = "run"
    """Membership of a run; the name is the run's id."""
    BLOCK = "block"
    """A piece of data; the name is its hash."""
    NODE = "node"
    """A node that is in nobody's table since it cannot be dialled; the name is its id, and it alone is believed."""


@attrs.frozen
class Provider:
    """A node that says it provides something."""

    node_id: bytes
    public_key: bytes
    addresses: tuple[str, ...]
    expires_at: int
    """Wall clock, seconds since 1970."""


class _Value(msgspec.Struct, frozen=True):
    addresses: Annotated[
        tuple[Annotated[str, msgspec.Meta(max_length=MAX_ADDRESS_CHARS)], ...],
        msgspec.Meta(max_length=MAX_PROVIDED_ADDRESSES),
    ]


_DECODER = msgspec.msgpack.Decoder(_Value)


def provider_key(swarm_id: bytes, kind: Kind, name: bytes) -> bytes:
    """Return the key under which providers of `name` are found.

    Raises:
        InvalidKey: the name is empty or longer than 64 bytes.
    """
    if not 1 <= len(name) <= MAX_NAME_BYTES:
        raise InvalidKey(f"a name has 1 to {MAX_NAME_BYTES} bytes", hint="use a hash")
    return record_key(swarm_id, "provider", kind.value, name)


def provider_value(addresses: Sequence[str]) -> bytes:
    """Return the value of a provider record.

    Raises:
        NoUsableAddress: none of the addresses could be used by anybody.
    """
    good = merge_addresses(
        (text for text in addresses if sane_address(text, loopback=True)),
        limit=MAX_PROVIDED_ADDRESSES,
    )
    if not good:
        raise NoUsableAddress(
            "a provider needs an address at which it can be reached",
            hint="advertise one, or take a relay",
        )
    value = msgspec.msgpack.encode(_Value(good))
    assert len(value) <= MAX_VALUE_BYTES
    return value


def read_providers(records: Iterable[SignedRecord], *, loopback: bool) -> list[Provider]:
    """Return the providers that verified `records` name, in their order; never raises.

    Args:
        records: as a search returns them: verified, one per signer.
        loopback: whether loopback addresses mean something to us.
    """
    found = []
    for record in records:
        try:
            value = _DECODER.decode(record.value)
        except (msgspec.DecodeError, RecursionError):
            continue
        good = tuple(text for text in value.addresses if sane_address(text, loopback=loopback))
        if good:
            node_id = hashlib.sha256(record.public_key).digest()
            found.append(Provider(node_id, record.public_key, good, record.expires_at))
    return found
