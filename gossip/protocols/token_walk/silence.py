"""When a node that hears nothing of the token asks where it is (sans-IO).

For when holder and predecessor are lost together, so that no lease runs out. The nodes ask one after the other, in an order by hash:
each waits as many times `silence_s` as nodes come before it, and a share of its own. An answer, or news of the token, begins the wait anew.
"""

from __future__ import annotations

from typing import Final

from gossip.decentralized.hearsay import Hearsay
from gossip.protocols.token_walk.lease import NO_TERM, Term
from transport.identity import NodeId

MAX_PRECEDING: Final = 10
"""After silence the nodes ask one after the other; those behind the tenth at about the same time."""
FAR_TERMS: Final = 1 << 20
FAR_STEPS: Final = 1 << 32
"""What is further ahead of all that is known here takes two to say so."""


class Silence:
    """The newest that was heard of the token, and the time since.

    Args:
        silence_s: without news, for the node that asks first.
        impatience: of this node, drawn from [0, 1).
    """

    def __init__(self, silence_s: float, impatience: float) -> None:
        self.newest: tuple[Term, int] = (NO_TERM, 0)
        """The highest (term, step) that was heard of."""
        self.preceding = 0
        """Reachable nodes that come before this one where several could do something."""
        self._usual_s = self._silence_s = silence_s
        self._impatience = impatience
        self._since = 0.0
        self._terms, self._steps = Hearsay(FAR_TERMS), Hearsay(FAR_STEPS)

    def believes(self, sender: NodeId, term: int, step: int, known_term: int) -> bool:
        """Whether a member that names this term and step is believed."""
        near = self._terms.believes(sender, term, known_term)
        return near and self._steps.believes(sender, step, self.newest[1])

    def news(self, term: Term, n: int, now: float) -> None:
        """The token was at step `n` of a term."""
        if (term, n) > self.newest:
            self.newest = (term, n)
            self._silence_s = self._usual_s
            self._since = now

    def begin(self, now: float) -> None:
        """Wait anew: somebody looks after the token, or it has just left."""
        self._since = now

    def shorten(self, silence_s: float) -> None:
        """Wait so long until the first news, and as usual from then on."""
        self._silence_s = silence_s

    def due(self) -> float:
        """When this node asks."""
        place = 1 + min(self.preceding, MAX_PRECEDING) + self._impatience
        return self._since + self._silence_s * place
