"""The files of a data set: found in a folder or in the published archive, read within bounds, compared with what everybody has.

Published files are known by their SHA-256 or MD5 (whichever their publishers print; they tell versions apart here and
prove nothing). One of a published name with other bytes is refused unless the operator allows it: a truncated download
or another version would show as a loss that nobody can explain, and nodes with different held-out examples cannot
be compared. Archives are read in place; nothing is unpacked to disk, and no name in one is ever used as a path.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, Protocol, cast

import attrs

from node.data.errors import DataCorrupt, DataMissing

__all__ = ["Files", "check_sum", "read_file"]

MAX_FILE_BYTES: Final = 1 << 30
"""Of a file, and of what a compressed one expands to."""
PIECE_BYTES: Final = 1 << 20
MAX_NAMES: Final = 20_000
"""Files looked at in a folder or an archive."""
MAX_ARCHIVE_BYTES: Final = 4 << 30
"""Of what a compressed archive expands to while it is looked through."""
MAX_HEADER_BYTES: Final = 4 << 20
"""Read from an archive at once; tar has headers of any length, which are read whole."""

Sums = Mapping[str, Collection[str]]
"""Published sums ("sha256:...", "md5:...") by file name; several where several data sets use one name."""

_DAMAGED: Final = (
    gzip.BadGzipFile,
    tarfile.TarError,
    zipfile.BadZipFile,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    NotImplementedError,  # an odd compression, or a later version of the format
)


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
                return _content(path, raw, limit)
            with gzip.GzipFile(fileobj=raw) as file:
                return _content(path, file, limit)
    except _DAMAGED as error:
        raise _damaged(path, error) from None
    except OSError as error:
        raise _missing(path, error) from None


def check_sum(path: Path, published: Sums, *, any_version: bool = False) -> None:
    """Refuse a file of a published name with other bytes; raises `DataCorrupt` with both sums, or `DataMissing`."""
    known = published.get(path.name)
    if not known or any_version:
        return
    kinds = sorted({entry.partition(":")[0] for entry in known})
    digests = {kind: hashlib.new(kind, usedforsecurity=False) for kind in kinds}
    try:
        with path.open("rb") as file:
            while chunk := file.read(PIECE_BYTES):
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
                names = [entry.filename for entry in archive.infolist()[:MAX_NAMES]]
                return [name for name in names if name and not name.endswith("/")]
        if path.name.endswith((".tar.gz", ".tgz", ".tar")):
            with _tar(path) as tar:
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
            with zipfile.ZipFile(path) as archive, archive.open(inside) as packed:
                return _content(path, packed, MAX_FILE_BYTES)
        with _tar(path) as tar:
            member = tar.extractfile(inside)  # a reader; nothing is written to disk
            return b"" if member is None else _content(path, member, MAX_FILE_BYTES)
    except (*_DAMAGED, RuntimeError) as error:  # the latter: encrypted
        raise _damaged(path, error) from None
    except OSError as error:
        raise _missing(path, error) from None


class _Readable(Protocol):
    """What the readers of plain, gzipped and archived files have in common."""

    def read(self, size: int, /) -> bytes: ...


def _content(path: Path, file: _Readable, limit: int) -> bytes:
    # Piece by piece: read(limit) would reserve that much before it knows how little there is.
    pieces, size = [], 0
    while piece := file.read(PIECE_BYTES):
        size += len(piece)
        if size > limit:
            raise DataCorrupt(
                f"{path} holds more than {limit:,} bytes",
                hint="no file of this data set is so large",
            )
        pieces.append(piece)
    return b"".join(pieces)


class _Within(io.RawIOBase):
    """What a tar is read from: no header, and no archive, has the reader expand more than the limits."""

    def __init__(self, path: Path, inner: BinaryIO) -> None:
        self._path, self._inner = path, inner

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise self._too_large(MAX_HEADER_BYTES)
        return self._inner.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or offset > MAX_ARCHIVE_BYTES:
            raise self._too_large(MAX_ARCHIVE_BYTES)
        return self._inner.seek(offset)

    def tell(self) -> int:
        return self._inner.tell()

    def _too_large(self, limit: int) -> DataCorrupt:
        return DataCorrupt(
            f"{self._path} asks for more than {limit:,} bytes to be expanded",
            hint="no archive of this data set does: download it again",
        )


@contextmanager
def _tar(path: Path) -> Iterator[tarfile.TarFile]:
    with path.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        inner = cast("BinaryIO", gzip.GzipFile(fileobj=raw) if zipped else raw)
        with tarfile.open(fileobj=cast("BinaryIO", _Within(path, inner)), mode="r:") as tar:
            yield tar


def _damaged(path: Path, error: BaseException) -> DataCorrupt:
    return DataCorrupt(f"{path} is damaged: {error}", hint="download or copy it again")


def _missing(path: Path, error: OSError) -> DataMissing:
    return DataMissing(
        f"{path} cannot be read: {error.strerror or error}",
        hint="set the run's data to where the data set lies",
    )
