"""Bit parity of what members declare: tensors by name, the same on all of them (trio driver).

`StateSync.sync` is called by all members at the same point of their programs. Each hashes its tensors, block by block; the hashes
are gathered and certified (`declaration`), which decides whose state counts; whoever holds another one fetches
the blocks that differ, and only those, from all that hold it, each block checked against the hash; and
when everybody has what it lacks, a certified barrier says so. Where all are equal, gathering is all there is.

One epoch sees all of this: a member that joins or is lost meanwhile makes it begin anew. The caller gets the
epoch's id, and passes it on (`Job.within`) with the operations that rest on the parity: in another epoch they end with
`EpochChanged` at once, and the way is back to `sync`, where the newcomers are waiting.

Nothing is written into the caller's tensors before everything that it lacks is here.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import attrs
import numpy as np
import numpy.typing as npt
import trio

from gossip.blocks import bitmap as bits
from gossip.blocks.bitmap import Bitmap
from gossip.blocks.errors import BlocksError
from gossip.blocks.fetch import Fetch, FetchSettings
from gossip.blocks.library import Library, MemorySink, Sink, Vectors
from gossip.blocks.manifest import Manifest
from gossip.blocks.merkle import HASH_BYTES, PAGE
from gossip.blocks.serve import ServeSettings, open_block_server
from gossip.collective.agreement.certificate import Epoch
from gossip.collective.agreement.messages import MAX_MEMBERS
from gossip.collective.group import Group
from gossip.collective.state.declaration import (
    MAX_REVISION,
    RECORD_BYTES,
    Declaration,
    decode_all,
    elect,
    shape_digest,
)
from gossip.errors import EpochChanged, InvalidOperation, StateUnavailable
from transport.buffer import Buffer
from transport.endpoint import Endpoint
from transport.identity import NodeId
from transport.peer import Peer

SYNC_TAG: Final = 15
"""The lane of synchronisation, unless the caller names another."""
STALL_S: Final = 20.0
"""Without a new block and with nobody to ask, until a fetch is given up."""
_SERVE: Final = ServeSettings(sessions=8, sessions_per_peer=2)
_FETCH: Final = FetchSettings(patience_s=STALL_S)

Array = npt.NDArray[Any]


@attrs.frozen
class Synced:
    """How a synchronisation ended."""

    epoch: Epoch
    """In which all of its members hold the same bytes."""
    artefact: bytes
    """Hash of what they hold, as an artefact's id."""
    fetched_blocks: int
    """That this member lacked."""
    holders: tuple[NodeId, ...]
    """Members that held the state before."""


@attrs.frozen
class _What:
    """The arguments of a synchronisation."""

    regions: Sequence[memoryview]
    shape: bytes
    revision: int
    label: str
    tag: int
    deadline: float
    sole: bool


class _Shelf(Library):
    """The states that are being synchronised, where they lie."""

    blocking = False

    def __init__(self) -> None:
        self._states: dict[bytes, Vectors] = {}

    def put(self, state: Vectors) -> None:
        """Serve this one."""
        self._states[state.manifest.id] = state

    def take(self, state: Vectors) -> None:
        """Not any more: its owner is about to change it."""
        if self._states.get(state.manifest.id) is state:
            del self._states[state.manifest.id]

    def manifest(self, artefact: bytes) -> Manifest | None:
        """See `Library`."""
        state = self._states.get(artefact)
        return None if state is None else state.manifest

    def page(self, artefact: bytes, page: int) -> bytes | None:
        """See `Library`."""
        state = self._states.get(artefact)
        return None if state is None else state.page(page)

    def have(self, artefact: bytes) -> Bitmap | None:
        """See `Library`."""
        manifest = self.manifest(artefact)
        return None if manifest is None else bits.full(manifest.blocks)

    def read(self, artefact: bytes, block: int) -> Buffer | None:
        """See `Library`."""
        state = self._states.get(artefact)
        return None if state is None else state.read(block)


class _Lacking(Sink):
    """Takes the blocks that differ, beside the state."""

    blocking = False

    def __init__(self, have: Bitmap) -> None:
        self._have = have
        self.blocks: dict[int, bytes] = {}

    def have(self) -> Bitmap:
        """See `Sink`."""
        return self._have

    def write(self, block: int, data: memoryview) -> None:
        """See `Sink`."""
        self.blocks[block] = bytes(data)
        self._have[block] = True


class StateSync:
    """Keeps what members declare the same; made by `open_state_sync`."""

    def __init__(
        self, endpoint: Endpoint, group: Group, random_bytes: Callable[[int], bytes]
    ) -> None:
        self._endpoint = endpoint
        self._group = group
        self._random_bytes = random_bytes
        self._shelf = _Shelf()
        self._protocol = f"declared/{group.run.hex()[:32]}"
        self._parity: set[str] = set()  # labels that were in parity at some time

    async def sync(
        self,
        tensors: Mapping[str, Array],
        *,
        revision: int = 0,
        label: str = "state",
        tag: int = SYNC_TAG,
        deadline: float = math.inf,
        sole: bool = False,
    ) -> Synced:
        """Return when all members of the present epoch hold the same bytes in `tensors`.

        Args:
            tensors: by name, contiguous, of the same types and shapes at all members; nobody may write to them
                meanwhile. Overwritten where they differ from the state that counts.
            revision: grows with the work in them (steps done, say); breaks ties between states.
            label: which state this is, if there are several.
            tag: the lane it takes.
            deadline: trio time by which this ends, one way or another.
            sole: as of a `Job`.

        Cancellation leaves the tensors as they were.

        Raises:
            DescriptorMismatch: members declare tensors of other names, types or shapes.
            StateUnavailable: those that hold the state cannot give it.
            CollectiveAborted, Indeterminate: no outcome by the deadline.
            InvalidOperation: the arguments cannot be synchronised.
        """
        what = _What(
            _regions(tensors, revision),
            hashlib.sha256(label.encode() + b"\0" + shape_digest(tensors)).digest(),
            revision,
            label,
            tag,
            deadline,
            sole,
        )
        while True:
            try:
                synced = await self._once(what)
            except EpochChanged:
                continue
            self._parity.add(label)
            return synced

    async def _once(self, what: _What) -> Synced:
        """One attempt, in one epoch."""
        state = Vectors("state", "declared", what.regions)
        for _ in state.hashing():
            await trio.lowlevel.checkpoint()
        self._shelf.put(state)
        try:
            return await self._agree(what, state)
        finally:
            self._shelf.take(state)

    async def _agree(self, what: _What, state: Vectors) -> Synced:
        group, tag, deadline = self._group, what.tag, what.deadline
        own = Declaration(what.revision, what.label in self._parity, state.manifest.id)
        gathered = np.empty(RECORD_BYTES * MAX_MEMBERS, np.int8)
        reduced = await group.all_gather(
            what.shape, own.encode(), gathered, tag=tag, deadline=deadline, sole=what.sole
        )
        epoch = reduced.epoch
        veterans = group.machine.veterans(epoch.id)
        if veterans is None:
            raise EpochChanged("several epochs have ended since")
        chosen, holders = elect(decode_all(gathered, epoch.members), veterans)
        blocks: dict[int, bytes] = {}
        if own.artefact != chosen:
            with trio.CancelScope(deadline=deadline) as patience:
                blocks = await self._fetch(chosen, holders, state, epoch)
            if patience.cancelled_caught:
                raise StateUnavailable("not all of the state came by the deadline")
        if len(holders) < len(epoch.members):
            await group.barrier(
                what.shape + chosen, tag=tag, deadline=deadline, within=epoch.id, sole=what.sole
            )
        sink = MemorySink(what.regions)
        for block, data in blocks.items():
            sink.write(block, memoryview(data))
        return Synced(epoch, chosen, len(blocks), holders)

    async def _fetch(
        self, artefact: bytes, holders: Sequence[NodeId], state: Vectors, epoch: Epoch
    ) -> dict[int, bytes]:
        """The blocks in which the state that counts differs from this member's."""
        sink: _Lacking | None = None

        async def prepare(manifest: Manifest, leaves: list[bytes]) -> Sink:
            nonlocal sink
            if manifest.size != state.manifest.size:
                raise StateUnavailable("the state that counts has another size than ours")
            own = [
                page[at : at + HASH_BYTES]
                for index in range(-(-manifest.blocks // PAGE))
                for page in (state.page(index),)
                for at in range(0, len(page), HASH_BYTES)
            ]
            have = bits.none(manifest.blocks)
            for block, (mine, theirs) in enumerate(zip(own, leaves, strict=True)):
                have[block] = mine == theirs
            sink = _Lacking(have)
            return sink

        async def seek() -> list[Peer]:
            peers = self._endpoint.peers
            return [peers[holder] for holder in holders if holder in peers]

        async def watch(scope: trio.CancelScope) -> None:
            while self._group.epoch is not None and self._group.epoch.id == epoch.id:
                await self._group.wait_changed()
            scope.cancel()

        fetch = Fetch(
            self._endpoint,
            artefact,
            prepare,
            seek,
            rng=random.Random(self._random_bytes(16)),
            random_bytes=self._random_bytes,
            protocol=self._protocol,
            settings=_FETCH,
        )
        finished = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch, nursery.cancel_scope)
                await fetch.run()
                finished = True
                nursery.cancel_scope.cancel()
        except* BlocksError as group:
            raise StateUnavailable(str(group.exceptions[0])) from None
        if not finished:
            raise EpochChanged("the epoch has ended while the state was fetched")
        assert sink is not None
        return sink.blocks


def _regions(tensors: Mapping[str, Array], revision: int) -> list[memoryview]:
    if not 0 <= revision <= MAX_REVISION:
        raise InvalidOperation(f"a revision is a number from 0 to {MAX_REVISION}, not {revision}")
    regions = []
    for name in sorted(tensors):
        tensor = tensors[name]
        if not (tensor.flags.c_contiguous and tensor.flags.writeable):
            raise InvalidOperation(f"tensor {name!r} must be contiguous and writable")
        if tensor.size:
            regions.append(tensor.reshape(-1).view(np.uint8).data)
    if not regions:
        raise InvalidOperation("there is nothing to synchronise")
    return regions


@asynccontextmanager
async def open_state_sync(
    endpoint: Endpoint, group: Group, random_bytes: Callable[[int], bytes]
) -> AsyncIterator[StateSync]:
    """Be able to synchronise declared state with the group's members, and serve it to them."""
    sync = StateSync(endpoint, group, random_bytes)
    async with open_block_server(
        endpoint,
        sync._shelf,  # noqa: SLF001 - one unit
        protocol=sync._protocol,  # noqa: SLF001
        settings=_SERVE,
    ):
        yield sync
