"""docs/limits.md says what the code says: every key, its default and its reason, and every fixed figure."""

import ast
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tests.limits_page import ELSEWHERE, FIXED, page, settings
from transport.limits import Limits
from transport.relay.settings import RelaySettings

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "limits.md"
ROOMS = ("transport", "dht", "crdt", "gossip", "node")


def bounds() -> Iterator[str]:
    """Every public constant `MAX_...` of a module, as `module:NAME`."""
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            for statement in ast.parse(path.read_text()).body:
                match statement:
                    case (
                        ast.AnnAssign(target=ast.Name(id=name))
                        | ast.Assign(targets=[ast.Name(id=name)])
                    ) if name.startswith("MAX_"):
                        yield f"{module}:{name}"


def test_the_page_is_the_one_that_the_code_writes():
    assert PAGE.read_text() == page(), "run: python -m tests.limits_page > docs/limits.md"


def test_every_limit_is_in_the_table_with_a_reason():
    rows = settings()
    fields = [
        (section, field)
        for section, struct in (("limits", Limits), ("relay", RelaySettings))
        for field in msgspec.structs.fields(struct)
    ]
    assert len(rows) == len(fields)
    for (section, field), row in zip(fields, rows, strict=True):
        key, default, reason = row.strip("| ").split(" | ", 2)
        assert key == f"`{section}.{field.name}`"
        assert default == str(field.default)
        assert len(reason) > 30, field.name


def test_every_fixed_limit_has_a_reason():
    assert all(len(why) > 15 for why in FIXED.values())


def test_every_bound_of_the_code_is_on_the_page_or_is_said_to_be_nobodys_concern():
    left_out = [name for names in ELSEWHERE.values() for name in names.split()]
    found = set(bounds())
    assert len(set(left_out)) == len(left_out)
    assert not set(left_out) & set(FIXED)
    assert set(left_out) <= found, "gone, or renamed"
    missing = sorted(found - set(FIXED) - set(left_out))
    assert not missing, "say in tests/limits_page.py what it bounds (FIXED), or why it is left out"
