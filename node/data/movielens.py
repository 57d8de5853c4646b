"""MovieLens: who rated which film how (Harper and Konstan 2015), in the three formats GroupLens publishes.

    ratings.csv   userId,movieId,rating,timestamp          (20M, 25M, "latest"; first line as shown)
    u.data        user <tab> item <tab> rating <tab> time  (100K)
    ratings.dat   UserID::MovieID::Rating::Timestamp       (1M, 10M)

in a folder or in the published archive. One rating in ten is held out, chosen by a hash of user and film, so that
every node holds out the same ones whatever the order of lines.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import attrs
import numpy as np
import numpy.typing as npt

from node.data.errors import DataCorrupt
from node.data.files import Files
from node.data.sampling import batch_draws, stream_of

__all__ = ["Ratings", "load_movielens"]

HELD_OUT_SHARE: Final = 10
_FORMATS: Final = {"ratings.csv": ",", "u.data": "\t", "ratings.dat": "::"}
_PUBLISHED: Final = {
    "ml-100k.zip": ["md5:0e33842e24a9c977be4e0107933c0723"],
    "ml-1m.zip": ["md5:c4d9eecfca2ab87c1945afe126590906"],
}

Numbers = npt.NDArray[np.int64]


@attrs.frozen(eq=False, kw_only=True)
class Ratings:
    """Triples of user, film and rating; users and films are numbered from 0."""

    train_users: Numbers
    train_items: Numbers
    train_values: npt.NDArray[np.float32]
    test_users: Numbers
    test_items: Numbers
    test_values: npt.NDArray[np.float32]
    users: int
    items: int
    source: str

    def describe(self) -> str:
        """One line for the log."""
        return (
            f"{self.source}: {len(self.train_values):,} ratings of {self.items:,} films by {self.users:,} people,"
            f" {len(self.test_values):,} held out"
        )


def load_movielens(path: str, *, any_version: bool = False) -> Ratings:
    """The ratings in a folder or an archive.

    Raises:
        DataMissing: no file of ratings is there.
        DataCorrupt: a line is not a rating; says which.
    """
    files = Files.at(Path(path), _PUBLISHED, any_version=any_version)
    name = files.find(_FORMATS, "file of ratings")
    raw_users, raw_items, values = _lines(
        files.read(name, _PUBLISHED), files.where(name), _FORMATS[name]
    )
    users, user_of = np.unique(raw_users, return_inverse=True)
    items, item_of = np.unique(raw_items, return_inverse=True)
    held = _held_out(raw_users, raw_items)
    if held.all() or not held.any():
        raise DataCorrupt(
            f"{files.where(name)}: {len(values)} ratings are too few to hold some out"
        )
    return Ratings(
        train_users=user_of[~held],
        train_items=item_of[~held],
        train_values=values[~held],
        test_users=user_of[held],
        test_items=item_of[held],
        test_values=values[held],
        users=len(users),
        items=len(items),
        source=path,
    )


def _lines(
    data: bytes, where: str, separator: str
) -> tuple[Numbers, Numbers, npt.NDArray[np.float32]]:
    users: list[int] = []
    items: list[int] = []
    values: list[float] = []
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError as error:
        raise DataCorrupt(f"{where}, byte {error.start}: no ASCII text") from None
    for at, line in enumerate(text.splitlines(), 1):
        if not line.strip() or (at == 1 and line.startswith("userId")):
            continue
        fields = line.split(separator)
        try:
            user, item, value = int(fields[0]), int(fields[1]), float(fields[2])
        except (ValueError, IndexError):
            raise DataCorrupt(f"{where}, line {at}: not user, film and rating") from None
        if not (0 <= value <= 5 and 0 <= user < 2**53 and 0 <= item < 2**53):
            raise DataCorrupt(f"{where}, line {at}: a rating is 0 to 5, numbers are not negative")
        users.append(user)
        items.append(item)
        values.append(value)
    return np.array(users, np.int64), np.array(items, np.int64), np.array(values, np.float32)


def _held_out(users: Numbers, items: Numbers) -> npt.NDArray[Any]:
    drawn = batch_draws(users.astype(np.uint64), stream_of("movielens: held out"), items, 1)[:, 0]
    mask: npt.NDArray[Any] = drawn % np.uint64(HELD_OUT_SHARE) == 0
    return mask
