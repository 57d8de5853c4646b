"""What an artefact is: its files, its size and the root over its blocks; sans-IO.

    manifest   msgpack map, at most 60 KiB
      v        1
      kind     "file", "folder", "task", "checkpoint" or "state": how to use it; the exchange does not look at it
      size     bytes of all files together
      root     32 bytes, the Merkle root (see `merkle`)
      pages    32 bytes per page of 1024 blocks: the roots of the pages, from which `root` follows
      files    [[path, size], ...]: laid one after another in this order they are the content
      entry    for a task, `module:Class`; else ""

    artefact id   SHA-256("noded artefact 1" 00 || manifest)

The manifest stays below one control message because the leaves are not in it: pages of them are fetched apart and checked against
`pages`. The same files in the same order with the same names have the same id, whoever puts them.

Paths are hostile until proved otherwise: relative, plain, and neither absolute nor upward nor twice; see `bad_path`.
Invariant: `Manifest.decode` raises `InvalidArtefact` and nothing else, whatever the bytes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Annotated, Final

import attrs
import msgspec

from gossip.blocks.errors import InvalidArtefact, InvalidArtefactId
from gossip.blocks.merkle import BLOCK_BYTES, HASH_BYTES, PAGE, page_roots, tree_root
from transport.codec import decode_untrusted, pack
from transport.errors import MalformedMessage, MessageTooLarge

__all__ = [
    "KINDS",
    "MAX_BLOCKS",
    "MAX_MANIFEST_BYTES",
    "FileEntry",
    "Manifest",
    "artefact_id",
    "bad_path",
    "parse_id",
]

MAX_MANIFEST_BYTES: Final = 60 << 10
"""With the answer around it this is one control message."""
MAX_BLOCKS: Final = 256 * PAGE
"""256 GiB: a bitmap over so many blocks is 32 KiB, half a control message."""
MAX_FILES: Final = 512
"""A folder of more is packed first: the names have to fit into one message."""
MAX_PATH_BYTES: Final = 200
MAX_PATH_PARTS: Final = 8
KINDS: Final = frozenset({"file", "folder", "task", "checkpoint", "state"})

_DOMAIN: Final = b"noded artefact 1\0"
_ENTRY: Final = re.compile(
    r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*"
)


@attrs.frozen
class FileEntry:
    """One file of an artefact."""

    path: str
    """Relative, parts separated by `/`."""
    size: int
    """Bytes."""


class _Wire(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    v: Annotated[int, msgspec.Meta(ge=1, le=1)] = 1
    kind: Annotated[str, msgspec.Meta(max_length=16)]
    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_BLOCKS * BLOCK_BYTES)]
    root: Annotated[bytes, msgspec.Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
    pages: Annotated[bytes, msgspec.Meta(max_length=MAX_BLOCKS // PAGE * HASH_BYTES)]
    files: Annotated[
        tuple[tuple[str, Annotated[int, msgspec.Meta(ge=0)]], ...],
        msgspec.Meta(max_length=MAX_FILES),
    ]
    entry: Annotated[str, msgspec.Meta(max_length=MAX_PATH_BYTES)] = ""


@attrs.frozen
class Manifest:
    """A checked manifest; made by `decode` or `describe`."""

    kind: str
    size: int
    """Bytes of the whole content."""
    pages: tuple[bytes, ...]
    files: tuple[FileEntry, ...]
    entry: str
    raw: bytes = attrs.field(repr=False)
    """The bytes that `id` is the hash of."""

    @classmethod
    def describe(
        cls,
        kind: str,
        files: Sequence[FileEntry],
        leaves: Sequence[bytes],
        *,
        entry: str = "",
    ) -> Manifest:
        """The manifest of a content with these files and leaf hashes.

        Raises:
            InvalidArtefact: too many files or blocks, a path that could not be unpacked, or leaves
                that cannot belong to so many bytes.
        """
        roots = page_roots(leaves)
        wire = _Wire(
            kind=kind,
            size=sum(file.size for file in files),
            root=tree_root(roots),
            pages=b"".join(roots),
            files=tuple((file.path, file.size) for file in files),
            entry=entry,
        )
        if len(leaves) != -(-wire.size // BLOCK_BYTES):
            raise InvalidArtefact(f"{len(leaves)} blocks do not hold {wire.size} bytes")
        try:
            raw = pack(wire, limit=MAX_MANIFEST_BYTES)
        except MessageTooLarge:
            raise InvalidArtefact(
                "the names of the files are too long for one manifest",
                hint="pack them into one archive first",
            ) from None
        return cls.decode(raw)

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """Read an untrusted manifest.

        Raises:
            InvalidArtefact: whatever is wrong with the bytes.
        """
        try:
            wire = decode_untrusted(data, _Wire, limit=MAX_MANIFEST_BYTES)
        except MalformedMessage as error:
            raise InvalidArtefact(f"the manifest is malformed: {error}") from None
        _require(wire.kind in KINDS, "the manifest is of an unknown kind")
        blocks = -(-wire.size // BLOCK_BYTES)
        _require(
            len(wire.pages) == HASH_BYTES * -(-blocks // PAGE),
            "the manifest lists other pages than its size needs",
        )
        pages = tuple(
            wire.pages[at : at + HASH_BYTES] for at in range(0, len(wire.pages), HASH_BYTES)
        )
        _require(tree_root(pages) == wire.root, "the manifest's root is not that of its pages")
        files = tuple(FileEntry(path, size) for path, size in wire.files)
        _require(
            sum(file.size for file in files) == wire.size, "the manifest's files have another size"
        )
        _check_paths([file.path for file in files])
        entry_good = not wire.entry or _ENTRY.fullmatch(wire.entry)
        _require(
            entry_good and bool(wire.entry) == (wire.kind == "task"),
            "the manifest's entry is not module:Class of a task",
        )
        return cls(wire.kind, wire.size, pages, files, wire.entry, bytes(data))

    @property
    def id(self) -> bytes:
        """The artefact's id, 32 bytes."""
        return artefact_id(self.raw)

    @property
    def blocks(self) -> int:
        """How many blocks the content has."""
        return -(-self.size // BLOCK_BYTES)

    def block_size(self, block: int) -> int:
        """Bytes of block number `block`."""
        return min(BLOCK_BYTES, self.size - block * BLOCK_BYTES)

    def leaves_in(self, page: int) -> int:
        """How many leaves page number `page` has."""
        return min(PAGE, self.blocks - page * PAGE)

    def check_page(self, page: int, data: bytes) -> list[bytes]:
        """The leaf hashes of a page, if `data` holds exactly them.

        Raises:
            InvalidArtefact: they are not the ones that the manifest stands for.
        """
        _require(
            0 <= page < len(self.pages) and len(data) == HASH_BYTES * self.leaves_in(page),
            "a page of hashes has another length",
        )
        leaves = [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)]
        _require(
            tree_root(leaves) == self.pages[page], "a page of hashes is not the manifest's own"
        )
        return leaves

    def check_leaves(self, data: bytes) -> list[bytes]:
        """All leaf hashes, if `data` holds exactly them; raises as `check_page` does."""
        _require(len(data) == HASH_BYTES * self.blocks, "the list of hashes has another length")
        leaves: list[bytes] = []
        for page in range(len(self.pages)):
            start = page * PAGE * HASH_BYTES
            leaves += self.check_page(page, data[start : start + self.leaves_in(page) * HASH_BYTES])
        return leaves


def artefact_id(raw: bytes) -> bytes:
    """The id of the artefact with that manifest."""
    return hashlib.sha256(_DOMAIN + raw).digest()


def parse_id(text: str) -> bytes:
    """The id that a person typed: 64 hexadecimal digits.

    Raises:
        InvalidArtefactId: it is none.
    """
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text.strip()):
        raise InvalidArtefactId(f"{text[:80]!a} is not the id of an artefact")
    return bytes.fromhex(text.strip())


def bad_path(path: str) -> str:
    """Why a file may not have this path in an artefact; "" if it may.

    Allowed are names that mean the same everywhere and stay below the folder they are unpacked into.
    """
    if not path or len(path.encode(errors="surrogatepass")) > MAX_PATH_BYTES:
        return f"a path has 1 to {MAX_PATH_BYTES} bytes"
    if not path.isprintable() or "\\" in path or ":" in path:
        return "a path has no control characters, backslashes or colons"
    parts = path.split("/")
    if any(part in {"", ".", ".."} for part in parts):
        return "a path is relative, without '.' and '..'"
    if len(parts) > MAX_PATH_PARTS:
        return f"a path has at most {MAX_PATH_PARTS} parts"
    return ""


def _check_paths(paths: Sequence[str]) -> None:
    for path in paths:
        reason = bad_path(path)
        _require(not reason, f"the manifest names a file that cannot be unpacked: {reason}")
    known = {path.casefold() for path in paths}
    _require(len(known) == len(paths), "the manifest names a file twice")
    for path in known:
        parts = path.split("/")
        above = {"/".join(parts[:count]) for count in range(1, len(parts))}
        _require(not above & known, "the manifest names a file that is also a folder")


def _require(condition: object, reason: str) -> None:
    if not condition:
        raise InvalidArtefact(reason)
