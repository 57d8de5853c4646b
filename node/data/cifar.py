"""CIFAR-10 in its binary version: 60,000 colour photographs of 32 x 32 pixels in 10 classes (Krizhevsky 2009).

Each record is 3,073 bytes: the class, then 1,024 bytes each of red, green and blue. Six files, data_batch_1.bin to
data_batch_5.bin and test_batch.bin, in a folder or in the published cifar-10-binary.tar.gz. The version "for Python"
is a pickle, which is a program: reading it would run whatever somebody wrote into it, so it is refused.

Each colour is shifted and scaled by its mean and deviation over the training photographs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from node.data.errors import DataCorrupt
from node.data.files import Files
from node.data.labelled import Features, Labelled, Labels

__all__ = ["load_cifar"]

CLASSES: Final = 10
RECORD: Final = 1 + 3 * 32 * 32
_BATCHES: Final = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_PUBLISHED: Final = {
    "cifar-10-binary.tar.gz": [
        "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
    ]
}


def load_cifar(path: str, *, any_version: bool = False) -> Labelled:
    """The data set in a folder or in its archive; every batch file that is there is trained on.

    Raises:
        DataMissing: a file is not there.
        DataCorrupt: not whole records, a class beyond 9, or the version for Python.
    """
    files = Files.at(Path(path), _PUBLISHED, any_version=any_version)
    if "data_batch_1" in files.names and "data_batch_1.bin" not in files.names:
        raise DataCorrupt(
            f"{path} is the version for Python, a pickle: reading one can run any code",
            hint='take the "binary version" (cifar-10-binary.tar.gz)',
        )
    files.find(_BATCHES[:1], "training batch")
    batches = [_records(files, name) for name in _BATCHES if name in files.names]
    train_y = np.concatenate([labels for _, labels in batches])
    train = np.concatenate([images for images, _ in batches])
    test, test_y = _records(files, files.find(["test_batch.bin"], "test batch"))
    mean = train.mean(axis=(0, 2, 3), keepdims=True, dtype=np.float64).astype(np.float32)
    deviation = train.std(axis=(0, 2, 3), keepdims=True, dtype=np.float64).astype(np.float32)
    deviation[deviation == 0] = 1
    return Labelled(
        train_x=(train - mean) / deviation,
        train_y=train_y,
        test_x=(test - mean) / deviation,
        test_y=test_y,
        classes=CLASSES,
        source=path,
    )


def _records(files: Files, name: str) -> tuple[Features, Labels]:
    data = np.frombuffer(files.read(name, _PUBLISHED), np.uint8)
    if not data.size or data.size % RECORD:
        raise DataCorrupt(
            f"{files.where(name)}, byte {data.size - data.size % RECORD}: no whole record of {RECORD} bytes",
            hint="download or copy it again",
        )
    records = data.reshape(-1, RECORD)
    labels = records[:, 0].astype(np.int64)
    if labels.max() >= CLASSES:
        first = int(np.argmax(labels >= CLASSES))
        raise DataCorrupt(
            f"{files.where(name)}, byte {first * RECORD}: class {labels[first]}, expected 0 to 9"
        )
    return records[:, 1:].reshape(-1, 3, 32, 32).astype(np.float32), labels
