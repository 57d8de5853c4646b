"""All that this node can give to others: what lies in its store, and files that are served from where they are.

Checkpoints are the second kind: they are never written again, so copying them into the store would only double them. Every block is
checked when it is read, wherever it comes from; what has changed or gone is refused and not given.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import attrs

from gossip.blocks import bitmap as bits
from gossip.blocks.bitmap import Bitmap
from gossip.blocks.library import Library
from gossip.blocks.manifest import FileEntry, Manifest
from gossip.blocks.merkle import BLOCK_BYTES, PAGE, leaf_hash
from node.blocks.files import Source, blocks_of
from node.blocks.store import BlockStore

__all__ = ["InPlace", "NodeLibrary"]


@attrs.frozen
class InPlace:
    """An artefact over files that lie elsewhere."""

    manifest: Manifest
    leaves: tuple[bytes, ...]
    files: tuple[Path, ...]

    @classmethod
    def of(cls, kind: str, sources: Sequence[Source], *, entry: str = "") -> InPlace:
        """Hash files where they are; 0.6 CPU-s/GiB, call it in a thread.

        Raises:
            NodedError: one of them cannot be read, or changes.
            InvalidArtefact: too many, or too large.
        """
        entries: list[FileEntry] = []
        leaves = tuple(leaf_hash(block) for block in blocks_of(sources, entries))
        manifest = Manifest.describe(kind, entries, leaves, entry=entry)
        return cls(manifest, leaves, tuple(source.file for source in sources))

    def read(self, block: int) -> bytes | None:
        """A block, checked; None if the files are not what they were."""
        start, data = block * BLOCK_BYTES, b""
        end = start + self.manifest.block_size(block)
        at = 0
        try:
            for entry, file in zip(self.manifest.files, self.files, strict=True):
                low, high = max(start, at), min(end, at + entry.size)
                if low < high:
                    fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                    try:
                        data += os.pread(fd, high - low, low - at)
                    finally:
                        os.close(fd)
                at += entry.size
        except OSError:
            return None
        return data if leaf_hash(data) == self.leaves[block] else None


class NodeLibrary(Library):
    """The store, and what is served in place."""

    def __init__(self, store: BlockStore) -> None:
        self.store = store
        self._lock = threading.Lock()
        self._places: dict[bytes, InPlace] = {}

    def ids(self) -> list[bytes]:
        """Everything that can be given, in place first."""
        with self._lock:
            places = list(self._places)
        return [*places, *(known for known in self.store.ids() if known not in places)]

    def show(self, place: InPlace) -> bytes:
        """Serve files in place from now on; returns the artefact's id."""
        with self._lock:
            self._places[place.manifest.id] = place
        return place.manifest.id

    def hide(self, artefact: bytes) -> None:
        """Stop serving files in place."""
        with self._lock:
            self._places.pop(artefact, None)

    def _place(self, artefact: bytes) -> InPlace | None:
        with self._lock:
            return self._places.get(artefact)

    def manifest(self, artefact: bytes) -> Manifest | None:
        """See `Library`."""
        place = self._place(artefact)
        return self.store.manifest(artefact) if place is None else place.manifest

    def page(self, artefact: bytes, page: int) -> bytes | None:
        """See `Library`."""
        place = self._place(artefact)
        if place is None:
            return self.store.page(artefact, page)
        return b"".join(place.leaves[page * PAGE : (page + 1) * PAGE])

    def have(self, artefact: bytes) -> Bitmap | None:
        """See `Library`."""
        place = self._place(artefact)
        return self.store.have(artefact) if place is None else bits.full(place.manifest.blocks)

    def read(self, artefact: bytes, block: int) -> bytes | None:
        """See `Library`."""
        place = self._place(artefact)
        return self.store.read(artefact, block) if place is None else place.read(block)
