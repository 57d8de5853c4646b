"""What code a run names, what the operator allowed, and that nothing else is imported."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from gossip.blocks.errors import ArtefactUnavailable
from gossip.blocks.manifest import Manifest
from node.blocks import gate as module
from node.blocks.approvals import FILE_NAME, Approvals
from node.blocks.files import put_files, sources_of
from node.blocks.gate import Permission, TaskGate, TaskNotAllowed, unpack_task
from node.blocks.store import BlockStore
from node.blocks.tasks import MAX_TASK_BYTES, TaskCode, find_task, task_of_files
from node.errors import NodedError
from node.run.manifest import RunManifest
from node.schema import Config, NodeSection, RunSection, TrainerSection

CODE = "class Own:\n    pass\n"


def code_in(folder: Path, text: str = CODE) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "own_task.py").write_text(text)
    return str(folder)


def found(name: str, path: str = "") -> TaskCode:
    task = find_task(name, path)
    assert task is not None
    return task


# ---- naming --------------------------------------------------------------------------------------


def test_the_same_code_has_one_hash_and_other_code_another(tmp_path: Path) -> None:
    here = found("own_task:Own", code_in(tmp_path / "a"))
    assert here.entry == "own_task:Own"
    assert here.id == found("own_task:Own", code_in(tmp_path / "b")).id
    for other in (
        found("own_task:Other", code_in(tmp_path / "a")),
        found("own_task:Own", code_in(tmp_path / "c", CODE + " ")),
    ):
        assert other.id != here.id


def test_nothing_is_run_to_find_it(tmp_path: Path) -> None:
    bomb = "raise SystemExit('this was run')\n"
    folder = code_in(tmp_path, bomb)
    package = tmp_path / "pack"
    (package / "inner").mkdir(parents=True)
    for file in (package / "__init__.py", package / "inner" / "__init__.py", package / "x.py"):
        file.write_text(bomb)
    assert found("own_task:Own", folder).id
    task = found("pack.inner:Own", folder)
    assert task.entry == "pack.inner:Own"
    assert [source.path for source in task.sources] == [
        "pack/__init__.py",
        "pack/inner/__init__.py",
        "pack/x.py",
    ]
    assert "pack" not in sys.modules


def test_the_built_in_task_is_one_file() -> None:
    task = found("byte-gpt")
    assert [source.path for source in task.sources] == ["byte_gpt.py"]
    assert task.entry == "byte_gpt:ByteGPT"
    assert found("node.tasks.byte_gpt:ByteGPT").id == task.id
    assert "torch" not in json.dumps([str(source.file) for source in task.sources])


@pytest.mark.parametrize(
    "name",
    ["no-such-task", "no_such_module:Own", "own_task:not a name", "own_task:", ":", "../own:Own", "os.path.x:Own"],
)  # fmt: skip
def test_what_is_not_here(tmp_path: Path, name: str) -> None:
    assert find_task(name, code_in(tmp_path)) is None


def test_too_much_code_for_anybody_to_look_at(tmp_path: Path) -> None:
    folder = code_in(tmp_path, "#" * (MAX_TASK_BYTES + 1))
    with pytest.raises(NodedError, match="too much code"):
        find_task("own_task:Own", folder)


# ---- approving -----------------------------------------------------------------------------------


def test_approvals_are_kept_by_exact_hash(tmp_path: Path) -> None:
    approvals = Approvals(tmp_path)
    assert not approvals.approves(bytes(32))
    approvals.approve(bytes(32), "own_task:Own", ("own_task.py",))
    again = Approvals(tmp_path)
    assert again.approves(bytes(32))
    assert not again.approves(bytes(31) + b"\1")
    assert oct((tmp_path / FILE_NAME).stat().st_mode)[-3:] == "600"
    assert again.withdraw(bytes(32))
    assert not again.withdraw(bytes(32))
    assert not approvals.approves(bytes(32))


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "{}", '{"schema":"other","approved":{}}',
        '{"schema":"noded.approved-tasks/1","approved":{"../x":{"entry":"","files":[],"at":0}}}',
        '{"schema":"noded.approved-tasks/1","approved":{"%s":true}}' % ("ab" * 32),
    ],
)  # fmt: skip
def test_a_damaged_list_approves_nothing_and_says_so(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(NodedError, match=FILE_NAME) as caught:
        Approvals(tmp_path).approves(bytes.fromhex("ab" * 32))
    assert caught.value.hint


# ---- deciding ------------------------------------------------------------------------------------


class Blocks:
    """The daemon's blocks, with a store and no network."""

    def __init__(self, root: Path) -> None:
        self.store = BlockStore(root, quota_bytes=1 << 30, reserve_bytes=0)
        self.offered: list[bytes] = []
        self.on_get: Callable[[bytes], Awaitable[None]] | None = None

    async def put_task(self, sources: Any, entry: str) -> bytes:
        task = put_files(self.store, "task", sources, entry=entry).id
        self.offered.append(task)
        return task

    async def get(self, _job: object, artefact: bytes, *, pin: bool) -> None:
        assert pin
        if self.on_get is None:
            raise ArtefactUnavailable("nobody has it")
        await self.on_get(artefact)


class World:
    def __init__(self, home: Path, *, task: str = "own_task:Own", auto: bool = True) -> None:
        self.home = home
        self.folder = code_in(home / "code")
        self.config = Config(
            node=NodeSection(data_dir=str(home)),
            trainer=TrainerSection(user_path=self.folder, auto=auto),
        )
        self.section = RunSection(name="demo", task=task)
        self.blocks = Blocks(home / "blocks")
        self.gate = TaskGate(self.config, self.section, self.blocks)  # type: ignore[arg-type]

    def run_of(self, task_hash: str, task: str = "own_task:Own") -> RunManifest:
        return RunManifest(name="demo", task=task, task_hash=task_hash)


async def test_the_operators_own_code_runs_and_is_offered(tmp_path: Path) -> None:
    world = World(tmp_path)
    own = world.gate.own_hash()
    permission = await world.gate._decide(world.run_of(own))
    assert permission == Permission("own_task:Own", world.folder, approved="")
    assert [task.hex() for task in world.blocks.offered] == [own]


async def test_other_code_under_the_same_name_does_not(tmp_path: Path) -> None:
    world = World(tmp_path)
    own = world.gate.own_hash()
    code_in(tmp_path / "code", CODE + "# changed\n")
    with pytest.raises(TaskNotAllowed, match="differs") as caught:
        await world.gate._decide(world.run_of(own))
    assert f"noded trust {own}" in caught.value.hint


async def test_a_manifest_cannot_point_at_the_operators_other_files(tmp_path: Path) -> None:
    """Only the module that the operator's own configuration names is looked at."""
    world = World(tmp_path, task="byte-gpt")
    other = found("own_task:Own", world.folder).id.hex()
    with pytest.raises(TaskNotAllowed, match="not installed here"):
        await world.gate._decide(world.run_of(other))


async def test_a_run_without_a_hash_is_bound_to_what_is_installed(tmp_path: Path) -> None:
    world = World(tmp_path)
    assert (await world.gate._decide(world.run_of(""))) == Permission("own_task:Own", world.folder)
    scripts = World(tmp_path / "scripts", auto=False)
    assert scripts.gate.own_hash() == ""
    assert (await scripts.gate._decide(scripts.run_of("ab" * 32))).approved == ""


async def test_it_waits_until_somebody_approves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.01)
    world = World(tmp_path / "home", task="byte-gpt")
    task = found("own_task:Own", code_in(tmp_path / "theirs", CODE + "# theirs\n"))
    refusals: list[NodedError] = []

    async def fetched(artefact: bytes) -> None:
        assert artefact == task.id
        put_files(world.blocks.store, "task", task.sources, entry=task.entry)

    world.blocks.on_get = fetched
    permissions: list[Permission] = []

    async def wait() -> None:
        permissions.append(await world.gate.wait(world.run_of(task.id.hex()), refusals.append))

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            while not refusals:
                await trio.sleep(0.01)
            assert not (tmp_path / "home" / "tasks").exists()
            Approvals(tmp_path / "home").approve(task.id, task.entry, ("own_task.py",))
    (permission,) = permissions
    assert len(refusals) == 1
    assert permission.approved == task.id.hex()
    assert permission.task == "own_task:Own"
    folder = Path(permission.user_path)
    assert folder == tmp_path / "home" / "tasks" / task.id.hex()
    assert (folder / "own_task.py").read_text().endswith("# theirs\n")


@pytest.mark.parametrize("tamper", ["edit", "add", "remove", "bytecode", "link"])
def test_an_unpacked_task_that_was_touched_is_made_anew(tmp_path: Path, tamper: str) -> None:
    store = BlockStore(tmp_path / "blocks", quota_bytes=1 << 30, reserve_bytes=0)
    task = found("own_task:Own", code_in(tmp_path / "theirs"))
    manifest: Manifest = put_files(store, "task", task.sources, entry=task.entry)
    folder = unpack_task(store.read, manifest, tmp_path / "tasks")
    file = folder / "own_task.py"
    match tamper:
        case "edit":
            file.write_text(CODE + "import os\n")
        case "add":
            (folder / "os_helper.py").write_text("")
        case "remove":
            file.unlink()
        case "bytecode":
            (folder / "__pycache__").mkdir()
            (folder / "__pycache__" / "own_task.cpython-311.pyc").write_bytes(b"evil")
        case _:
            shutil.copy(file, tmp_path / "elsewhere.py")
            file.unlink()
            file.symlink_to(tmp_path / "elsewhere.py")
    assert unpack_task(store.read, manifest, tmp_path / "tasks") == folder
    assert [path.name for path in folder.rglob("*")] == ["own_task.py"]
    assert file.read_text() == CODE
    assert not file.is_symlink()


IMPORT = """
import sys
from node.task import load_approved
from node.errors import NodedError
try:
    print(load_approved(*sys.argv[1:]).__name__)
except NodedError as error:
    print("refused:", error)
"""

TASK = """
from node.task import Task
class Own(Task):
    name = "own"
"""


@pytest.mark.real
@pytest.mark.parametrize(
    ("module_name", "text", "said"),
    [
        ("own_task", TASK, "Own"),
        ("json", TASK, "hidden by an installed module"),
        ("own_task", "import no_such_library", "cannot be imported"),
        ("own_task", "class Own: pass", "no subclass"),
    ],
)
def test_approved_code_is_imported_from_its_folder_or_not_at_all(
    tmp_path: Path, module_name: str, text: str, said: str
) -> None:
    (tmp_path / f"{module_name}.py").write_text(text)
    entry = f"{module_name}:Own"
    approved = task_of_files(sources_of(tmp_path), entry).id.hex()
    command = [sys.executable, "-P", "-c", IMPORT, entry, str(tmp_path), approved]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert said in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == [f"{module_name}.py"]


@pytest.mark.real
@pytest.mark.parametrize("change", ["a line", "a file more"])
def test_approved_code_that_was_changed_since_is_not_imported(tmp_path: Path, change: str) -> None:
    file = tmp_path / "own_task.py"
    file.write_text(TASK)
    approved = task_of_files(sources_of(tmp_path), "own_task:Own").id.hex()
    if change == "a line":
        file.write_text(f"{TASK}\nprint('it ran')\n")
    else:
        (tmp_path / "other.py").write_text("print('it ran')")
    command = [sys.executable, "-P", "-c", IMPORT, "own_task:Own", str(tmp_path), approved]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "is not what was approved" in done.stdout
    assert "it ran" not in done.stdout
