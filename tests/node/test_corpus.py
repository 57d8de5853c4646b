from __future__ import annotations

import os

import numpy as np
import pytest

from node.errors import ExitCode
from node.training import corpus
from node.training.corpus import CorpusMissing, CorpusTooSmall, load_corpus


def write_folder(root, files, size=2000):
    for index in range(files):
        path = root / f"d{index % 3}" / f"f{index}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((f"text {index} " * size).encode()[:size])


def test_the_default_is_the_standard_library():
    found = load_corpus()
    assert found.train.size > 2_000_000
    assert found.validation.size > 100_000
    assert b"import" in found.train.tobytes()
    assert found.files > 100


def test_a_folder_is_the_same_wherever_it_lies(tmp_path):
    for name in ("a", "b"):
        write_folder(tmp_path / name, 80)
    one, two = load_corpus(tmp_path / "a"), load_corpus(str(tmp_path / "b"))
    assert np.array_equal(one.train, two.train)
    assert np.array_equal(one.validation, two.validation)
    assert one.files == 80


def test_what_is_held_out_depends_on_content_alone(tmp_path):
    """Renamed, or among other files, a held-out file stays held out."""
    write_folder(tmp_path / "a", 80)
    before = load_corpus(tmp_path / "a")
    for index, path in enumerate(sorted((tmp_path / "a").rglob("*.txt"))):
        path.rename(tmp_path / "a" / f"renamed{80 - index}.txt")
    write_folder(tmp_path / "a" / "more", 160)
    after = load_corpus(tmp_path / "a")
    texts = [
        before.validation.tobytes()[i : i + 2000] for i in range(0, before.validation.size, 2000)
    ]
    assert texts
    for text in texts:
        assert text in after.validation.tobytes()
        assert text not in after.train.tobytes()


@pytest.mark.parametrize("size", [20_000, 500_000, 3_000_000])
def test_a_file_is_split_by_position(tmp_path, size):
    path = tmp_path / "text"
    data = np.random.default_rng(0).integers(32, 127, size).astype(np.uint8)
    path.write_bytes(data.tobytes())
    found = load_corpus(path)
    share = found.validation.size / (found.train.size + found.validation.size)
    assert 0.03 < share < 0.25
    assert found.train.size + found.validation.size > 0.95 * size
    again = load_corpus(path)
    assert np.array_equal(found.train, again.train)
    train = found.train.tobytes()
    for start in range(0, found.validation.size - 64, 4096):
        assert found.validation[start : start + 64].tobytes() not in train


def test_what_is_no_text_is_left_out(tmp_path):
    write_folder(tmp_path, 40)
    (tmp_path / "binary").write_bytes(b"\x7fELF\0\0" * 1000)
    (tmp_path / "empty").touch()
    (tmp_path / ".hidden").write_text("secret " * 1000)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("secret " * 1000)
    (tmp_path / "link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe")  # opening it must not wait for a writer
    found = load_corpus(tmp_path)
    assert found.files == 40
    assert found.skipped == 4
    everything = found.train.tobytes() + found.validation.tobytes()
    assert b"ELF" not in everything
    assert b"secret" not in everything
    assert b"root:" not in everything


def test_a_folder_is_bounded(tmp_path, monkeypatch):
    write_folder(tmp_path, 60)
    monkeypatch.setattr(corpus, "MAX_CORPUS_BYTES", 50_000)
    found = load_corpus(tmp_path)
    assert found.train.size + found.validation.size <= 50_000
    assert found.skipped == 35


def test_few_files_are_split_like_one(tmp_path):
    (tmp_path / "one.txt").write_bytes(b"abcdefgh" * 5000)
    found = load_corpus(tmp_path)
    assert found.train.size > found.validation.size >= 4096


@pytest.mark.parametrize("make", ["missing", "device", "unreadable"])
def test_a_missing_corpus_is_one_clear_error(tmp_path, make):
    path = {"missing": tmp_path / "no", "device": "/dev/null", "unreadable": "\0"}[make]
    if make == "unreadable":
        path = tmp_path / ("x" * 300)
    with pytest.raises(CorpusMissing) as caught:
        load_corpus(path)
    assert str(path) in str(caught.value)
    assert "--data" in caught.value.hint
    assert caught.value.exit_code == ExitCode.BAD_CONFIG


@pytest.mark.parametrize("make", ["empty file", "tiny file", "empty folder", "tiny folder"])
def test_too_little_text_is_one_clear_error(tmp_path, make):
    path = tmp_path / "corpus"
    if make.endswith("folder"):
        path.mkdir()
        if make.startswith("tiny"):
            (path / "a.txt").write_text("hello")
    else:
        path.write_text("" if make.startswith("empty") else "hello")
    with pytest.raises(CorpusTooSmall) as caught:
        load_corpus(path)
    assert caught.value.hint
