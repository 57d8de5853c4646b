"""The wire formats by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from gossip.collective.formats.blocks import E3M0, Int4, Int8
from gossip.collective.formats.floats import Bf16, Fp16, Fp32
from gossip.collective.formats.packed import Packed
from gossip.collective.formats.wire_format import WireFormat
from gossip.errors import UnknownFormat

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
