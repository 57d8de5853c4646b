"""Probes of others on their way through us.

A probe is passed on along live connections towards its target, at most three hops: straight to the target if we are connected
to it, else to one of those peers whose ids are nearest to it (its neighbours in the DHT are the most likely to be connected to
it) or the one through whom it answered last, drawn by chance so that no single node stands in all ways. The ack comes back the same way. Whoever passed a probe on and
hears nothing says so (nack) in time for the asker to know that its helper, at least, is well.

Invariants: one message in makes at most one out and, later, one back for each that asked; at most `limit` probes are under way;
a second copy of a probe is never passed on again, its sender shares the answer.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

import attrs

from gossip.membership.messages import Ack, Nack, Probe
from transport.identity import NodeId

NACK_SHARE: Final = 0.8
"""Of the asker's patience: the nack has to be back before it ends (as memberlist)."""
NEAREST: Final = 3
VIA_SHARE: Final = 0.75
"""Of the probes that go the way that worked last; the rest keeps any one node from standing in all ways."""
MAX_BACK: Final = 4


@attrs.define
class _Passing:
    target: NodeId
    until: float
    back: list[NodeId]
    tried: bool


class ProbeRelay:
    """What is under way through one node.

    Args:
        limit: most probes at once.
        wait_s: until we say that no answer came.
        rng: chance.
    """

    def __init__(self, limit: int, wait_s: float, rng: random.Random) -> None:
        self._limit = limit
        self._wait_s = wait_s * NACK_SHARE
        self._rng = rng
        self._passing: dict[tuple[NodeId, bytes], _Passing] = {}

    def __len__(self) -> int:
        return len(self._passing)

    def pass_on(
        self,
        sender: NodeId,
        probe: Probe,
        peers: Sequence[NodeId],
        now: float,
        via: NodeId | None = None,
    ) -> tuple[NodeId, Probe | Nack] | None:
        """Return what to send to whom for a probe whose target we are not.

        Args:
            sender: where it came from.
            probe: it.
            peers: members we are connected to.
            via: the one through whom the target answered last.
            now: monotonic seconds.
        """
        key = (probe.asker, probe.nonce)
        known = self._passing.get(key)
        if known is not None:
            if sender not in known.back and len(known.back) < MAX_BACK:
                known.back.append(sender)
            return None
        hop = self._next_hop(sender, probe, peers, via)
        if hop is None or len(self._passing) >= self._limit:
            return sender, Nack(probe.asker, probe.target, probe.nonce, False)
        # Each hop is a little less patient than the one before it, or the nack would come too late.
        until = now + self._wait_s * 0.85 ** (3 - probe.hops)
        self._passing[key] = _Passing(probe.target, until, [sender], hop == probe.target)
        return hop, Probe(probe.asker, probe.target, probe.nonce, max(1, probe.hops - 1))

    def answered(self, answer: Ack | Nack) -> list[tuple[NodeId, Ack | Nack]]:
        """Return to whom an answer goes back; empty for one that nobody waits for."""
        passing = self._passing.get((answer.asker, answer.nonce))
        if passing is None or passing.target != answer.target:
            return []
        del self._passing[answer.asker, answer.nonce]
        return [(node, answer) for node in passing.back]

    def expire(self, now: float) -> list[tuple[NodeId, Nack]]:
        """Return the nacks that are due."""
        due = [key for key, passing in self._passing.items() if now >= passing.until]
        out: list[tuple[NodeId, Nack]] = []
        for asker, nonce in due:
            passing = self._passing.pop((asker, nonce))
            nack = Nack(asker, passing.target, nonce, passing.tried)
            out += [(node, nack) for node in passing.back]
        return out

    def next_deadline(self) -> float:
        """When `expire` has something to say; infinity if never."""
        return min((passing.until for passing in self._passing.values()), default=float("inf"))

    def _next_hop(
        self, sender: NodeId, probe: Probe, peers: Sequence[NodeId], via: NodeId | None
    ) -> NodeId | None:
        if probe.target in peers:
            return probe.target
        if probe.hops <= 1:
            return None
        others = [node for node in peers if node not in (sender, probe.asker)]
        if not others:
            return None
        if via in others and self._rng.random() < VIA_SHARE:
            return via
        place = int.from_bytes(probe.target, "big")
        others.sort(key=lambda node: int.from_bytes(node, "big") ^ place)
        return self._rng.choice(others[:NEAREST])
