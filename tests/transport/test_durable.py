"""A file that is replaced: whole, the owner's alone, and the old one where the disk fails."""

import os
import stat

import pytest

from transport import durable
from transport.durable import NotPlain, read_plain, replace_file, write_new


def test_the_file_is_whole_and_the_owners_alone(tmp_path):
    path = tmp_path / "table"
    replace_file(path, b"first")
    (tmp_path / "table.new").write_bytes(b"left by a crash")
    replace_file(path, b"second")
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


@pytest.mark.parametrize("taken", ["file", "broken link"])
def test_a_new_file_takes_nobodys_name(tmp_path, taken):
    path = tmp_path / "block"
    if taken == "file":
        path.write_bytes(b"mine")
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        write_new(path, b"data")
    assert not (tmp_path / "nowhere").exists()


def test_a_disk_that_takes_little_at_a_time_gets_all_of_it(tmp_path, monkeypatch):
    write = durable.os.write
    monkeypatch.setattr(durable.os, "write", lambda fd, data: write(fd, data[:3]))
    write_new(tmp_path / "block", bytearray(b"0123456789"))
    assert (tmp_path / "block").read_bytes() == b"0123456789"


def test_what_is_read_is_a_plain_file_of_bounded_size(tmp_path):
    path = tmp_path / "file"
    replace_file(path, b"12345")
    assert read_plain(path, 5) == b"12345"
    with pytest.raises(NotPlain, match="larger than 4"):
        read_plain(path, 4)
    with pytest.raises(FileNotFoundError):
        read_plain(tmp_path / "none", 5)


def test_links_pipes_and_folders_are_refused_at_once(tmp_path):
    target = tmp_path / "file"
    replace_file(target, b"x")
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(target)
    os.mkfifo(pipe)
    for path in (link, pipe, tmp_path):
        with pytest.raises(NotPlain):
            read_plain(path, 5)


def test_what_others_can_write_is_not_ours(tmp_path):
    path = tmp_path / "file"
    replace_file(path, b"x")
    assert read_plain(path, 5, ours=True) == b"x"
    path.chmod(0o622)
    assert read_plain(path, 5) == b"x"
    with pytest.raises(NotPlain, match="others can write"):
        read_plain(path, 5, ours=True)
