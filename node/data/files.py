"""Reading the files of a data set: bounded, decompressed as they come, and compared with what everybody else has.

Canonical files are known by their SHA-256 or, where that is what their publishers print, their MD5. A file of a
canonical name whose bytes differ is refused unless the operator allows it: a truncated download or another
version would show as a loss that nobody can explain, and nodes with different held-out sets cannot be compared.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from node.data.errors import DataCorrupt, DataMissing

__all__ = ["check_sum", "find", "read_bytes"]

MAX_FILE_BYTES: Final = 1 << 30
"""Of a file, and of what a .gz file expands to."""


def find(folder: Path, names: tuple[str, ...], what: str) -> Path:
    """The first of the names that exists in a folder; raises `DataMissing`."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataMissing(f"{folder} has no {what}", hint=f"expected a file named {' or '.join(names)}")


def read_bytes(path: Path, *, limit: int = MAX_FILE_BYTES) -> bytes:
    """A file's content, expanded if its name ends in .gz.

    Raises:
        DataMissing: it cannot be read.
        DataCorrupt: it is larger than `limit` bytes, or no proper gzip file.
    """
    try:
        with path.open("rb") as raw:
            if path.suffix != ".gz":
                data = raw.read(limit + 1)
            else:
                with gzip.GzipFile(fileobj=raw) as file:
                    data = file.read(limit + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataCorrupt(f"{path} is damaged: {error}", hint="download or copy it again") from None
    except OSError as error:
        raise DataMissing(f"{path} cannot be read: {error.strerror or error}") from None
    if len(data) > limit:
        raise DataCorrupt(
            f"{path} holds more than {limit:,} bytes", hint="no file of this data set is so large"
        )
    return data


def check_sum(path: Path, known: Mapping[str, str], *, allow_other: bool = False) -> None:
    """Refuse a file of a canonical name with other bytes.

    Args:
        path: the file as it lies on disk.
        known: "sha256:..." or "md5:..." by file name.
        allow_other: accept it all the same.

    Raises:
        DataCorrupt: the bytes differ; says both sums.
    """
    expected = known.get(path.name)
    if expected is None or allow_other:
        return
    kind, _, value = expected.partition(":")
    digest = hashlib.new(kind, usedforsecurity=False)
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise DataMissing(f"{path} cannot be read: {error.strerror or error}") from None
    if digest.hexdigest() != value:
        raise DataCorrupt(
            f"{path} is not the published file: its {kind} is {digest.hexdigest()}, not {value}",
            hint="download it again, or set any_version = true in the task's settings if it is meant to differ",
        )
