from __future__ import annotations

import builtins
import hashlib
import os
import pathlib
import shutil

import numpy as np
import pytest

from node.run import checkpoint as module
from node.run.checkpoint import (
    CheckpointCorrupt,
    CheckpointMissing,
    CheckpointNotSaved,
    Trust,
    load,
    newest,
    prune,
    publish,
    require,
    scan,
    sweep,
    verify,
)
from node.run.tensor_file import write_tensors
from transport.identity import Identity

ALICE = Identity.from_seed(b"a" * 32)
MALLORY = Identity.from_seed(b"m" * 32)
RUN = bytes(32)
OTHER_RUN = b"\1" * 32
TRUST = Trust(run_id=RUN, public_keys={ALICE.public_key})


def tensors_of(step):
    return {
        "weight": np.full((3, 4), step, np.float32),
        "noded.random.torch": np.arange(9, dtype="u1"),
    }


def save(root, step, *, tensors=None, identity=ALICE, run=RUN, keep=3, **more):
    root.mkdir(exist_ok=True)
    written = write_tensors(root / f".saving-{step}.safetensors", tensors or tensors_of(step))
    return publish(
        root,
        written.path,
        run_id=run,
        round=step // 32,
        step=step,
        state_sha256=bytes(32),
        sign=identity.sign,
        public_key=identity.public_key,
        sha256=written.sha256,
        keep=keep,
        **more,
    )


@pytest.fixture
def root(tmp_path):
    return tmp_path / "checkpoints"


def test_a_checkpoint_comes_back(root):
    made = save(root, 320, name="demo", created_at=5)
    assert made.path == root / "step-00000320"
    assert {path.name for path in made.path.iterdir()} == {"model.safetensors", "manifest.json"}
    assert verify(made.path, TRUST) == made
    found, tensors = load(made.tensors_path, TRUST)
    assert found == made
    assert np.array_equal(tensors.tensors["weight"], tensors_of(320)["weight"])
    assert (found.manifest.step, found.manifest.round, found.manifest.name) == (320, 10, "demo")
    assert found.sha256 == hashlib.sha256(made.tensors_path.read_bytes()).digest()
    assert oct(root.stat().st_mode)[-3:] in {"700", "755"}


def test_the_last_ones_are_kept(root):
    for step in (32, 64, 96, 128, 160):
        save(root, step, keep=3)
    assert [path.name for path in scan(root)] == ["step-00000160", "step-00000128", "step-00000096"]
    assert len(list(root.iterdir())) == 3
    prune(root, keep=0)
    assert [path.name for path in scan(root)] == ["step-00000160"]


def test_no_checkpoint_is_not_an_error(root):
    assert newest(root, TRUST).checkpoint is None
    assert scan(root) == []
    with pytest.raises(CheckpointMissing):
        require(root / "step-00000032", TRUST)


def test_the_newest_good_one_is_found_and_the_bad_ones_are_named(root):
    for step in (32, 64, 96):
        save(root, step)
    path = root / "step-00000096" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    found = newest(root, TRUST)
    assert found.checkpoint is not None
    assert found.checkpoint.manifest.step == 64
    assert [error.path.name for error in found.skipped] == ["step-00000096"]
    with pytest.raises(CheckpointCorrupt) as caught:
        require(root / "step-00000096", TRUST)
    assert "step-00000096" in str(caught.value)
    assert "step-00000064" in caught.value.hint


def test_a_bad_one_without_an_older_one_says_so(root):
    made = save(root, 32)
    made.tensors_path.write_bytes(b"")
    with pytest.raises(CheckpointCorrupt) as caught:
        require(made.path, TRUST)
    assert "no older checkpoint" in caught.value.hint


def test_the_same_step_replaces_itself(root):
    save(root, 32)
    made = save(root, 32, tensors={"weight": np.full((3, 4), 5.0, np.float32)})
    assert [path.name for path in root.iterdir()] == ["step-00000032"]
    assert load(made.path, TRUST)[1].tensors["weight"][0, 0] == 5


def test_nothing_here_can_unpickle():
    source = pathlib.Path(module.__file__).read_text()
    assert "pickle" not in source.replace("unpickles", "")
    assert "torch" not in source.replace("needs torch", "")


# ---- killed while saving ----


class Killed(BaseException):
    """The process ended here: no handler may touch the disk any more."""


class DyingDisk:
    """Counts calls that change the disk; the chosen one and all after it never happen."""

    CALLS = ("open", "write", "fsync", "rename", "mkdir", "unlink", "rmdir", "replace")

    def __init__(self, monkeypatch, dies_at):
        self.calls = 0
        self.dies_at = dies_at
        for name in self.CALLS:
            monkeypatch.setattr(os, name, self._wrap(getattr(os, name)))

    def _wrap(self, real):
        def call(*args, **kwargs):
            self.calls += 1
            if self.calls >= self.dies_at:
                raise Killed
            return real(*args, **kwargs)

        return call


@pytest.mark.parametrize("same_step", [False, True])
def test_killed_at_any_point_a_save_is_whole_or_invisible(tmp_path, same_step):
    """Every call that changes the disk, one after another, is the last one that does not happen."""
    step = 64 if same_step else 96
    seen, dies_at = set(), 0
    while True:
        dies_at += 1
        root = tmp_path / f"c{dies_at}"
        save(root, 32)
        save(root, 64)
        with pytest.MonkeyPatch.context() as patch:
            disk = DyingDisk(patch, dies_at)
            try:
                save(root, step, tensors={"weight": np.full((3, 4), 7, np.float32)}, keep=2)
            except Killed:
                died = True
            else:
                died = False
        found = newest(root, TRUST)
        assert found.skipped == ()
        value = load(found.checkpoint.path, TRUST)[1].tensors["weight"][0, 0]
        assert (found.checkpoint.manifest.step, value) in {(64, 64.0), (step, 7.0)}
        seen.add(float(value))
        sweep(root)
        assert newest(root, TRUST).checkpoint == found.checkpoint
        again = save(root, 128)
        assert newest(root, TRUST).checkpoint == again
        if not died:
            break
        shutil.rmtree(root)
    assert dies_at > 8, disk.calls
    assert seen == {64.0, 7.0}


@pytest.mark.parametrize("call", ["fsync", "rename", "mkdir"])
def test_an_error_of_the_disk_costs_only_the_new_one(root, monkeypatch, call):
    save(root, 32)
    written = write_tensors(root / ".saving-x", tensors_of(64))

    def refuse(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(CheckpointNotSaved) as caught:
            publish(root, written.path, run_id=RUN, round=2, step=64, state_sha256=bytes(32),
                    sign=ALICE.sign, public_key=ALICE.public_key)  # fmt: skip
    assert "No space" in str(caught.value)
    assert caught.value.hint
    assert [path.name for path in root.iterdir()] == ["step-00000032"]
    assert newest(root, TRUST).checkpoint.manifest.step == 32


def test_a_file_that_is_not_what_was_written_is_not_published(root):
    root.mkdir()
    written = write_tensors(root / ".saving-x", tensors_of(64))
    with pytest.raises(CheckpointNotSaved):
        publish(root, written.path, run_id=RUN, round=2, step=64, state_sha256=bytes(32),
                sign=ALICE.sign, public_key=ALICE.public_key, sha256=bytes(32))  # fmt: skip
    assert scan(root) == []


def test_not_a_number_is_not_published(root):
    with pytest.raises(CheckpointNotSaved, match="NaN"):
        save(root, 32, tensors={"weight": np.float32([np.nan])})
    assert list(root.iterdir()) == []


def test_sweep_removes_what_is_unfinished_and_nothing_else(root):
    save(root, 32)
    (root / ".saving-00000064-1.safetensors").write_bytes(b"half")
    (root / ".saving-00000064-abcd").mkdir()
    (root / ".saving-00000064-abcd" / "model.safetensors").write_bytes(b"half")
    (root / "notes.txt").write_text("mine")
    assert sweep(root) == 2
    assert sorted(path.name for path in root.iterdir()) == ["notes.txt", "step-00000032"]
    assert sweep(root / "no") == 0


def test_verifying_needs_no_memory_for_the_tensors(root, monkeypatch):
    made = save(root, 32, tensors={"weight": np.ones(1 << 20, np.float32)})
    reads = []
    real = os.pread

    def pread(fd, length, offset):
        reads.append(length)
        return real(fd, length, offset)

    monkeypatch.setattr(os, "pread", pread)
    verify(made.path, TRUST)
    assert max(reads) <= 1 << 20
    assert builtins.sum(reads) >= 2 * (4 << 20)
