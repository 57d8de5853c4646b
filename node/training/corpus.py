"""Training text as one array of bytes, with a held-out part that no node trains on.

Problem: a demonstration must work on a machine with no network, and a validation loss means nothing
if some member of the swarm trained on the validation text.

Idea: the default corpus is the source of Python's own standard library, which is on every machine
that can run this program; any folder or file of the operator's can take its place. What is held
out depends on content alone, never on paths or on the order of files:

* of a folder, whole files: those whose SHA-256 starts below 1/16. Two nodes that hold the same file
  agree about it, whatever their other files are;
* of a single file, 1/16 of its blocks of 64 KiB, evenly spread by position.

Invariants: the same content gives the same arrays (files are ordered by relative path); files are
read as data and never decoded; symbolic links are not followed; memory is bounded by
`MAX_CORPUS_BYTES` for folders, and a single file is mapped instead of read.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs
import numpy as np
import numpy.typing as npt

from node.errors import ExitCode, NodedError

__all__ = ["Corpus", "CorpusError", "CorpusMissing", "CorpusTooSmall", "load_corpus"]

Bytes = npt.NDArray[np.uint8]

MAX_CORPUS_BYTES: Final = 256 << 20
"""Most bytes read from a folder; further files are left out (in path order) and counted."""
MAX_FILE_BYTES: Final = 64 << 20
"""Larger files of a folder are skipped: a dump among texts would drown them."""
MAX_FILES: Final = 200_000
MIN_PART_BYTES: Final = 4096
"""Least size of either part; below it a validation loss is noise."""
BLOCK_BYTES: Final = 64 << 10
HELD_OUT_SHARE: Final = 16
"""One part in so many is held out."""

# Parts of the standard library that are tests, generated tables or other people's packages.
_STDLIB_SKIPPED: Final = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__",
     "turtledemo", "ensurepip", "pydoc_data", "encodings"}
)  # fmt: skip


class CorpusError(NodedError):
    """Root of what can be wrong with a corpus; ends a command as bad configuration."""

    exit_code = ExitCode.BAD_CONFIG


class CorpusMissing(CorpusError):
    """The corpus is not there or cannot be read."""


class CorpusTooSmall(CorpusError):
    """The corpus has too little text to train on and hold something out."""


@attrs.frozen(eq=False)
class Corpus:
    """Bytes to train on and bytes to validate on."""

    train: Bytes
    validation: Bytes
    source: str
    """For people: where it came from."""
    files: int
    skipped: int
    """Files left out: unreadable, binary, empty, too large, or over the corpus limit."""

    def describe(self) -> str:
        """One line for a log."""
        megabytes = (self.train.size + self.validation.size) / 1e6
        return f"{self.source}: {self.files} files, {megabytes:.1f} MB"


def load_corpus(path: str | Path | None = None) -> Corpus:
    """Load the corpus at `path`: a folder, a file, or "" / None for the standard library's source.

    Raises:
        CorpusMissing: nothing there, or no permission.
        CorpusTooSmall: less text than `MIN_PART_BYTES` in the training or the held-out part.
    """
    if path is None or str(path) == "":
        folder = Path(sysconfig.get_paths()["stdlib"])
        return _load_folder(folder, "the Python standard library", stdlib=True)
    place = Path(path).expanduser()
    try:
        mode = place.stat().st_mode
    except OSError as error:
        raise CorpusMissing(
            f"the corpus {place} cannot be read: {error.strerror or error}",
            hint="give --data (or [run] data) a folder or a text file, or leave it out to train"
            " on the source of Python's standard library",
        ) from None
    if stat.S_ISDIR(mode):
        return _load_folder(place, str(place), stdlib=False)
    if stat.S_ISREG(mode):
        return _load_file(place)
    raise CorpusMissing(
        f"the corpus {place} is neither a folder nor a regular file",
        hint="give --data (or [run] data) a folder or a text file",
    )


def _load_file(path: Path) -> Corpus:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 2 * MIN_PART_BYTES:
                raise _too_small(str(path), size)
            # The mapping stays alive through the arrays; pages come in as batches touch them.
            data = np.frombuffer(mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ), np.uint8)
    except OSError as error:
        raise CorpusMissing(
            f"the corpus {path} cannot be read: {error.strerror or error}",
            hint="check the permissions of the file",
        ) from None
    blocks = max(size // BLOCK_BYTES, 1)
    if blocks < HELD_OUT_SHARE:
        # Too few blocks to spread: the end is held out, contiguous and as large as it should be.
        cut = size - max(size // HELD_OUT_SHARE, MIN_PART_BYTES)
        return _corpus(data[:cut], data[cut:], str(path), 1, 0)
    held_out = np.zeros(blocks, np.bool_)
    held_out[HELD_OUT_SHARE // 2 :: HELD_OUT_SHARE] = True
    # Large files: copying the smaller part is enough, but training reads both sides of each hole,
    # so the training part is gathered too when it fits, and mapped up to the limit when it does not.
    whole = data[: blocks * BLOCK_BYTES].reshape(blocks, BLOCK_BYTES)
    if size <= MAX_CORPUS_BYTES:
        return _corpus(whole[~held_out].reshape(-1), whole[held_out].reshape(-1), str(path), 1, 0)
    cut = size - min(size // HELD_OUT_SHARE, MAX_CORPUS_BYTES)
    return _corpus(data[:cut], data[cut:], str(path), 1, 0)


def _load_folder(folder: Path, source: str, *, stdlib: bool) -> Corpus:
    parts: list[tuple[bool, bytes]] = []  # (held out, text) in path order
    skipped = total = 0
    for path in _walk(folder, stdlib=stdlib):
        data = _read_text(path)
        if data is None or total + len(data) > MAX_CORPUS_BYTES:
            skipped += 1
            continue
        total += len(data)
        parts.append((hashlib.sha256(data).digest()[0] < 256 // HELD_OUT_SHARE, data))
    if not parts:
        raise CorpusTooSmall(
            f"{source} holds no readable text file",
            hint="the standard library's source is missing from this Python: give --data a folder"
            " or a text file"
            if stdlib
            else "give --data (or [run] data) a folder with text files, or a text file",
        )
    validation = b"".join(data for held_out, data in parts if held_out)
    train = b"".join(data for held_out, data in parts if not held_out)
    if min(len(train), len(validation)) < MIN_PART_BYTES <= total // 2:
        # A handful of files may all fall on one side: then their end is held out, as of one file.
        joined = b"".join(data for _, data in parts)
        cut = total - max(total // HELD_OUT_SHARE, MIN_PART_BYTES)
        train, validation = joined[:cut], joined[cut:]
    return _corpus(
        np.frombuffer(train, np.uint8),
        np.frombuffer(validation, np.uint8),
        source,
        len(parts),
        skipped,
    )


def _corpus(train: Bytes, validation: Bytes, source: str, files: int, skipped: int) -> Corpus:
    if min(train.size, validation.size) < MIN_PART_BYTES:
        raise _too_small(source, train.size + validation.size)
    return Corpus(train, validation, source, files, skipped)


def _too_small(source: str, size: int) -> CorpusTooSmall:
    return CorpusTooSmall(
        f"{source} has only {size} bytes of text, too little to train on and hold some out",
        hint="about 1 MB and more trains well; leave --data out to use Python's standard library",
    )


def _walk(folder: Path, *, stdlib: bool) -> Iterator[Path]:
    """Regular files below `folder` in the order of their relative paths; links are not followed."""
    found: list[Path] = []

    def refuse(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise CorpusMissing(
                f"the corpus {folder} cannot be read: {error.strerror}",
                hint="check the permissions of the folder",
            )

    for directory, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and not (stdlib and name in _STDLIB_SKIPPED)
        )
        if stdlib:
            names = [name for name in names if name.endswith(".py")]
        found += [Path(directory, name) for name in names if not name.startswith(".")]
        if len(found) > MAX_FILES:
            break
    yield from sorted(found[:MAX_FILES], key=lambda path: path.relative_to(folder).parts)


def _read_text(path: Path) -> bytes | None:
    """The bytes of a text file; None for links, devices, binary, empty, huge or unreadable ones."""
    try:
        # O_NONBLOCK: opening a named pipe must not wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or not 0 < found.st_size <= MAX_FILE_BYTES:
                return None
            data = file.read(MAX_FILE_BYTES)
    except OSError:
        return None
    return None if b"\0" in data[:8192] else data
