"""Which token counts, and who notices that it is lost (sans-IO).

Problem: there must be one token, although messages are lost and doubled and whoever holds it may die. Idea: *terms*. Every
new life of the token has a higher term; who has heard of a term takes no part in lower ones any more. A term is a number and
the start of a node that began it, so that two nodes which begin one at the same time, on two sides of a partition, begin two different ones, of
which the lower is given up when they meet.

Within a term the token is handed over with a receipt and may be sent again. A receiver takes it once: it remembers up to which
step it has answered for, and one that has started anew refuses what was meant for its life before. So there is at most one accepted step for each (term, n): who is not sure whether the
token has arrived starts a new term, never a second token of the old one.

Whoever has handed the token over keeps a *lease*: it hears from the holder now and then, until the holder in turn has handed
it over. A lease that runs out is the first sign of a lost token.
"""

from __future__ import annotations

import enum
import hashlib
from typing import Final

import attrs

from transport.identity import NODE_ID_BYTES, NodeId


@attrs.frozen(order=True)
class Term:
    """One life of the token; ordered."""

    number: int
    starter: bytes
    """Who began it, in which life (`mark`); ends ties."""

    def next(self, starter: bytes) -> Term:
        """A later one."""
        return Term(self.number + 1, starter)


def mark(node: NodeId, life: int) -> bytes:
    """Names a node from one start to the next: what it began before, and has forgotten, is not what it begins now."""
    return hashlib.sha256(b"token-walk/life/v1" + node + life.to_bytes(8, "big")).digest()


NO_TERM: Final = Term(0, bytes(NODE_ID_BYTES))
"""Before the first."""


class Admission(enum.Enum):
    """What to do with a token that has arrived."""

    TAKE = "take"
    AGAIN = "again"
    """It was taken already: the receipt is repeated, the step is not."""
    REFUSE = "refuse"
    """Of a term that is over, or of a step that was passed."""


class Fence:
    """The highest term that a node has heard of, and how many of its steps the node has answered for."""

    def __init__(self) -> None:
        self.term = NO_TERM
        self.step = 0

    def heard(self, term: Term) -> bool:
        """True if the term is higher than all before: whatever is going on here belongs to the past."""
        if term <= self.term:
            return False
        self.term, self.step = term, 0
        return True

    def admit(self, term: Term, n: int) -> Admission:
        """A token that has made n steps: the next one is this node's."""
        self.heard(term)
        if term < self.term or n + 1 < self.step:
            return Admission.REFUSE
        if n + 1 == self.step:
            return Admission.AGAIN
        self.step = n + 1
        return Admission.TAKE

    def stayed(self, n: int) -> None:
        """Step n was made, and the token is still here."""
        self.step = max(self.step, n)


@attrs.frozen
class _Watched:
    holder: NodeId
    term: Term
    until: float


class Lease:
    """What the former holder knows of the present one."""

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._watched: _Watched | None = None

    def watch(self, holder: NodeId, term: Term, now: float) -> None:
        """The token was handed over to `holder`."""
        self._watched = _Watched(holder, term, now + self._lease_s)

    def renew(self, holder: NodeId, term: Term, now: float) -> None:
        """A sign of life of a holder."""
        if self._is(holder, term):
            self.watch(holder, term, now)

    def release(self, holder: NodeId, term: Term) -> None:
        """It has handed the token over in turn."""
        if self._is(holder, term):
            self._watched = None

    def drop(self) -> None:
        """Whatever it was about is over."""
        self._watched = None

    def next_deadline(self) -> float | None:
        """When it runs out."""
        return self._watched.until if self._watched is not None else None

    @property
    def renew_every_s(self) -> float:
        """How often a holder gives a sign of life: two may be lost."""
        return self._lease_s / 3

    def _is(self, holder: NodeId, term: Term) -> bool:
        watched = self._watched
        return watched is not None and (watched.holder, watched.term) == (holder, term)
