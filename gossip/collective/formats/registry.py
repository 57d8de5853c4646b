"""The wire formats by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from gossip.collective.call import EXACT
from gossip.collective.formats.blocks import E3M0, Int4, Int8
from gossip.collective.formats.floats import Bf16, Fp16, Fp32
from gossip.collective.formats.packed import Packed
from gossip.collective.formats.wire_format import Values, WireFormat
from gossip.errors import UnknownFormat
from transport.identity import NODE_ID_BYTES, NodeId

_PLAIN = (Fp32(), Bf16(), Fp16(), Int8(), Int4(), E3M0())

FORMATS: Mapping[str, WireFormat] = MappingProxyType(
    {one.name: one for one in (*_PLAIN, *map(Packed, _PLAIN))}
)
"""All of them; "int8+zstd" is int8 compressed."""


def format_named(name: str) -> WireFormat:
    """The format; raises UnknownFormat, whose message lists all."""
    try:
        return FORMATS[name]
    except KeyError:
        known = ", ".join(one.name for one in _PLAIN)
        raise UnknownFormat(
            f"no wire format {name!r}; there are {known}, each also with +zstd"
        ) from None


def wire_bytes(count: int, wire: str) -> int:
    """The most bytes that `count` float32 values take in that format, or as they are."""
    return 4 * count if wire == EXACT else format_named(wire).encoded_bytes(count)


def carried(values: Values, wire: str) -> Values:
    """What others get of 1-D values that travel in that format, or the values themselves.

    Raises:
        NotFinite: one of them cannot be carried.
        UnknownFormat: there is no such format.
    """
    if wire == EXACT:
        return values
    form, got = format_named(wire), np.empty_like(values)
    data = np.empty(form.encoded_bytes(values.size), np.uint8)
    size = form.encode_into(values, data)
    form.decode_untrusted_into(data[:size], got, sender=NodeId(bytes(NODE_ID_BYTES)))
    return got
