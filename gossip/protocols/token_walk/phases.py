"""What a node with the token waits for, once it has trained."""

from __future__ import annotations

import attrs

from gossip.protocols.token_walk.kernel import Place
from transport.identity import NodeId


@attrs.define(eq=False)
class Looking:
    """Waiting for neighbours' visits."""

    until: float
    missing: set[NodeId]
    """Asked for membership and emptiness only."""
    places: dict[NodeId, Place] = attrs.field(factory=dict)
    lives: dict[NodeId, int] = attrs.field(factory=dict)


@attrs.define(eq=False)
class Sending:
    """Waiting for a receipt."""

    to: NodeId
    life: int
    until: float
    tries: int = 1
