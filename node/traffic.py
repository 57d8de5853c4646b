"""Bytes exchanged since the start, peers that are gone included.

A `Peer` counts its own bytes and takes the figures with it when it is lost; whoever asks what a run
has cost wants all of them. What a peer exchanged over a relay is not counted here with it, but with
the relay: on the line there is only that connection.
"""

from __future__ import annotations

import attrs
import trio

from transport.endpoint import Endpoint
from transport.network import Path
from transport.peer import Peer
from transport.watch import PeerDown, PeerPathChanged


@attrs.frozen
class _Bytes:
    sent: int = 0
    received: int = 0

    @classmethod
    def of(cls, peer: Peer) -> _Bytes:
        return cls(peer.bytes_sent, peer.bytes_received)

    def __add__(self, other: _Bytes) -> _Bytes:
        return _Bytes(self.sent + other.sent, self.received + other.received)

    def __sub__(self, other: _Bytes) -> _Bytes:
        return _Bytes(self.sent - other.sent, self.received - other.received)


class TrafficMeter:
    """Totals over connected and lost peers."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._lost = _Bytes()
        self._over_relays: dict[Peer, _Bytes] = {}  # of connected peers that are direct by now
        self._direct: dict[Peer, _Bytes] = {}  # of connected peers that are relayed by now

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Collect what lost peers had counted, until cancelled."""
        with self._endpoint.watch() as events:
            task_status.started()
            async for event in events:
                match event:
                    case PeerDown(peer, _):
                        self._lost += self._on_the_line(peer)
                        self._over_relays.pop(peer, None)
                        self._direct.pop(peer, None)
                    case PeerPathChanged(peer, Path.RELAYED, _):
                        direct = self._direct.pop(peer, _Bytes())
                        self._over_relays[peer] = _Bytes.of(peer) - direct
                    case PeerPathChanged(peer, _, Path.RELAYED):
                        relayed = self._over_relays.pop(peer, _Bytes())
                        self._direct[peer] = _Bytes.of(peer) - relayed
                    case _:
                        pass

    def _on_the_line(self, peer: Peer) -> _Bytes:
        """What of a peer's bytes nobody else's connection carried."""
        if peer.path is Path.RELAYED:
            return self._direct.get(peer, _Bytes())
        return _Bytes.of(peer) - self._over_relays.get(peer, _Bytes())

    def _total(self) -> _Bytes:
        return sum(map(self._on_the_line, self._endpoint.peers.values()), self._lost)

    @property
    def bytes_sent(self) -> int:
        """Wire bytes sent since the start."""
        return self._total().sent

    @property
    def bytes_received(self) -> int:
        """Wire bytes received since the start."""
        return self._total().received
