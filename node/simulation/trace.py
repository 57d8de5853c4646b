"""Everything that happens in a simulated swarm, as one digest and, for those who ask, one by one.

Two runs of one scenario are the same run if and only if their digests are equal: every happening goes into a SHA-256
with its time, its nodes and its message, in order, and the nodes' models at the end.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from enum import IntEnum

import attrs

from gossip.decentralized.arithmetic import model_digest
from gossip.decentralized.protocol import Vector

__all__ = ["Happening", "Kind", "Trace"]


class Kind(IntEnum):
    """What happened."""

    START = 1
    LEAVE = 2
    CRASH = 3
    SILENCE = 4
    MEMBERS = 5
    """A node was told who is there; `size` is how many."""
    TRAIN = 6
    """`size` is the number of steps."""
    TRAINED = 7
    CANCEL = 8
    SEND = 9
    """From `node` to `peer`, `size` bytes."""
    DELIVER = 10
    """To `node` from `peer`."""
    LOST = 11
    """On its way to `node` from `peer`."""
    UNDELIVERED = 12
    """`node` hears that what it sent to `peer` did not arrive."""
    TICK = 13
    COMPLETED = 14
    """`size` is the round."""
    FINISHED = 15
    TOGETHER = 16
    """A modelled collective ended; `size` is the number of its members."""


@attrs.frozen
class Happening:
    """One thing that happened."""

    time_s: float
    kind: Kind
    node: int
    peer: int = 0
    size: int = 0


_PACKED = struct.Struct("<dBIIQ")


class Trace:
    """Collects the digest.

    Attributes:
        watch: is told of each happening; None costs nothing.
    """

    def __init__(self, watch: Callable[[Happening], None] | None = None) -> None:
        self.watch = watch
        self._digest = hashlib.sha256()

    def add(
        self,
        time_s: float,
        kind: Kind,
        node: int,
        peer: int = 0,
        *,
        size: int = 0,
        note: bytes = b"",
    ) -> None:
        """Note a happening; `note` is the message, where there is one."""
        self._digest.update(_PACKED.pack(time_s, kind, node, peer, size))
        if note:
            self._digest.update(note)
        if self.watch is not None:
            self.watch(Happening(time_s, kind, node, peer, size))

    def add_model(self, node: int, model: Vector) -> None:
        """Note a node's model."""
        self._digest.update(node.to_bytes(4, "little") + model_digest(model))

    def hexdigest(self) -> str:
        """The digest so far."""
        return self._digest.hexdigest()
