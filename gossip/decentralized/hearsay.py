"""Numbers that only grow and that anybody may name: one member alone cannot move them to their end (sans-IO).

Problem: rounds, terms and steps are learnt from others, since who comes back has to catch up with whatever is going on. A
member that names the largest number there is would end the run for all and for good: nobody can name a larger one. Idea: a
number that is *far* ahead of all that is known here is believed when a second member has named one like it.

So a lie costs at most `far` of the range, and a run has range for many; who comes back after very long hears of where
the others are from two of them.
"""

from __future__ import annotations

from typing import Final

from transport.identity import NodeId

MAX_CLAIMS: Final = 64
"""Members whose last claim is remembered; more need not be, two are enough."""


class Hearsay:
    """What was named that is far ahead.

    Args:
        far: more than any honest member is ahead of another one that it has just met.
    """

    def __init__(self, far: int) -> None:
        self._far = far
        self._claims: dict[NodeId, int] = {}

    def believes(self, sender: NodeId, number: int, known: int) -> bool:
        """Whether a number is near enough to what is `known` here, or somebody else has named one like it."""
        if number <= known + self._far:
            return True
        self._claims.pop(sender, None)
        self._claims[sender] = number
        if len(self._claims) > MAX_CLAIMS:
            del self._claims[next(iter(self._claims))]
        return any(
            node != sender and number <= claim + self._far for node, claim in self._claims.items()
        )
