"""FEMNIST as LEAF writes it: handwritten letters and digits with who wrote them (Caldas et al. 2018).

A folder with `train` and `test`, in each any number of JSON files::

    {"users": ["f0001_41", ...], "num_samples": [...], "user_data": {"f0001_41": {"x": [[784 numbers], ...], "y": [...]}}}

Pixels run from 0 (ink) to 1 (paper); they are turned round, then shifted and scaled by the mean and deviation of the
training images. The users make the natural split (`split = "user"`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from node.data.errors import DataCorrupt, DataMissing
from node.data.files import read_file
from node.data.labelled import Labelled

__all__ = ["load_femnist"]

CLASSES: Final = 62
SIDE: Final = 28
MAX_FILES: Final = 4096


class _User(msgspec.Struct):
    x: list[list[float]]
    y: list[int]


class _File(msgspec.Struct):
    users: list[str]
    user_data: dict[str, _User]


def load_femnist(path: str) -> Labelled:
    """The data set in a folder; LEAF samples it anew each time, so there are no published sums.

    Raises:
        DataMissing: no JSON files in `train` or `test`.
        DataCorrupt: a file is not in LEAF's format.
    """
    train_x, train_y, users = _part(Path(path) / "train")
    test_x, test_y, _ = _part(Path(path) / "test")
    mean, deviation = float(train_x.mean()), float(train_x.std()) or 1.0
    numbers = {name: number for number, name in enumerate(sorted(set(users)))}
    return Labelled(
        train_x=(train_x - np.float32(mean)) / np.float32(deviation),
        train_y=train_y,
        test_x=(test_x - np.float32(mean)) / np.float32(deviation),
        test_y=test_y,
        classes=CLASSES,
        source=path,
        users=np.array([numbers[name] for name in users]),
    )


def _part(folder: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    files = sorted(folder.glob("*.json"))[:MAX_FILES]
    if not files:
        raise DataMissing(
            f"{folder} has no JSON files",
            hint="point to the folder in which LEAF wrote `train` and `test`",
        )
    images: list[np.ndarray] = []
    labels: list[int] = []
    users: list[str] = []
    for file in files:
        try:
            found = msgspec.json.decode(read_file(file), type=_File)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise DataCorrupt(f"{file}: not a file of LEAF: {error}") from None
        for name in found.users:
            user = found.user_data.get(name)
            if user is None or len(user.x) != len(user.y):
                raise DataCorrupt(
                    f"{file}: user {name!r} has no data, or not one class for each image"
                )
            if not user.y:
                continue
            images.append(_pixels(file, name, user.x))
            if not all(0 <= label < CLASSES for label in user.y):
                raise DataCorrupt(f"{file}: user {name!r} has a class beyond 0 to {CLASSES - 1}")
            labels += user.y
            users += [name] * len(user.y)
    if not labels:
        raise DataCorrupt(f"{folder}: its files hold no images")
    return np.concatenate(images), np.array(labels, np.int64), users


def _pixels(file: Path, name: str, rows: list[list[float]]) -> np.ndarray:
    if any(len(row) != SIDE * SIDE for row in rows):
        raise DataCorrupt(f"{file}: user {name!r} has an image that is not {SIDE} x {SIDE}")
    values = np.array(rows, np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise DataCorrupt(f"{file}: user {name!r} has a pixel beyond 0 to 1")
    return (1 - values.astype(np.float32)).reshape(-1, 1, SIDE, SIDE)
