"""Whether this node may run the code that a run names (the one place that decides it).

A run's manifest names its task twice: by a name, for people, and by the hash of its code. The code comes from the operator, never from the network:

1. what is installed here, or lies in the operator's own folder, has that very hash: it runs as ever;
2. the operator has approved that hash with `noded trust`: the approved files are unpacked from the store into a folder of their own, which the
   trainer hashes again before each start, and they alone are imported;
3. otherwise the run waits, and says what to type. Approving goes on from there; nothing has to be restarted.

A run without a hash (made for scripts that attach by themselves, where the daemon starts no code) is bound to what is installed under its name.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import attrs
import trio

from gossip.blocks.errors import BlocksError
from gossip.blocks.manifest import Manifest
from node.blocks.approvals import Approvals
from node.blocks.files import Source, sources_of, unpack
from node.blocks.jobs import Job
from node.blocks.service import NodeBlocks
from node.blocks.tasks import TaskCode, find_task, task_of_files
from node.errors import NodedError, Refused
from node.run.manifest import RunManifest
from node.schema import Config, RunSection

__all__ = ["Permission", "TaskGate", "TaskNotAllowed"]

_log = logging.getLogger(__name__)

LOOK_S: Final = 1.0
"""Between two looks whether the task has been approved meanwhile."""


class TaskNotAllowed(Refused):
    """The run names code that nobody on this machine has allowed; the hint is the command that does."""


@attrs.frozen
class Permission:
    """How a trainer may be started."""

    task: str = ""
    """`module:Class` that may be imported beside what is installed; "" for installed tasks only."""
    user_path: str = ""
    """Folder to look for it."""
    approved: str = ""
    """Hash of its code in hexadecimal if the operator approved that: it must come from that folder, and from nowhere else."""


class TaskGate:
    """Decides for one node and its configured run.

    Args:
        config: the node's.
        section: its `[run]`.
        blocks: where approved code is kept, and given to others from.
    """

    def __init__(self, config: Config, section: RunSection, blocks: NodeBlocks) -> None:
        self._config, self._section, self._blocks = config, section, blocks
        self._approvals = Approvals(config.paths.data_dir)
        self._folder = config.paths.data_dir / "tasks"

    def own_hash(self) -> str:
        """The hash of the task that `[run] task` names here, in hexadecimal; "" if the daemon starts no trainer or cannot find it.

        Blocks for as long as reading some files takes.
        """
        found = self._local(self._section.task)
        return "" if found is None else found.id.hex()

    async def wait(
        self, manifest: RunManifest, on_refusal: Callable[[NodedError], None]
    ) -> Permission:
        """Wait until the run's code may be run here; `on_refusal` hears once why not.

        Raises:
            NodedError: what is here cannot be read.
        """
        told = False
        while True:
            try:
                return await self._decide(manifest)
            except TaskNotAllowed as error:
                if not told:
                    on_refusal(error)
                    told = True
            await trio.sleep(LOOK_S)

    async def _decide(self, manifest: RunManifest) -> Permission:
        section, trainer = self._section, self._config.trainer
        as_ever = Permission(section.task if trainer.user_path else "", trainer.user_path)
        if not trainer.auto or not manifest.task_hash:
            return as_ever
        local = await trio.to_thread.run_sync(self._local, manifest.task)
        if local is not None and local.id.hex() == manifest.task_hash:
            await self._offer(local)
            return as_ever
        wanted = bytes.fromhex(manifest.task_hash)
        if not await trio.to_thread.run_sync(self._approvals.approves, wanted):
            what = "is not installed here" if local is None else "differs from the one here"
            raise TaskNotAllowed(
                f"the run {manifest.name!r} asks for the code of task {manifest.task!r} with the hash "
                f"{manifest.task_hash[:16]}, which {what} and was not approved",
                hint=f"look at it, and approve it if you trust it:  noded trust {manifest.task_hash}",
            )
        return await self._approved(wanted)

    async def _offer(self, code: TaskCode) -> None:
        """Others may want to look at it; training does not depend on that."""
        try:
            await self._blocks.put_task(code.sources, code.entry)
        except (BlocksError, NodedError) as error:
            _log.warning("the code of task %s cannot be offered to others: %s", code.entry, error)

    def _local(self, name: str) -> TaskCode | None:
        """The code that this node would run under that name of its own accord."""
        if not self._config.trainer.auto:
            return None
        if ":" in name and name != self._section.task:
            return (
                None  # the operator's own code is found by the operator's own configuration alone
            )
        return find_task(name, self._config.trainer.user_path)

    async def _approved(self, wanted: bytes) -> Permission:
        blocks = self._blocks
        if not blocks.store.complete(wanted):
            await blocks.get(Job("task"), wanted, pin=True)
        manifest = blocks.store.manifest(wanted)
        assert manifest is not None, "it was just fetched"
        folder = await trio.to_thread.run_sync(
            unpack_task, blocks.store.read, manifest, self._folder
        )
        return Permission(manifest.entry, str(folder), approved=wanted.hex())


def unpack_task(read: Callable[[bytes, int], bytes | None], manifest: Manifest, root: Path) -> Path:
    """The folder with exactly the files of a task; made anew unless what is there hashes to its id.

    Raises:
        NodedError, ArtefactUnavailable: it cannot be made.
    """
    folder = root / manifest.id.hex()
    if _intact(folder, manifest):
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    unpack(lambda block: read(manifest.id, block), manifest, folder)
    if not _intact(folder, manifest):
        raise NodedError(f"the code in {folder} is not what was approved", hint="check the disk")
    return folder


def _intact(folder: Path, manifest: Manifest) -> bool:
    """Whether the folder holds the task's files, nothing else that Python would import, and no more."""
    with contextlib.suppress(NodedError, OSError):
        # Compiled files would be believed instead of their sources: the trainer writes none there, and nobody else may.
        there = sorted(sources_of(folder), key=lambda source: source.path)
        named = sorted(entry.path for entry in manifest.files)
        if [source.path for source in there] != named:
            return False
        by_path = {source.path: source for source in there}
        ordered = [Source(by_path[entry.path].file, entry.path) for entry in manifest.files]
        return task_of_files(ordered, manifest.entry).id == manifest.id
    return False
