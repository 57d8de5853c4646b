from __future__ import annotations

import json
import os

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from node.run.tensor_file import (
    BadTensorFile,
    check_finite,
    open_regular,
    pread_exactly,
    read_header,
    read_tensors,
    write_tensors,
)

TENSORS = {
    "b.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.bias": np.float32([1.5]),
    "rng": np.arange(13, dtype=np.uint8),
    "step": np.array(7.0, dtype=np.float32),
    "count": np.array([1, -2], dtype=np.int64),
    "exact": np.array([[0.1]], dtype=np.float64),
    "none": np.zeros((0, 4), dtype=np.float32),
    "flags": np.array([True, False]),
}


def read_bytes(data: bytes):
    view = memoryview(data)

    def read(offset, length):
        if offset + length > len(view):
            raise BadTensorFile("the file ends too early")
        return view[offset : offset + length]

    header = read_header(read, len(data))
    return header, read_tensors(view, header)


def header_bytes(table, data=b"") -> bytes:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_what_is_written_is_read_back(tmp_path):
    written = write_tensors(tmp_path / "f", TENSORS, {"k": "v"})
    data = (tmp_path / "f").read_bytes()
    assert written.size == len(data)
    header, found = read_bytes(data)
    assert header.metadata == {"k": "v"}
    assert set(found) == set(TENSORS)
    for name, array in TENSORS.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert np.array_equal(found[name], array)
        assert found[name].flags.aligned
    assert [info.name for info in header.infos] == sorted(TENSORS)
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o600


def test_the_reference_library_reads_our_files_and_we_read_its(tmp_path):
    write_tensors(tmp_path / "ours", TENSORS, {"k": "v"})
    theirs = safetensors.numpy.load_file(tmp_path / "ours")
    assert set(theirs) == set(TENSORS)
    assert all(np.array_equal(theirs[name], TENSORS[name]) for name in TENSORS)
    data = safetensors.numpy.save(TENSORS, metadata={"k": "v"})
    header, found = read_bytes(data)
    assert header.metadata == {"k": "v"}
    assert all(np.array_equal(found[name], TENSORS[name]) for name in TENSORS)


def test_an_existing_file_is_never_overwritten(tmp_path):
    (tmp_path / "f").write_text("precious")
    with pytest.raises(FileExistsError):
        write_tensors(tmp_path / "f", TENSORS)
    assert (tmp_path / "f").read_text() == "precious"


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, call):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(OSError, match="No space"):
        write_tensors(tmp_path / "f", TENSORS)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_stored_is_refused(tmp_path):
    for bad in ({"x": np.array(["text"])}, {"__metadata__": np.zeros(1)}, {"x": np.zeros(1, "c8")}):
        with pytest.raises(BadTensorFile):
            write_tensors(tmp_path / "f", bad)
    with pytest.raises(BadTensorFile):
        write_tensors(tmp_path / "f", {f"t{i}": np.zeros(1) for i in range(10_001)})
    assert list(tmp_path.iterdir()) == []


def entry(start=0, end=4, shape=(1,), dtype="F32", **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end], **more}


FLOAT = np.float32([1]).tobytes()
HOSTILE = {
    "empty": b"",
    "short": b"\x01\x02",
    "header larger than the file": (1000).to_bytes(8, "little") + b"{}",
    "header of an exabyte": (2**60).to_bytes(8, "little") + b"{}",
    "header over the limit": header_bytes(b"{" + b" " * (1 << 20) + b"}"),
    "no JSON": header_bytes(b"\x80\x04\x95pickle"),
    "not UTF-8": header_bytes(b'{"\xff\xfe":1}'),
    "nested lists": header_bytes(b"[" * 100_000),
    "a list": header_bytes([1, 2]),
    "a number": header_bytes(12),
    "NaN in the header": header_bytes(b'{"x":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}'),
    "a name twice": header_bytes(
        b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', FLOAT),
    "metadata of objects": header_bytes({"__metadata__": {"a": {"b": 1}}}),
    "metadata as list": header_bytes({"__metadata__": ["a"]}),
    "entry is no table": header_bytes({"x": 5}),
    "unknown field": header_bytes({"x": entry(code="os.system")}, FLOAT),
    "unknown dtype": header_bytes({"x": entry(dtype="OBJ")}, FLOAT),
    "dtype is a list": header_bytes({"x": entry(dtype=["F32"])}, FLOAT),
    "negative shape": header_bytes({"x": entry(shape=(-1,))}, FLOAT),
    "shape of booleans": header_bytes({"x": entry(shape=(True,))}, FLOAT),
    "shape of floats": header_bytes({"x": entry(shape=(1.0,))}, FLOAT),
    "shape that overflows": header_bytes({"x": entry(shape=(2**40, 2**40))}, FLOAT),
    "shape of many axes": header_bytes({"x": entry(shape=(1,) * 100)}, FLOAT),
    "negative offset": header_bytes({"x": entry(start=-4, end=0)}, FLOAT),
    "offset past the end": header_bytes({"x": entry(start=4, end=8)}, FLOAT),
    "three offsets": header_bytes(
        {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, FLOAT),
    "shape larger than its place": header_bytes({"x": entry(shape=(2,))}, FLOAT),
    "overlap": header_bytes({"x": entry(), "y": entry()}, FLOAT),
    "gap": header_bytes({"x": entry(), "y": entry(8, 12)}, FLOAT * 3),
    "bytes left over": header_bytes({"x": entry()}, FLOAT + b"hidden"),
    "truncated": header_bytes({"x": entry()}, FLOAT[:3]),
    "NaN": header_bytes({"x": entry()}, np.float32([np.nan]).tobytes()),
    "infinity": header_bytes({"x": entry()}, np.float32([-np.inf]).tobytes()),
    "too many tensors": header_bytes({f"{i}": entry(0, 0, (0,)) for i in range(10_002)}),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(name):
    with pytest.raises(BadTensorFile):
        read_bytes(HOSTILE[name])


@given(st.binary(max_size=200))
def test_any_header_gives_tensors_or_one_error(text):
    try:
        read_bytes(header_bytes(text))
    except BadTensorFile:
        return


@given(st.data())
def test_one_changed_byte_gives_tensors_or_one_error(data):
    good = bytearray(safetensors.numpy.save(TENSORS))
    at = data.draw(st.integers(0, len(good) - 1))
    good[at] = data.draw(st.integers(0, 255))
    try:
        read_bytes(bytes(good))
    except BadTensorFile:
        return


def test_finite_check_streams(tmp_path):
    array = np.ones(700_000, np.float32)
    array[600_000] = np.inf
    write_tensors(tmp_path / "f", {"x": array})
    fd, size = open_regular(tmp_path / "f")
    try:

        def read(offset, length):
            assert length <= 1 << 20
            return pread_exactly(fd, offset, length)

        header = read_header(read, size)
        with pytest.raises(BadTensorFile, match="infinity"):
            check_finite(read, header)
    finally:
        os.close(fd)


def test_huge_finite_numbers_are_finite(tmp_path):
    array = np.full(1000, 3e38, np.float32)
    write_tensors(tmp_path / "f", {"x": array})
    _, found = read_bytes((tmp_path / "f").read_bytes())
    assert np.array_equal(found["x"], array)


@pytest.mark.parametrize("make", ["link", "folder", "pipe"])
def test_only_regular_files_are_opened(tmp_path, make):
    path = tmp_path / "f"
    if make == "link":
        path.symlink_to("/etc/passwd")
    elif make == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(BadTensorFile):
        open_regular(path)
