"""The file of records: figures that are honest about what is not finite, and a reader that knows its own."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.simulation.records import (
    NotASimulation,
    Point,
    Spread,
    encode,
    read_records,
    spread,
)
from tests.node.simulation.toys import simulate

NAN, INF = math.nan, math.inf


def test_a_value_that_is_not_finite_is_the_worst():
    assert spread([3.0, NAN, 1.0, 2.0], higher_is_better=False) == Spread(
        None, None, 1.75, 2.5, None, 1.0
    )
    assert spread([0.5, NAN], higher_is_better=True) == Spread(None, None, None, None, None, 0.5)
    assert spread([INF], higher_is_better=False) == Spread(*[None] * 6)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.booleans())
def test_figures_are_in_order(values, higher):
    found = spread(values, higher_is_better=higher)
    low, high = min(values), max(values)
    assert low <= found.low <= found.median <= found.high <= high
    assert low - 1e-6 <= found.mean <= high + 1e-6
    assert (found.worst, found.best) == ((low, high) if higher else (high, low))


def written(path, records):
    path.write_bytes(b"".join(encode(record) + b"\n" for record in records))
    return path


def test_what_was_written_is_read(tmp_path):
    records = simulate(hashes=True)
    assert read_records(written(tmp_path / "a", records)) == records
    assert sum(isinstance(record, Point) for record in records) == 6


def test_a_file_whose_writer_was_killed_is_read_up_to_there(tmp_path):
    records = simulate()
    path = written(tmp_path / "a", records)
    path.write_bytes(path.read_bytes()[:-30])
    assert read_records(path) == records[:-1]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "does not begin with a header"),
        (b"hello\n", "line 1"),
        (b'{"kind": "header"}\n', "line 1"),
        (b'{"kind": "other"}\n', "line 1"),
        (b'{"kind": "header", "more": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", "line 1"),
    ],
)
def test_another_file_is_refused(tmp_path, content, says):
    path = tmp_path / "a"
    path.write_bytes(content)
    with pytest.raises(NotASimulation, match=says):
        read_records(path)
    with pytest.raises(NotASimulation, match="cannot be read"):
        read_records(tmp_path / "missing")


def test_a_file_without_an_end_is_not_read_to_it(monkeypatch):
    monkeypatch.setattr("node.simulation.records.MAX_FILE_BYTES", 1 << 16)
    with pytest.raises(NotASimulation, match="larger than"):
        read_records(Path("/dev/zero"))


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    records = simulate()
    path = written(tmp_path / "a", records)
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:2], b"{}", *lines[2:]]))
    with pytest.raises(NotASimulation, match="line 3"):
        read_records(path)
