"""Blocks on this node's disk: a content-addressed folder that a crash, a full disk or garbage cannot turn into lies.

    blocks/data/<2 hex>/<leaf hash>     one block each
           artefacts/<id>/manifest      the bytes that the id is the hash of
                          leaves        its leaf hashes; the pair appears by one rename
                          pinned        empty; there if the artefact must stay
           .part-*                      unfinished; removed when the store is opened

Problem: many writers of many small pieces, any of which may be cut off anywhere, on a disk that fills up and rots. Idea: a block's
name is its hash, so the only question ever asked of a file is whether its content fits its name. It is answered when the file is read,
each time: what does not fit is deleted and is missing from then on, whoever put it there, and a fetch brings it again. So nothing needs a
journal.

The quota counts blocks. When it is full the artefacts that were not used for longest and are neither pinned nor in use make room, with the blocks
that no other artefact shares. "Used" is the time stamp of the artefact's folder, so it survives restarts.

Invariants: names come from hashes in hexadecimal, so nothing that a peer says becomes a path; only regular files are opened, never links; files are
written beside, flushed and renamed; a failed write leaves nothing but `.part-*`. Everything here blocks: call it in threads (it locks what it shares).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import secrets
import shutil
import stat
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NoReturn

import attrs

from gossip.blocks import bitmap as bits
from gossip.blocks.bitmap import Bitmap
from gossip.blocks.errors import InvalidArtefact, StoreFailed, StoreFull
from gossip.blocks.library import Sink
from gossip.blocks.manifest import MAX_BLOCKS, MAX_MANIFEST_BYTES, Manifest
from gossip.blocks.merkle import BLOCK_BYTES, HASH_BYTES, PAGE, leaf_hash
from transport.buffer import Buffer
from transport.durable import NotPlain, read_plain, sync_folder, write_new

__all__ = ["BlockStore", "Putting", "StoredSink", "Usage", "read_regular"]

PART: Final = ".part-"
RESERVE_BYTES: Final = 64 << 20
"""Left free on the disk: checkpoints and keys are worth more than somebody's artefact."""

_HEX: Final = re.compile(r"[0-9a-f]{64}")
_log = logging.getLogger(__name__)


@attrs.frozen
class Usage:
    """What the store holds."""

    bytes: int
    quota_bytes: int
    artefacts: int
    damaged: int
    """Blocks that did not fit their name since the store was opened."""


@attrs.define(eq=False)
class _Artefact:
    manifest: Manifest
    leaves: list[bytes]
    pinned: bool
    used_ns: int
    in_use: int = 0


class BlockStore:
    """The store in one folder; one process at a time (the daemon holds a lock on its data directory).

    Args:
        root: its folder; made if need be.
        quota_bytes: most bytes of blocks.
        reserve_bytes: left free on the disk.
    """

    def __init__(self, root: Path, *, quota_bytes: int, reserve_bytes: int = RESERVE_BYTES) -> None:
        self._root, self._quota, self._reserve = root, quota_bytes, reserve_bytes
        self._data, self._names = root / "data", root / "artefacts"
        self._lock = threading.RLock()
        self._artefacts: dict[bytes, _Artefact] = {}
        self._blocks: dict[bytes, int] = {}  # leaf hash -> bytes on the disk
        self._users: Counter[bytes] = Counter()  # leaf hash -> artefacts that name it
        self._putting: Counter[bytes] = Counter()  # leaf hash -> artefacts being put
        self._used = 0
        self._damaged = 0
        with _mapped(root):
            for folder in (root, self._data, self._names):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._load()

    # What there is

    def usage(self) -> Usage:
        """Sizes for status."""
        with self._lock:
            return Usage(self._used, self._quota, len(self._artefacts), self._damaged)

    def ids(self) -> list[bytes]:
        """All artefacts known, whole or not, the most recently used first."""
        with self._lock:
            known = self._artefacts
            return sorted(known, key=lambda each: known[each].used_ns, reverse=True)

    def manifest(self, artefact: bytes) -> Manifest | None:
        """The manifest, if the artefact is known."""
        with self._lock:
            found = self._artefacts.get(artefact)
            return None if found is None else found.manifest

    def leaves(self, artefact: bytes) -> list[bytes] | None:
        """Its leaf hashes, if the artefact is known."""
        with self._lock:
            found = self._artefacts.get(artefact)
            return None if found is None else found.leaves

    def page(self, artefact: bytes, page: int) -> bytes | None:
        """A page of its leaf hashes."""
        leaves = self.leaves(artefact)
        return None if leaves is None else b"".join(leaves[page * PAGE : (page + 1) * PAGE])

    def have(self, artefact: bytes) -> Bitmap | None:
        """Which of its blocks are here; whether they are sound shows when they are read."""
        with self._lock:
            found = self._artefacts.get(artefact)
            if found is None:
                return None
            bitmap = bits.none(found.manifest.blocks)
            for block, leaf in enumerate(found.leaves):
                bitmap[block] = leaf in self._blocks
            return bitmap

    def complete(self, artefact: bytes) -> bool:
        """Whether all of its blocks are here."""
        have = self.have(artefact)
        return have is not None and bool(have.all())

    def pinned(self, artefact: bytes) -> bool:
        """Whether it must stay."""
        with self._lock:
            found = self._artefacts.get(artefact)
            return found is not None and found.pinned

    def read(self, artefact: bytes, block: int) -> bytes | None:
        """A block, checked against its hash; None if it is not here (any more)."""
        with self._lock:
            found = self._artefacts.get(artefact)
            if found is None or not 0 <= block < found.manifest.blocks:
                return None
            leaf, size = found.leaves[block], found.manifest.block_size(block)
            if leaf not in self._blocks:
                return None
        data = self._read_file(leaf, size)
        if data is None:
            with self._lock:
                self._drop(leaf, damaged=True)
        return data

    # Writing

    def add(self, manifest: Manifest, leaves: Sequence[bytes]) -> StoredSink:
        """Make an artefact known, whose blocks come later; it is in use until `release`.

        Raises:
            StoreFull: it can never fit into the quota, or the disk is full.
            StoreFailed: the disk refuses.
        """
        artefact = manifest.id
        if manifest.size > self._quota:
            raise StoreFull(
                f"the artefact has {manifest.size} bytes and the store's quota is {self._quota}"
            )
        with self._lock:
            if artefact not in self._artefacts:
                self._write_artefact(manifest, leaves)
                self._enter(artefact, _Artefact(manifest, list(leaves), False, 0))
            self.touch(artefact)
            self._artefacts[artefact].in_use += 1
        return StoredSink(self, manifest, list(leaves))

    def release(self, artefact: bytes) -> None:
        """Nobody writes or reads it as a whole any more: it may be evicted."""
        with self._lock:
            found = self._artefacts.get(artefact)
            if found is not None and found.in_use:
                found.in_use -= 1

    def write(self, leaf: bytes, data: Buffer) -> None:
        """Keep a block whose hash is `leaf` (the caller has checked it).

        Raises:
            StoreFull, StoreFailed: it was not kept; nothing else has changed.
        """
        with self._lock:
            if leaf in self._blocks:
                return
            self._make_room(len(data))
            self._used += len(
                data
            )  # before the lock is given up: others must not take the same room
        try:
            with _mapped(self._root):
                if _free(self._root) - len(data) < self._reserve:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                path = self._path(leaf)
                path.parent.mkdir(mode=0o700, exist_ok=True)
                self._replace(path, data)
        except BaseException:
            with self._lock:
                self._used -= len(data)
            raise
        with self._lock:
            if leaf in self._blocks:  # two threads wrote the same
                self._used -= len(data)
            self._blocks[leaf] = len(data)

    @contextmanager
    def putting(self) -> Iterator[Putting]:
        """Write blocks whose artefact is not known before the last one; they are safe from eviction meanwhile."""
        putting = Putting(self)
        try:
            yield putting
        finally:
            with self._lock:
                self._putting.subtract(putting.leaves)
                self._putting += Counter()  # forget the zeros
                for leaf in putting.leaves:
                    if not self._users[leaf] and not self._putting[leaf]:
                        self._drop(leaf)

    def touch(self, artefact: bytes) -> None:
        """It is being used."""
        with self._lock:
            found = self._artefacts.get(artefact)
            if found is not None:
                folder = self._names / artefact.hex()
                with contextlib.suppress(OSError):
                    os.utime(folder)
                    found.used_ns = folder.stat().st_mtime_ns

    def pin(self, artefact: bytes, *, pinned: bool = True) -> None:
        """Have it stay, or let it go when room is needed.

        Raises:
            StoreFailed: the disk refuses, or the artefact is not here.
        """
        with self._lock:
            found = self._artefacts.get(artefact)
            if found is None:
                raise StoreFailed(f"there is no artefact {artefact.hex()[:16]} in the store")
            mark = self._names / artefact.hex() / "pinned"
            with _mapped(self._root):
                if pinned:
                    mark.touch(0o600)
                else:
                    mark.unlink(missing_ok=True)
            found.pinned = pinned

    def remove(self, artefact: bytes) -> None:
        """Forget an artefact, with the blocks that nobody else shares."""
        with self._lock:
            found = self._artefacts.pop(artefact, None)
            if found is None:
                return
            folder = self._names / artefact.hex()
            doomed = self._root / f"{PART}{secrets.token_hex(8)}"
            with contextlib.suppress(OSError):
                folder.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
            for leaf in found.leaves:
                self._users[leaf] -= 1
                if not self._users[leaf]:
                    del self._users[leaf]
                    if not self._putting[leaf]:
                        self._drop(leaf)

    # Inside

    def _load(self) -> None:
        """Learn what is here, and remove what is unfinished or belongs to nothing."""
        for path in self._root.iterdir():
            if path.name.startswith(PART):
                _remove(path)
        for folder in sorted(self._names.iterdir()):
            try:
                artefact = self._load_artefact(folder)
            except (InvalidArtefact, OSError) as error:
                _log.warning("%s is not used, and removed: %s", folder.name[:80], error)
                _remove(folder)
            else:
                self._enter(artefact.manifest.id, artefact)
        for path in [path for group in sorted(self._data.iterdir()) for path in _inside(group)]:
            leaf = bytes.fromhex(path.name) if _HEX.fullmatch(path.name) else b""
            status = path.lstat()
            good = (
                self._users[leaf]
                and path.parent.name == path.name[:2]
                and stat.S_ISREG(status.st_mode)
                and status.st_size <= BLOCK_BYTES
            )
            if good:
                self._blocks[leaf] = status.st_size
                self._used += status.st_size
            else:  # of a `put` that was killed, or nothing of ours
                _remove(path)
        self._users += Counter()

    def _load_artefact(self, folder: Path) -> _Artefact:
        if not _HEX.fullmatch(folder.name):
            raise InvalidArtefact("its name is no artefact's id")
        manifest = Manifest.decode(read_regular(folder / "manifest", MAX_MANIFEST_BYTES))
        if manifest.id.hex() != folder.name:
            raise InvalidArtefact("its name is not the hash of its manifest")
        leaves = manifest.check_leaves(read_regular(folder / "leaves", MAX_BLOCKS * HASH_BYTES))
        pinned = (folder / "pinned").exists()
        return _Artefact(manifest, leaves, pinned, folder.stat().st_mtime_ns)

    def _enter(self, artefact: bytes, found: _Artefact) -> None:
        self._artefacts[artefact] = found
        self._users.update(found.leaves)

    def _write_artefact(self, manifest: Manifest, leaves: Sequence[bytes]) -> None:
        staging = self._root / f"{PART}{secrets.token_hex(8)}"
        final = self._names / manifest.id.hex()
        try:
            with _mapped(self._root):
                staging.mkdir(0o700)
                write_new(staging / "manifest", manifest.raw)
                write_new(staging / "leaves", b"".join(leaves))
                sync_folder(staging)
                _remove(final)  # of nobody: what is known is not written again
                staging.rename(final)
                sync_folder(self._names)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise

    def _make_room(self, size: int) -> None:
        while self._used + size > self._quota:
            idle = [
                (found.used_ns, artefact)
                for artefact, found in self._artefacts.items()
                if not found.pinned and not found.in_use
            ]
            if not idle:
                raise StoreFull(
                    f"the store's quota of {self._quota} bytes is full of what is pinned or in use"
                )
            self.remove(min(idle)[1])

    def _path(self, leaf: bytes) -> Path:
        name = leaf.hex()
        return self._data / name[:2] / name

    def _read_file(self, leaf: bytes, size: int) -> bytes | None:
        try:
            data = read_regular(self._path(leaf), size)
        except (OSError, InvalidArtefact):
            return None
        return data if len(data) == size and leaf_hash(data) == leaf else None

    def _drop(self, leaf: bytes, *, damaged: bool = False) -> None:
        size = self._blocks.pop(leaf, None)
        if size is not None:
            self._used -= size
            self._damaged += damaged
            if damaged:
                _log.warning("the block %s was damaged on the disk: removed", leaf.hex()[:16])
            _remove(self._path(leaf))

    def _replace(self, path: Path, data: Buffer) -> None:
        part = self._root / f"{PART}{secrets.token_hex(8)}"
        try:
            write_new(part, data)
            part.rename(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


class Putting:
    """Blocks on their way in, before their artefact has a name."""

    def __init__(self, store: BlockStore) -> None:
        self.leaves: list[bytes] = []
        self._store = store

    def write(self, data: Buffer) -> bytes:
        """Hash and keep the next block; raises as `BlockStore.write` does."""
        leaf = leaf_hash(data)
        with self._store._lock:  # noqa: SLF001 (one unit)
            self._store._putting[leaf] += 1  # noqa: SLF001
            self.leaves.append(leaf)
        self._store.write(leaf, data)
        return leaf


class StoredSink(Sink):
    """Writes the blocks of one artefact into the store."""

    def __init__(self, store: BlockStore, manifest: Manifest, leaves: list[bytes]) -> None:
        self._store, self._manifest, self._leaves = store, manifest, leaves

    def have(self) -> Bitmap:
        """Which blocks are here *and* sound: reads them all, so that a fetch brings what is not."""
        bitmap = self._store.have(self._manifest.id)
        assert bitmap is not None, "it is in use, so it is not removed"
        for block in range(self._manifest.blocks):
            if bitmap[block]:
                bitmap[block] = self._store.read(self._manifest.id, block) is not None
        return bitmap

    def write(self, block: int, data: memoryview) -> None:
        """See `Sink`."""
        self._store.write(self._leaves[block], data)


def _inside(folder: Path) -> list[Path]:
    if folder.is_dir() and not folder.is_symlink():
        return sorted(folder.iterdir())
    _remove(folder)
    return []


def _remove(path: Path) -> None:
    """Whatever it is; never through a link."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def read_regular(path: Path, most: int) -> bytes:
    """The content of a plain file of at most `most` bytes.

    Raises:
        OSError: it cannot be read.
        InvalidArtefact: it is a link, a folder, a device, or larger.
    """
    try:
        return read_plain(path, most)
    except NotPlain as error:
        raise InvalidArtefact(f"a file of the store cannot be used: {error.strerror}") from None


def _free(path: Path) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


@contextmanager
def _mapped(root: Path) -> Iterator[None]:
    """Errors of the disk as ours."""
    try:
        yield
    except OSError as error:
        _raise(error, root)


def _raise(error: OSError, root: Path) -> NoReturn:
    reason = error.strerror or str(error)
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        raise StoreFull(f"the disk under {root} is full: {reason}") from error
    raise StoreFailed(f"the disk under {root} failed: {reason}") from error
