"""The files of a data set: found in a folder or in the published archive, read within bounds, compared with what everybody has.

Published files are known by their SHA-256 or MD5 (whichever their publishers print; they tell versions apart here and
prove nothing). One of a published name with other bytes is refused unless the operator allows it: a truncated download
or another version would show as a loss that nobody can explain, and nodes with different held-out examples cannot
be compared. Archives are read in place; nothing is unpacked to disk, and no name in one is ever used as a path.
"""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

import attrs

from node.data.errors import DataCorrupt, DataMissing

__all__ = ["Files", "check_sum", "read_file"]

MAX_FILE_BYTES: Final = 1 << 30
"""Of a file, and of what a compressed one expands to."""
MAX_NAMES: Final = 20_000
"""Files looked at in a folder or an archive."""

Sums = Mapping[str, Collection[str]]
"""Published sums ("sha256:...", "md5:...") by file name; several where several data sets use one name."""

_DAMAGED: Final = (gzip.BadGzipFile, tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error)


@attrs.frozen
class Files:
    """The members of a folder or of one .tar.gz or .zip archive, by their last name."""

    place: Path
    """The folder or the archive."""
    names: Mapping[str, str]
    """Path inside `place` by last name; of two with one name the first in sorted order."""

    @classmethod
    def at(cls, path: Path, published: Sums, *, any_version: bool = False) -> Files:
        """Look what there is.

        Raises:
            DataMissing: nothing is there, or it cannot be read.
            DataCorrupt: no proper archive, or not the published one.
        """
        if path.is_dir():
            found = sorted(p.relative_to(path).as_posix() for p in _walk(path))
        else:
            check_sum(path, published, any_version=any_version)
            found = sorted(_members(path))
        return cls(path, {name.rpartition("/")[2]: name for name in reversed(found)})

    def find(self, names: Collection[str], what: str) -> str:
        """The first of the last names that is there; raises `DataMissing`."""
        for name in names:
            if name in self.names:
                return name
        raise DataMissing(
            f"{self.place} has no {what}", hint=f"expected {' or '.join(names)} in it"
        )

    def where(self, name: str) -> str:
        """The member as an error message names it."""
        return f"{self.place}/{self.names[name]}"

    def read(self, name: str, published: Sums, *, any_version: bool = False) -> bytes:
        """A member's content, expanded if its name ends in .gz.

        Raises:
            DataMissing: it cannot be read.
            DataCorrupt: damaged, larger than `MAX_FILE_BYTES`, or not the published file.
        """
        inside = self.names[name]
        if self.place.is_dir():
            check_sum(self.place / inside, published, any_version=any_version)
            return read_file(self.place / inside)
        return _member(self.place, inside)


def read_file(path: Path, *, limit: int = MAX_FILE_BYTES) -> bytes:
    """A file's content, expanded if its name ends in .gz; raises as `Files.read`."""
    try:
        with path.open("rb") as raw:
            if path.suffix != ".gz":
                data = raw.read(limit + 1)
            else:
                with gzip.GzipFile(fileobj=raw) as file:
                    data = file.read(limit + 1)
    except _DAMAGED as error:
        raise _damaged(path, error) from None
    except OSError as error:
        raise _missing(path, error) from None
    return _bounded(path, data, limit)


def check_sum(path: Path, published: Sums, *, any_version: bool = False) -> None:
    """Refuse a file of a published name with other bytes; raises `DataCorrupt` with both sums, or `DataMissing`."""
    known = published.get(path.name)
    if not known or any_version:
        return
    kinds = sorted({entry.partition(":")[0] for entry in known})
    digests = {kind: hashlib.new(kind, usedforsecurity=False) for kind in kinds}
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                for digest in digests.values():
                    digest.update(chunk)
    except OSError as error:
        raise _missing(path, error) from None
    found = {f"{kind}:{digest.hexdigest()}" for kind, digest in digests.items()}
    if not found & set(known):
        raise DataCorrupt(
            f"{path} is not the published file: {', '.join(sorted(found))} instead of {' or '.join(sorted(known))}",
            hint="download it again, or set any_version = true in the task's settings if it is meant to differ",
        )


def _walk(folder: Path) -> list[Path]:
    try:
        found = []
        for path in folder.rglob("*"):
            if path.is_file():
                found.append(path)
            if len(found) > MAX_NAMES:
                raise DataCorrupt(
                    f"{folder} holds more than {MAX_NAMES:,} files",
                    hint="name the data set's own folder",
                )
    except OSError as error:
        raise _missing(folder, error) from None
    return found


def _members(path: Path) -> list[str]:
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                return [
                    entry.filename for entry in archive.infolist()[:MAX_NAMES] if not entry.is_dir()
                ]
        if path.name.endswith((".tar.gz", ".tgz", ".tar")):
            with tarfile.open(path) as tar:
                return [
                    entry.name
                    for _, entry in zip(range(MAX_NAMES), tar, strict=False)
                    if entry.isfile()
                ]
    except _DAMAGED as error:
        raise _damaged(path, error) from None
    except OSError as error:
        raise _missing(path, error) from None
    if not path.exists():
        raise DataMissing(
            f"{path} does not exist", hint="set the run's data to where the data set lies"
        )
    raise DataCorrupt(f"{path} is neither a folder nor a .tar.gz or .zip archive")


def _member(path: Path, inside: str) -> bytes:
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive, archive.open(inside) as file:
                data = file.read(MAX_FILE_BYTES + 1)
        else:
            with tarfile.open(path) as tar:
                member = tar.extractfile(inside)  # a reader; nothing is written to disk
                data = b"" if member is None else member.read(MAX_FILE_BYTES + 1)
    except (
        *_DAMAGED,
        RuntimeError,
        NotImplementedError,
    ) as error:  # the latter two: encrypted, odd compression
        raise _damaged(path, error) from None
    except OSError as error:
        raise _missing(path, error) from None
    return _bounded(path, data, MAX_FILE_BYTES)


def _bounded(path: Path, data: bytes, limit: int) -> bytes:
    if len(data) > limit:
        raise DataCorrupt(
            f"{path} holds more than {limit:,} bytes", hint="no file of this data set is so large"
        )
    return data


def _damaged(path: Path, error: BaseException) -> DataCorrupt:
    return DataCorrupt(f"{path} is damaged: {error}", hint="download or copy it again")


def _missing(path: Path, error: OSError) -> DataMissing:
    return DataMissing(
        f"{path} cannot be read: {error.strerror or error}",
        hint="set the run's data to where the data set lies",
    )
