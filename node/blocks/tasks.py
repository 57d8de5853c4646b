"""What code a task is: found on the disk without running any of it, and named by its content.

A task's id is that of an artefact of kind "task": the files it is made of, and `module:Class`. What belongs to it: the module's own file; for a module
inside a package, all `.py` files of the outermost package, since they may import each other. Of noded's own package only the module's file counts, so
that nodes of different releases agree on a built-in task that has not changed. Libraries that a task imports are not part of it: the operator has installed
them.

Nothing here imports the task: its file is found as Python's import system would find it, package by package, without executing one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final

import attrs

from gossip.blocks.errors import InvalidArtefact
from gossip.blocks.manifest import MAX_FILES
from node.blocks.files import Source
from node.blocks.library import InPlace
from node.errors import NodedError
from node.task import ENTRY_POINT_GROUP

__all__ = ["MAX_TASK_BYTES", "TaskCode", "find_task", "task_of_files"]

MAX_TASK_BYTES: Final = 1 << 20
"""Code that a person can be expected to look at, several times over."""
_OURS: Final = "node"


@attrs.frozen
class TaskCode:
    """The code of one task, as it lies on this node's disk."""

    sources: tuple[Source, ...]
    entry: str
    """`module:Class` within the sources."""
    id: bytes


def find_task(name: str, user_path: str = "") -> TaskCode | None:
    """The code of the task that a run calls `name`; None if it cannot be found here.

    Args:
        name: that of an installed task, or `module:Class`.
        user_path: where to look for the latter besides the installed packages.

    Raises:
        NodedError: it is there, and cannot be read or is too large.
    """
    target = name
    if ":" not in name:
        points = [point for point in entry_points(group=ENTRY_POINT_GROUP) if point.name == name]
        if not points:
            return None
        target = points[0].value.replace(" ", "").partition("[")[0]
    module, _, attribute = target.partition(":")
    if not attribute.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        return None
    path = [*sys.path, user_path] if user_path else list(sys.path)
    found = _locate(module, path)
    if found is None:
        return None
    sources, entry_module = found
    return task_of_files(sources, f"{entry_module}:{attribute}")


def task_of_files(sources: Sequence[Source], entry: str) -> TaskCode:
    """The task made of these files.

    Raises:
        NodedError: they cannot be read, or are too many or too large.
    """
    try:
        size = sum(source.file.stat().st_size for source in sources)
        if size > MAX_TASK_BYTES or len(sources) > MAX_FILES:
            raise NodedError(
                f"the task {entry} has {len(sources)} files of {size} bytes: too much code for one task",
                hint="put the task into a module of its own, outside of the large package",
            )
        place = InPlace.of("task", sources, entry=entry)
    except (OSError, InvalidArtefact) as error:
        raise NodedError(f"the code of the task {entry} cannot be named: {error}") from None
    return TaskCode(tuple(sources), entry, place.manifest.id)


def _locate(module: str, path: Sequence[str]) -> tuple[list[Source], str] | None:
    parts = module.split(".")
    top = _spec(parts[0], path)
    if top is None:
        return None
    spec, where = top, top
    for count in range(2, len(parts) + 1):
        locations = where.submodule_search_locations
        if locations is None:
            return None
        below = _spec(".".join(parts[:count]), list(locations))
        if below is None:
            return None
        spec = where = below
    if spec.origin is None or not spec.origin.endswith(".py"):
        return None
    file = Path(spec.origin)
    if top.submodule_search_locations is None or parts[0] == _OURS:
        return [Source(file, file.name)], file.stem
    if (
        top.origin is None
    ):  # a package in several places has no outermost file: the module stands alone
        return [Source(file, file.name)], file.stem
    root = Path(top.origin).parent
    sources = [
        Source(each, f"{root.name}/{each.relative_to(root).as_posix()}")
        for each in sorted(root.rglob("*.py"))
        if each.is_file() and not each.is_symlink()
    ]
    return sources, module


def _spec(name: str, path: Sequence[str]) -> ModuleSpec | None:
    spec = PathFinder.find_spec(name, list(path))
    if spec is None:  # an editable installation may have a finder of its own
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            if find is not None and finder is not PathFinder:
                spec = find(name, None)
                if spec is not None and spec.origin not in {"built-in", "frozen"}:
                    return spec  # type: ignore[no-any-return]
        return None
    return spec
