"""NoLoCo: outer momentum like DiLoCo's, and no collective: in each round a node averages with one partner.

Each node i has slow weights φ_i and a momentum m_i. It trains `every` steps from φ_i to x_i, meets its partner j of this round,
and both do the same::

    m_i <- alpha m_i + beta mean_pair(x - φ) + gamma (mean_pair(φ) - φ_i)
    φ_i <- φ_i + m_i

The last term pulls the two together; within a pair it sums to zero, so the mean of all φ and m moves as if everybody had met
everybody. A node without a partner (their number is odd, or the partner did not answer) does the same with itself alone.

Pairs are neighbours in the list of members, sorted by a hash of (run, round, id): all who know the same members
derive the same pairs, nobody can choose a partner, and another member moves only some of the pairs.

**Stability.** The spread of φ over a large swarm with random partners follows a linear recursion in mean square. It shrinks
for `0 < gamma < 2 (1 - alpha^2)` and grows without bound outside, whatever is trained: such settings are refused.
alpha = 0, gamma = 1 is plain pairwise averaging, the safe fallback.

Source: J. Kolehmainen et al., "NoLoCo: No-all-reduce Low Communication Training Method for Large Models" (2025). Models stay
apart by a little at the end; who needs one model averages them once (`averaging`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Annotated, Any

import msgspec
import numpy as np

from gossip.decentralized import arithmetic
from gossip.decentralized.protocol import AnyVector, Context, LocalWork, Vector
from gossip.decentralized.rounds.base import Plan, RoundProtocol
from gossip.decentralized.rounds.inbox import Received
from gossip.errors import InvalidSettings
from transport.errors import MalformedMessage
from transport.identity import NodeId


def gamma_limit(alpha: float) -> float:
    """Below this gamma the spread of the slow weights shrinks in mean square: `2 (1 - alpha^2)`."""
    return 2 * (1 - alpha * alpha)


@lru_cache(maxsize=8)
def pairs(members: tuple[NodeId, ...], run: bytes, round_: int) -> Mapping[NodeId, NodeId]:
    """Everybody's partner in a round; the one that is left over has none.

    Remembered, because the thousand cores of a simulation ask for the same.
    """
    seed = b"noloco/v1\0" + run + round_.to_bytes(8, "big")
    order = sorted(members, key=lambda id_: hashlib.sha256(seed + id_).digest())
    met = [(order[at], order[at + 1]) for at in range(0, len(order) - 1, 2)]
    return MappingProxyType(dict([*met, *((other, one) for one, other in met)]))


class NoLoCoSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of NoLoCo."""

    alpha: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.5
    """Outer momentum: the part of the last outer step that is done again."""
    beta: Annotated[float, msgspec.Meta(gt=0, le=10)] = 0.7
    """Outer learning rate: the part of the pair's mean local change that is taken."""
    gamma: Annotated[float, msgspec.Meta(gt=0, lt=2)] = 0.7
    """How strongly the two of a pair are pulled together; below 2 (1 - alpha^2), or nothing holds the nodes together."""
    patience: Annotated[float, msgspec.Meta(gt=0, le=86400)] = 60.0
    """Seconds that a node waits for its partner, from sending its own state; without it, it goes on alone."""


class NoLoCo(RoundProtocol):
    """Pairs that exchange slow weights and local changes."""

    name = "noloco"
    Settings = NoLoCoSettings
    settings: NoLoCoSettings

    @classmethod
    def parse_settings(cls, raw: Mapping[str, Any]) -> msgspec.Struct:
        """As for all; gamma outside of the stable region is refused."""
        parsed = super().parse_settings(raw)
        assert isinstance(parsed, NoLoCoSettings), "these are its settings"
        limit = gamma_limit(parsed.alpha)
        if parsed.gamma >= limit:
            raise InvalidSettings(
                f"protocol 'noloco': gamma = {parsed.gamma:g} with alpha = {parsed.alpha:g} lets the nodes drift apart"
                " without bound",
                hint=f"with this alpha, gamma has to be below {limit:.3g}; alpha = 0, gamma = 1 is always safe",
            )
        return parsed

    def __init__(self, settings: msgspec.Struct, context: Context) -> None:
        super().__init__(settings, context)
        self._momentum = np.zeros(context.numel, np.float32)
        self._slow: Vector = self._momentum
        self._change: Vector = self._momentum

    @property
    def patience(self) -> float:
        """As set."""
        return self.settings.patience

    def start(self, params: Vector, now: float, *, round_: int = 0) -> None:
        """The momentum begins at zero, also after a checkpoint: it is no part of the model that is saved."""
        self._slow = params.copy()
        self._momentum = np.zeros(params.size, np.float32)
        super().start(params, now, round_=round_)

    def plan(self, stamp: int) -> Plan:
        """This round's partner."""
        partner = self.partner(stamp)
        pair = () if partner is None else (partner,)
        return Plan(pair, pair)

    def partner(self, round_: int) -> NodeId | None:
        """Of this node in a round; None for the one that is left over."""
        members = tuple(sorted([*self.others, self.context.me]))
        return pairs(members, self.context.run, round_).get(self.context.me)

    def after_leg(self, work: LocalWork) -> Vector:
        """What was learnt is a change of the slow weights; they are what the node stands for until it has met."""
        with np.errstate(over="ignore", invalid="ignore"):
            change = np.subtract(work.params, self._slow)
        if arithmetic.is_finite(change):
            self._change = change
        else:
            self._change = np.zeros_like(self._slow)
            self.unusable += 1
        self._change.flags.writeable = False
        return self._x

    def payload(self, model: Vector) -> tuple[AnyVector, ...]:
        """φ and x - φ."""
        return (model, self._change)

    def check_payload(self, vectors: Sequence[AnyVector]) -> None:
        """Two vectors as long as the model."""
        if len(vectors) != 2 or not all(self.is_model(vector) for vector in vectors):
            raise MalformedMessage("noloco sends slow weights and their change")

    def mix(self, own: Vector, degree: int, received: Sequence[Received]) -> Vector:  # noqa: ARG002 - the base's
        """The outer step, with the partner or alone."""
        alpha, beta, gamma = self.settings.alpha, self.settings.beta, self.settings.gamma
        if received:
            slow, change = received[0].vectors
            momentum = arithmetic.combine(
                [
                    self._momentum,
                    *self._in_order(received[0].sender, self._change, change),
                    slow,
                    own,
                ],
                [alpha, beta / 2, beta / 2, gamma / 2, -gamma / 2],
            )
        else:
            momentum = arithmetic.combine([self._momentum, self._change], [alpha, beta])
        following = arithmetic.combine([own, momentum], [1.0, 1.0])
        if arithmetic.is_finite(following):
            self._momentum = momentum
            self._slow = following
        return following

    def adopt(self, received: Sequence[Received]) -> Vector:
        """A latecomer begins with its partner's slow weights and without momentum."""
        self._slow = super().adopt(received)
        self._momentum = np.zeros_like(self._slow)
        return self._slow

    def _in_order(
        self, other: NodeId, mine: AnyVector, theirs: AnyVector
    ) -> tuple[AnyVector, AnyVector]:
        return (mine, theirs) if self.context.me < other else (theirs, mine)

    def describe(self) -> Mapping[str, Any]:
        """With the length of the momentum: what is still moving."""
        return {**super().describe(), "momentum": float(np.linalg.norm(self._momentum))}
