"""MNIST and everything in its format: IDX files of images and labels (LeCun, Cortes and Burges 1998).

    0        2     3     4            4 + 4 n
    | 0 0    | 08  | n   | n sizes    | bytes, last index fastest |
               |     '-- dimensions: 3 for images, 1 for labels; sizes are big-endian
               '-- type: unsigned byte

Four files, plain or gzipped: train-images-idx3-ubyte, train-labels-idx1-ubyte and the same with t10k. Fashion-MNIST
(Xiao, Rasul and Vollgraf 2017) uses the same names, so either's sums are accepted. The published sums are those of
the gzipped files; unpacked ones are checked by their structure alone.

Pixels are shifted and scaled by the mean and deviation of the training images.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from node.data.errors import DataCorrupt
from node.data.files import Files
from node.data.labelled import Labelled

__all__ = ["load_idx", "parse_idx"]

CLASSES: Final = 10
_UNSIGNED_BYTE: Final = 0x08
_PUBLISHED: Final = {
    "train-images-idx3-ubyte.gz": [
        "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",  # MNIST
        "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",  # Fashion-MNIST
    ],
    "train-labels-idx1-ubyte.gz": [
        "md5:d53e105ee54ea40749a09fcbcd1e9432",
        "md5:25c81989df183df01b3e8a0aad5dffbe",
    ],
    "t10k-images-idx3-ubyte.gz": [
        "md5:9fb629c4189551a2d022fa330f9573f3",
        "md5:bef4ecab320f06d8554ea6380940ec79",
    ],
    "t10k-labels-idx1-ubyte.gz": [
        "md5:ec29112dd5afa0611ce80d1b7f02629c",
        "md5:bb300cfdad3c16e7a12a480ee83cd310",
    ],
}


def load_idx(path: str, *, any_version: bool = False) -> Labelled:
    """The data set in a folder.

    Raises:
        DataMissing: a file is not there.
        DataCorrupt: a file is no IDX file of bytes, or the four do not fit together.
    """
    files = Files.at(Path(path), _PUBLISHED, any_version=any_version)
    parts = {}
    for kind in ("train", "t10k"):
        images = _read(files, f"{kind}-images-idx3-ubyte", 3, any_version)
        labels = _read(files, f"{kind}-labels-idx1-ubyte", 1, any_version)
        if len(images) != len(labels):
            raise DataCorrupt(
                f"{path}: {len(images):,} images of {kind}, but {len(labels):,} labels",
                hint="the files belong to different data sets",
            )
        if not len(labels) or labels.max() >= CLASSES:
            raise DataCorrupt(f"{path}: labels of {kind} are not digits", hint="expected 0 to 9")
        parts[kind] = (images, labels.astype(np.int64))
    train, test = parts["train"][0], parts["t10k"][0]
    if train.shape[1:] != test.shape[1:]:
        raise DataCorrupt(
            f"{path}: training images are {train.shape[1:]}, the others {test.shape[1:]}",
            hint="the files belong to different data sets",
        )
    mean, deviation = float(train.mean()), float(train.std()) or 1.0
    return Labelled(
        train_x=((train - np.float32(mean)) / np.float32(deviation))[:, None].astype(np.float32),
        train_y=parts["train"][1],
        test_x=((test - np.float32(mean)) / np.float32(deviation))[:, None].astype(np.float32),
        test_y=parts["t10k"][1],
        classes=CLASSES,
        source=str(path),
    )


def parse_idx(data: bytes, where: str) -> npt.NDArray[np.uint8]:
    """An IDX file of unsigned bytes; raises `DataCorrupt` with the offset."""
    if len(data) < 4 or data[:2] != b"\0\0":
        raise DataCorrupt(f"{where}, byte 0: not an IDX file", hint="it begins with two zero bytes")
    if data[2] != _UNSIGNED_BYTE:
        raise DataCorrupt(f"{where}, byte 2: values of type {data[2]:#04x}, expected 0x08 (bytes)")
    dimensions = data[3]
    if not 1 <= dimensions <= 4:
        raise DataCorrupt(f"{where}, byte 3: {dimensions} dimensions, expected 1 to 4")
    start = 4 + 4 * dimensions
    if len(data) < start:
        raise DataCorrupt(f"{where}, byte {len(data)}: ends within its header")
    shape: tuple[int, ...] = struct.unpack(f">{dimensions}I", data[4:start])
    if not all(shape) or len(data) - start != math.prod(shape):
        raise DataCorrupt(
            f"{where}, byte {start}: {len(data) - start:,} values follow, its header says {shape}",
            hint="download or copy it again",
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _read(files: Files, stem: str, dimensions: int, any_version: bool) -> npt.NDArray[Any]:
    name = files.find([f"{stem}.gz", stem], f"file {stem}")
    array = parse_idx(files.read(name, _PUBLISHED, any_version=any_version), files.where(name))
    if array.ndim != dimensions:
        raise DataCorrupt(
            f"{files.where(name)}, byte 3: {array.ndim} dimensions, expected {dimensions}"
        )
    return array
