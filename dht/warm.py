"""Warm starts: the contacts of the last run are asked first, and those of this one written down.

On start the saved contacts are greeted, the last heard from first, `BATCH` at a time until enough have answered; the first answer
starts a search of our neighbourhood (see `node`), and with it the swarm is found again. No bootstrap address is needed.

The table is written every `SAVE_EVERY_S`, a little after the start, and on leaving. Contacts of the file that have not been met again
stay in it until they are too old, and an empty table never replaces a file: a node that was offline forgets nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import trio

from dht.node import DhtNode
from dht.saved import InvalidSaved, Saved, decode, encode, to_save
from dht.table_file import read_table, write_table

BATCH = 32
BATCH_S = 4.0
"""A little more than one query may take."""
SAVE_FIRST_S = 30.0
SAVE_EVERY_S = 300.0
LAST_SAVE_S = 2.0
"""How long leaving may wait for the disk."""

_log = logging.getLogger(__name__)


class Warm:
    """The saved table of one service."""

    def __init__(
        self,
        node: DhtNode,
        path: Path,
        *,
        swarm_id: bytes,
        node_id: bytes,
        wall_clock: Callable[[], float],
        wake: Callable[[], None],
    ) -> None:
        self._node = node
        self._path = path
        self._swarm_id = swarm_id
        self._node_id = node_id
        self._wall = wall_clock
        self._wake = wake
        self._before: list[Saved] | None = None  # of the file; None until it has been read

    async def run(self) -> None:
        """Load, greet, then save for ever."""
        await self._load()
        await self._greet()
        await trio.sleep(SAVE_FIRST_S)
        while True:
            await self._save()
            await trio.sleep(SAVE_EVERY_S)

    async def last_save(self) -> None:
        """Save on the way out, also when cancelled, for at most `LAST_SAVE_S`."""
        with trio.move_on_after(LAST_SAVE_S, shield=True):
            await self._save()

    async def _load(self) -> None:
        self._before = []
        try:
            data = await read_table(self._path)
            if data is not None:
                self._before = decode(
                    data, swarm_id=self._swarm_id, node_id=self._node_id, wall=self._wall()
                )
        except InvalidSaved as error:
            _log.warning("the saved routing table %s is ignored: %s", self._path, error)

    async def _greet(self) -> None:
        saved = self._before or []
        for start in range(0, len(saved), BATCH):
            if len(self._node.table) >= BATCH:
                return
            for each in saved[start : start + BATCH]:
                self._node.greet(each.contact, trio.current_time())
            self._wake()
            await trio.sleep(BATCH_S)

    async def _save(self) -> None:
        if self._before is None or not len(self._node.table):
            return  # nothing learnt: what is there is better
        contacts = to_save(
            self._node.table.entries(), self._before, now=trio.current_time(), wall=self._wall()
        )
        data = encode(contacts, swarm_id=self._swarm_id, node_id=self._node_id)
        try:
            await write_table(self._path, data)
        except OSError as error:
            _log.warning("the routing table cannot be saved to %s: %s", self._path, error.strerror)
