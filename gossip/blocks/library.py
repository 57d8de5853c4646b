"""Where blocks come from and where they go to: the two seams of the exchange, and both of them in memory.

A `Library` answers for a node's holdings; a `Sink` takes what is fetched. Those that say so are asked from worker threads where they are slow (reading
and writing a disk), so they lock what they share; those in memory are asked on the spot, since a block costs less than a thread's wake-up is worth, and since a
virtual clock does not wait for threads. `Vectors` is one artefact over arrays that lie in memory anyway: a member's
consensus state is served from where it is used.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import ClassVar

from gossip.blocks import bitmap as bits
from gossip.blocks.bitmap import Bitmap
from gossip.blocks.manifest import FileEntry, Manifest
from gossip.blocks.merkle import BLOCK_BYTES, HASH_BYTES, PAGE, leaf_hash
from transport.buffer import Buffer

__all__ = ["Library", "MemorySink", "Sink", "Vectors"]


class Library(ABC):
    """What a node can give to others."""

    blocking: ClassVar[bool] = True
    """Whether `read` may take long, and is called in a thread."""

    @abstractmethod
    def manifest(self, artefact: bytes) -> Manifest | None:
        """The manifest with that id, if it is known; quick."""

    @abstractmethod
    def page(self, artefact: bytes, page: int) -> bytes | None:
        """A page of leaf hashes of a known artefact; quick."""

    @abstractmethod
    def have(self, artefact: bytes) -> Bitmap | None:
        """Which blocks can be read; quick."""

    @abstractmethod
    def read(self, artefact: bytes, block: int) -> Buffer | None:
        """The bytes of a block, unchanged until they have been sent; None if they cannot be had.

        What is returned hashes to its leaf, or a fetcher will ban this node.
        """


class Sink(ABC):
    """Takes the blocks of one artefact."""

    blocking: ClassVar[bool] = True
    """Whether `write` may take long, and is called in a thread."""

    @abstractmethod
    def have(self) -> Bitmap:
        """Which blocks are here already."""

    @abstractmethod
    def write(self, block: int, data: memoryview) -> None:
        """Keep a block that was verified; `data` is only valid during the call. Called once or more for a block.

        Raises:
            StoreFull, StoreFailed: it cannot be kept; the fetch ends with that.
        """


class MemorySink(Sink):
    """Takes blocks into regions of memory that lie one after another."""

    blocking = False

    def __init__(self, into: Sequence[memoryview]) -> None:
        self._pieces = [view.cast("B") for view in into]
        self._starts = [0, *accumulate(len(piece) for piece in self._pieces)]
        self._have = bits.none(-(-self._starts[-1] // BLOCK_BYTES))

    def have(self) -> Bitmap:
        """Which blocks were written."""
        return self._have

    def write(self, block: int, data: memoryview) -> None:
        """Copy it into its place."""
        for piece, at, source in _overlaps(self._starts, block * BLOCK_BYTES, len(data)):
            self._pieces[piece][at : at + source.stop - source.start] = data[source]
        self._have[block] = True


class Vectors:
    """One artefact over regions of memory that lie one after another.

    Usable once `hashing` has been exhausted: it hashes everything, 0.6 CPU-s/GiB, one block (0.6 ms) at a step.

    Attributes:
        manifest: what it is.
    """

    manifest: Manifest

    def __init__(self, kind: str, name: str, regions: Sequence[memoryview]) -> None:
        self._pieces = [view.cast("B") for view in regions]
        self._starts = [0, *accumulate(len(piece) for piece in self._pieces)]
        self._kind, self._name = kind, name
        self._leaves = b""

    def hashing(self) -> Iterator[None]:
        """Work out the manifest, in steps."""
        size = self._starts[-1]
        leaves = []
        for start in range(0, size, BLOCK_BYTES):
            leaves.append(leaf_hash(self._gather(start, min(BLOCK_BYTES, size - start))))
            yield
        self._leaves = b"".join(leaves)
        self.manifest = Manifest.describe(self._kind, [FileEntry(self._name, size)], leaves)

    def page(self, page: int) -> bytes:
        """A page of leaf hashes."""
        return self._leaves[page * PAGE * HASH_BYTES : (page + 1) * PAGE * HASH_BYTES]

    def read(self, block: int) -> Buffer:
        """A block: where it lies if it lies in one piece, else a copy."""
        return self._gather(block * BLOCK_BYTES, self.manifest.block_size(block))

    def _gather(self, start: int, size: int) -> Buffer:
        parts = [
            self._pieces[piece][at : at + source.stop - source.start]
            for piece, at, source in _overlaps(self._starts, start, size)
        ]
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _overlaps(starts: Sequence[int], start: int, size: int) -> list[tuple[int, int, slice]]:
    """The pieces that bytes [start, start + size) of the whole lie in: (piece, offset in it, slice of those bytes)."""
    found = []
    for piece in range(len(starts) - 1):
        low, high = max(start, starts[piece]), min(start + size, starts[piece + 1])
        if low < high:
            found.append((piece, low - starts[piece], slice(low - start, high - start)))
    return found
