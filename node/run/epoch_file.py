"""With whom this node went on last, on the disk: so that it does not count for a majority it has left."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from transport.codec import MAX_MESSAGE_BYTES
from transport.durable import read_plain, replace_file

_log = logging.getLogger(__name__)

_LIMIT: Final = 2 * MAX_MESSAGE_BYTES


class EpochFile:
    """Bytes that the collective group understands; written once per epoch."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> bytes | None:
        """What was stored last; None when there is nothing, or nothing that can be read."""
        try:
            return read_plain(self._path, _LIMIT)
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.warning("%s cannot be read, starting without: %s", self._path, error)
            return None

    def store(self, memory: bytes) -> None:
        """Returns once it is on the disk.

        A full disk does not stop the run: the file from before stays, and says less than it should only
        if this node is started again before the next epoch.
        """
        try:
            replace_file(self._path, memory)
        except OSError as error:
            _log.warning("%s was not written: %s", self._path, error)
