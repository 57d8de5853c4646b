"""What an artefact's manifest may say, and what is refused."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.blocks.bitmap import pack_bits, unpack_bits
from gossip.blocks.errors import InvalidArtefact, InvalidArtefactId
from gossip.blocks.manifest import (
    MAX_BLOCKS,
    FileEntry,
    Manifest,
    artefact_id,
    bad_path,
    parse_id,
)
from gossip.blocks.merkle import BLOCK_BYTES, PAGE

LEAVES = [bytes([number]) * 32 for number in range(3)]
FILES = [FileEntry("model/weights.bin", 2 * BLOCK_BYTES), FileEntry("notes.txt", 5)]
GOOD = Manifest.describe("folder", FILES, LEAVES)


def changed(**fields: Any) -> bytes:
    plain = msgpack.unpackb(GOOD.raw)
    plain.update(fields)
    return msgpack.packb({key: value for key, value in plain.items() if value is not None})


def test_what_is_described_is_read_back() -> None:
    read = Manifest.decode(GOOD.raw)
    assert read == GOOD
    assert (read.size, read.blocks, read.block_size(2)) == (2 * BLOCK_BYTES + 5, 3, 5)
    assert read.id == artefact_id(GOOD.raw)
    assert read.check_leaves(b"".join(LEAVES)) == LEAVES


def test_the_id_never_changes() -> None:
    """Golden: an id that people have copied must mean the same in the next release."""
    assert GOOD.id.hex() == "a4da0f3a3a2a42f877e2f87b9a70b3237ccf5da955da850a8a1805efa4a6a6fb"


def test_nothing_at_all_is_an_artefact_too() -> None:
    empty = Manifest.describe("file", [FileEntry("empty", 0)], [])
    assert Manifest.decode(empty.raw).blocks == 0
    assert empty.check_leaves(b"") == []


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"v": 2}, "malformed"),
        ({"kind": "virus"}, "unknown kind"),
        ({"size": 5}, "another size"),
        ({"size": (PAGE + 1) * BLOCK_BYTES}, "pages"),
        ({"size": -1}, "malformed"),
        ({"size": (MAX_BLOCKS + 1) * BLOCK_BYTES}, "malformed"),
        ({"size": 2 * BLOCK_BYTES + 6}, "files have another size"),
        ({"root": bytes(32)}, "root"),
        ({"root": b"short"}, "malformed"),
        ({"pages": bytes(32)}, "root"),
        ({"pages": b""}, "pages"),
        ({"files": [["a", 1]]}, "another size"),
        ({"files": [["a", 2 * BLOCK_BYTES], ["a", 5]]}, "twice"),
        ({"files": [["a", 2 * BLOCK_BYTES], ["A", 5]]}, "twice"),
        ({"files": [["a", 2 * BLOCK_BYTES], ["a/b", 5]]}, "also a folder"),
        ({"files": [["../../etc/passwd", 2 * BLOCK_BYTES + 5]]}, "relative"),
        ({"files": [["/etc/passwd", 2 * BLOCK_BYTES + 5]]}, "relative"),
        ({"files": [["a\0b", 2 * BLOCK_BYTES + 5]]}, "control"),
        ({"entry": "os:system"}, "entry"),
        ({"kind": "task"}, "entry"),
        ({"kind": "task", "entry": "__import__('os').system('x')"}, "entry"),
        ({"extra": 1}, "malformed"),
        ({"files": None}, "malformed"),
    ],
)  # fmt: skip
def test_refused_with_the_reason(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidArtefact, match=reason):
        Manifest.decode(changed(**fields))


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x80", GOOD.raw[:-1], GOOD.raw + b"\0"])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidArtefact):
        Manifest.decode(data)


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(InvalidArtefact):
        Manifest.decode(data)


@pytest.mark.parametrize(
    "path",
    [
        "", "/", "/a", "a/", "a//b", ".", "..", "a/..", "./a", "a/../b", "a\\b", "c:x", "a\nb", "a\x7f",
        "x" * 201, "/".join("a" * 9), "\ud800", "a\u202eb",
    ],
)  # fmt: skip
def test_paths_that_are_no_good(path: str) -> None:
    assert bad_path(path)


@pytest.mark.parametrize("path", ["a", ".a", "a b", "ä", "a/b.c/d", "-rf", "..."])
def test_paths_that_are(path: str) -> None:
    assert not bad_path(path)


def test_pages_are_checked_one_by_one() -> None:
    leaves = [number.to_bytes(32, "big") for number in range(PAGE + 2)]
    manifest = Manifest.describe("file", [FileEntry("f", (PAGE + 2) * BLOCK_BYTES)], leaves)
    assert manifest.check_page(1, b"".join(leaves[PAGE:])) == leaves[PAGE:]
    for page, data in [
        (0, b"".join(leaves[1 : PAGE + 1])),
        (1, b"".join(leaves[PAGE:])[::-1]),
        (1, leaves[PAGE]),
        (2, b""),
        (-1, b"".join(leaves[PAGE:])),
    ]:
        with pytest.raises(InvalidArtefact):
            manifest.check_page(page, data)
    with pytest.raises(InvalidArtefact):
        manifest.check_leaves(b"".join(leaves[:-1]))


def test_too_much_for_one_manifest() -> None:
    files = [FileEntry(f"{number:03}" + "x" * 190, 0) for number in range(400)]
    with pytest.raises(InvalidArtefact, match="too long"):
        Manifest.describe("folder", files, [])
    with pytest.raises(InvalidArtefact, match="do not hold"):
        Manifest.describe("file", [FileEntry("f", 5)], [])


def test_ids_as_people_type_them() -> None:
    assert parse_id(" " + GOOD.id.hex().upper() + "\n") == GOOD.id
    for text in ("", "12", GOOD.id.hex()[:-1], GOOD.id.hex() + "0", "g" * 64):
        with pytest.raises(InvalidArtefactId):
            parse_id(text)


@given(st.lists(st.booleans(), max_size=70))
def test_bitmaps_survive_the_wire(bits: list[bool]) -> None:
    import numpy as np

    bitmap = np.array(bits, np.bool_)
    assert list(unpack_bits(pack_bits(bitmap), len(bits))) == bits


@pytest.mark.parametrize(("data", "blocks"), [(b"", 1), (b"\0", 9), (b"\0\0", 8), (b"\x01", 7)])
def test_bitmaps_that_are_none(data: bytes, blocks: int) -> None:
    with pytest.raises(InvalidArtefact):
        unpack_bits(data, blocks)
