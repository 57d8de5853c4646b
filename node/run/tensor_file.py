"""Tensors in a file that is data only: the safetensors format, written and read with numpy alone.

Problem: a checkpoint may come from a crashed disk or from another party. Formats that store objects
run code when they are opened; and even a format that stores data can carry a header that costs
gigabytes to parse, tensors that overlap, or numbers that poison the model.

Idea: safetensors (https://github.com/huggingface/safetensors), whose whole definition is ::

    | header size: uint64 little-endian | header: JSON, padded with spaces | raw tensor bytes ... |

    {"__metadata__": {str: str}, "<name>": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}

and a reader that checks every claim of the header against the size of the file before it touches a
tensor. Any program that reads safetensors reads these files.

Invariants of an accepted file: header at most 1 MiB and 10,000 tensors; no name twice; known types
only; tensors lie gap-free and without overlap from the header's end to the file's end; nothing is
allocated on the word of a length field. Reading raises `BadTensorFile` or `OSError`, nothing else.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import msgspec
import numpy as np
import numpy.typing as npt

from node.errors import NodedError

__all__ = [
    "MAX_HEADER_BYTES",
    "MAX_TENSORS",
    "Array",
    "BadTensorFile",
    "Header",
    "TensorInfo",
    "Tensors",
    "WrittenFile",
    "check_finite",
    "hash_file",
    "open_regular",
    "pread_exactly",
    "read_header",
    "read_tensors",
    "write_tensors",
]

Array = npt.NDArray[Any]

MAX_HEADER_BYTES: Final = 1 << 20
"""A header of a million entries took 11 s and 540 MiB to parse; models have hundreds."""
MAX_TENSORS: Final = 10_000
MAX_RANK: Final = 8
CHUNK_BYTES: Final = 1 << 20  # per call that may hold the GIL

_METADATA: Final = "__metadata__"
_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES: Final = {dtype: name for name, dtype in _DTYPES.items()}


class BadTensorFile(NodedError):
    """The file is no acceptable safetensors file; the message says what is wrong with it."""


class TensorInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Name, type and shape of one tensor, as a manifest lists them."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@attrs.frozen
class _Entry:
    info: TensorInfo
    start: int
    """Offset in the file."""
    size: int


@attrs.frozen
class Header:
    """The checked header of a file."""

    metadata: dict[str, str]
    entries: tuple[_Entry, ...]
    """In the order of their bytes."""

    @property
    def infos(self) -> tuple[TensorInfo, ...]:
        """What the tensors are, ordered by name."""
        return tuple(sorted((entry.info for entry in self.entries), key=lambda info: info.name))


@attrs.frozen(eq=False)
class Tensors:
    """What a file held."""

    tensors: dict[str, Array]
    metadata: dict[str, str]


@attrs.frozen
class WrittenFile:
    """A file that is complete and on the disk."""

    path: Path
    size: int
    sha256: bytes


Read = Callable[[int, int], bytes | memoryview]
"""(offset, length) to exactly so many bytes of the file."""


def write_tensors(
    path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None
) -> WrittenFile:
    """Write a new file and fsync it; on failure nothing is left at `path`.

    Raises:
        BadTensorFile: names, types or number of tensors cannot be stored.
        OSError: `path` exists (it is never overwritten), disk full, input/output error.
    """
    # Largest items first keeps every tensor aligned to its own item size.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    table: dict[str, object] = {_METADATA: dict(metadata or {})}
    offset = 0
    for name in order:
        array = tensors[name]
        dtype = _NAMES.get(array.dtype.newbyteorder("<"))
        if dtype is None or name == _METADATA:
            raise BadTensorFile(f"tensor {name!r} of type {array.dtype} cannot be stored")
        span = [offset, offset + array.nbytes]
        table[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": span}
        offset = span[1]
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 64)  # tensors start aligned in the file, 8 + 56 included
    header += b" " * (56 if len(header) % 64 == 0 else 0)
    if len(header) > MAX_HEADER_BYTES or len(order) > MAX_TENSORS:
        raise BadTensorFile(f"{len(order)} tensors make a header of {len(header)} bytes: too many")
    digest = hashlib.sha256()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            _write_all(fd, digest.update, len(header).to_bytes(8, "little") + header)
            for name in order:
                array = tensors[name]
                little = array.astype(array.dtype.newbyteorder("<"), copy=False)
                raw = np.ascontiguousarray(little).reshape(-1).view(np.uint8)
                _write_all(fd, digest.update, raw.data)
            os.fsync(fd)
        finally:
            os.close(fd)
    except BaseException:
        # A failed fsync may have dropped pages: this file is never tried again.
        path.unlink(missing_ok=True)
        raise
    return WrittenFile(path, 8 + len(header) + offset, digest.digest())


def _write_all(fd: int, update: Callable[[memoryview], None], data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        written = os.write(fd, view[:CHUNK_BYTES])
        update(view[:written])
        view = view[written:]


def open_regular(path: Path) -> tuple[int, int]:
    """Open a regular file for reading, links refused; returns (descriptor, size).

    Raises:
        BadTensorFile: a link, folder, pipe or device.
        OSError: not there, or no permission.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(path, flags)
    except OSError as error:
        if path.is_symlink():
            raise BadTensorFile(f"{path.name} is a symbolic link") from error
        raise
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)
        raise BadTensorFile(f"{path.name} is not a regular file")
    return fd, found.st_size


def hash_file(fd: int, size: int) -> bytes:
    """SHA-256 of the first `size` bytes; raises `BadTensorFile` if there are fewer."""
    digest = hashlib.sha256()
    for start in range(0, size, CHUNK_BYTES):
        digest.update(pread_exactly(fd, start, min(CHUNK_BYTES, size - start)))
    return digest.digest()


def pread_exactly(fd: int, offset: int, length: int) -> bytes:
    """`length` bytes at `offset`; raises `BadTensorFile` if the file ends before."""
    parts: list[bytes] = []
    while length:
        part = os.pread(fd, length, offset)
        if not part:
            raise BadTensorFile("the file ends too early")
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_header(read: Read, size: int) -> Header:
    """Parse and check the header of a file of `size` bytes; raises `BadTensorFile`."""
    if size < 8:
        raise BadTensorFile(f"a file of {size} bytes is no tensor file")
    length = int.from_bytes(read(0, 8), "little")
    if length > MAX_HEADER_BYTES:
        raise BadTensorFile(f"the header claims {length} bytes, more than {MAX_HEADER_BYTES}")
    if length < 2 or 8 + length > size:
        raise BadTensorFile(f"the header claims {length} bytes in a file of {size}")
    try:
        table = json.loads(
            bytes(read(8, length)), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise BadTensorFile(f"the header is no JSON: {str(error)[:120]}") from None
    if not isinstance(table, dict) or len(table) > MAX_TENSORS + 1:
        raise BadTensorFile("the header is no table of tensors, or has too many")
    metadata = table.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise BadTensorFile("the header's metadata is not a map of strings")
    entries = sorted(
        (_entry(name, value, 8 + length, size) for name, value in table.items()),
        key=lambda entry: (entry.start, entry.size),
    )
    position = 8 + length
    for entry in entries:
        if entry.start != position:
            raise BadTensorFile(f"tensor {_short(entry.info.name)} overlaps or leaves a gap")
        position += entry.size
    if position != size:
        raise BadTensorFile(f"the tensors end at {position}, the file at {size}")
    return Header(metadata, tuple(entries))


def read_tensors(data: memoryview, header: Header) -> dict[str, Array]:
    """The tensors of a file in memory, refusing NaN and infinity; raises `BadTensorFile`.

    The arrays are views of `data` wherever its alignment allows.
    """
    tensors: dict[str, Array] = {}
    for entry in header.entries:
        dtype = _DTYPES[entry.info.dtype]
        flat = np.frombuffer(data[entry.start : entry.start + entry.size], dtype)
        _check_finite(entry.info.name, flat)
        tensors[entry.info.name] = np.require(flat, requirements="A").reshape(entry.info.shape)
    return tensors


def check_finite(read: Read, header: Header) -> None:
    """Refuse NaN and infinity without holding more than 1 MiB; raises `BadTensorFile`."""
    for entry in header.entries:
        dtype = _DTYPES[entry.info.dtype]
        if dtype.kind == "f":
            for start in range(0, entry.size, CHUNK_BYTES):
                chunk = read(entry.start + start, min(CHUNK_BYTES, entry.size - start))
                _check_finite(entry.info.name, np.frombuffer(chunk, dtype))


def _check_finite(name: str, flat: Array) -> None:
    # A sum in double precision of finite fp32 cannot overflow, and is not finite if one term is
    # not; it needs no temporary of the tensor's size.
    if flat.dtype.kind != "f":
        return
    if flat.dtype.itemsize == 8:
        finite = bool(np.isfinite(flat).all())
    else:
        with np.errstate(invalid="ignore"):
            finite = math.isfinite(float(flat.sum(dtype=np.float64)))
    if not finite:
        raise BadTensorFile(f"tensor {_short(name)} holds NaN or infinity")


def _entry(name: str, value: object, data_start: int, size: int) -> _Entry:
    if len(name) > 512 or not isinstance(value, dict):
        raise BadTensorFile(f"tensor {_short(name)} is not described by a table")
    if set(value) != {"dtype", "shape", "data_offsets"} or not (
        isinstance(value["dtype"], str) and value["dtype"] in _DTYPES
    ):
        raise BadTensorFile(f"tensor {_short(name)} has unknown fields or type")
    dtype: str = value["dtype"]
    shape, span = _counts(value["shape"]), _counts(value["data_offsets"])
    if shape is None or len(shape) > MAX_RANK:
        raise BadTensorFile(f"tensor {_short(name)} has no proper shape")
    if span is None or len(span) != 2:
        raise BadTensorFile(f"tensor {_short(name)} has no proper place")
    expected = math.prod(shape) * _DTYPES[dtype].itemsize
    if span[1] - span[0] != expected or data_start + span[1] > size:
        raise BadTensorFile(f"tensor {_short(name)} does not fit its place")
    return _Entry(TensorInfo(name, dtype, tuple(shape)), data_start + span[0], expected)


def _counts(value: object) -> list[int] | None:
    """`value` if it is a list of integers from 0 up (a bool is none), else None."""
    if not isinstance(value, list):
        return None
    return value if all(type(item) is int and 0 <= item < 2**48 for item in value) else None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name appears twice")
    return table


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _short(name: str) -> str:
    return repr(name[:80])
