"""The two bulk links that a member's place in the ring consists of (trio driver).

They belong to one epoch: opened when it is entered, thrown away with it, so that bytes of an aborted
operation can never be taken for another's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from gossip.collective.certificate import Epoch
from gossip.collective.ring import RingPlace
from gossip.errors import CollectiveAborted, GossipError
from transport.bulk.link import BulkLink
from transport.endpoint import Endpoint
from transport.errors import TransportError
from transport.identity import NodeId

CONNECT_S: Final = 5.0
LABEL: Final = b"ring/"


class RingLinks:
    """Links of the present epoch.

    Args:
        endpoint: whose peers the members are.
        nursery: where connecting runs.
        on_change: called when the links are there.
        on_failure: called when they cannot be had, with the reason and whose links those are.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        nursery: trio.Nursery,
        *,
        on_change: Callable[[], None],
        on_failure: Callable[[str, tuple[NodeId, ...]], None],
    ) -> None:
        self._endpoint = endpoint
        self._nursery = nursery
        self._on_change = on_change
        self._on_failure = on_failure
        self._epoch: Epoch | None = None
        self._place: RingPlace | None = None
        self._connecting: trio.CancelScope | None = None

    def place(self, epoch: Epoch) -> RingPlace | None:
        """This node's place in `epoch`'s ring, once both links are there."""
        return self._place if self._epoch is epoch else None

    def enter(self, epoch: Epoch) -> None:
        """Drop the links of the epoch before, and start connecting those of `epoch`."""
        self.drop("a new epoch")
        self._epoch = epoch
        if len(epoch.members) == 1:
            self._place = RingPlace.alone()
            return
        self._connecting = trio.CancelScope()
        self._nursery.start_soon(self._connect, epoch, self._connecting)

    def drop(self, reason: str) -> None:
        """Close what there is; whoever uses it fails at once."""
        if self._connecting is not None:
            self._connecting.cancel()
        if self._place is not None:
            self._place.abort(reason)
        self._epoch = self._place = self._connecting = None

    async def _connect(self, epoch: Epoch, scope: trio.CancelScope) -> None:
        """Dial the next member and take the link from the previous one."""
        world, rank = len(epoch.members), epoch.members.index(self._endpoint.node_id)
        label = LABEL + epoch.id[:24]
        following, previous = epoch.members[(rank + 1) % world], epoch.members[(rank - 1) % world]
        links: dict[str, BulkLink] = {}

        async def dial() -> None:
            peer = self._endpoint.peers.get(following)
            if peer is None:
                raise CollectiveAborted(f"{following.short} is not connected")
            links["next"] = link = await peer.open_bulk(label)
            await link.offer_memory()

        async def accept() -> None:
            links["previous"] = link = await self._endpoint.accept_bulk(previous, label)
            await link.accept_memory()

        failure = f"no ring connection within {CONNECT_S:.0f} s"
        scope.deadline = trio.current_time() + CONNECT_S
        with scope:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(dial)
                    nursery.start_soon(accept)
            except* (TransportError, GossipError) as group:
                failure = f"ring not connected: {group.exceptions[0]}"
        wanted = self._connecting is scope
        if wanted:
            self._connecting = None
        if wanted and len(links) == 2:
            self._place = RingPlace(rank, world, links["next"], links["previous"])
            self._on_change()
            return
        for link in links.values():
            link.abort("the epoch has ended")
        if wanted:
            missing = {"next": following, "previous": previous}
            self._on_failure(failure, tuple({missing[end] for end in missing if end not in links}))
