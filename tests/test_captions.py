"""Whoever opens a folder finds each of its files in the folder's own words: no file is added, renamed or removed without its caption."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = [
    path.parent.relative_to(ROOT).as_posix()
    for room in ("crdt", "dht", "gossip", "node", "transport")
    for path in sorted((ROOT / room).rglob("__init__.py"))
]


def contents(folder: str) -> set[str]:
    """Modules and packages in it, by name."""
    found = {path.stem for path in (ROOT / folder).glob("*.py")}
    found |= {path.parent.name for path in (ROOT / folder).glob("*/__init__.py")}
    return {name for name in found if not name.startswith("__")}


def caption(folder: str) -> str:
    return ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text())) or ""


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_file_is_named(folder):
    missing = contents(folder) - set(re.findall(r"\w+", caption(folder)))
    assert not missing, f"{folder}/__init__.py does not name {', '.join(sorted(missing))}"


def test_there_are_folders():
    assert len(FOLDERS) > 20
