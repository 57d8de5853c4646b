"""Checkpoints: a folder that is either whole and signed, or not there.

Problem: a node can be killed at any instant, its disk can fill or rot, and a checkpoint may have
been made by somebody else. None of this may cost the last good checkpoint, run code, or put
numbers into the model that nobody stands for.

Idea: one folder per checkpoint, which appears by a single rename when everything in it is on the
disk::

    checkpoints/step-00000320/model.safetensors     tensors and private training state
                              manifest.json         what they are, signed by the node's key

    manifest.json = {"manifest": {...}, "public_key": hex, "signature": hex}

The signature covers the very bytes of the inner object as they stand in the file. The trainer
writes and fsyncs the tensors file; the daemon, which alone holds the key, calls `publish`.

Invariants:
- `publish` killed anywhere leaves every earlier checkpoint loadable and the new one whole or
  invisible. Folders are renamed, never rewritten; a file that failed to fsync is never tried again.
- A file is believed in this order: manifest small and well-formed, signature by a trusted key,
  size, SHA-256, header (names, types and shapes equal to the manifest's), finite numbers.
- Nothing here needs torch, and nothing unpickles.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Final

import attrs
import msgspec
import numpy as np

from node.errors import NodedError
from node.run import tensor_file
from node.run.tensor_file import BadTensorFile, TensorInfo, Tensors
from transport.durable import sync_folder, write_new

__all__ = [
    "MANIFEST_NAME",
    "TENSORS_NAME",
    "Checkpoint",
    "CheckpointCorrupt",
    "CheckpointError",
    "CheckpointManifest",
    "CheckpointMissing",
    "CheckpointNotSaved",
    "Trust",
    "load",
    "newest",
    "prune",
    "publish",
    "require",
    "scan",
    "sweep",
    "verify",
]

TENSORS_NAME: Final = "model.safetensors"
MANIFEST_NAME: Final = "manifest.json"
MAX_MANIFEST_BYTES: Final = 4 << 20
"""Room for 10,000 tensors with long names."""
TEMPORARY_PREFIX: Final = ".saving-"
"""Whatever starts so is unfinished; `sweep` removes it when the daemon starts."""

_SCHEMA: Final = "noded.checkpoint/1"
_DOMAIN: Final = b"noded checkpoint 1\0"
_FOLDER: Final = re.compile(r"step-(\d{8,16})(\.replaced)?")

Sign = Callable[[bytes], bytes]
VerifySignature = Callable[[bytes, bytes, bytes], bool]
"""(public key, signature, data) to whether the signature is good."""


class CheckpointError(NodedError):
    """Root of what can be wrong with checkpoints."""


class CheckpointMissing(CheckpointError):
    """There is no checkpoint where one was asked for."""


class CheckpointNotSaved(CheckpointError):
    """A checkpoint could not be written; the earlier ones are untouched."""


class CheckpointCorrupt(CheckpointError):
    """A checkpoint is damaged, forged or of another run; the message says which and why."""

    def __init__(self, path: Path, reason: str, *, hint: str = "") -> None:
        super().__init__(f"the checkpoint {path} cannot be used: {reason}", hint=hint)
        self.path = path
        self.reason = reason


class CheckpointManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a checkpoint is; signed."""

    schema: str = _SCHEMA
    run: str
    """`RunManifest.hash` in hex."""
    name: str = ""
    """Name of the run, for people."""
    round: int
    step: int
    """Local optimizer steps per node that the state stands for."""
    state_sha256: str
    """Of the consensus vectors, in hex."""
    size: int
    """Bytes of the tensors file."""
    sha256: str
    """Of the tensors file, in hex."""
    tensors: tuple[TensorInfo, ...]
    """Ordered by name."""
    created_at: int = 0
    """Wall clock seconds since 1970, for people."""


class _Envelope(msgspec.Struct, forbid_unknown_fields=True):
    manifest: msgspec.Raw
    public_key: str
    signature: str


@attrs.frozen(kw_only=True)
class Trust:
    """Which checkpoints to believe."""

    run_id: bytes | None = None
    """Accept only this run's; None accepts any."""
    public_keys: Collection[bytes] | None = None
    """Accept only these signers; None accepts any valid signature (integrity, not origin)."""
    verify_signature: VerifySignature | None = None
    """Defaults to `transport.identity.verify`."""

    def good(self, public_key: bytes, signature: bytes, data: bytes) -> bool:
        """Whether a signature is valid, whoever's it is."""
        if self.verify_signature is not None:
            return self.verify_signature(public_key, signature, data)
        from transport.identity import verify

        return verify(public_key, signature, data)


ANYBODY: Final = Trust()


@attrs.frozen
class Checkpoint:
    """A checkpoint that was verified, or just made."""

    path: Path
    manifest: CheckpointManifest
    public_key: bytes

    @property
    def tensors_path(self) -> Path:
        """The tensors file."""
        return self.path / TENSORS_NAME

    @property
    def sha256(self) -> bytes:
        """Of the tensors file."""
        return bytes.fromhex(self.manifest.sha256)


@attrs.frozen
class Newest:
    """What `newest` found."""

    checkpoint: Checkpoint | None
    skipped: tuple[CheckpointCorrupt, ...]
    """Newer folders that cannot be used, newest first."""


def publish(
    root: Path,
    file: Path,
    *,
    run_id: bytes,
    round: int,  # noqa: A002 (the project's word for it)
    step: int,
    state_sha256: bytes,
    sign: Sign,
    public_key: bytes,
    sha256: bytes | None = None,
    name: str = "",
    created_at: int = 0,
    keep: int = 3,
) -> Checkpoint:
    """Sign the finished tensors file and make it a checkpoint under `root`; keep the last `keep`.

    `file` must be on the file system of `root`; it is moved away, and removed if publishing fails.
    Reads the whole file once (about 1 GB/s): call it from a thread.

    `sha256` is what the writer says it wrote: a difference means that the disk or the writer lies.

    Raises:
        CheckpointNotSaved: bad file, disk full, input/output error; earlier checkpoints are intact.
    """
    staging = root / f"{TEMPORARY_PREFIX}{step:08d}-{secrets.token_hex(4)}"
    try:
        infos, size, digest = _inspect(file)
        if sha256 is not None and digest != sha256:
            raise CheckpointNotSaved(
                f"the tensors file {file.name} changed after it was written",
                hint="check the disk; the earlier checkpoints are untouched",
            )
        manifest = CheckpointManifest(
            run=run_id.hex(),
            name=name,
            round=round,
            step=step,
            state_sha256=state_sha256.hex(),
            size=size,
            sha256=digest.hex(),
            tensors=infos,
            created_at=created_at,
        )
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        staging.mkdir(0o700)
        file.rename(staging / TENSORS_NAME)
        write_new(staging / MANIFEST_NAME, _seal(manifest, sign, public_key))
        sync_folder(staging)
        _put_in_place(staging, root / f"step-{step:08d}")
        sync_folder(root)
    except (OSError, BadTensorFile) as error:
        file.unlink(missing_ok=True)
        shutil.rmtree(staging, ignore_errors=True)
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CheckpointNotSaved(
            f"the checkpoint of step {step} was not saved: {reason or error}",
            hint=f"free some space under {root}; training goes on and the next one is tried",
        ) from error
    prune(root, keep=keep)
    return Checkpoint(root / f"step-{step:08d}", manifest, public_key)


def scan(root: Path) -> list[Path]:
    """Folders under `root` that look like checkpoints, newest first; an absent root has none."""
    try:
        names = [path.name for path in root.iterdir()]
    except OSError:
        return []
    found = [(match, name) for name in names if (match := _FOLDER.fullmatch(name))]
    # A folder being replaced counts as older than its replacement.
    found.sort(key=lambda pair: (int(pair[0][1]), pair[0][2] is None), reverse=True)
    return [root / name for _, name in found]


def newest(root: Path, trust: Trust = ANYBODY) -> Newest:
    """The newest checkpoint that verifies, and what had to be passed over."""
    skipped: list[CheckpointCorrupt] = []
    for path in scan(root):
        try:
            return Newest(verify(path, trust), tuple(skipped))
        except CheckpointCorrupt as error:
            skipped.append(error)
    return Newest(None, tuple(skipped))


def require(path: Path, trust: Trust = ANYBODY) -> Checkpoint:
    """Verify the checkpoint at `path`; if it is bad, the error names the next usable one.

    Raises:
        CheckpointMissing: nothing there.
        CheckpointCorrupt: its hint names an older checkpoint that verifies, if there is one.
    """
    try:
        return verify(path, trust)
    except CheckpointCorrupt as error:
        older = [other for other in scan(path.parent) if other.name < path.name]
        for other in older:
            with contextlib.suppress(CheckpointError):
                verify(other, trust)
                hint = f"the next usable one is {other.name}; remove {path.name} to use it"
                break
        else:
            hint = (
                f"no older checkpoint in {path.parent} can be used; without it the run starts anew"
            )
        raise CheckpointCorrupt(path, error.reason, hint=hint) from None


def verify(path: Path, trust: Trust = ANYBODY) -> Checkpoint:
    """Check a checkpoint completely without loading it (memory: 1 MiB).

    Raises:
        CheckpointMissing: nothing there.
        CheckpointCorrupt: anything else that is wrong with it.
    """
    with _opened(path, trust) as (fd, manifest, public_key):

        def read(offset: int, length: int) -> bytes:
            return tensor_file.pread_exactly(fd, offset, length)

        _require(tensor_file.hash_file(fd, manifest.size).hex() == manifest.sha256, _BAD_HASH)
        header = tensor_file.read_header(read, manifest.size)
        _require(header.infos == manifest.tensors, _BAD_TENSORS)
        tensor_file.check_finite(read, header)
        return Checkpoint(_folder_of(path), manifest, public_key)


def load(path: Path, trust: Trust = ANYBODY) -> tuple[Checkpoint, Tensors]:
    """Verify a checkpoint and read its tensors.

    `path` is the checkpoint's folder or the tensors file in it. The file is read once, and what was
    read is what is hashed and used: changing the file meanwhile gains nothing.

    Raises:
        CheckpointMissing: nothing there.
        CheckpointCorrupt: anything else that is wrong with it.
    """
    with _opened(path, trust) as (fd, manifest, public_key):
        data = memoryview(np.empty(manifest.size, np.uint8).data)
        digest = hashlib.sha256()
        for start in range(0, manifest.size, tensor_file.CHUNK_BYTES):
            length = min(tensor_file.CHUNK_BYTES, manifest.size - start)
            data[start : start + length] = tensor_file.pread_exactly(fd, start, length)
            digest.update(data[start : start + length])
        _require(digest.hexdigest() == manifest.sha256, _BAD_HASH)
        header = tensor_file.read_header(lambda at, length: data[at : at + length], manifest.size)
        _require(header.infos == manifest.tensors, _BAD_TENSORS)
        tensors = Tensors(tensor_file.read_tensors(data, header), header.metadata)
        return Checkpoint(_folder_of(path), manifest, public_key), tensors


def prune(root: Path, *, keep: int) -> None:
    """Remove all but the newest `keep` (at least one) checkpoints; never raises for a busy disk."""
    for path in scan(root)[max(keep, 1) :]:
        # Out of sight first: a half-removed folder must not look like a checkpoint.
        doomed = root / f"{TEMPORARY_PREFIX}{path.name}-{secrets.token_hex(4)}"
        try:
            path.rename(doomed)
        except OSError:
            continue
        shutil.rmtree(doomed, ignore_errors=True)


def sweep(root: Path) -> int:
    """Remove what killed processes left unfinished under `root`; for the daemon's start only."""
    removed = 0
    with contextlib.suppress(OSError):
        for path in sorted(root.iterdir()):
            if path.name.startswith(TEMPORARY_PREFIX):
                removed += 1
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
    return removed


_BAD_HASH: Final = "its SHA-256 is not the signed one"
_BAD_TENSORS: Final = "its tensors are not those of its manifest"


@contextlib.contextmanager
def _opened(path: Path, trust: Trust) -> Iterator[tuple[int, CheckpointManifest, bytes]]:
    """The tensors file's descriptor, manifest and signer, after every check that reads no tensors.

    Maps whatever goes wrong inside to `CheckpointCorrupt`.
    """
    folder = _folder_of(path)
    if not folder.is_dir():
        raise CheckpointMissing(f"there is no checkpoint at {folder}")
    try:
        manifest, public_key = _unseal(folder / MANIFEST_NAME, trust)
        fd, size = tensor_file.open_regular(folder / TENSORS_NAME)
        try:
            _require(size == manifest.size, f"it has {size} bytes, {manifest.size} are signed")
            yield fd, manifest, public_key
        finally:
            os.close(fd)
    except BadTensorFile as error:
        raise CheckpointCorrupt(folder, str(error)) from None
    except OSError as error:
        raise CheckpointCorrupt(folder, error.strerror or str(error)) from None


def _folder_of(path: Path) -> Path:
    return path.parent if path.name == TENSORS_NAME else path


def _require(condition: object, reason: str) -> None:
    if not condition:
        raise BadTensorFile(reason)


def _inspect(file: Path) -> tuple[tuple[TensorInfo, ...], int, bytes]:
    fd, size = tensor_file.open_regular(file)
    try:

        def read(offset: int, length: int) -> bytes:
            return tensor_file.pread_exactly(fd, offset, length)

        header = tensor_file.read_header(read, size)
        tensor_file.check_finite(read, header)
        return header.infos, size, tensor_file.hash_file(fd, size)
    finally:
        os.close(fd)


def _seal(manifest: CheckpointManifest, sign: Sign, public_key: bytes) -> bytes:
    body = msgspec.json.encode(manifest)
    envelope = _Envelope(msgspec.Raw(body), public_key.hex(), sign(_DOMAIN + body).hex())
    return msgspec.json.encode(envelope)


def _unseal(path: Path, trust: Trust) -> tuple[CheckpointManifest, bytes]:
    fd, size = tensor_file.open_regular(path)
    try:
        _require(size <= MAX_MANIFEST_BYTES, f"its manifest has {size} bytes: too many")
        data = tensor_file.pread_exactly(fd, 0, size)
    finally:
        os.close(fd)
    try:
        envelope = msgspec.json.decode(data, type=_Envelope)
        body = bytes(envelope.manifest)
        public_key = bytes.fromhex(envelope.public_key)
        signature = bytes.fromhex(envelope.signature)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise BadTensorFile(f"its manifest is malformed: {str(error)[:200]}") from None
    _require(
        trust.public_keys is None or public_key in trust.public_keys,
        "it is signed by somebody who is not trusted here",
    )
    _require(trust.good(public_key, signature, _DOMAIN + body), "its signature is wrong")
    try:
        manifest = msgspec.json.decode(body, type=CheckpointManifest)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BadTensorFile(f"its manifest is malformed: {str(error)[:200]}") from None
    _require(manifest.schema == _SCHEMA, f"its schema is {manifest.schema[:80]!r}, not {_SCHEMA}")
    _require(
        trust.run_id is None or manifest.run == trust.run_id.hex(),
        f"it belongs to another run ({(manifest.name or manifest.run)[:64]!r})",
    )
    counts = (manifest.round, manifest.step, manifest.size)
    _require(all(0 <= count < 2**53 for count in counts), "its round, step or size is no count")
    return manifest, public_key


def _put_in_place(staging: Path, final: Path) -> None:
    """Give the finished folder its name; an equal step of an earlier attempt steps aside first."""
    aside = final.with_name(final.name + ".replaced")
    shutil.rmtree(aside, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        final.rename(aside)
    staging.rename(final)
    shutil.rmtree(aside, ignore_errors=True)
