"""The store on the disk: what it keeps, what it gives back, and what garbage, full disks and kills do to it."""

from __future__ import annotations

import os
import random
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gossip.blocks.errors import ArtefactUnavailable, StoreFailed, StoreFull
from gossip.blocks.manifest import FileEntry, Manifest
from gossip.blocks.merkle import BLOCK_BYTES, leaf_hash
from node.blocks.files import Source, put_files, sources_of, unpack
from node.blocks.library import InPlace, NodeLibrary
from node.blocks.reader import StoredArtefact
from node.blocks.store import PART, BlockStore
from node.errors import UsageError

MIB = BLOCK_BYTES
QUOTA = 64 * MIB


def open_store(root: Path, quota: int = QUOTA) -> BlockStore:
    return BlockStore(root, quota_bytes=quota, reserve_bytes=0)


def made(folder: Path, size: int, seed: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / f"file-{seed}.bin"
    file.write_bytes(random.Random(seed).randbytes(size))
    return file


def put(store: BlockStore, file: Path, *, pin: bool = False) -> Manifest:
    return put_files(store, "file", sources_of(file), pin=pin)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "blocks"


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB + 17])
def test_what_is_put_comes_out_again_also_after_a_restart(
    tmp_path: Path, root: Path, size: int
) -> None:
    file = made(tmp_path / "in", size)
    manifest = put(open_store(root), file)
    store = open_store(root)
    assert store.complete(manifest.id)
    out = unpack(lambda block: store.read(manifest.id, block), manifest, tmp_path / "out")
    assert out.read_bytes() == file.read_bytes()
    beside = StoredArtefact(root, manifest.id)
    assert beside.manifest == manifest
    assert b"".join(beside.read(n) or b"" for n in range(manifest.blocks)) == file.read_bytes()


def test_a_folder_with_its_folders(tmp_path: Path, root: Path) -> None:
    made(tmp_path / "in", MIB + 5, 1)
    made(tmp_path / "in", 0, 2)
    (tmp_path / "in" / "deep").mkdir()
    made(tmp_path / "in" / "deep", 2 * MIB, 3)
    store = open_store(root)
    manifest = put_files(store, "folder", sources_of(tmp_path / "in"))
    out = unpack(lambda block: store.read(manifest.id, block), manifest, tmp_path / "out")
    for source in sources_of(tmp_path / "in"):
        assert (out / source.path).read_bytes() == source.file.read_bytes()
    assert sources_of(out) == [
        Source(out / source.path, source.path) for source in sources_of(tmp_path / "in")
    ]
    with pytest.raises(UsageError, match="there already"):
        unpack(lambda block: store.read(manifest.id, block), manifest, tmp_path / "out")


def test_the_same_content_is_kept_once(tmp_path: Path, root: Path) -> None:
    store = open_store(root)
    data = made(tmp_path / "in", 4 * MIB).read_bytes()
    (tmp_path / "in" / "again").write_bytes(data)
    first, second = (
        put(store, tmp_path / "in" / "file-0.bin"),
        put(store, tmp_path / "in" / "again"),
    )
    assert first.id != second.id
    assert store.usage().bytes == 4 * MIB
    store.remove(first.id)
    assert store.complete(second.id)
    store.remove(second.id)
    assert store.usage().bytes == 0
    assert not [path for path in (root / "data").rglob("*") if path.is_file()]


def test_the_least_recently_used_makes_room_and_the_pinned_stays(
    tmp_path: Path, root: Path
) -> None:
    store = open_store(root, 8 * MIB)
    kept = [put(store, made(tmp_path / "in", 2 * MIB, n), pin=n == 0) for n in range(4)]
    for number, manifest in enumerate(kept):
        os.utime(root / "artefacts" / manifest.id.hex(), (number, number))
    store = open_store(root, 8 * MIB)  # the order survives a restart
    store.touch(kept[1].id)
    put(store, made(tmp_path / "in", 2 * MIB, 9))
    there = [manifest.id in store.ids() for manifest in kept]
    assert there == [True, True, False, True]
    with pytest.raises(StoreFull, match="pinned or in use"):
        put(store, made(tmp_path / "in", 7 * MIB, 10))
    assert store.usage().bytes <= 8 * MIB
    assert store.complete(kept[0].id)


def test_more_than_the_quota_is_refused_at_once(root: Path) -> None:
    leaves = [bytes(32)] * 9
    manifest = Manifest.describe("file", [FileEntry("f", 9 * MIB)], leaves)
    with pytest.raises(StoreFull, match="quota"):
        open_store(root, 8 * MIB).add(manifest, leaves)


@pytest.mark.parametrize(
    "garbage",
    ["flipped", "cut", "longer", "empty", "link", "folder", "fifo", "unreadable name"],
)
def test_garbage_in_the_place_of_a_block_is_found_and_fetched_anew(
    tmp_path: Path, root: Path, garbage: str
) -> None:
    file = made(tmp_path / "in", 3 * MIB)
    manifest = put(open_store(root), file)
    store = open_store(root)
    leaves = store.leaves(manifest.id)
    assert leaves is not None
    path = root / "data" / leaves[1].hex()[:2] / leaves[1].hex()
    data = path.read_bytes()
    path.unlink()
    match garbage:
        case "flipped":
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "cut":
            path.write_bytes(data[:-1])
        case "longer":
            path.write_bytes(data + b"x")
        case "empty":
            path.touch()
        case "link":
            path.symlink_to(tmp_path / "in" / "file-0.bin")
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case _:
            path.with_name("zz" * 32).write_bytes(data)
    assert store.read(manifest.id, 1) is None
    assert store.usage().damaged == 1
    assert not store.complete(manifest.id)
    again = open_store(root)
    sink = again.add(manifest, leaves)
    assert list(sink.have()) == [True, False, True]
    sink.write(1, memoryview(data))
    assert again.read(manifest.id, 1) == data


def test_garbage_in_the_folders_is_removed(tmp_path: Path, root: Path) -> None:
    manifest = put(open_store(root), made(tmp_path / "in", MIB))
    good = root / "artefacts" / manifest.id.hex()
    (root / f"{PART}abc").write_bytes(b"half")
    (root / f"{PART}def").mkdir()
    (root / "data" / "stray").write_bytes(b"?")
    (root / "data" / "ab").mkdir(exist_ok=True)
    (root / "data" / "ab" / ("ab" * 32)).write_bytes(b"of a killed put")
    for name, files in {
        "not an id": {},
        "cd" * 32: {"manifest": b"\xc1", "leaves": b""},
        "ef" * 32: {"manifest": manifest.raw, "leaves": (good / "leaves").read_bytes()},
    }.items():
        folder = root / "artefacts" / name
        folder.mkdir()
        for file, data in files.items():
            (folder / file).write_bytes(data)
    store = open_store(root)
    assert store.ids() == [manifest.id]
    assert store.complete(manifest.id)
    assert sorted(path.name for path in root.iterdir()) == ["artefacts", "data"]
    assert [path.name for path in (root / "artefacts").iterdir()] == [manifest.id.hex()]
    assert sum(path.is_file() for path in (root / "data").rglob("*")) == 1


def test_forged_leaves_lose_the_artefact_and_not_more(tmp_path: Path, root: Path) -> None:
    store = open_store(root)
    one, other = (put(store, made(tmp_path / "in", MIB, seed)) for seed in (1, 2))
    (root / "artefacts" / one.id.hex() / "leaves").write_bytes(bytes(32))
    store = open_store(root)
    assert store.ids() == [other.id]
    assert store.complete(other.id)


def test_everything_is_for_the_owner_alone(tmp_path: Path, root: Path) -> None:
    umask = os.umask(0)
    try:
        put(open_store(root), made(tmp_path / "in", MIB), pin=True)
    finally:
        os.umask(umask)
    modes = {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in [root, *root.rglob("*")]}
    assert modes == {0}


def test_links_and_devices_are_not_put(tmp_path: Path, root: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "passwd").symlink_to("/etc/passwd")
    for path in (tmp_path / "in", tmp_path / "in" / "passwd", Path("/dev/null"), tmp_path / "no"):
        with pytest.raises(UsageError):
            put_files(open_store(root), "folder", sources_of(path))


def test_a_file_that_grows_while_it_is_put(tmp_path: Path, root: Path) -> None:
    file = made(tmp_path / "in", 2 * MIB)
    store = open_store(root)

    def grow(_done: int) -> None:
        with file.open("ab") as end:
            end.write(b"more")

    with pytest.raises(UsageError, match="changed while it was read"):
        put_files(store, "file", sources_of(file), progress=grow)
    assert store.usage().bytes == 0
    assert store.ids() == []


def test_what_is_missing_leaves_nothing_half_written(tmp_path: Path, root: Path) -> None:
    store = open_store(root)
    manifest = put(store, made(tmp_path / "in", 3 * MIB))
    (tmp_path / "out").mkdir()
    with pytest.raises(ArtefactUnavailable):
        unpack(
            lambda block: store.read(manifest.id, block) if block < 2 else None,
            manifest,
            tmp_path / "out" / "file",
        )
    assert list((tmp_path / "out").iterdir()) == []


def test_files_are_served_in_place_until_they_change(tmp_path: Path, root: Path) -> None:
    made(tmp_path / "in", MIB + 3, 1)
    file = made(tmp_path / "in", 2 * MIB, 2)
    place = InPlace.of("folder", sources_of(tmp_path / "in"))
    library = NodeLibrary(open_store(root))
    artefact = library.show(place)
    assert artefact == put_files(open_store(root), "folder", sources_of(tmp_path / "in")).id
    for block in range(place.manifest.blocks):
        data = library.read(artefact, block)
        assert data is not None
        assert leaf_hash(data) == place.leaves[block]
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert library.read(artefact, place.manifest.blocks - 1) is None
    file.unlink()
    assert library.read(artefact, place.manifest.blocks - 1) is None
    library.hide(artefact)
    library.store.remove(artefact)
    assert library.manifest(artefact) is None


# ---- a small disk, and kills ------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path):
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=6m,mode=0700", "tmpfs", str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_is_said_and_costs_nothing_that_was_there(
    tmp_path: Path, small_disk: Path
) -> None:
    store = open_store(small_disk / "blocks")
    good = put(store, made(tmp_path / "in", 2 * MIB, 1))
    with pytest.raises(StoreFull, match="disk"):
        put(store, made(tmp_path / "in", 6 * MIB, 2))
    assert store.usage().bytes == 2 * MIB
    assert not [path for path in store._root.iterdir() if path.name.startswith(PART)]
    assert store.complete(good.id)
    assert store.read(good.id, 1) is not None
    put(store, made(tmp_path / "in", 2 * MIB, 3))  # the room is free again
    reserved = BlockStore(small_disk / "blocks", quota_bytes=QUOTA, reserve_bytes=4 * MIB)
    with pytest.raises(StoreFull):
        put(reserved, made(tmp_path / "in", MIB, 4))


def test_a_disk_that_refuses(tmp_path: Path, root: Path) -> None:
    store = open_store(root)
    (root / "data").rmdir()
    (root / "data").write_bytes(b"")
    with pytest.raises(StoreFailed):
        put(store, made(tmp_path / "in", MIB))
    assert store.usage().bytes == 0


KILLED = """
import os, sys
from pathlib import Path
from node.blocks import store as module
from node.blocks.files import put_files, sources_of
at = int(sys.argv[3])
calls = 0
def counted(real):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), 9)
        return real(*args, **kwargs)
    return call
for name in ("open", "write", "fsync"):
    setattr(os, name, counted(getattr(os, name)))
Path.rename = counted(Path.rename)
Path.mkdir = counted(Path.mkdir)
store = module.BlockStore(Path(sys.argv[1]), quota_bytes=1 << 30, reserve_bytes=0)
put_files(store, "file", sources_of(Path(sys.argv[2])))
"""


@pytest.mark.real
@pytest.mark.parametrize("at", [1, 4, 9, 12, 15, 18, 21, 24, 27, 30])
def test_killed_at_any_call_the_store_opens_whole(tmp_path: Path, root: Path, at: int) -> None:
    """SIGKILL at the n-th system call of a put of three blocks; what was there stays, and nothing half is shown."""
    before = put(open_store(root), made(tmp_path / "in", MIB, 1))
    file = made(tmp_path / "in", 3 * MIB, 2)
    command = [sys.executable, "-c", KILLED, str(root), str(file), str(at)]
    done = subprocess.run(command, check=False, cwd=Path(__file__).parents[3])
    assert done.returncode in {-9, 0}
    store = open_store(root)
    assert store.complete(before.id)
    for artefact in store.ids():
        assert store.complete(artefact)
        manifest = store.manifest(artefact)
        assert manifest is not None
        assert all(store.read(artefact, n) is not None for n in range(manifest.blocks))
    assert store.usage().damaged == 0
    assert not [path for path in root.iterdir() if path.name.startswith(PART)]
    assert store.complete(put(store, file).id)
