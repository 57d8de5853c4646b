"""News that is passed on a bounded number of times, the least told first.

Idea (SWIM, Das et al. 2002, section 4.1): news rides on messages, and each member sends each piece about lambda * log n times;
that reaches everybody with high probability and then stops by itself. New news goes first, so a burst of old does not delay it.

Invariants: at most one piece for each subject and author (a newer one replaces it); a member's own statement replaces all doubts
about it that it refutes; at most `capacity` pieces (the most told is dropped); a message gets at most `MAX_NEWS` pieces and
`budget_bytes`.
"""

from __future__ import annotations

import math
from typing import Final

import attrs

from gossip.membership.messages import MAX_MESSAGE_BYTES, MAX_NEWS, Doubt, News, size_of

BUDGET_BYTES: Final = MAX_MESSAGE_BYTES - 1024
"""For the news in a message; the rest is for its body."""


def times(spread: float, members: int) -> int:
    """How often each member sends one piece of news in a swarm of so many."""
    return max(1, math.ceil(spread * math.log(members + 1)))


@attrs.define
class _Piece:
    news: News
    number: int
    told: int = 0


class Dissemination:
    """The news of one node.

    Args:
        spread: lambda.
        capacity: most pieces kept.
    """

    def __init__(self, spread: float, capacity: int) -> None:
        self._spread = spread
        self._capacity = capacity
        self._pieces: dict[tuple[bytes, bytes], _Piece] = {}
        self._number = 0

    def __len__(self) -> int:
        return len(self._pieces)

    def add(self, news: News) -> None:
        """Pass on `news` from now on, in place of what it supersedes."""
        if isinstance(news, Doubt):
            key = (bytes(news.member), bytes(news.author))
        else:
            self.forget(news.member)
            key = (bytes(news.member), b"")
        self._number += 1
        self._pieces[key] = _Piece(news, self._number)
        while len(self._pieces) > self._capacity:
            most_told = max(self._pieces, key=lambda at: self._order(self._pieces[at]))
            del self._pieces[most_told]

    def forget(self, member: bytes) -> None:
        """Drop all doubts about a member."""
        subject = bytes(member)
        for key in [key for key in self._pieces if key[0] == subject and key[1]]:
            del self._pieces[key]

    def take(
        self, members: int, budget_bytes: int = BUDGET_BYTES, most: int = MAX_NEWS
    ) -> list[News]:
        """Return what goes with the next message, and count it as told once more.

        Args:
            members: how many there are.
            budget_bytes: room in the message.
            most: pieces at most.
        """
        limit = times(self._spread, members)
        taken: list[News] = []
        for key, piece in sorted(self._pieces.items(), key=lambda item: self._order(item[1])):
            if len(taken) >= most:
                break
            size = size_of(piece.news)
            if size > budget_bytes:
                continue
            budget_bytes -= size
            taken.append(piece.news)
            piece.told += 1
            if piece.told >= limit:
                del self._pieces[key]
        return taken

    @staticmethod
    def _order(piece: _Piece) -> tuple[int, int]:
        return (piece.told, -piece.number)
