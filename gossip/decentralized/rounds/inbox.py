"""What a node with rounds keeps of its peers: at most two models of each, who gave up on it, and how far they are.

Problem: neighbours run ahead, fall behind and lie, and a model is large. Idea: of each peer keep the model of the current
stamp (what rounds and their exchanges are numbered by), the newest of a later one, and two numbers; forget all of it when
the peer is no member any more. How far the others are is the median of the last few heard, so that no single peer can claim
a stamp and have everybody follow.
"""

from __future__ import annotations

from typing import Final

import attrs

from gossip.decentralized.protocol import AnyVector
from transport.identity import NodeId

MAX_STRANGERS: Final = 16
"""Peers that are no members of which anything is kept: they may know of this node before it knows of them."""


@attrs.frozen(eq=False)
class Received:
    """A peer's payload of one stamp; the vectors are the node's own copies, read-only."""

    sender: NodeId
    stamp: int
    degree: int
    """Targets of the sender at that stamp, as it says."""
    vectors: tuple[AnyVector, ...]
    at: float = 0.0
    """When it came."""


@attrs.define(eq=False)
class Peer:
    """One peer, as long as it is a member."""

    stamp: int = -1
    """Highest it has sent a model of."""
    mixed: int = -1
    """The last stamp at which this node mixed a model of it."""
    skipped: int = -1
    since: int = -1
    """By its last word it has closed the stamps above `since`, up to `skipped`, without this node."""
    gave_up: bool = False
    """Among them the current one."""
    current: Received | None = None
    later: Received | None = None
    asked: int = -1
    """The stamp at which it was last asked whether it takes this node's model."""
    taken: int = -1
    """The last stamp at which it said that it does."""
    silent: bool = False
    """It let an exchange run out of time, and has not been heard since."""
    resends: int = 0
    """Of models to it, since the last exchange began."""

    @property
    def holds(self) -> bool:
        """A model of it is kept."""
        return self.current is not None or self.later is not None


class Inbox:
    """The peers of one node, around its current stamp."""

    def __init__(self) -> None:
        self.stamp = 0
        self.late = 0
        """Models that came, or were kept, for a stamp that had been closed."""
        self.peers: dict[NodeId, Peer] = {}
        self._members: frozenset[NodeId] = frozenset()
        self._heard: dict[NodeId, int] = {}  # highest stamp of each, the one heard last at the end

    def set_members(self, members: frozenset[NodeId]) -> None:
        """Forget those that were members and are none now."""
        for gone in self._members - members:
            self.peers.pop(gone, None)
            self._heard.pop(gone, None)
        self._members = members

    def peer(self, id_: NodeId) -> Peer | None:
        """The entry of a peer, made if need be; None for one stranger too many."""
        if id_ not in self.peers:
            if id_ not in self._members:
                strangers = sum(known not in self._members for known in self.peers)
                if strangers >= MAX_STRANGERS:
                    return None
            self.peers[id_] = Peer()
        return self.peers[id_]

    def skip(self, id_: NodeId, stamp: int, since: int) -> None:
        """A peer says that it has closed the stamps above `since`, up to `stamp`, without this node."""
        peer = self.peer(id_)
        if peer is None:
            return
        self.hear(id_, stamp)
        peer.gave_up = peer.gave_up or since < self.stamp <= stamp
        if stamp > peer.skipped:
            peer.skipped, peer.since = stamp, since

    def hear(self, id_: NodeId, stamp: int) -> None:
        """A peer has shown that it is at this stamp, or beyond."""
        self._heard[id_] = max(stamp, self._heard.pop(id_, -1))
        if id_ in self.peers:
            self.peers[id_].silent = False

    def reached(self, window: int) -> int:
        """The stamp that more than half of the last `window` peers heard have reached; -1 if there is none.

        With fewer heard than that, the members that were not heard count as if they had reached nothing.
        """
        window = min(window, len(self._members))
        last = sorted(list(self._heard.values())[-window:] if window else [], reverse=True)
        return last[window // 2] if len(last) > window // 2 else -1

    def wants(self, id_: NodeId, stamp: int) -> bool:
        """A model of this stamp is of use, now or later."""
        peer = self.peers.get(id_)
        if peer is None or stamp < self.stamp:
            return False
        if stamp == self.stamp:
            return peer.current is None
        return peer.later is None or peer.later.stamp < stamp

    def keep(self, model: Received) -> None:
        """Keep one that is wanted."""
        peer = self.peers[model.sender]
        if model.stamp == self.stamp:
            peer.current = model
        else:
            peer.later = model

    def current(self, id_: NodeId) -> Received | None:
        """Its model of the current stamp, if that is here."""
        peer = self.peers.get(id_)
        return peer.current if peer is not None else None

    def has_skipped(self, id_: NodeId) -> bool:
        """It has closed the current stamp without this node."""
        peer = self.peers.get(id_)
        return peer is not None and peer.gave_up

    def newest(self, id_: NodeId) -> Received | None:
        """Its model of the current stamp or a later one."""
        peer = self.peers.get(id_)
        return (peer.later or peer.current) if peer is not None else None

    def will_mix(self, id_: NodeId) -> bool:
        """Its model of the current stamp is here, and it is not in doubt whether it mixes this node's."""
        peer = self.peers.get(id_)
        if peer is None or peer.current is None or peer.gave_up:
            return False
        return peer.asked != self.stamp or peer.taken >= self.stamp

    def is_silent(self, id_: NodeId) -> bool:
        """It was waited for in vain, and has not been heard since."""
        peer = self.peers.get(id_)
        return peer is not None and peer.silent

    def take(self, id_: NodeId) -> Received | None:
        """As `current`, and it is kept no longer."""
        peer = self.peers.get(id_)
        if peer is None:
            return None
        model, peer.current = peer.current, None
        return model

    def advance(self, stamp: int) -> None:
        """Be at another stamp: what was early is current now, what was current and not taken is late."""
        self.stamp = stamp
        for peer in self.peers.values():
            peer.resends = 0
            peer.gave_up = peer.since < stamp <= peer.skipped
            kept = [model for model in (peer.current, peer.later) if model is not None]
            self.late += sum(model.stamp < stamp for model in kept)
            peer.current = next((model for model in kept if model.stamp == stamp), None)
            peer.later = next((model for model in kept if model.stamp > stamp), None)
