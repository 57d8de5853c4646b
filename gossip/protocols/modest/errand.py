"""A model on its way to those of a round who are alive (sans-IO).

    seek  ->  due_pings  ->  answered, unreachable, tick  ->  ready: the errand and its receivers

A node has two under way at most: its own model, handed on to aggregators, and an average, given out to trainers. Each search for
receivers has a number of its own (nonce), by which the answers to its pings are told apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs

from gossip.decentralized.protocol import Vector
from gossip.protocols.modest.sampling import LivenessProbe
from transport.identity import NodeId


@attrs.define(eq=False)
class Errand:
    """A trainer's model for the aggregators of `round`, or an aggregator's for its trainers.

    It is kept until the run has gone past it, so that it can be done again should the round come to nothing.
    """

    round: int
    model: Vector
    members: int
    """Models in the mean; of a trainer's: trainers that its round was given to."""
    contributors: tuple[NodeId, ...] = ()
    """Whom to tell that their model was used, once it has gone out."""
    sent: set[NodeId] = attrs.field(factory=set)
    """Who was sent it already; asked for membership only, never iterated."""
    probe: LivenessProbe | None = None
    """Runs until the receivers are known."""
    nonce: int = 0
    cautious: bool = False
    """Leave it to others if enough of them are `ahead`."""
    ahead: int = 0
    """Answers to the pings from those who should rather do it: they hold a later model, or this one and come first."""
    again: bool = False
    """Send it also to those who were sent it before."""

    def heard_of(self, node: NodeId, holds: int, me: NodeId) -> None:
        """A candidate has answered that it holds the model of round `holds`."""
        if self.probe is not None and (
            holds > self.round or (holds == self.round and self.probe.precedes(node, me))
        ):
            self.ahead += 1


class Errands:
    """The errands of node `me`, and the pings that find their receivers.

    Args:
        me: this node.
        nonce: number of the search before the first.
        timeout_s: for an answer to a ping.
        resend_s: until a ping is repeated.
    """

    def __init__(self, me: NodeId, nonce: int, *, timeout_s: float, resend_s: float) -> None:
        self.handing: Errand | None = None
        """This node's model, for the aggregators of the next round."""
        self.offer: Errand | None = None
        """An average, for the trainers of its round."""
        self._me, self._nonce = me, nonce
        self._timeout_s, self._resend_s = timeout_s, resend_s

    def __iter__(self) -> Iterator[Errand]:
        return iter([one for one in (self.handing, self.offer) if one is not None])

    def __bool__(self) -> bool:
        return self.handing is not None or self.offer is not None

    def drop(self) -> None:
        """Nothing is handed on any more."""
        self.handing = self.offer = None

    def seek(self, errand: Errand, order: Sequence[NodeId], count: int, now: float) -> None:
        """Find the first `count` live ones of `order`."""
        self._nonce = (self._nonce + 1) % 2**32
        errand.nonce, errand.ahead = self._nonce, 0
        errand.probe = LivenessProbe(
            order, count, self._me, now, timeout_s=self._timeout_s, resend_s=self._resend_s
        )

    def answered(self, node: NodeId, nonce: int, holds: int, now: float) -> None:
        """A node has answered a ping: it is alive, and holds the model of round `holds`."""
        for errand in self:
            if errand.probe is not None and errand.nonce == nonce:
                errand.heard_of(node, holds, self._me)
                if holds > errand.round:  # alive, but past this round
                    errand.probe.unreachable(node, now)
                else:
                    errand.probe.answered(node, now)

    def unreachable(self, node: NodeId, nonce: int, now: float) -> None:
        """A ping did not get there: its answer need not be waited for."""
        for errand in self:
            if errand.probe is not None and errand.nonce == nonce:
                errand.probe.unreachable(node, now)

    def tick(self, now: float) -> None:
        """Pings to repeat, nodes to give up."""
        for errand in self:
            if errand.probe is not None:
                errand.probe.tick(now)

    def next_deadline(self) -> float | None:
        """When `tick` wants to be called."""
        probes = [errand.probe for errand in self if errand.probe is not None]
        due = [at for probe in probes if (at := probe.next_deadline()) is not None]
        return min(due, default=None)

    def due_pings(self, errand: Errand) -> Iterator[NodeId]:
        """Whom to ping for an errand now."""
        while errand.probe is not None and (node := errand.probe.next_ping()) is not None:
            yield node

    def ready(self, errand: Errand) -> Sequence[NodeId] | None:
        """The receivers of an errand, once; None while they are not known."""
        if errand.probe is None or (sample := errand.probe.sample) is None:
            return None
        errand.probe = None
        return sample
