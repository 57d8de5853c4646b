"""A protocol for tests of what runs protocols: everybody sends its model to everybody, and waits a moment for theirs."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from gossip.decentralized.arithmetic import mean
from gossip.decentralized.network.driver import Trainer
from gossip.decentralized.protocol import (
    AnyVector,
    Completed,
    DecentralizedProtocol,
    Finished,
    LocalWork,
    Send,
    Train,
    Vector,
    frozen,
)
from transport.codec import decode_untrusted, pack
from transport.identity import NodeId


class Said(msgspec.Struct, frozen=True):
    round: int


class Everybody(DecentralizedProtocol):
    name = "everybody"

    class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        patience_s: float = 5.0

    def __init__(self, settings, context) -> None:
        super().__init__(settings, context)
        self.others: list[NodeId] = []
        self.heard: dict[int, dict[NodeId, Vector]] = {}
        self.round = 0
        self.waiting_until: float | None = None
        self.lost: list[tuple[NodeId, int]] = []
        self.started = False
        self.left = False

    def start(self, params: Vector, now: float, *, round_: int = 0) -> None:
        assert not self.started
        self.started = True
        self.round, self._model = round_, frozen(params)
        self._train()

    def _train(self) -> None:
        if self.context.rounds and self.round >= self.context.rounds:
            self._emit(Finished())
        else:
            self._emit(Train(self._model, self.context.every))

    def members(self, others: Sequence[NodeId], now: float) -> None:
        assert list(others) == sorted(others)
        self.others = list(others)
        self._mix(now)

    def trained(self, work: LocalWork, now: float) -> None:
        self._model = frozen(work.params)
        for node in self.others:
            self._emit(Send(node, pack(Said(self.round)), (self._model,), key=self.round))
        self.waiting_until = now + self.settings.patience_s
        self._mix(now)

    def receive(
        self, sender: NodeId, message: bytes, vectors: Sequence[AnyVector], now: float
    ) -> None:
        assert self.started
        said = decode_untrusted(message, Said)
        if said.round >= self.round:
            self.heard.setdefault(said.round, {})[sender] = vectors[0].copy()
        self._mix(now)

    def undelivered(self, to: NodeId, key: int, now: float) -> None:
        self.lost.append((to, key))

    def tick(self, now: float) -> None:
        self._mix(now)

    def next_deadline(self) -> float | None:
        return self.waiting_until

    def _mix(self, now: float) -> None:
        if self.waiting_until is None:
            return
        heard = self.heard.get(self.round, {})
        if not set(self.others) <= set(heard) and now < self.waiting_until:
            return
        ordered = sorted([*heard.items(), (self.context.me, self._model)], key=lambda pair: pair[0])
        self._model = frozen(mean([vector for _, vector in ordered]))
        self.heard.pop(self.round, None)
        self.round += 1
        self.waiting_until = None
        self._emit(Completed(self.round, self._model, len(ordered)))
        self._train()

    def leave(self, now: float) -> None:
        self.left = True

    @property
    def model(self) -> Vector:
        return self._model

    def describe(self):
        return {"round": self.round, "neighbours": len(self.others)}


class Quadratic(Trainer):
    """Descends towards a target of its own."""

    def __init__(self, target: float, seconds: float, sleep) -> None:
        self.target, self.seconds, self._sleep = np.float32(target), seconds, sleep
        self.legs = 0

    async def train(self, leg: Train) -> LocalWork:
        self.legs += 1
        params = leg.params.copy()
        for _ in range(leg.steps):
            await self._sleep(self.seconds)
            params += np.float32(0.1) * (self.target - params)
        return LocalWork(params, leg.steps, float(leg.steps), loss=0.0)
