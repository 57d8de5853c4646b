"""Gossip learning with partitioned models: small messages, at a steady mean rate, in chains of reactions.

I. Hegedus, G. Danner and M. Jelasity, "Decentralized learning works: An empirical comparison of gossip learning and federated learning"
(2021), over R. Ormandi et al., "Gossip learning with linear models on fully distributed data" (2013). The flat parameter vector is cut into
S equal parts, each with an age: the legs of training behind it. A message is one part, drawn at random, to a random peer::

    on PART{p, v, a}:  w = a / (a + age[p]), 1/2 if both are 0;  x[part p] <- (1 - w) x[part p] + w v;  age[p] <- max(age[p], a)
                       train;  all ages + 1;  send reactively

How often a node sends is up to its token account (`gossip.decentralized.asynchronous.token_account`): one message per period on average,
at once when there is news and tokens, and never silent for long. Equal bytes buy S times as many messages, and a model whose parts come
from different peers: on skewed data more accurate than whole models for the same bytes, and a better worst node.

A part that arrives during a leg is merged at once, and the leg's change is added when it ends; then another leg follows. Nobody
waits for anybody, nothing is acknowledged. A node that has heard nothing for `QUIET_PERIODS` trains all the same: else the last
one to finish would stand still, and one that is alone always would (it trains in every period).

Ages are what peers say. One that is more than `MOST_LEAD` above twice the own counts as that, so that who begins late catches up
within some messages, and a single lie does not take over every model for good. The mean of all models is not conserved: who is older counts for more. The authors also divide a linear model's steps by its age; here the
steps are those of the task's own optimizer. With one part this is age-weighted gossip learning of whole models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np

from gossip.decentralized import arithmetic
from gossip.decentralized.asynchronous.free_running import FreeRunning
from gossip.decentralized.asynchronous.poisson import UnitClock
from gossip.decentralized.asynchronous.token_account import TokenAccount
from gossip.decentralized.mixing.rules import KEPT_LOCAL, MixRule, VarianceTarget, mix_rule
from gossip.decentralized.protocol import (
    AnyVector,
    Context,
    LocalWork,
    Send,
    Vector,
    frozen,
)
from gossip.decentralized.topology import check_lasting
from gossip.errors import InvalidSettings
from transport.codec import decode_untrusted, pack
from transport.errors import MalformedMessage
from transport.identity import NodeId

PARTS: Final = 8
"""Unless set: a worst node and a mean that are well above those of whole models for the same bytes, on 32 nodes."""
QUIET_PERIODS: Final = 10
"""Periods without a message after which a node trains all the same."""
MOST_ARRIVED: Final = 64
"""Messages of one leg that are reacted to; more than any account can pay for."""
MOST_AGE: Final = (1 << 53) - 1
MOST_LEAD: Final = 10
"""An age counts as twice the own one and this much more, at most: a made-up one weighs about two thirds, and is not handed on."""
JITTER: Final = 0.1
"""Share by which a period may be shorter or longer, so that nodes with equal ones do not fall into step."""
LATE_PERIODS: Final = 16
"""Periods that are made up for after a time in which the process did not run."""


class PartitionedSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of partitioned gossip learning."""

    parts: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 0
    """S: into how many equal parts the parameters are cut; 1 sends whole models, 0 stands for 8, or for 1 where `mixing` needs whole models."""
    period: Annotated[float, msgspec.Meta(ge=0, le=86400)] = 0.0
    """Seconds in which a node earns one message; 0: as long as one leg of its training takes."""
    low: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 10
    """A: a message sets off 1/A of the tokens saved; from A-1 tokens on a node also sends without having received."""
    capacity: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 20
    """C: most tokens that are saved; at least `low`. More lets a node answer longer bursts."""
    graph: Literal[
        "full", "ring", "random-regular", "exponential", "barabasi-albert", "small-world"
    ] = "full"
    """Whom a node may send to; "full": anybody. All nodes derive it from the run's id and the list of its members."""
    degree: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 4
    """Neighbours of each node ("random-regular", there at least 2; "small-world"), or links that a new node brings ("barabasi-albert"). Others have no choice."""
    mixing: Literal["mean", "variance-corrected"] = "mean"
    """How a model is merged. "variance-corrected" is for models that began apart, and needs whole models."""
    variance_target: VarianceTarget | None = None
    """For "variance-corrected": whose variance the mixed model is to have; "others" unless given."""

    @property
    def cut(self) -> int:
        """Parts that the model is cut into, where it is long enough."""
        return self.parts or (PARTS if self.mixing == "mean" else 1)


class Part(msgspec.Struct, frozen=True, tag="part"):
    """One part of the sender's model; its values are beside the message."""

    part: Annotated[int, msgspec.Meta(ge=0, lt=4096)]
    """Which one, counted from 0."""
    of: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    """How many there are: the same at every node."""
    age: Annotated[int, msgspec.Meta(ge=0, le=MOST_AGE)]
    """Legs of training behind it."""


class Partitioned(FreeRunning):
    """Gossip learning of parts, with token accounts."""

    name = "partitioned"
    Settings = PartitionedSettings
    settings: PartitionedSettings

    def __init__(self, settings: PartitionedSettings, context: Context) -> None:
        super().__init__(settings, context)
        count = min(settings.cut, context.numel)
        self.bounds = [index * context.numel // count for index in range(count + 1)]
        """Part p is `bounds[p] : bounds[p + 1]`."""
        self.ages = [0] * count
        self.account = TokenAccount(settings.low, settings.capacity, context.rng)
        self.clock = UnitClock()
        self._x: Vector = np.zeros(0, np.float32)
        self._arrived = 0
        self._came_during = False
        self._quiet = 0
        self._earn_at: float | None = None
        self._rule: MixRule | None = None
        if settings.mixing != "mean":
            self._rule = mix_rule(settings.mixing, variance_target=settings.variance_target)

    @classmethod
    def parse_settings(cls, raw: Mapping[str, Any]) -> msgspec.Struct:
        """As all protocols; also the graph, what only whole models can do, and the account's two marks."""
        settings = super().parse_settings(raw)
        assert isinstance(settings, PartitionedSettings), "the class says so"
        check_lasting(cls.name, settings.graph, settings.degree)
        if settings.mixing != "mean" and settings.cut != 1:
            raise InvalidSettings(
                f"protocol 'partitioned': mixing = {settings.mixing!r} looks at whole tensors, and parts cut through them",
                hint="set parts = 1, or leave mixing out",
            )
        if settings.capacity < settings.low:
            raise InvalidSettings(
                f"protocol 'partitioned': capacity {settings.capacity} is less than low {settings.low}",
                hint="an account has to hold at least the tokens that a reaction is measured by",
            )
        return settings

    # ---- training ----------------------------------------------------------------------------

    def prepare(self, params: Vector, now: float) -> None:
        """All parts are as old as the legs done."""
        del now
        self._become(params.copy())
        self.ages = [min(self.round, MOST_AGE)] * len(self.ages)

    @property
    def model(self) -> Vector:
        """As it is now, in the middle of a leg, too."""
        return self._x

    def leg_took(self, seconds: float, now: float) -> None:
        """The first leg is what a period may be as long as."""
        self.clock.measured(seconds, now)
        if self._earn_at is None:
            self._earn_at = now + self._period_s * self.context.rng.random()

    def add(self, change: Vector, work: LocalWork, now: float) -> bool:
        """Onto whatever the model is now; every part is a leg older."""
        del work, now
        with np.errstate(over="ignore", invalid="ignore"):
            learnt = self._become(self._x + change)
        if learnt:
            self.ages = [min(age + 1, MOST_AGE) for age in self.ages]
        return learnt

    def trained(self, work: LocalWork, now: float) -> None:
        """React to what has arrived, also after the last leg."""
        if not self.training:
            return
        arrived, self._arrived = self._arrived, 0
        super().trained(work, now)
        for _ in range(arrived):
            self._send_parts(self.account.react())

    def after_leg(self, now: float) -> None:
        """Wait for the next message, unless one came during the leg."""
        if self._came_during:
            self._came_during = False
            self.next_leg(now)

    # ---- messages ----------------------------------------------------------------------------

    def receive(
        self, sender: NodeId, message: bytes, vectors: Sequence[AnyVector], now: float
    ) -> None:
        """A part of a peer's model."""
        part = decode_untrusted(message, Part)
        if part.of != len(self.ages) or part.part >= part.of:
            raise MalformedMessage(f"part {part.part} of {part.of}, the model has {len(self.ages)}")
        start, stop = self.bounds[part.part : part.part + 2]
        if len(vectors) != 1 or vectors[0].size != stop - start or vectors[0].dtype != np.float32:
            raise MalformedMessage("a part has its own values beside it, in float32")
        if not self.started:
            return
        if not self._merge(sender, part, vectors[0]):
            self.unusable += 1
            return
        self.met(sender)
        self._quiet = 0
        if self.finished:
            self._send_parts(self.account.react())
            return
        self._arrived = min(self._arrived + 1, MOST_ARRIVED)
        if self.training:
            self._came_during = True
        else:
            self.next_leg(now)

    def _merge(self, sender: NodeId, part: Part, values: AnyVector) -> bool:
        """Weighted by age; False, and nothing changed, if the result is not finite."""
        start, stop = self.bounds[part.part : part.part + 2]
        age = min(part.age, 2 * self.ages[part.part] + MOST_LEAD)
        ages = age + self.ages[part.part]
        theirs = age / ages if ages else 0.5
        own = self._x[start:stop]
        merged = self._x.copy()
        if self._rule is not None:
            place = int(sender < self.context.me)
            merged = self._rule.mix(
                self._x, [values], [1 - theirs, theirs], self.context.tensors, place=place
            )
        else:
            merged[start:stop] = arithmetic.combine([own, values], [1 - theirs, theirs])
            for tensor in self.context.tensors:
                if tensor.name.rpartition(".")[2] in KEPT_LOCAL:
                    low = max(start, tensor.offset)
                    high = max(low, min(stop, tensor.offset + tensor.numel))
                    merged[low:high] = self._x[low:high]
        if not self._become(merged):
            return False
        self.ages[part.part] = max(self.ages[part.part], age)
        return True

    def _send_parts(self, count: int) -> None:
        if not self.others:
            return
        near = self.graph(self.settings.graph, self.settings.degree)[self.context.me]
        for _ in range(count):
            part = self.context.rng.randrange(len(self.ages))
            peer = self.context.rng.choice(near)
            start, stop = self.bounds[part : part + 2]
            word = Part(part, len(self.ages), self.ages[part])
            self._emit(Send(peer, pack(word), (frozen(self._x[start:stop]),)))

    # ---- time --------------------------------------------------------------------------------

    @property
    def _period_s(self) -> float:
        return self.settings.period or self.clock.unit_s

    def tick(self, now: float) -> None:
        """Earn a token; send, or save it."""
        periods = 0
        while self._earn_at is not None and now >= self._earn_at and not self.finished:
            self._earn_at += self._period_s * self.context.rng.uniform(1 - JITTER, 1 + JITTER)
            periods += 1
            if periods > LATE_PERIODS:
                behind = max(0.0, now - self._earn_at)
                self._earn_at += math.ceil(behind / self._period_s) * self._period_s
            self._quiet += 1
            self._send_parts(self.account.earn())
            if not self.training and (not self.others or self._quiet >= QUIET_PERIODS):
                self._quiet = 0
                self.next_leg(now)

    def next_deadline(self) -> float | None:
        """The end of the period."""
        return None if self.finished else self._earn_at

    def describe(self) -> Mapping[str, Any]:
        """Also the tokens, and how old the parts are."""
        oldest, youngest = max(self.ages), min(self.ages)
        return {**super().describe(), "tokens": self.account.balance, "ages": [youngest, oldest]}

    def _become(self, x: Vector) -> bool:
        if not arithmetic.is_finite(x):
            return False
        x.flags.writeable = (
            False  # replaced, never written to: whoever holds an older one keeps that
        )
        self._x = x
        return True
