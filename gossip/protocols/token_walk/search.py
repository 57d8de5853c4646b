"""Asking everybody where the token is, and who has its newest state (sans-IO).

The search is over when all who were asked have answered or cannot be reached, at the latest after `timeout_s`. If nobody holds
the token, the one with the highest (term, step) starts a new term from its state; where several have it, the first by the
hash of the run and the node, so that it is not always the same node.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import attrs

from gossip.protocols.token_walk.lease import Term
from transport.identity import NodeId


@lru_cache(maxsize=4096)
def precedence(run: bytes, node: NodeId) -> bytes:
    """What ends ties: the lower one comes first."""
    return hashlib.sha256(b"token-walk/v1" + run + node).digest()


@attrs.frozen
class State:
    """What one node has said of itself."""

    node: NodeId
    term: Term
    """Of the state that it could start from."""
    step: int
    fence: Term
    """The highest term that it has heard of."""
    holding: bool


class Search:
    """One question to everybody."""

    def __init__(
        self,
        run: bytes,
        mine: State,
        others: Sequence[NodeId],
        now: float,
        *,
        nonce: int,
        timeout_s: float,
    ) -> None:
        self.nonce = nonce
        self.until = now + timeout_s
        self._run = run
        self._open = set(others)
        """Asked for membership and emptiness only, never iterated."""
        self._states = [mine]

    def answered(self, state: State) -> None:
        """Of somebody who was asked; the first answer counts."""
        if state.node in self._open:
            self._open.discard(state.node)
            self._states.append(state)

    def unreachable(self, node: NodeId) -> None:
        """No answer is to be expected."""
        self._open.discard(node)

    def over(self, now: float) -> bool:
        """Whether nothing more is waited for."""
        return not self._open or now >= self.until

    @property
    def held(self) -> bool:
        """Somebody has the token, and no higher term is known that would make it void."""
        top = max(state.fence for state in self._states)
        return any(state.holding and state.fence == top for state in self._states)

    @property
    def newest(self) -> State:
        """Whose state is to be gone on from."""
        return min(
            self._states,
            key=lambda state: (
                -state.term.number,
                bytes(255 - byte for byte in state.term.starter),
                -state.step,
                precedence(self._run, state.node),
            ),
        )
