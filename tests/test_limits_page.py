"""docs/limits.md says what the code says: every key, its default and its reason, and every fixed figure."""

from pathlib import Path

import msgspec

from tests.limits_page import FIXED, page, settings
from transport.limits import Limits
from transport.relay.settings import RelaySettings

PAGE = Path(__file__).parent.parent / "docs" / "limits.md"


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
