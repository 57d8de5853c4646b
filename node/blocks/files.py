"""Files into an artefact, and an artefact into files (blocking: call it in threads).

Going in, the files are read once, in the order of their paths, and hashed as they are read. Coming out, every byte is checked again, into a
file beside the wanted one that takes its place when it is whole and on the disk. Paths of an artefact are checked with its manifest; here they are
only ever put below a new folder.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs

from gossip.blocks.errors import ArtefactUnavailable, InvalidArtefact
from gossip.blocks.manifest import MAX_FILES, FileEntry, Manifest, bad_path
from gossip.blocks.merkle import BLOCK_BYTES
from node.blocks.store import BlockStore
from node.errors import NodedError, Refused, UsageError

__all__ = ["Source", "blocks_of", "put_files", "sources_of", "unpack"]

Progress = Callable[[int], None]
"""Called with the bytes done so far."""


@attrs.frozen
class Source:
    """One file to put: where it lies, and what it is called in the artefact."""

    file: Path
    path: str


def sources_of(path: Path) -> list[Source]:
    """The files that `path` means: itself, or all below it; links are refused, not followed.

    Raises:
        UsageError: there is nothing, nothing that can be put, or too much.
        Refused: it may not be read.
    """
    try:
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            found = [Source(path, path.name)]
        elif stat.S_ISDIR(mode):
            found = [
                Source(file, file.relative_to(path).as_posix())
                for file in sorted(path.rglob("*"))
                if not stat.S_ISDIR(file.lstat().st_mode)
            ]
        else:
            raise UsageError(f"{path} is neither a file nor a folder")
    except OSError as error:
        raise _unreadable(path, error) from None
    if not found:
        raise UsageError(f"{path} holds no files")
    if len(found) > MAX_FILES:
        raise UsageError(
            f"{path} holds more than {MAX_FILES} files", hint="pack it into one archive first"
        )
    for source in found:
        reason = bad_path(source.path)
        if reason or not stat.S_ISREG(source.file.lstat().st_mode):
            raise UsageError(
                f"{source.file} cannot be put: {reason or 'it is a link or a special file'}"
            )
    return found


def put_files(
    store: BlockStore,
    kind: str,
    sources: Sequence[Source],
    *,
    entry: str = "",
    pin: bool = True,
    progress: Progress = lambda _done: None,
) -> Manifest:
    """Copy files into the store as one artefact; returns when all of it is on the disk.

    Killed halfway it leaves blocks without an artefact, which the store removes when it is opened again.

    Raises:
        UsageError: a file shrinks or grows while it is read.
        Refused: a file may not be read.
        StoreFull, StoreFailed: nothing of it is kept.
    """
    entries: list[FileEntry] = []
    done = 0
    with store.putting() as putting:
        for block in blocks_of(sources, entries):
            putting.write(block)
            done += len(block)
            progress(done)
        try:
            manifest = Manifest.describe(kind, entries, putting.leaves, entry=entry)
        except InvalidArtefact as error:
            raise UsageError(str(error), hint=error.hint) from None
        store.add(manifest, putting.leaves)
    try:
        if pin:
            store.pin(manifest.id)
    finally:
        store.release(manifest.id)
    return manifest


def blocks_of(sources: Sequence[Source], entries: list[FileEntry]) -> Iterator[bytes]:
    """The content of files in blocks; fills `entries` while it goes along.

    Raises:
        Refused, UsageError: a file cannot be read, or changes.
    """
    rest = bytearray()
    for source in sources:
        size = 0
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(source.file, flags), "rb", buffering=0) as file:
                expected = os.fstat(file.fileno()).st_size
                while data := file.read(BLOCK_BYTES - len(rest)):
                    rest += data
                    size += len(data)
                    if len(rest) == BLOCK_BYTES:
                        yield bytes(rest)
                        rest.clear()
        except OSError as error:
            raise _unreadable(source.file, error) from None
        if size != expected:
            raise UsageError(
                f"{source.file} changed while it was read", hint="put it when nobody writes to it"
            )
        entries.append(FileEntry(source.path, size))
    if rest:
        yield bytes(rest)


def unpack(
    read: Callable[[int], bytes | None],
    manifest: Manifest,
    target: Path,
    *,
    replace: bool = False,
    progress: Progress = lambda _done: None,
) -> Path:
    """Write an artefact's files to `target`: the file itself if it has one, else a folder of them.

    Args:
        read: gives a block, checked; None if it is not there.
        manifest: what it is.
        target: where to; an existing folder means inside of it, for a single file.
        replace: whether an existing file may be replaced; folders never are.
        progress: told the bytes written.

    Returns:
        What was written.

    Raises:
        ArtefactUnavailable: a block is not there; nothing is left at `target`.
        UsageError: something is in the way.
        NodedError: the disk refuses.
    """
    single = len(manifest.files) == 1 and manifest.kind != "task"
    if single and target.is_dir():
        target /= manifest.files[0].path.rpartition("/")[2]
    if os.path.lexists(target) and not (replace and single and not target.is_dir()):
        raise UsageError(
            f"{target} is there already", hint="name another place with -o, or --force"
        )
    part = target.with_name(f".{target.name[:100]}.part-{secrets.token_hex(4)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        content = _Content(read, manifest, progress)
        if single:
            content.write(part, manifest.files[0].size)
        else:
            part.mkdir(mode=0o755)
            for entry in manifest.files:
                file = part / entry.path
                file.parent.mkdir(parents=True, exist_ok=True)
                content.write(file, entry.size)
        part.rename(target)
    except OSError as error:
        raise NodedError(
            f"{target} cannot be written: {error.strerror or error}",
            hint="name another place with -o, or free some space",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)
            else:
                part.unlink(missing_ok=True)
    return target


class _Content:
    """An artefact's bytes in their order."""

    def __init__(
        self, read: Callable[[int], bytes | None], manifest: Manifest, progress: Progress
    ) -> None:
        self._read, self._manifest, self._progress = read, manifest, progress
        self._at = 0
        self._number = -1
        self._block = b""

    def write(self, path: Path, size: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags, 0o644), "wb", buffering=0) as file:
            left = size
            while left:
                piece = self._next(left)
                view = memoryview(piece)
                while view:
                    view = view[file.write(view) :]
                left -= len(piece)
                self._progress(self._at)
            os.fsync(file.fileno())

    def _next(self, most: int) -> bytes:
        number, offset = divmod(self._at, BLOCK_BYTES)
        if number != self._number:
            block = self._read(number)
            if block is None:
                raise ArtefactUnavailable(f"block {number} is not in the store (any more)")
            self._number, self._block = number, block
        piece = self._block[offset : offset + most]
        self._at += len(piece)
        return piece


def _unreadable(path: Path, error: OSError) -> NodedError:
    reason = error.strerror or str(error)
    if isinstance(error, PermissionError):
        return Refused(
            f"the daemon may not read {path}: {reason}",
            hint="the daemon reads it as its own user: let that user read it, or copy it",
        )
    return UsageError(f"{path} cannot be read: {reason}")
