"""What `noded trust` shows is what Python would run, or it is not shown and cannot be approved."""

from types import SimpleNamespace

import pytest

from node.blocks.files import Source, put_files
from node.blocks.routes import _Routes
from node.blocks.store import BlockStore
from node.errors import UsageError

CLEAN = "class Task: pass  # ä\n".encode()


def look(tmp_path, name: str, data: bytes):
    store = BlockStore(tmp_path / "blocks", quota_bytes=64 << 20, reserve_bytes=0)
    (tmp_path / "file").write_bytes(data)
    manifest = put_files(store, "task", [Source(tmp_path / "file", name)], entry="mod:Task")
    routes = _Routes(SimpleNamespace(store=store), tmp_path)
    return routes._look(manifest.id), lambda: routes._approve(manifest.id, True)


def test_utf_8_is_shown_as_it_is(tmp_path):
    shown, approve = look(tmp_path, "mod.py", CLEAN)
    assert shown["files"][0]["text"] == CLEAN.decode()
    assert approve()["approved"]
    (tmp_path / "other").mkdir()
    assert look(tmp_path / "other", "other.py", b"# coding: utf-8\n" + CLEAN)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        # In UTF-7 the comment holds a line break, and behind it a statement.
        ("mod.py", b"# coding: utf-7\n# harmless +AAo-import os\n" + CLEAN),
        ("mod.py", b"#\n# -*- coding: unicode_escape -*-\n# \\nimport os\n"),
        ("mod.py", b"# coding: nothing-known\n"),
        ("mod.py", b"x = '\xff'\n"),
        ("mod.py", b"x = 1\x00\n"),
        # Python would take these before, or in place of, the source beside them.
        ("__pycache__/mod.cpython-312.pyc", b"compiled"),
        ("mod.abi3.so", b"compiled"),
    ],
)
def test_what_could_look_like_something_else_is_not(tmp_path, name, data):
    with pytest.raises(UsageError, match="no Python source in UTF-8"):
        look(tmp_path, name, data)
