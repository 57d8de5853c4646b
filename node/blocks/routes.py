"""The daemon's routes about artefacts and code: what `noded put`, `noded get` and `noded trust` ask.

    GET  /v1/blocks                            what is here, who served and was blamed for what
    POST /v1/blocks/put    {path, pin, wait_s, anew}   start copying a file or folder in, and how that stands
    POST /v1/blocks/get    {id, pin, wait_s, anew}     start fetching, and how that stands
    POST /v1/trust         {id}                        the code of a task that is here, and whether it is approved
    POST /v1/trust/approve {id, approve}               allow exactly that code, or allow it no more

The two that take long answer after at most `wait_s`; who wants to know the end asks again, and who does not ask for 15 s has the work stopped.
"""

from __future__ import annotations

import functools
import io
import tokenize
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec
import trio

from gossip.blocks.errors import ArtefactUnavailable
from gossip.blocks.manifest import parse_id
from node.blocks.approvals import Approvals
from node.blocks.service import NodeBlocks
from node.blocks.tasks import MAX_TASK_BYTES
from node.control import Handlers
from node.errors import UsageError

__all__ = ["block_routes"]

MAX_WAIT_S: Final = 60.0

T = TypeVar("T")
_Wait = Annotated[float, msgspec.Meta(ge=0, le=MAX_WAIT_S)]


class _Put(msgspec.Struct, forbid_unknown_fields=True):
    path: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
    pin: bool = True
    wait_s: _Wait = 0.5
    anew: bool = False


class _Get(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    pin: bool = False
    wait_s: _Wait = 0.5
    anew: bool = False


class _Look(msgspec.Struct, forbid_unknown_fields=True):
    id: str


class _Approve(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    approve: bool


def block_routes(blocks: NodeBlocks, data_dir: Path) -> Handlers:
    """The handlers, for the daemon's table."""
    routes = _Routes(blocks, data_dir)
    return {
        ("GET", "/v1/blocks"): routes.listing,
        ("POST", "/v1/blocks/put"): routes.put,
        ("POST", "/v1/blocks/get"): routes.get,
        ("POST", "/v1/trust"): routes.look,
        ("POST", "/v1/trust/approve"): routes.approve,
    }


class _Routes:
    def __init__(self, blocks: NodeBlocks, data_dir: Path) -> None:
        self._blocks = blocks
        self._data_dir = data_dir
        self._approvals = Approvals(data_dir)

    async def listing(self, _body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        return 200, self._blocks.document()

    async def put(self, body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        wanted = _read(body, _Put)
        path = Path(wanted.path)
        if not path.is_absolute():
            raise UsageError("put wants an absolute path")
        start = functools.partial(self._blocks.put, path=path, pin=wanted.pin)
        told = await self._blocks.jobs.look(
            f"put {path}", start, wait_s=wanted.wait_s, anew=wanted.anew
        )
        return 200, {"schema": "noded.put/1", "path": str(path), **told}

    async def get(self, body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        wanted = _read(body, _Get)
        artefact = parse_id(wanted.id)
        start = functools.partial(self._blocks.get, artefact=artefact, pin=wanted.pin)
        told = await self._blocks.jobs.look(
            f"get {artefact.hex()}", start, wait_s=wanted.wait_s, anew=wanted.anew
        )
        manifest = self._blocks.library.manifest(artefact)
        further = {
            "kind": None if manifest is None else manifest.kind,
            "files": None if manifest is None else [[f.path, f.size] for f in manifest.files],
            "store": str(self._data_dir / "blocks"),
        }
        return 200, {"schema": "noded.get/1", **told, **further}

    async def look(self, body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        task = parse_id(_read(body, _Look).id)
        return 200, await trio.to_thread.run_sync(self._look, task)

    def _look(self, task: bytes) -> dict[str, Any]:
        store = self._blocks.store
        manifest = store.manifest(task)
        if manifest is None or not store.complete(task):
            raise ArtefactUnavailable(
                "the code of that task is not here", hint=f"fetch it:  noded get {task.hex()}"
            )
        if manifest.kind != "task" or manifest.size > MAX_TASK_BYTES:
            raise UsageError(
                f"{task.hex()[:16]} is no code of a task but a {manifest.kind}",
                hint="the hash that a run names is the one to approve",
            )
        blocks = [store.read(task, block) for block in range(manifest.blocks)]
        if None in blocks:
            raise ArtefactUnavailable("the code of that task is damaged here: fetch it again")
        content, at, files = b"".join(block for block in blocks if block), 0, []
        for entry in manifest.files:
            text = _source(entry.path, content[at : at + entry.size])
            files.append({"path": entry.path, "size": entry.size, "text": text})
            at += entry.size
        return {
            "schema": "noded.trust/1",
            "id": task.hex(),
            "entry": manifest.entry,
            "files": files,
            "approved": self._approvals.approves(task),
        }

    async def approve(self, body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        wanted = _read(body, _Approve)
        task = parse_id(wanted.id)
        return 200, await trio.to_thread.run_sync(self._approve, task, wanted.approve)

    def _approve(self, task: bytes, approve: bool) -> dict[str, Any]:
        withdrawn = False
        if approve:
            shown = self._look(task)  # only what is here, and could be looked at
            paths = tuple(file["path"] for file in shown["files"])
            self._approvals.approve(task, shown["entry"], paths)
            self._blocks.store.pin(task)
        else:
            withdrawn = self._approvals.withdraw(task)
        return {
            "schema": "noded.trust/1",
            "id": task.hex(),
            "approved": approve,
            "withdrawn": withdrawn,
        }


def _source(path: str, data: bytes) -> str:
    """What Python will read of a file, as it can be shown.

    Anything else could look like one thing and be another: a comment that names another encoding, compiled code that Python prefers to its source.

    Raises:
        UsageError: it is no Python source in UTF-8.
    """
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        text = data.decode("utf-8")
    except (SyntaxError, UnicodeDecodeError):
        encoding, text = "", ""
    if not path.endswith(".py") or encoding not in {"utf-8", "utf-8-sig"} or "\0" in text:
        raise UsageError(
            f"{path!r} of that task is no Python source in UTF-8: what it is cannot be shown for certain",
            hint="code that cannot be looked at is not approved; ask whoever published the run",
        )
    return text


def _read(body: dict[str, Any] | None, type_: type[T]) -> T:
    try:
        return msgspec.convert(body or {}, type_)
    except msgspec.ValidationError as error:
        raise UsageError(f"the request makes no sense: {error}") from None
