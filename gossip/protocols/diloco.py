"""DiLoCo: many local AdamW steps, then one outer Nesterov step on the mean pseudo-gradient.

Douillard et al. 2023 (arXiv 2311.08105), algorithm 1. With theta the consensus parameters and
x_i the parameters after a member's local steps::

    delta_i  = theta - x_i                          (a gradient's sign)
    delta    = sum_i w_i delta_i / sum_i w_i        (one weighted all-reduce per round)
    momentum = mu * momentum + delta
    theta    = theta - lr * (delta + mu * momentum) (torch's SGD with nesterov=True)
    x_i      = theta

The outer step is elementwise fp32 in a fixed order of operations, so members that start equal and
receive equal bytes stay equal bit for bit, also where changes travel in fewer bits (the owner of a part
applies what it has encoded, as the others do). The inner optimizer keeps its moments across rounds and is never averaged.

A member that is alone keeps its own work: theta becomes x, bit for bit, and the momentum fades to
zero, so that a swarm of one trains exactly like a plain loop.

With few outer rounds (about 40) mu = 0.5 gave a lower loss than the paper's 0.9 on small models;
0.9 is for runs of more than a hundred rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, cast

import msgspec
import numpy as np

from gossip.collective.call import EXACT
from gossip.protocol import (
    Apply,
    Averager,
    CollectiveOutcome,
    Contribution,
    Protocol,
    ReduceMean,
    Vector,
    Views,
)

PIECE = 1 << 18  # values: temporaries of 1 MiB stay in the cache instead of doubling memory

Wire = Literal["exact", "bf16", "fp16", "int8", "int4", "e3m0"]
"""How the members' changes travel; each also exists with zstd, which gains little on them."""


class OuterNesterov(Averager):
    """Trainer side: pseudo-gradient and outer Nesterov step."""

    vectors: ClassVar[tuple[str, ...]] = ("params", "theta", "momentum", "delta", "reduced")
    consensus: ClassVar[tuple[str, ...]] = ("theta", "momentum")

    def __init__(self, learning_rate: float, momentum: float) -> None:
        self._lr = np.float32(learning_rate)
        self._mu = np.float32(momentum)

    def start(self, views: Views) -> None:
        """Consensus parameters are the initial ones; no momentum yet."""
        np.copyto(views["theta"], views["params"])
        views["momentum"].fill(0)

    def resume(self, views: Views) -> None:
        """Continue from loaded consensus parameters."""
        np.copyto(views["params"], views["theta"])

    def contribute(self, views: Views) -> None:
        """Write the pseudo-gradient `theta - params` into `delta`."""
        np.subtract(views["theta"], views["params"], out=views["delta"])

    def apply(self, views: Views, *, members: int, weight: float, alone: bool) -> None:
        """One outer Nesterov step with the certified mean, or none of it when alone."""
        del members, weight
        theta, momentum, params = views["theta"], views["momentum"], views["params"]
        if alone:
            np.copyto(theta, params)
            momentum.fill(0)
            return
        mean = views["reduced"]
        for start in range(0, theta.size, PIECE):
            piece = slice(start, start + PIECE)
            self._step(theta[piece], momentum[piece], mean[piece])
        np.copyto(params, theta)

    def _step(self, theta: Vector, momentum: Vector, mean: Vector) -> None:
        np.multiply(momentum, self._mu, out=momentum)
        np.add(momentum, mean, out=momentum)
        update = momentum * self._mu
        np.add(update, mean, out=update)
        np.multiply(update, self._lr, out=update)
        np.subtract(theta, update, out=theta)


class MeanOncePerRound(Protocol):
    """Coordinator shared by protocols that exchange one weighted mean per round.

    Invariant: at most one collective is asked for at a time, and `Apply` follows only a certified
    outcome of the round that was contributed last. A newer contribution replaces everything that an
    older one has left: the driver may have dropped that round for a peer's state.

    Changes travel as the setting `wire` says, if the protocol has one.
    """

    _waiting: Contribution | None = None

    def contributed(self, contribution: Contribution, now: float) -> None:
        """Ask for the mean of everybody's delta."""
        del now
        self._waiting = contribution
        self._events.clear()
        wire = getattr(self.settings, "wire", EXACT)
        self._events.append(
            ReduceMean(contribution.round, "delta", "reduced", contribution.weight, wire)
        )

    def collective_done(self, outcome: CollectiveOutcome, now: float) -> None:
        """Let the trainer apply the certified mean; anything else is stale and ignored."""
        del now
        if self._waiting is None or outcome.round != self._waiting.round:
            return
        self._waiting = None
        self._events.append(
            Apply(outcome.round, outcome.members, outcome.weight, alone=outcome.members == 1)
        )


class DiLoCo(MeanOncePerRound):
    """DiLoCo with an outer Nesterov optimizer."""

    name = "diloco"

    class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """`[run.protocol_settings]` of DiLoCo."""

        outer_learning_rate: Annotated[float, msgspec.Meta(gt=0, le=10)] = 0.7
        """Step size of the outer optimizer."""
        outer_momentum: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.5
        """Nesterov momentum of the outer optimizer; 0.9 for runs of more than 100 rounds."""
        wire: Wire = "exact"
        """How changes travel: int8 needs a quarter of the bytes, int4 and e3m0 an eighth, bf16 and fp16 half of them; from lines of some 10 Gbit/s on exact is faster."""

    @classmethod
    def averager(cls, settings: Mapping[str, Any]) -> Averager:
        """The outer optimizer with these settings."""
        parsed = cast("DiLoCo.Settings", cls.parse_settings(settings))
        return OuterNesterov(parsed.outer_learning_rate, parsed.outer_momentum)
