"""A file that is replaced: whole, the owner's alone, and the old one where the disk fails."""

import stat

import pytest

from transport import durable
from transport.durable import replace_file, replace_file_in_thread


async def test_the_file_is_whole_and_the_owners_alone(tmp_path):
    path = tmp_path / "table"
    replace_file(path, b"first")
    (tmp_path / "table.new").write_bytes(b"left by a crash")
    await replace_file_in_thread(path, b"second")
    assert path.read_bytes() == b"second"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["table"]


def test_a_disk_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "table"
    replace_file(path, b"first")

    def fail(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable.os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, b"second")
    assert path.read_bytes() == b"first"
    assert [each.name for each in tmp_path.iterdir()] == ["table"]


def test_a_link_planted_in_the_place_of_the_unfinished_file_is_not_followed(tmp_path):
    other = tmp_path / "other"
    other.write_bytes(b"mine")
    (tmp_path / "table.new").symlink_to(other)
    replace_file(tmp_path / "table", b"data")
    assert other.read_bytes() == b"mine"
    assert not (tmp_path / "table").is_symlink()
