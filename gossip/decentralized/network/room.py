"""How much of what others send may wait here: bytes and messages, for each node and for all (sans-IO).

Problem: every neighbour may send its model at the same moment, and one may send it for ever. Idea: what a message will take is
reserved when its head has come, and given back when the protocol has seen it. A message larger than a limit is admitted when
nothing else is held under that limit, so that no model is too large to be received at all.

Invariants: what is held for a node, and for all, is at most the limit or one message; every reservation is given back once.
"""

from __future__ import annotations

from typing import Final, Self

import attrs

from transport.identity import NodeId

FLOAT_BYTES: Final = 4
LEAST_PER_NODE_BYTES: Final = 4 << 20
LEAST_BYTES: Final = 64 << 20


@attrs.frozen(kw_only=True)
class RoomLimits:
    """The most that may wait."""

    per_node_bytes: int
    bytes: int
    per_node_messages: int = 128

    @classmethod
    def of(cls, numel: int) -> Self:
        """For a model of `numel` values: four of them from one node, eight in all, and never less than some MiB."""
        model = FLOAT_BYTES * numel
        return cls(
            per_node_bytes=max(4 * model, LEAST_PER_NODE_BYTES), bytes=max(8 * model, LEAST_BYTES)
        )


@attrs.define
class _Held:
    bytes: int = 0
    messages: int = 0


class Room:
    """What is held now; see `reserve`."""

    def __init__(self, limits: RoomLimits) -> None:
        self.limits = limits
        self.bytes = 0
        """Held for all."""
        self._nodes: dict[NodeId, _Held] = {}

    def reserve(self, node: NodeId, size: int) -> bool:
        """Hold `size` bytes for a message of `node`; False if there is no room now."""
        held, limits = self._nodes.get(node, _Held()), self.limits
        if held.messages >= limits.per_node_messages:
            return False
        if held.messages and held.bytes + size > limits.per_node_bytes:
            return False
        if self.bytes and self.bytes + size > limits.bytes:
            return False
        self._nodes[node] = held
        held.bytes += size
        held.messages += 1
        self.bytes += size
        return True

    def release(self, node: NodeId, size: int) -> None:
        """Give back what one `reserve` took."""
        held = self._nodes[node]
        held.bytes -= size
        held.messages -= 1
        self.bytes -= size
        assert held.bytes >= 0, "gave back more than was held"
        if not held.messages:
            del self._nodes[node]
