"""Runs one node's core of a decentralized protocol on real peers (trio driver).

The core decides, this file carries out: one task calls the core, and nobody else does; what the core wants sent goes to
`delivery`, who is there comes from `neighbours`, training is a `Trainer`'s.

    neighbours, delivery, trainer, timer  ->  work  ->  one call of the core  ->  its events

A call on a large model may take longer than a heartbeat may wait, so for those it is made in a worker thread; for small ones
inline, which is also what makes a run on the simulated network the same to the last byte.

Invariants: calls of the core never overlap; it hears of members before it starts and of messages after; one leg of training
runs at a time; what waits for the core is bounded by `room`, the queues of `delivery` and one item of every other kind.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import attrs
import trio

from gossip.decentralized.arithmetic import is_finite, model_digest
from gossip.decentralized.network.delivery import Delivery, Statistics
from gossip.decentralized.network.neighbours import Neighbours
from gossip.decentralized.network.wire import Decoder
from gossip.decentralized.protocol import (
    Cancel,
    Completed,
    DecentralizedProtocol,
    Event,
    Finished,
    LocalWork,
    Send,
    Solitude,
    Train,
    Vector,
)
from gossip.errors import ProtocolFailed
from transport.endpoint import Endpoint
from transport.errors import MalformedMessage
from transport.identity import NodeId

__all__ = ["Driver", "Progressed", "Trainer", "open_driver"]

THREADED_NUMEL: Final = 1 << 18
"""Values from which on the core is called in a thread; mixing ten such models takes some 5 ms."""
LEAST_TICK_S: Final = 0.001
"""Between two calls of `tick`, whatever the core's deadlines are."""

_log = logging.getLogger(__name__)


class Trainer(ABC):
    """What the driver sees of whoever trains."""

    @abstractmethod
    async def train(self, leg: Train) -> LocalWork:
        """Do a leg; its vectors are lent until the next call. Cancelling gives the leg up."""


@attrs.frozen(eq=False)
class Progressed:
    """What a driver tells its owner after every round of this node."""

    round: int
    model: Vector
    """Read-only."""
    digest: bytes
    """SHA-256 over the model's little-endian bytes."""
    members: int


@attrs.frozen(eq=False)
class _Asked:
    """An event of the core's, and what was computed about it."""

    event: Event
    digest: bytes = b""
    """Of a completed round's model."""
    finite: bool = True
    """Whether the vectors of a `Send` may leave this node."""


@attrs.frozen(eq=False)
class _Arrived:
    sender: NodeId
    decoder: Decoder


@attrs.frozen(eq=False)
class _Trained:
    leg: int
    work: LocalWork


@attrs.frozen(eq=False)
class _Start:
    params: Vector
    round: int


@attrs.frozen(eq=False)
class _Leave:
    done: trio.Event


_Work = _Arrived | _Trained | Send | _Start | _Leave
"""A `Send` stands for its own loss."""


class Driver:
    """One core at work; made by `open_driver`.

    Attributes:
        core: read it between awaits only where the model is small; `describe` is always safe.
        finished: set when the core has done its rounds; it goes on to answer others.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        core: DecentralizedProtocol,
        trainer: Trainer,
        nursery: trio.Nursery,
        *,
        model: bytes,
        on_progress: Callable[[Progressed], None],
    ) -> None:
        context = core.context
        self.core = core
        self.finished = trio.Event()
        self.described: dict[str, Any] = {}
        """What the core said of itself after its last call."""
        self.solitude: Solitude | None = None
        """Whether this node learns alone though it should not, as of then."""
        self.neighbours = Neighbours(
            endpoint, context.run, model=model, on_change=self._members_changed
        )
        self.delivery = Delivery(
            endpoint,
            context.run,
            self.neighbours,
            nursery,
            numel=context.numel,
            on_message=lambda sender, decoder: self._post(_Arrived(sender, decoder)),
            on_lost=self._post,
        )
        self._trainer = trainer
        self._nursery = nursery
        self._on_progress = on_progress
        self._threaded = context.numel >= THREADED_NUMEL
        self._thread = trio.CapacityLimiter(1)
        self._work: deque[_Work] = deque()
        self._wake = trio.Event()
        self._members_stale = True
        self._told_members = False
        self._started = False
        self._starting = False
        self._leg: trio.CancelScope | None = None
        self._legs = 0
        self._next_tick_at = 0.0

    # For the owner

    @property
    def statistics(self) -> Statistics:
        """Messages and bytes since the driver was opened."""
        return self.delivery.statistics

    async def wait_members(self, others: int) -> None:
        """Wait until there are so many neighbours."""
        while len(self.neighbours.nodes) < others:
            await self.neighbours.wait_change()

    def start(self, params: Vector, round_: int) -> None:
        """Have the core begin with `params` (read-only from now on), of `round_` completed rounds. Call it once."""
        assert not self._starting, "started twice"
        self._starting = True
        self._work.appendleft(_Start(params, round_))
        self._wake.set()

    async def leave(self) -> None:
        """Leave in good order: what the core has left to say is delivered, then goodbye. Bound it with a deadline."""
        if self._started:
            left = _Leave(trio.Event())
            self._post(left)
            await left.done.wait()
            await self.delivery.drained()
        await self.neighbours.goodbye()

    # What comes in

    def _post(self, work: _Work) -> None:
        self._work.append(work)
        self._wake.set()

    def _members_changed(self) -> None:
        self._members_stale = True
        self._wake.set()

    # The one task that calls the core

    async def run(self) -> None:
        """Call the core whenever there is something to tell it, until cancelled.

        Raises:
            ProtocolFailed: it raised something that it may not, or broke its contract.
        """
        while True:
            self._wake = trio.Event()
            while self._starting and (self._members_stale or self._work):
                await self._next()
                await self._tick()
            with trio.move_on_at(self._deadline()):
                await self._wake.wait()
                continue
            await self._tick()

    def _deadline(self) -> float:
        deadline = self.core.next_deadline() if self._started else None
        return math.inf if deadline is None else max(deadline, self._next_tick_at)

    async def _tick(self) -> None:
        now = trio.current_time()
        if self._deadline() <= now:
            self._next_tick_at = now + LEAST_TICK_S
            await self._call(self.core.tick)

    async def _next(self) -> None:
        # One of each in turn: a peer that comes and goes all the time keeps nobody else waiting.
        if self._members_stale and not (self._told_members and self._work):
            self._members_stale, self._told_members = False, True
            await self._call(self.core.members, self.neighbours.nodes)
        else:
            self._told_members = False
            await self._one(self._work.popleft())

    async def _one(self, work: _Work) -> None:
        match work:
            case _Arrived(sender, decoder):
                try:
                    if not self.neighbours.is_out(sender):
                        await self._call(self._receive, sender, decoder)
                except MalformedMessage as error:
                    self.neighbours.put_out(sender, str(error))
                finally:
                    self.delivery.release(sender, decoder)
            case _Trained(leg, done):
                if leg == self._legs and self._leg is not None:
                    self._leg = None
                    await self._call(self.core.trained, done)
            case Send(to=to, key=key):
                await self._call(self.core.undelivered, to, key)
            case _Start(params, round_):
                await self._call(self._begin, params, round_)
                self._started = True
            case _Leave(done):
                await self._call(self.core.leave)
                done.set()

    def _receive(self, sender: NodeId, decoder: Decoder, now: float) -> None:
        arrived = decoder.take()
        self.core.receive(sender, arrived.message, arrived.vectors, now)

    def _begin(self, params: Vector, round_: int, now: float) -> None:
        self.core.start(params, now, round_=round_)

    async def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        """One call of the core, with the time as its last argument, and all that it asks for."""
        now = trio.current_time()

        def call() -> list[_Asked]:
            function(*arguments, now)
            asked = []
            while (event := self.core.next_event()) is not None:
                asked.append(_look_at(event))
            self.described = dict(self.core.describe())
            self.solitude = self.core.solitude()
            return asked

        try:
            if self._threaded:
                events = await trio.to_thread.run_sync(call, limiter=self._thread)
            else:
                events = call()
                await trio.lowlevel.checkpoint()
        except Exception as error:
            if isinstance(error, MalformedMessage) and function == self._receive:
                raise
            _log.exception("the protocol %s failed", self.core.name)
            raise ProtocolFailed(f"the protocol {self.core.name!r} failed: {error!r}") from error
        for asked in events:
            self._carry_out(asked)

    # What it asks for

    def _carry_out(self, asked: _Asked) -> None:
        match asked.event:
            case Send() as message:
                if asked.finite:
                    self.delivery.send(message)
                else:
                    self.delivery.statistics.lost["not-finite"] += 1
                    self._post(message)
            case Train() as leg:
                if self._leg is not None:
                    raise ProtocolFailed(f"{self.core.name!r} asked for a leg while one runs")
                self._legs += 1
                self._leg = trio.CancelScope()
                self._nursery.start_soon(self._train, leg, self._legs, self._leg)
            case Cancel():
                if self._leg is not None:
                    self._leg.cancel()
                    self._leg = None
            case Completed(round=round_, model=model, members=members):
                self._on_progress(Progressed(round_, model, asked.digest, members))
            case Finished():
                self.finished.set()

    async def _train(self, leg: Train, number: int, scope: trio.CancelScope) -> None:
        with scope:
            work = await self._trainer.train(leg)
            self._post(_Trained(number, work))


def _look_at(event: Event) -> _Asked:
    """What there is to compute about an event, beside the core and not on the event loop."""
    match event:
        case Send(vectors=vectors):
            return _Asked(event, finite=all(is_finite(vector) for vector in vectors))
        case Completed(model=model):
            return _Asked(event, digest=model_digest(model))
        case _:
            return _Asked(event)


@asynccontextmanager
async def open_driver(
    endpoint: Endpoint,
    core: DecentralizedProtocol,
    trainer: Trainer,
    *,
    model: bytes,
    on_progress: Callable[[Progressed], None],
) -> AsyncIterator[Driver]:
    """Have `core` take part in its run with every connected peer that does so too; `Driver.start` begins.

    Args:
        endpoint: this node's place on the network.
        core: fresh.
        trainer: does its legs.
        model: digest over names, shapes and layout of the parameters; only equal ones are mixed.
        on_progress: called after every round of this node.

    Raises:
        UsageError: the run is taken part in on this endpoint already.
        ExceptionGroup: of `ProtocolFailed`, when the core failed.

    Leaving the context ends every task at once; `Driver.leave` before that tells the others.
    """
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        driver = Driver(endpoint, core, trainer, nursery, model=model, on_progress=on_progress)
        try:
            with driver.delivery.taking():
                nursery.start_soon(driver.run)
                nursery.start_soon(driver.neighbours.run)
                yield driver
        except Exception as error:  # noqa: BLE001 - raised again, outside of the nursery's group
            failure = error
        finally:
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
