"""One node's part in the membership of a MoDeST run: its view, what waits to enter it, and its own standing (sans-IO).

A node that says it is there enters the view only after this node's next model has left: until then it is *pending*. The
round whose sample is being formed is thereby the same for all who form it, and a joiner enters a later one. That somebody
leaves counts at once.

A node's standing is its own to raise. Should a view say otherwise (it was declared gone, or it has started anew and forgot
its counter), it takes a higher counter and says again that it is there, as in SWIM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gossip.protocols.modest.view import MAX_COUNTER, MAX_ROUND, Entry, View
from transport.identity import NodeId

FAR_COUNTER: Final = 1 << 20
"""By how much a counter may rise on somebody else's word: who has begun anew is not further behind, and a lie does not use up all that there is."""


class Standing:
    """The view of node `me`, and what it says of itself."""

    def __init__(self, me: NodeId) -> None:
        self.me = me
        self.view = View()
        self.pending = View()
        self.counter = 0

    def begin(self, others: Sequence[NodeId], round_: int) -> None:
        """At the start: all who are reachable count as seen."""
        seen = Entry(round_, 0)
        for node in (*others, self.me):
            self.view.merge(node, seen)

    def seen(self, node: NodeId, round_: int, counter: int = 0) -> None:
        """A node took part in a round, or answered for it."""
        known = self.view.get(node)
        if known is None or known.left:
            self.says_here(node, round_, counter)
        else:
            self.view.merge(node, Entry(round_, max(counter, known.counter)))

    def says_here(self, node: NodeId, round_: int, counter: int) -> None:
        """A node says that it is there: with effect after the next model that leaves here."""
        self.pending.merge(node, Entry(round_, counter))

    def says_gone(self, node: NodeId, round_: int, counter: int) -> None:
        """A node says that it leaves: with effect at once."""
        self.view.merge(node, Entry(round_, counter, left=True))

    def overtaken(self, node: NodeId, counter: int) -> int | None:
        """The counter under which `node` is known as gone, if its word under `counter` cannot change that."""
        known = self.view.get(node)
        return (
            known.counter if known is not None and known.left and counter <= known.counter else None
        )

    def flush(self) -> None:
        """A model has left: those who wait are there from now on."""
        for node in self.pending:
            self.view.merge(node, self.pending[node])
        self.pending = View()

    def merge(self, wire_untrusted: bytes) -> bool:
        """Join another node's view; True if it is wrong about this node, which then has a higher counter.

        Raises:
            MalformedMessage: as `View.merge_wire`.
        """
        self.view.merge_wire(wire_untrusted, far=FAR_COUNTER)
        mine = self.view.get(self.me)
        return mine is not None and mine.left and self.raise_above(mine.counter)

    def raise_above(self, counter: int) -> bool:
        """Say of oneself from now on that one is there under a higher counter; False if this one is higher already."""
        if not self.counter <= counter <= min(self.counter + FAR_COUNTER, MAX_COUNTER - 1):
            return False
        self.counter = counter + 1
        self.here(0)
        return True

    def here(self, round_: int) -> None:
        """This node takes part in a round."""
        self.view.merge(self.me, Entry(min(round_, MAX_ROUND), self.counter))

    def leave(self, round_: int) -> None:
        """This node leaves."""
        self.counter = min(self.counter + 1, MAX_COUNTER)
        self.view.merge(self.me, Entry(round_, self.counter, left=True))

    @property
    def last_round(self) -> int:
        """The newest round for which this node is known to have been there."""
        mine = self.view.get(self.me)
        return 0 if mine is None else mine.last_round
