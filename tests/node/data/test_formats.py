"""Data sets in their true formats: what is read, and what is refused with file and place."""

from __future__ import annotations

import contextlib
import gzip
import json
import pickle
import random
import tarfile
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.data.cifar import load_cifar
from node.data.digits import load_digits
from node.data.errors import DataCorrupt, DataError, DataMissing
from node.data.femnist import load_femnist
from node.data.idx import load_idx, parse_idx
from node.data.movielens import load_movielens
from node.errors import ExitCode
from tests.node.data.data_files import (
    cifar_files,
    idx,
    ratings,
    ratings_text,
    write_femnist,
    write_mnist,
    write_tar,
    write_zip,
)

# ---- digits ----


def test_the_digits_of_scikit_learn():
    data = load_digits()
    assert (data.features, data.classes) == (64, 10)
    assert len(data.train_y) + len(data.test_y) == 1797
    assert set(np.bincount(data.test_y)) <= {35, 36, 37}
    assert abs(float(data.train_x.mean())) < 0.1
    assert 0.9 < float(data.train_x.std()) < 1.1
    assert "1,438 examples" in data.describe()


def digits_text(rows=120):
    rng = np.random.default_rng(0)
    return [",".join(str(v) for v in [*rng.integers(0, 17, 64), at % 10]) for at in range(rows)]


@pytest.mark.parametrize(
    ("line", "text", "complaint"),
    [
        (3, "1,2,3", "line 3: 3 numbers, expected 65"),
        (5, ",".join(["x"] * 65), "line 5: not numbers"),
        (7, ",".join(["17"] * 64 + ["1"]), "line 7: a pixel is not within"),
        (9, ",".join(["1"] * 64 + ["10"]), "line 9: 10.0 is no digit"),
        (9, ",".join(["nan"] * 65), "line 9: a pixel"),
    ],
)
def test_a_bad_line_of_digits_is_named(tmp_path, line, text, complaint):
    lines = digits_text()
    lines[line - 1] = text
    path = tmp_path / "my.csv"
    path.write_text("\n".join(lines))
    with pytest.raises(DataCorrupt, match=complaint):
        load_digits(str(path))


def test_other_digits_under_the_published_name(tmp_path):
    path = tmp_path / "digits.csv.gz"
    path.write_bytes(gzip.compress("\n".join(digits_text()).encode()))
    with pytest.raises(DataCorrupt, match="is not the published file: sha256:") as caught:
        load_digits(str(path))
    assert "any_version" in caught.value.hint
    assert caught.value.exit_code == ExitCode.BAD_CONFIG
    assert len(load_digits(str(path), any_version=True).train_y) == 100
    (tmp_path / "cut.csv.gz").write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataCorrupt, match="damaged"):
        load_digits(str(tmp_path / "cut.csv.gz"))
    with pytest.raises(DataMissing, match="No such file"):
        load_digits(str(tmp_path / "none.csv"))
    (tmp_path / "few.csv").write_text("\n".join(digits_text(9)))
    with pytest.raises(DataCorrupt, match="holds 9 digits"):
        load_digits(str(tmp_path / "few.csv"))
    (tmp_path / "latin.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(DataCorrupt, match="no CSV"):
        load_digits(str(tmp_path / "latin.csv"))


# ---- IDX ----


@pytest.mark.parametrize("compressed", [False, True])
def test_mnist(tmp_path, compressed):
    written = write_mnist(tmp_path, compressed=compressed)
    data = load_idx(str(tmp_path), any_version=True)
    assert data.train_x.shape == (40, 1, 8, 8)
    assert np.array_equal(data.test_y, written["t10k-labels-idx1-ubyte"])
    raw = written["train-images-idx3-ubyte"].astype(np.float64)
    np.testing.assert_allclose(data.train_x[:, 0], (raw - raw.mean()) / raw.std(), atol=1e-5)
    flat, _ = data.flat()
    assert flat.shape == (40, 64)
    if compressed:
        with pytest.raises(DataCorrupt, match="not the published file"):
            load_idx(str(tmp_path))


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "byte 0: not an IDX"),
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "byte 2: values of type 0x0d"),
        (b"\0\0\x08\x07", "byte 3: 7 dimensions"),
        (b"\0\0\x08\x03\0\0\0\x01", "byte 8: ends within its header"),
        (idx(np.zeros((2, 3), np.uint8))[:-1], "byte 12: 5 values follow, its header says"),
        (b"\0\0\x08\x04" + b"\xff" * 16, "byte 20: 0 values follow"),
        (b"\0\0\x08\x03" + b"\0" * 4 + b"\xff" * 8, "byte 16: 0 values follow"),
        (idx(np.zeros((5, 0, 0), np.uint8)), "byte 16: 0 values follow"),
    ],
)
def test_bad_idx(data, complaint):
    with pytest.raises(DataCorrupt, match=complaint):
        parse_idx(data, "file")


@given(st.binary(max_size=64))
@settings(max_examples=200)
def test_random_bytes_are_refused_or_an_array(data):
    for prefix in (b"", b"\0\0\x08", b"\0\0\x08\x01"):
        try:
            assert parse_idx(prefix + data, "file").dtype == np.uint8
        except DataCorrupt:
            pass


def test_idx_files_that_do_not_fit_together(tmp_path):
    write_mnist(tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte"
    kept = labels.read_bytes()
    labels.write_bytes(idx(np.zeros(39, np.uint8)))
    with pytest.raises(DataCorrupt, match="40 images of train, but 39 labels"):
        load_idx(str(tmp_path))
    labels.write_bytes(idx(np.full(40, 10, np.uint8)))
    with pytest.raises(DataCorrupt, match="not digits"):
        load_idx(str(tmp_path))
    labels.write_bytes(idx(np.zeros((40, 1), np.uint8)))
    with pytest.raises(DataCorrupt, match="2 dimensions, expected 1"):
        load_idx(str(tmp_path))
    labels.write_bytes(kept)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(np.zeros((20, 5, 5), np.uint8)))
    with pytest.raises(DataCorrupt, match="training images are"):
        load_idx(str(tmp_path))
    labels.unlink()
    with pytest.raises(DataMissing, match="train-labels"):
        load_idx(str(tmp_path))
    with pytest.raises(DataMissing, match="does not exist"):
        load_idx(str(tmp_path / "nowhere"))


# ---- CIFAR-10 ----


def test_cifar_from_a_folder_and_from_its_archive(tmp_path):
    folder = tmp_path / "cifar"
    folder.mkdir()
    files = cifar_files()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    archive = tmp_path / "mine.tar.gz"
    write_tar(archive, files, "cifar-10-batches-bin")
    one, other = load_cifar(str(folder)), load_cifar(str(archive))
    assert one.train_x.shape == (100, 3, 32, 32)
    assert np.array_equal(one.train_x, other.train_x)
    assert np.array_equal(one.test_y, np.arange(10))
    np.testing.assert_allclose(one.train_x.mean(axis=(0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(one.train_x.std(axis=(0, 2, 3)), 1, atol=1e-4)
    published = tmp_path / "cifar-10-binary.tar.gz"
    archive.rename(published)
    with pytest.raises(DataCorrupt, match="not the published file"):
        load_cifar(str(published))
    assert len(load_cifar(str(published), any_version=True).train_y) == 100
    (folder / "data_batch_3.bin").write_bytes(files["data_batch_3.bin"][:-1])
    with pytest.raises(DataCorrupt, match=r"data_batch_3.bin, byte 58387: no whole record"):
        load_cifar(str(folder))
    (folder / "data_batch_3.bin").write_bytes(b"\x0a" + files["data_batch_3.bin"][1:])
    with pytest.raises(DataCorrupt, match="byte 0: class 10"):
        load_cifar(str(folder))
    (folder / "data_batch_1.bin").unlink()
    with pytest.raises(DataMissing, match="training batch"):
        load_cifar(str(folder))


def test_the_pickled_version_of_cifar_is_refused_unread(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was read",))

    for number in range(1, 6):
        (tmp_path / f"data_batch_{number}").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataCorrupt, match="a pickle") as caught:
        load_cifar(str(tmp_path))
    assert "binary version" in caught.value.hint


def test_damaged_archives(tmp_path):
    for name in ("some.tar.gz", "some.zip"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(DataCorrupt, match="damaged"):
            load_cifar(str(tmp_path / name))
    (tmp_path / "some.rar").write_bytes(b"")
    with pytest.raises(DataCorrupt, match="neither a folder nor"):
        load_cifar(str(tmp_path / "some.rar"))


@pytest.mark.parametrize("kind", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED])
def test_archives_with_a_flipped_bit_are_refused_or_read(tmp_path, kind):
    rng, file = random.Random(kind), tmp_path / "some.zip"
    with zipfile.ZipFile(file, "w", compression=kind) as archive:
        archive.writestr("ratings.csv", ratings_text(ratings(), "ratings.csv"))
    whole = file.read_bytes()
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        with contextlib.suppress(DataError):
            load_movielens(str(file))


def test_a_header_that_expands_without_end_is_not_expanded(tmp_path):
    huge = tarfile.TarInfo("pax")
    huge.type, huge.size = tarfile.XHDTYPE, 256 << 20
    with gzip.open(tmp_path / "some.tar.gz", "wb", compresslevel=1) as file:
        file.write(huge.tobuf())
        for _ in range(8):
            file.write(bytes(1 << 20))
    with pytest.raises(DataCorrupt, match="more than 4,194,304 bytes"):
        load_cifar(str(tmp_path / "some.tar.gz"))


# ---- FEMNIST ----


def test_femnist(tmp_path):
    write_femnist(tmp_path)
    data = load_femnist(str(tmp_path))
    assert data.train_x.shape == (18, 1, 28, 28)
    assert (data.classes, len(data.test_y)) == (62, 4)
    assert np.bincount(data.users).tolist() == [6, 3, 9]
    first = json.loads((tmp_path / "train" / "all_data_f01.json").read_text())
    ink = 1 - np.array(first["user_data"]["f01"]["x"][0])
    assert np.corrcoef(data.train_x[0].ravel(), ink)[0, 1] > 0.999


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda d: d["user_data"].clear(), "user 'f01' has no data"),
        (lambda d: d["user_data"]["f01"]["y"].pop(), "not one class for each image"),
        (lambda d: d["user_data"]["f01"]["x"][2].pop(), "not 28 x 28"),
        (lambda d: d["user_data"]["f01"]["y"].__setitem__(0, 62), "class beyond 0 to 61"),
        (lambda d: d["user_data"]["f01"]["x"][0].__setitem__(5, 2.0), "pixel beyond 0 to 1"),
        (lambda d: d["user_data"]["f01"]["x"][0].__setitem__(5, 1e300), "pixel beyond 0 to 1"),
        (lambda d: d.pop("users"), "not a file of LEAF"),
    ],
)
def test_bad_femnist(tmp_path, change, complaint):
    write_femnist(tmp_path)
    path = tmp_path / "train" / "all_data_f01.json"
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))
    with pytest.raises(DataCorrupt, match=complaint) as caught:
        load_femnist(str(tmp_path))
    assert "all_data_f01.json" in str(caught.value)


def test_femnist_nested_without_end(tmp_path):
    write_femnist(tmp_path)
    deep = b'{"more": ' + b"[" * 100_000 + b"]" * 100_000 + b', "users": [], "user_data": {}}'
    (tmp_path / "train" / "all_data_f01.json").write_bytes(deep)
    with pytest.raises(DataCorrupt, match="not a file of LEAF"):
        load_femnist(str(tmp_path))


def test_no_femnist(tmp_path):
    with pytest.raises(DataMissing, match="no JSON"):
        load_femnist(str(tmp_path))


# ---- MovieLens ----


@pytest.mark.parametrize("kind", ["ratings.csv", "u.data", "ratings.dat"])
def test_movielens(tmp_path, kind):
    rows = ratings()
    (tmp_path / kind).write_text(ratings_text(rows, kind))
    data = load_movielens(str(tmp_path))
    assert len(data.train_values) + len(data.test_values) == len(rows)
    assert (data.users, data.items) == (29, 29)
    assert 0.04 < len(data.test_values) / len(rows) < 0.2
    found = {
        (int(u) + 1, int(f) + 1): float(r)
        for users, films, values in (
            (data.train_users, data.train_items, data.train_values),
            (data.test_users, data.test_items, data.test_values),
        )
        for u, f, r in zip(users, films, values, strict=True)
    }
    assert found == {(u, f): r for u, f, r in rows}


def test_the_same_ratings_are_held_out_whatever_the_order(tmp_path):
    rows = ratings()
    held = []
    for at, order in enumerate((rows, rows[::-1])):
        folder = tmp_path / str(at)
        folder.mkdir()
        (folder / "u.data").write_text(ratings_text(order, "u.data"))
        data = load_movielens(str(folder))
        held.append(set(zip(data.test_users.tolist(), data.test_items.tolist(), strict=True)))
    assert held[0] == held[1]


def test_movielens_from_an_archive(tmp_path):
    path = tmp_path / "ml-100k.zip"
    write_zip(path, {"u.data": ratings_text(ratings(), "u.data").encode()}, "ml-100k")
    with pytest.raises(DataCorrupt, match="not the published file"):
        load_movielens(str(path))
    assert load_movielens(str(path), any_version=True).users == 29


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("1\t2", "line 4: not user, film and rating"),
        ("a\t2\t3\t4", "line 4: not user"),
        ("1\t2\t6\t4", "line 4: a rating is 0 to 5"),
        ("-1\t2\t3\t4", "line 4: a rating is"),
        ("1\t2\tnan\t4", "line 4: a rating is"),
        ("1\t2\t\u0663\t4", "byte 37: no ASCII"),
    ],
)
def test_bad_ratings(tmp_path, line, complaint):
    lines = ["1\t2\t3\t4444"] * 3 + [line]
    (tmp_path / "u.data").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataCorrupt, match=complaint):
        load_movielens(str(tmp_path))


def test_too_few_ratings(tmp_path):
    (tmp_path / "u.data").write_text("1\t2\t3\t4\n")
    with pytest.raises(DataError, match="too few"):
        load_movielens(str(tmp_path))
    with pytest.raises(DataMissing, match="ratings"):
        load_movielens(str(tmp_path / "none"))
