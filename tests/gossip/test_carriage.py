"""How values of a call travel: segments that fill a record, and a payload that is the same to all who apply it."""

from __future__ import annotations

import numpy as np
import pytest

from gossip.collective.call import EXACT
from gossip.collective.elements import elements_of
from gossip.collective.formats.registry import FORMATS, format_named
from gossip.collective.links.carriage import ALIGN, Carriage
from transport.identity import NodeId

SENDER = NodeId(b"S" * 32)
FLOATS = elements_of(np.dtype(np.float32))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("fp32", 131_072),
        ("bf16", 262_144),
        ("bf16+zstd", 261_632),
        ("int8", 516_096),
        ("int8+zstd", 514_048),
        ("int4", 524_288),
        ("e3m0", 524_288),
    ],
)
def test_a_long_segment_fills_a_record_or_is_as_long_as_one_may_be(name: str, values: int) -> None:
    """What docs/wire.md says: whoever cuts otherwise is at another place of the operation."""
    assert Carriage(FLOATS, name, long=True).per_segment == values
    assert values % ALIGN == 0, "a block is of one segment"
    assert format_named(name).encoded_bytes(values) <= 1 << 19


@pytest.mark.parametrize("name", [EXACT, *FORMATS])
def test_other_segments_are_half_a_mib_of_values(name: str) -> None:
    assert Carriage(FLOATS, name).per_segment == 131_072
    assert Carriage(FLOATS, EXACT, long=True).per_segment == 131_072


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("count", [0, 1, 700])
def test_who_packs_applies_what_the_others_will_decode(name: str, count: int) -> None:
    values = np.random.default_rng(count).standard_normal(count).astype(np.float32)
    packing, opening = Carriage(FLOATS, name), Carriage(FLOATS, name)
    own, other = values.copy(), np.empty_like(values)
    payload = packing.pack(own)
    packing.apply(payload, own, SENDER)
    opening.place(other, len(payload))[:] = payload
    opening.accept(other, len(payload), SENDER)
    assert own.tobytes() == other.tobytes()


def test_values_as_they_are_stay_where_they_are() -> None:
    values = np.arange(5, dtype=np.float32)
    carriage = Carriage(FLOATS, EXACT)
    payload = carriage.pack(values)
    carriage.apply(payload, values, SENDER)
    assert np.shares_memory(np.asarray(payload), values)
    assert values.tolist() == [0, 1, 2, 3, 4]
