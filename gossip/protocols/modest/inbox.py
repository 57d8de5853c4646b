"""Models that wait for others of their round (sans-IO).

Problem: an aggregator collects the models of a round, a careful trainer those of several aggregators, while messages of
other rounds come in between and somebody may name rounds that do not exist. Idea: several rounds are open at a time, but each
sender has one model here, its latest. If there are too many, the round that fewest senders speak for goes first, so that one
sender alone can neither fill the inbox nor crowd out what many agree on.

Invariants: one model for each sender; at most `limit` models in all.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from gossip.decentralized.protocol import Vector, frozen
from transport.identity import NodeId


@attrs.frozen(eq=False)
class Held:
    """One model and what was said beside it."""

    model: Vector
    """Shape (numel,), read-only."""
    sample: int
    """Trainers of its round."""
    members: int = 1
    """Models in it, if it is a mean."""

    @classmethod
    def copy_of(cls, model: Vector, sample: int, members: int = 1) -> Held:
        """With a copy of a model that was only lent."""
        return cls(frozen(model), sample, members)


@attrs.define(eq=False)
class OpenRound:
    """The models of one round, by sender."""

    since: float
    """When the first of them came, or the time was begun anew."""
    held: dict[NodeId, Held] = attrs.field(factory=dict)

    def ascending(self) -> list[Vector]:
        """The models in the order of their senders' ids: the order of every sum."""
        return [self.held[node].model for node in sorted(self.held)]


class RoundInbox:
    """Open rounds with at most `limit` models in all."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rounds: dict[int, OpenRound] = {}

    def add(self, round_: int, sender: NodeId, held: Held, now: float) -> OpenRound | None:
        """Put a model in the place of the sender's last one; None if there was no room for it."""
        self._remove(sender)
        open_round = self._rounds.setdefault(round_, OpenRound(now))
        open_round.held[sender] = held
        if sum(len(each.held) for each in self._rounds.values()) > self._limit:
            del self._rounds[min(self._rounds, key=lambda k: (len(self._rounds[k].held), -k))]
        return self._rounds.get(round_)

    def has(self, round_: int, sender: NodeId) -> bool:
        """Whether the sender's last model is one of this round."""
        each = self._rounds.get(round_)
        return each is not None and sender in each.held

    @property
    def rounds(self) -> Mapping[int, OpenRound]:
        """The open rounds by number."""
        return self._rounds

    def newer(self, round_: int, support: int) -> bool:
        """Whether a later round is open for which at least `support` senders speak."""
        return any(k > round_ and len(each.held) >= support for k, each in self._rounds.items())

    def close_through(self, round_: int) -> None:
        """Forget this round and all before it."""
        for k in [k for k in self._rounds if k <= round_]:
            del self._rounds[k]

    def clear(self) -> None:
        """Forget all."""
        self._rounds.clear()

    def _remove(self, sender: NodeId) -> None:
        for k, each in list(self._rounds.items()):
            if each.held.pop(sender, None) is not None and not each.held:
                del self._rounds[k]
