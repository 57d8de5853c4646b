"""A model on its way to those of a round who are alive (sans-IO)."""

from __future__ import annotations

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
