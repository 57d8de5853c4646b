"""Keep trying to connect relayed peers directly.

Problem: a relayed connection is slow and costs a third party; whether a direct one can be had changes with time (a router restarts,
a laptop moves). Idea: one task per relayed peer tries soon, then ever more seldom; a change of our network starts over.

The side that was dialed coordinates at once, the dialer only when that has not helped for a while; should both begin, the punch
itself settles it.

Invariants: one task per relayed peer, ended with the peer or its relay; at most `AT_ONCE` punches of ours at a time; the last
`KEPT` reports are remembered, for people.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import attrs
import trio

from transport.endpoint import Endpoint, PeerDown, PeerPathChanged, PeerUp
from transport.identity import NodeId
from transport.network import Path
from transport.peer import Peer
from transport.punch.puncher import Puncher
from transport.punch.report import PunchReport

PAUSES_S: Final = (30.0, 120.0, 600.0, 3600.0)
"""Between tries; the last one for ever. 97.6 % of the punches that ever work do at first (arXiv 2510.27500)."""
DIALER_WAITS_S: Final = 10.0
"""How much longer the dialer waits before it coordinates: a whole punch of the other side fits in."""
AT_ONCE: Final = 8
KEPT: Final = 64


@attrs.frozen
class PunchRecord:
    """The last punch with a peer."""

    at: float
    """Trio time of its end."""
    report: PunchReport


class Upgrader:
    """Tries; runs in `run`."""

    def __init__(self, endpoint: Endpoint, puncher: Puncher) -> None:
        self.succeeded = self.tried = 0
        self.records: OrderedDict[NodeId, PunchRecord] = OrderedDict()  # bounded by KEPT
        self._endpoint = endpoint
        self._puncher = puncher
        self._limiter = trio.CapacityLimiter(AT_ONCE)
        self._scopes: dict[NodeId, trio.CancelScope] = {}  # one per relayed peer
        self._punching: set[NodeId] = set()
        self._again = trio.Event()

    def start_over(self) -> None:
        """Our network has changed: try everybody again soon."""
        self._again.set()
        self._again = trio.Event()

    async def run(self) -> None:
        """Upgrade until cancelled."""
        async with trio.open_nursery() as nursery:
            with self._endpoint.watch() as events:
                self._look(nursery)
                async for event in events:
                    if (
                        not isinstance(event, PeerUp | PeerDown | PeerPathChanged)
                        or event.peer.path is Path.RELAYED
                        or event.peer.node_id in self._scopes
                    ):
                        self._look(nursery)

    def _look(self, nursery: trio.Nursery) -> None:
        """Have a task for each relayed peer, and for nobody else."""
        relayed = {
            node_id: peer
            for node_id, peer in self._endpoint.peers.items()
            if peer.path is Path.RELAYED
        }
        for node_id in [node_id for node_id in self._scopes if node_id not in relayed]:
            if node_id not in self._punching or node_id not in self._endpoint.peers:
                self._scopes.pop(node_id).cancel()  # a punch that has just succeeded ends by itself
        for node_id, peer in relayed.items():
            if node_id not in self._scopes:
                scope = self._scopes[node_id] = trio.CancelScope()
                nursery.start_soon(self._keep_trying, peer, scope)

    async def _keep_trying(self, peer: Peer, scope: trio.CancelScope) -> None:
        node_id = peer.node_id
        try:
            with scope:
                await self._try_until_direct(peer)
        finally:
            self._punching.discard(node_id)
            if self._scopes.get(node_id) is scope:
                del self._scopes[node_id]

    async def _try_until_direct(self, peer: Peer) -> None:
        if peer.initiated:
            await trio.sleep(DIALER_WAITS_S)
        tries = 0
        while True:
            async with self._limiter:
                self._punching.add(peer.node_id)
                report = await self._puncher.punch(peer)
                self._punching.discard(peer.node_id)
            self._note(peer.node_id, report)
            if report.ok:
                return
            pause_s = PAUSES_S[min(tries, len(PAUSES_S) - 1)]
            tries += 1
            with trio.move_on_after(pause_s * self._endpoint.rng.uniform(0.8, 1.2)) as pause:
                await self._again.wait()
            if not pause.cancelled_caught:
                tries = 0

    def _note(self, node_id: NodeId, report: PunchReport) -> None:
        if report.coordinated or report.ok:
            self.tried += 1
            self.succeeded += report.ok
        self.records[node_id] = PunchRecord(trio.current_time(), report)
        self.records.move_to_end(node_id)
        while len(self.records) > KEPT:
            self.records.popitem(last=False)
