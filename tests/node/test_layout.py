from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.run.layout import Layout

SHAPES = {"b.weight": (2, 3), "a.bias": (17,), "scalar": (), "c": (16,)}

shapes = st.dictionaries(
    st.text("abc.", min_size=1, max_size=6), st.lists(st.integers(0, 5), max_size=3), max_size=6
)


@given(shapes)
def test_slots_are_sorted_aligned_and_apart(found):
    layout = Layout.of(found)
    assert [slot.name for slot in layout.slots] == sorted(found)
    end = 0
    for slot in layout.slots:
        assert slot.start % 16 == 0
        assert end <= slot.start
        end = slot.start + slot.numel
    assert end <= layout.numel < end + 16 or layout.numel == 1


@given(shapes)
def test_split_and_join_are_inverse(found):
    layout = Layout.of(found)
    rng = np.random.default_rng(0)
    parts = {name: rng.random(shape, np.float32) for name, shape in found.items()}
    flat = np.zeros(layout.numel, np.float32)
    layout.join(parts, flat)
    for name, view in layout.split(flat):
        assert view.shape == parts[name].shape
        assert np.array_equal(view, parts[name])


def test_equal_models_have_equal_digests_and_no_others():
    reference = Layout.of(SHAPES).model
    assert Layout.of(dict(reversed(SHAPES.items()))).model == reference
    assert Layout.of({**SHAPES, "b.weight": (3, 2)}).model != reference
    assert Layout.of({**SHAPES, "d": (1,)}).model != reference
    renamed = {name.replace("c", "e"): shape for name, shape in SHAPES.items()}
    assert Layout.of(renamed).model != reference


def test_unfitting_parts_are_refused():
    layout = Layout.of({"a": (2, 3)})
    flat = np.zeros(layout.numel, np.float32)
    with pytest.raises(KeyError):
        layout.join({}, flat)
    with pytest.raises(ValueError, match="shape"):
        layout.join({"a": np.zeros((3, 2), np.float32)}, flat)
