"""Checkpoints that somebody made to do harm: one named table, each refused with its reason, and nothing in any of them runs.

The signer is trusted unless the case says otherwise: a signature says who, never that it is harmless. The process is watched by an audit hook
(PEP 578) while each is looked at: nothing may be unpickled, and no process started.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pathlib
import shutil
import sys
import tempfile
import zipfile

import msgspec
import numpy as np
import pytest

from gossip.blocks.errors import InvalidArtefact
from gossip.blocks.manifest import FileEntry, Manifest
from node.blocks.files import put_files, sources_of, unpack
from node.blocks.store import BlockStore
from node.run import checkpoint as module
from node.run.checkpoint import CheckpointCorrupt, load, newest, verify
from node.run.tensor_file import write_tensors
from tests.node.test_checkpoint import ALICE, MALLORY, OTHER_RUN, TRUST, save, tensors_of

CANARY = pathlib.Path(tempfile.gettempdir(), f"noded-canary-{os.getpid()}")
RAN: list[str] = []
FORBIDDEN = {"pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn"}
WATCHING = [False]


def watch(event: str, _arguments: object) -> None:
    if WATCHING[0] and event in FORBIDDEN:
        RAN.append(event)


sys.addaudithook(watch)


class Bomb:
    def __reduce__(self):
        return (os.system, (f"touch {CANARY}",))


def pickled() -> bytes:
    import pickle

    return pickle.dumps(Bomb())


def reseal(made, identity=ALICE, **changes):
    """Sign changed claims: what a hostile signer can do."""
    manifest = msgspec.structs.replace(made.manifest, **changes)
    (made.path / "manifest.json").write_bytes(
        module._seal(manifest, identity.sign, identity.public_key)
    )


def swap_tensors(made, data, **changes):
    """Other bytes in the place of the tensors, and a signature that fits them."""
    made.tensors_path.write_bytes(data)
    reseal(made, size=len(data), sha256=hashlib.sha256(data).hexdigest(), **changes)


def rewrite_tensors(made, tensors):
    made.tensors_path.unlink()
    written = write_tensors(made.tensors_path, tensors)
    reseal(made, size=written.size, sha256=written.sha256.hex())


def edit_manifest(made, **changes):
    path = made.path / "manifest.json"
    envelope = json.loads(path.read_bytes())
    envelope["manifest"].update(changes)
    path.write_text(json.dumps(envelope))


def manifest_bytes(data):
    return lambda made: (made.path / "manifest.json").write_bytes(data())


def header(text: bytes, tensors: bytes = b""):
    return lambda made: swap_tensors(made, len(text).to_bytes(8, "little") + text + tensors)


def value_in(number):
    def act(made):
        tensors = tensors_of(1)
        tensors["weight"][0, 0] = number
        rewrite_tensors(made, tensors)

    return act


def link_to_elsewhere(made):
    target = made.path.parent / "elsewhere"
    shutil.move(made.tensors_path, target)
    made.tensors_path.symlink_to(target)


def link_out_of_the_folder(made):
    made.tensors_path.unlink()
    made.tensors_path.symlink_to("../../../../../../../../etc/passwd")


def manifest_as_pipe(made):
    (made.path / "manifest.json").unlink()
    os.mkfifo(made.path / "manifest.json")


def torch_archive(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", data)
    return buffer.getvalue()


F = '"dtype":"F32"'

# name -> (what is done to a good checkpoint, what the refusal says)
HOSTILE = {
    # Code
    "pickle in the place of the tensors": (
        lambda m: m.tensors_path.write_bytes(pickled()), "bytes, .* are signed"),
    "signed pickle in the place of the tensors": (
        lambda m: swap_tensors(m, pickled()), "the header claims"),
    "signed torch archive with a pickle in it": (
        lambda m: swap_tensors(m, torch_archive(pickled())), "the header claims"),
    "pickle in the place of the manifest": (manifest_bytes(pickled), "manifest is malformed"),
    # Compression bombs: nothing here decompresses
    "signed archive that unpacks to a gigabyte": (
        lambda m: swap_tensors(m, torch_archive(bytes(1 << 26))), "the header claims"),
    "signed gzip of zeros": (
        lambda m: swap_tensors(m, gzip.compress(bytes(1 << 26))), "the header claims"),
    # Header bombs
    "header of an exabyte": (
        lambda m: swap_tensors(m, (2**60).to_bytes(8, "little") + b"{}"), "the header claims"),
    "header that says 480 gigabytes of tensor": (
        header(b'{"weight":{"dtype":"F32","shape":[3,4],"data_offsets":[0,480000000000]}}'),
        "does not fit its place"),
    "header nested a hundred thousand deep": (header(b"[" * 100_000), "the header is no JSON"),
    "header with a tensor twice": (
        header(f'{{"w":{{{F},"shape":[1],"data_offsets":[0,4]}},"w":{{{F},"shape":[1],"data_offsets":[0,4]}}}}'.encode(), bytes(4)),
        "the header is no JSON"),
    "tensors that overlap": (
        header(f'{{"a":{{{F},"shape":[1],"data_offsets":[0,4]}},"b":{{{F},"shape":[1],"data_offsets":[0,4]}}}}'.encode(), bytes(4)),
        "overlaps or leaves a gap"),
    "bytes hidden behind the tensors": (
        header(f'{{"w":{{{F},"shape":[1],"data_offsets":[0,4]}}}}'.encode(), bytes(4) + b"hidden"),
        "the tensors end at"),
    "a type that is an object": (
        header(b'{"w":{"dtype":"OBJ","shape":[1],"data_offsets":[0,4]}}', bytes(4)), "unknown fields or type"),
    "ten thousand and two tensors": (
        header(json.dumps({str(i): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(10_002)}).encode()),
        "too many"),
    # Numbers
    "signed NaN": (value_in(np.nan), "holds NaN or infinity"),
    "signed infinity": (value_in(-np.inf), "holds NaN or infinity"),
    # What is there and what is not
    "truncated": (
        lambda m: m.tensors_path.write_bytes(m.tensors_path.read_bytes()[:-8]), "are signed"),
    "longer": (
        lambda m: m.tensors_path.write_bytes(m.tensors_path.read_bytes() + b"\0" * 8), "are signed"),
    "one bit flipped": (
        lambda m: m.tensors_path.write_bytes(m.tensors_path.read_bytes()[:-1] + b"\x40"),
        "SHA-256 is not the signed one"),
    "no manifest": (lambda m: (m.path / "manifest.json").unlink(), "No such file"),
    "no tensors": (lambda m: m.tensors_path.unlink(), "No such file"),
    "empty manifest": (manifest_bytes(lambda: b""), "manifest is malformed"),
    "manifest of five mebibytes": (manifest_bytes(lambda: b" " * (5 << 20)), "too many"),
    "manifest nested a hundred thousand deep": (
        manifest_bytes(lambda: b"[" * 100_000), "manifest is malformed"),
    # Path tricks
    "tensors are a link": (link_to_elsewhere, "symbolic link"),
    "tensors are a link out of the folder": (link_out_of_the_folder, "symbolic link"),
    "manifest is a pipe that nobody writes to": (manifest_as_pipe, "not a regular file"),
    # Claims
    "edited step": (lambda m: edit_manifest(m, step=10**6), "signature is wrong"),
    "edited sha256": (lambda m: edit_manifest(m, sha256="00" * 32), "signature is wrong"),
    "reformatted manifest": (edit_manifest, "signature is wrong"),
    "signed by somebody else": (lambda m: reseal(m, MALLORY), "not trusted here"),
    "of another run": (lambda m: reseal(m, run=OTHER_RUN.hex()), "another run"),
    "of another schema": (lambda m: reseal(m, schema="noded.checkpoint/99"), "its schema is"),
    "negative step": (lambda m: reseal(m, step=-5), "no count"),
    "claims an exabyte": (lambda m: reseal(m, size=2**60), "no count"),
    "claims other tensors": (lambda m: reseal(m, tensors=()), "not those of its manifest"),
    "signed other shape": (
        lambda m: rewrite_tensors(m, {**tensors_of(1), "weight": np.zeros((4, 3), np.float32)}),
        "not those of its manifest"),
    "signed extra tensor": (
        lambda m: rewrite_tensors(m, {**tensors_of(1), "extra": np.zeros(1, np.float32)}),
        "not those of its manifest"),
}  # fmt: skip


@pytest.fixture
def watched():
    RAN.clear()
    WATCHING[0] = True
    yield
    WATCHING[0] = False
    assert RAN == []
    assert not CANARY.exists()


@pytest.fixture
def root(tmp_path):
    return tmp_path / "checkpoints"


def assert_refused(path, name):
    for check in (verify, load):
        with pytest.raises(CheckpointCorrupt, match=HOSTILE[name][1]) as caught:
            check(path, TRUST)
        assert caught.value.reason


@pytest.mark.parametrize("name", HOSTILE)
def test_refused_with_the_reason_and_nothing_runs(root, name, watched):
    good = save(root, 32)
    made = save(root, 64)
    HOSTILE[name][0](made)
    assert_refused(made.path, name)
    assert newest(root, TRUST).checkpoint == good


def test_there_are_twenty_and_more():
    assert len(HOSTILE) >= 20


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in HOSTILE
        if not name.startswith(("no ", "tensors are a link", "manifest is a pipe"))
    ],
)
def test_refused_as_well_when_it_has_come_as_an_artefact(root, tmp_path, name, watched):
    """Each hostile folder put, fetched and unpacked elsewhere: blocks carry it faithfully, and it is refused there."""
    made = save(root, 64)
    HOSTILE[name][0](made)
    store = BlockStore(tmp_path / "blocks", quota_bytes=1 << 30, reserve_bytes=0)
    manifest = put_files(store, "checkpoint", sources_of(made.path))
    out = unpack(
        lambda block: store.read(manifest.id, block), manifest, tmp_path / "there" / "step-00000064"
    )
    assert_refused(out, name)


@pytest.mark.parametrize(
    "path",
    [
        "../../model.safetensors",
        "/etc/cron.d/model",
        "checkpoints/../../../.ssh/authorized_keys",
        "model.safetensors/../x",
        "model\0.safetensors",
    ],
)
def test_an_artefact_cannot_name_a_place_outside(path):
    """Refused when the manifest is read: there is nothing left to unpack."""
    with pytest.raises(InvalidArtefact, match="cannot be unpacked"):
        Manifest.describe("checkpoint", [FileEntry(path, 0)], [])
