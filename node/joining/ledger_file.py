"""The ledger on disk: one file for each invite, replaced whole.

Problem: a certificate must not leave before its grant would survive a crash, a torn write must not cost the invite, and a failed
fsync says nothing about what is on disk. Idea: a new value is written beside the old one, synced, renamed over it, and the folder
synced (`transport.durable`). Whatever fails or stops on the way, the file holds the old value or the new one; and since the caller
sends nothing before `store` returns, both are right: with the old one nobody was given anything, with the new one the same subject
gets it when it asks again. A file that failed to sync is thrown away, never synced again.

    invites/<invite id, 32 hexadecimal digits>      SHA-256 of the rest (32 bytes) | msgpack of `ledger.Invite`

Invariants: `store` returns only when the value is durable; files are 0600; a damaged file is reported and stays where it is, and its
invite is not known any more, so nothing is granted from it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import re
from pathlib import Path
from typing import Final

from node.errors import NodedError
from node.joining.ledger import MAX_FILE_BYTES, Invite, LedgerDamaged, decode_invite, encode_invite
from node.paths import ensure_private_dir
from transport.durable import NotPlain, read_plain, replace_file

__all__ = ["CannotRecord", "LedgerFile"]

_NAME: Final = re.compile(r"[0-9a-f]{32}")
_DIGEST_BYTES: Final = 32


class CannotRecord(NodedError):
    """The ledger cannot be written: nothing was granted."""


class LedgerFile:
    """The invites of one node in its data directory; one writer at a time.

    Args:
        folder: where; made when something is stored.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self) -> tuple[list[Invite], list[LedgerDamaged]]:
        """What is there, and what is there and damaged; leftovers of a crash are ignored.

        Raises:
            NodedError: the folder cannot be read.
        """
        invites, damaged = [], []
        try:
            with contextlib.suppress(FileNotFoundError):
                for name in sorted(path.name for path in self._folder.iterdir()):
                    if not _NAME.fullmatch(name):
                        continue
                    try:
                        invites.append(self._read(name))
                    except LedgerDamaged as error:
                        damaged.append(error)
        except OSError as error:
            raise NodedError(
                f"cannot read the invites in {self._folder}: {error.strerror or error}",
                hint="check the permissions of that folder",
            ) from error
        return invites, damaged

    def store(self, invite: Invite) -> None:
        """Make a value durable in place of the one before.

        Raises:
            CannotRecord: the disk is full or broken; the value may be on disk or not, and must not be acted upon.
        """
        data = encode_invite(invite)
        try:
            ensure_private_dir(self._folder)
            replace_file(self._folder / invite.id.hex(), hashlib.sha256(data).digest() + data)
        except OSError as error:
            raise CannotRecord(
                f"cannot write the invites in {self._folder}: {error.strerror or error}",
                hint="make room on that disk, or repair it; nothing was granted",
            ) from error

    def remove(self, invite: bytes) -> None:
        """Forget an invite. Raises OSError."""
        (self._folder / invite.hex()).unlink(missing_ok=True)

    def _read(self, name: str) -> Invite:
        path = self._folder / name
        damaged = LedgerDamaged(
            f"{path} is damaged: its invite is refused from now on",
            hint="restore it from a copy, or remove it and make a new invite",
        )
        try:
            data = read_plain(path, MAX_FILE_BYTES)
        except NotPlain as error:
            if error.errno == errno.EFBIG:
                raise damaged from None
            raise
        body = data[_DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != data[:_DIGEST_BYTES]:
            raise damaged
        invite = decode_invite(body)
        if invite.id.hex() != name:
            raise LedgerDamaged(f"{path} holds another invite than its name says")
        return invite
