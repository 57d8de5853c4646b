"""Writes small data sets in their true formats."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zipfile

import numpy as np


def idx(array: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


def write_mnist(folder, *, train=40, test=20, compressed=False, side=8, seed=0):
    """Images whose left or right half says the class, so that a model can learn something."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for kind, count in (("train", train), ("t10k", test)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = rng.integers(0, 50, (count, side, side), dtype=np.uint8)
        images[np.arange(count), labels % side, :] = 255
        images[:, :, 0] += (labels // side * 100).astype(np.uint8)[:, None]
        for stem, array in (
            (f"{kind}-images-idx3-ubyte", images),
            (f"{kind}-labels-idx1-ubyte", labels),
        ):
            data = idx(array)
            if compressed:
                (folder / f"{stem}.gz").write_bytes(gzip.compress(data))
            else:
                (folder / stem).write_bytes(data)
            written[stem] = array
    return written


def cifar_batch(count: int, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    records = rng.integers(0, 256, (count, 3073), dtype=np.uint8)
    records[:, 0] = np.arange(count) % 10
    return records.tobytes()


def cifar_files() -> dict[str, bytes]:
    batches = {f"data_batch_{number}.bin": cifar_batch(20, number) for number in range(1, 6)}
    return {**batches, "test_batch.bin": cifar_batch(10, 6)}


def write_tar(path, files: dict[str, bytes], prefix: str):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"{prefix}/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def write_zip(path, files: dict[str, bytes], prefix: str):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(f"{prefix}/{name}", data)


def write_femnist(folder):
    rng = np.random.default_rng(1)
    for kind, counts in (("train", {"f01": 6, "f02": 3, "f03": 9}), ("test", {"f01": 2, "f02": 2})):
        (folder / kind).mkdir(parents=True)
        for name, count in counts.items():
            data = {
                "users": [name],
                "num_samples": [count],
                "user_data": {
                    name: {
                        "x": rng.random((count, 784)).round(3).tolist(),
                        "y": [at % 62 for at in range(count)],
                    }
                },
            }
            (folder / kind / f"all_data_{name}.json").write_text(json.dumps(data))


def ratings(count=300, seed=0) -> list[tuple[int, int, float]]:
    """Distinct pairs; users like films with numbers like their own."""
    rng = np.random.default_rng(seed)
    pairs = sorted({(int(u), int(f)) for u, f in rng.integers(1, 30, (count, 2))})
    return [(user, film, 5.0 if (user - film) % 2 == 0 else 1.0) for user, film in pairs]


def ratings_text(rows, kind: str) -> str:
    if kind == "ratings.csv":
        lines = ["userId,movieId,rating,timestamp", *(f"{u},{f},{r},964982703" for u, f, r in rows)]
        return "\r\n".join(lines) + "\r\n"
    separator = {"u.data": "\t", "ratings.dat": "::"}[kind]
    return "".join(
        f"{u}{separator}{f}{separator}{int(r)}{separator}978300760\n" for u, f, r in rows
    )
