"""How long a doubted member has to refute: less the more others doubt it too.

Problem: a short wait evicts members that were only slow, a long one keeps dead ones. Idea (Lifeguard, Dadgar et al. 2018,
arXiv 1707.00788, section 4.2, "Local Health Aware Suspicion"): begin with the long wait and shorten it with each independent
confirmation, on a logarithmic scale, because the first ones tell the most. An observer that is at fault itself finds nobody
who agrees, and gives the member the long wait.

    wait(c) = max(shortest, longest - (longest - shortest) * log(c + 1) / log(k + 1))       c confirmations, k wanted

Invariants: an author counts once; confirmations only ever shorten the wait; at most k + 1 authors are kept for each stage.
"""

from __future__ import annotations

import math

import attrs


def wait_s(confirmations: int, wanted: int, shortest_s: float, longest_s: float) -> float:
    """Seconds from the first doubt to the verdict.

    Args:
        confirmations: distinct others that doubt the member too.
        wanted: how many bring the wait down to the shortest; 0 if there are no others to ask.
        shortest_s: with all of them.
        longest_s: with none.
    """
    if confirmations >= wanted:
        return shortest_s
    share = math.log(confirmations + 1) / math.log(wanted + 1)
    return max(shortest_s, longest_s - share * (longest_s - shortest_s))


@attrs.define
class Suspicion:
    """The doubt about one member at one incarnation."""

    started: float
    wanted: int
    shortest_s: float
    longest_s: float
    why: str
    """What was seen; that of hearsay is replaced by what we see ourselves."""
    own: bool = False
    """Whether we have looked ourselves, in vain."""
    verdict_after: float = 0.0
    """End of the last look, which was in vain; 0 before."""
    authors: set[bytes] = attrs.field(factory=set)
    """Others who doubt it."""
    lost_by: set[bytes] = attrs.field(factory=set)
    """Others whose patience has ended."""

    def confirm(self, author: bytes, *, lost: bool) -> bool:
        """Count an author; returns whether it changes anything."""
        news = False
        if author not in self.authors and len(self.authors) <= self.wanted:
            self.authors.add(author)
            news = True
        if lost and author not in self.lost_by and len(self.lost_by) <= self.wanted:
            self.lost_by.add(author)
            news = True
        return news

    def needs(self, author: bytes, *, lost: bool) -> bool:
        """Whether `confirm` would change anything: asked before a signature is verified."""
        doubted = author in self.authors or len(self.authors) > self.wanted
        given_up = not lost or author in self.lost_by or len(self.lost_by) > self.wanted
        return not (doubted and given_up)

    @property
    def confirmations(self) -> int:
        """Others that say the same; a doubt of hearsay begins with one author, who is no confirmation."""
        return len(self.authors) - (0 if self.own else 1)

    @property
    def given_up(self) -> bool:
        """Whether `wanted` others, three at least, have given the member up.

        They cannot all be slow because we are, so our doubt of ourselves does not make us wait longer than they did.
        """
        return self.wanted >= 3 and len(self.lost_by) >= self.wanted

    @property
    def deadline(self) -> float:
        """When the time to refute ends, as things stand.

        At once if the member was given up by others: their clocks began earlier than ours, and our own last look
        still stands between their word and our verdict.
        """
        if self.given_up:
            return self.started
        return self.started + wait_s(
            max(0, self.confirmations), self.wanted, self.shortest_s, self.longest_s
        )
