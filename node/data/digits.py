"""Handwritten digits, 8 x 8 pixels: 1,797 of them, small enough to ship with scikit-learn.

The test part of the UCI "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998) as scikit-learn
packages it: a gzipped CSV, one example on a line, 64 values of 0 to 16 and the digit. The file is read where the
library lies and the library is not imported, which would cost more than a second and 80 MB in each trainer.

One fifth of each class is held out, the same for every seed: accuracies of different runs can be compared.
Pixels are shifted and scaled to about mean 0 and deviation 1.
"""

from __future__ import annotations

import importlib.util
import random
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np

from node.data.errors import DataCorrupt, DataMissing
from node.data.files import check_sum, read_file
from node.data.labelled import Labelled

__all__ = ["load_digits"]

PIXELS: Final = 64
CLASSES: Final = 10
BRIGHTEST: Final = 16
HELD_OUT: Final = 0.2
_MEAN, _DEVIATION = 0.3, 0.37
_MAX_BYTES: Final = 4 << 20
_PUBLISHED: Final = {
    "digits.csv.gz": ["sha256:09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"]
}


@lru_cache(maxsize=2)  # the simulator's exact engine builds a task for each of its nodes
def load_digits(path: str = "", *, any_version: bool = False) -> Labelled:
    """The data set, from scikit-learn's own file or from `path` (.csv or .csv.gz); its arrays are not to be written to.

    Raises:
        DataMissing: no scikit-learn and no path, or the file cannot be read.
        DataCorrupt: not the published file, or not 65 numbers on every line.
    """
    file = Path(path) if path else _packaged()
    check_sum(file, _PUBLISHED, any_version=any_version)
    try:
        lines = read_file(file, limit=_MAX_BYTES).decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise DataCorrupt(f"{file} is no CSV file of digits", hint="it is no ASCII text") from None
    table = np.array(
        [_row(file, at, line) for at, line in enumerate(lines, 1) if line.strip()], np.float32
    )
    if len(table) < 10 * CLASSES:
        raise DataCorrupt(
            f"{file} holds {len(table)} digits", hint="the whole data set has 1,797: copy it again"
        )
    labels = table[:, PIXELS].astype(np.int64)
    held = _held_out(labels)
    pixels = (table[:, :PIXELS] / BRIGHTEST - _MEAN) / _DEVIATION
    features = pixels.astype(np.float32)
    return Labelled(
        train_x=features[~held],
        train_y=labels[~held],
        test_x=features[held],
        test_y=labels[held],
        classes=CLASSES,
        source="digits of scikit-learn" if not path else str(file),
    )


def _packaged() -> Path:
    found = importlib.util.find_spec("sklearn")
    for place in (found and found.submodule_search_locations) or ():
        file = Path(place) / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            return file
    raise DataMissing(
        "the digits come with scikit-learn, which is not installed here",
        hint="pip install 'noded[demo]', or name a digits.csv.gz as the run's data",
    )


def _row(file: Path, at: int, line: str) -> list[float]:
    try:
        values = [float(text) for text in line.split(",")]
    except ValueError:
        raise DataCorrupt(f"{file}, line {at}: not numbers separated by commas") from None
    if len(values) != PIXELS + 1:
        raise DataCorrupt(f"{file}, line {at}: {len(values)} numbers, expected {PIXELS + 1}")
    if not all(0 <= value <= BRIGHTEST for value in values[:PIXELS]):
        raise DataCorrupt(f"{file}, line {at}: a pixel is not within 0 and {BRIGHTEST}")
    if values[PIXELS] not in range(CLASSES):
        raise DataCorrupt(f"{file}, line {at}: {values[PIXELS]} is no digit")
    return values


def _held_out(labels: np.ndarray) -> np.ndarray:
    """A mask: one fifth of each class, always the same."""
    rng = random.Random("noded digits: held out")
    keys = np.array([rng.random() for _ in range(len(labels))])
    mask = np.zeros(len(labels), bool)
    for value in range(CLASSES):
        members = np.flatnonzero(labels == value)
        mask[members[np.argsort(keys[members])][: round(len(members) * HELD_OUT)]] = True
    return mask
