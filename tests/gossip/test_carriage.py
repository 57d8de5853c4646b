"""How values of a call travel: segments that fill a record, and a payload that is the same to all who apply it."""

from __future__ import annotations

import numpy as np
import pytest

from gossip.collective.call import EXACT
from gossip.collective.elements import elements_of
from gossip.collective.formats.registry import FORMATS, format_named
from gossip.collective.links.carriage import ALIGN, MOST_PACKED, SEGMENT_VALUE_BYTES, Carriage
from transport.identity import NodeId
from transport.secure.record import BULK_RECORD_BYTES

SENDER = NodeId(b"S" * 32)
FLOATS = elements_of(np.dtype(np.float32))


@pytest.mark.parametrize("name", FORMATS)
def test_a_segment_of_a_format_fills_a_record_or_is_as_long_as_one_may_be(name: str) -> None:
    form, values = format_named(name), Carriage(FLOATS, name).per_segment
    assert values % ALIGN == 0, "a block is of one segment"
    assert form.encoded_bytes(values) <= BULK_RECORD_BYTES
    longer = form.encoded_bytes(values + values // 50)
    assert longer > BULK_RECORD_BYTES or values == MOST_PACKED * SEGMENT_VALUE_BYTES // 4


def test_a_segment_of_values_as_they_are_is_one_record() -> None:
    assert Carriage(FLOATS, EXACT).per_segment * 4 == BULK_RECORD_BYTES


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
