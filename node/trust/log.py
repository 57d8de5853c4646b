"""The file in which a node keeps every statement of the swarm's document: who was certified, and who is out for good.

Problem: a revoked node must not come back because those who knew were all restarted, or because one of them lost power in the middle of writing.
Idea: a log that is only appended to, each piece with its length and check, synced after every batch. A torn end is cut off when it is read, and
what is damaged in the middle is passed over; a statement proves itself, so a piece that was changed is noticed as well (`gossip.swarm.document`
verifies what it loads).

    noded-trust-1 0a | pieces:  length (2, big-endian) | first 4 bytes of SHA-256 of the statement | statement

Invariants: at most `MAX_LOG_BYTES` and what counts; `read` never raises for what a crash or an old release left; nothing that was read before is lost by `append`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from node.errors import NodedError
from transport.durable import read_plain, replace_file

__all__ = ["TrustLog"]

_log = logging.getLogger(__name__)

MAX_LOG_BYTES: Final = 32 << 20
"""Two documents of the largest size, all of which is verified at a start: beyond it, the file is written anew with what counts."""
MAX_DAMAGED_BYTES: Final = 1 << 20
"""Searched for the next piece that holds; with more than that the disk is broken, and a start must not take minutes."""
_MAGIC: Final = b"noded-trust-1\n"
_PIECE: Final = struct.Struct(">H4s")


class TrustLog:
    """The file at `path`; one process uses it at a time (the daemon's lock sees to that)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fresh = False  # whether the file ends with a whole piece
        self._size = 0

    def read(self) -> list[bytes]:
        """All whole pieces, in the order of writing; none if there is no file.

        Raises:
            NodedError: the file cannot be read.
        """
        try:
            data = read_plain(self._path, 2 * MAX_LOG_BYTES)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise NodedError(
                f"cannot read who was revoked ({self._path}): {error.strerror or error}",
                hint="run as the user who owns it; without this file a revoked node might get in",
            ) from error
        if not data.startswith(_MAGIC):
            return []
        found, place, damaged = [], len(_MAGIC), 0
        while place < len(data) and damaged < MAX_DAMAGED_BYTES:
            raw = _piece(data, place)
            if raw is None:
                damaged += (
                    1  # until the next piece that holds; the next append writes the file anew
                )
                place += 1
            else:
                found.append(raw)
                place += _PIECE.size + len(raw)
        if damaged:
            _log.warning("%s: %d bytes are damaged or torn, and passed over", self._path, damaged)
        self._fresh, self._size = not damaged, len(data)
        return found

    def append(self, statements: Iterable[bytes], everything: Iterable[bytes]) -> None:
        """Add statements and wait until the disk has them; blocks.

        Args:
            statements: the new ones.
            everything: all that count, in case the file has to be written anew.

        Raises:
            NodedError: the disk is full, or the like.
        """
        try:
            added = _encode(statements)
            if not self._fresh or self._size + len(added) > MAX_LOG_BYTES:
                whole = _MAGIC + _encode(everything)
                replace_file(self._path, whole)
                self._fresh, self._size = True, len(whole)
                return
            flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(self._path, flags), "ab") as file:
                file.write(added)
                file.flush()
                os.fsync(file.fileno())
            self._size += len(added)
        except OSError as error:
            self._fresh = False
            raise NodedError(
                f"cannot write who was revoked ({self._path}): {error.strerror or error}",
                hint="check the permissions and the free space of its directory",
            ) from error


def _piece(data: bytes, place: int) -> bytes | None:
    """The statement that begins there; None if none does."""
    if place + _PIECE.size > len(data):
        return None
    length, check = _PIECE.unpack_from(data, place)
    start = place + _PIECE.size
    if not length or start + length > len(data):
        return None
    raw = data[start : start + length]
    return raw if hashlib.sha256(raw).digest()[:4] == check else None


def _encode(statements: Iterable[bytes]) -> bytes:
    return b"".join(
        _PIECE.pack(len(raw), hashlib.sha256(raw).digest()[:4]) + raw for raw in statements
    )
