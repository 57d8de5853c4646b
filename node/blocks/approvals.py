"""What code this node's operator has allowed to run, by exact hash.

    approved-tasks.json     {"schema": ..., "approved": {"<task id>": {"entry": ..., "files": [...], "at": seconds since 1970}}}

Written beside and renamed, so a crash leaves the old file or the new one. A file that makes no sense is an error and not an empty list: somebody
should look at why.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Final

import msgspec

from node.errors import NodedError
from transport.durable import replace_file

__all__ = ["FILE_NAME", "Approvals", "Approved"]

FILE_NAME: Final = "approved-tasks.json"
MAX_BYTES: Final = 4 << 20
MAX_APPROVED: Final = 1024
_SCHEMA: Final = "noded.approved-tasks/1"


class Approved(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One task that may run."""

    entry: str
    files: tuple[str, ...]
    at: int
    """Wall clock seconds since 1970."""


class _File(msgspec.Struct, forbid_unknown_fields=True):
    schema: str
    approved: dict[Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")], Approved]


class Approvals:
    """The list in one data directory; blocks for a short read or write."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / FILE_NAME

    def all(self) -> dict[str, Approved]:
        """Every approved task, by its id in hexadecimal.

        Raises:
            NodedError: the file is damaged.
        """
        hint = f"look at {self._path}; remove it to begin with no approved task"
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise NodedError(f"cannot read {self._path}: {error.strerror}", hint=hint) from None
        try:
            read = msgspec.json.decode(data, type=_File)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise NodedError(f"{self._path} is damaged: {str(error)[:200]}", hint=hint) from None
        if read.schema != _SCHEMA:
            raise NodedError(f"{self._path} is of another version", hint=hint)
        return read.approved

    def approves(self, task: bytes) -> bool:
        """Whether exactly this code may run; raises as `all` does."""
        return task.hex() in self.all()

    def approve(self, task: bytes, entry: str, files: tuple[str, ...]) -> None:
        """Allow it from now on.

        Raises:
            NodedError: it cannot be written, or there are too many.
        """
        known = self.all()
        known[task.hex()] = Approved(entry, files, int(time.time()))
        self._write(known)

    def withdraw(self, task: bytes) -> bool:
        """Allow it no more; whether it was allowed. What runs already goes on until its trainer ends."""
        known = self.all()
        found = known.pop(task.hex(), None)
        if found is not None:
            self._write(known)
        return found is not None

    def _write(self, known: dict[str, Approved]) -> None:
        if len(known) > MAX_APPROVED:
            raise NodedError(f"{MAX_APPROVED} tasks are approved", hint="withdraw some of them")
        document = {"schema": _SCHEMA, "approved": msgspec.to_builtins(known)}
        try:
            replace_file(self._path, json.dumps(document, indent=1).encode())
        except OSError as error:
            raise NodedError(f"the approval was not stored: {error.strerror or error}") from error
