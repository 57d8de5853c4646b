"""Bytes exchanged since the start, peers that are gone included.

A `Peer` counts its own bytes and takes the figures with it when it is lost; whoever asks what a run
has cost wants all of them.
"""

from __future__ import annotations

import trio

from transport.endpoint import Endpoint
from transport.watch import PeerDown


class TrafficMeter:
    """Totals over connected and lost peers."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._sent = 0
        self._received = 0

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Collect what lost peers had counted, until cancelled."""
        with self._endpoint.watch() as events:
            task_status.started()
            async for event in events:
                if isinstance(event, PeerDown):
                    self._sent += event.peer.bytes_sent
                    self._received += event.peer.bytes_received

    @property
    def bytes_sent(self) -> int:
        """Wire bytes sent since the start."""
        return self._sent + sum(peer.bytes_sent for peer in self._endpoint.peers.values())

    @property
    def bytes_received(self) -> int:
        """Wire bytes received since the start."""
        return self._received + sum(peer.bytes_received for peer in self._endpoint.peers.values())
