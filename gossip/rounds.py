"""The life of a run at one node: from a trainer's readiness to the last applied round (driver).

Glue between four parts that know nothing of each other: the trainer (behind `TrainerPort`), the
protocol's coordinator, the collective group, and the hand-over of state. The same function runs in
the daemon, with a torch process behind the port, and in the simulation, with a few lines of numpy.
"""

from __future__ import annotations

import hashlib
import math
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import attrs
import numpy as np
import trio

from gossip.collective.group import Behind, Group, Reduced
from gossip.collective.state.handover import Handover
from gossip.errors import DescriptorMismatch, InvalidOperation, StateUnavailable
from gossip.protocol import (
    Apply,
    Averager,
    CollectiveOutcome,
    Contribution,
    Protocol,
    ReduceMean,
    Vector,
)

RETRY_SYNC_S = 1.0
FETCHES_BEFORE_STEPPING_BACK = 5
STEP_BACK_S = 10.0
PIECE = 1 << 18


@attrs.frozen
class Position:
    """Rounds completed, and the digest of the consensus state after them."""

    round: int
    state: bytes


@attrs.frozen
class Offer:
    """A contribution that waits in the shared vectors, and the state it was made from."""

    contribution: Contribution
    state: bytes


class TrainerPort(ABC):
    """What the daemon sees of a trainer; every method may raise `TrainerGone`."""

    views: Mapping[str, Vector]
    """The shared vectors by name."""

    @abstractmethod
    async def ready(self) -> Position:
        """Wait until the trainer has loaded or initialised the consensus state."""

    @abstractmethod
    async def start(self, round_: int, *, synced: bool) -> None:
        """Let it train from `round_`; `synced` when the consensus vectors were overwritten."""

    @abstractmethod
    async def next_offer(self) -> Offer | None:
        """Wait for its next contribution; None when it has finished its work."""

    @abstractmethod
    async def apply(self, result: Apply) -> Position:
        """Have it apply the certified result; returns where it stands then."""

    @abstractmethod
    async def resync(self, round_: int) -> None:
        """The consensus vectors were overwritten with a peer's state: continue from there."""

    def stand(self, position: Position | None) -> None:  # noqa: B027 - a hint for who hands over
        """The consensus vectors change now (None), or hold the state of `position` now."""

    @abstractmethod
    def hurry(self, round_: int) -> None:
        """Others wait: contribute at the next step boundary."""


class TrainerGone(Exception):
    """The trainer process ended or detached."""


@attrs.define
class RunReport:
    """What `run_rounds` tells its owner after every round."""

    round: int
    state: bytes
    members: int
    seconds: float
    weight: float


async def run_rounds(
    group: Group,
    handover: Handover,
    protocol: Protocol,
    averager: Averager,
    trainer: TrainerPort,
    *,
    nonce: Callable[[], bytes],
    on_phase: Callable[[str], None],
    on_round: Callable[[RunReport], None],
    on_synced: Callable[[Position], None] = lambda _position: None,
) -> None:
    """Run rounds until the trainer has finished.

    A finished node stays ready at its last position, so that one that comes late can form an epoch
    with it and be handed the final state.

    `on_phase` hears "joining", "syncing", "training", "waiting" and "finished"; `on_synced` where this
    node stands after it was brought up to date.

    Cancellation stops between two awaits; the trainer's state stays that of its last applied round.

    Raises:
        TrainerGone: the trainer ended before its work was done; the group is set not ready.
    """
    life = _Life(group, handover, protocol, averager, trainer, nonce, on_phase, on_round, on_synced)
    try:
        await life.run()
    except BaseException:
        group.set_not_ready("its trainer has stopped")
        raise


@attrs.define
class _Life:
    group: Group
    handover: Handover
    protocol: Protocol
    averager: Averager
    trainer: TrainerPort
    nonce: Callable[[], bytes]
    on_phase: Callable[[str], None]
    on_round: Callable[[RunReport], None]
    on_synced: Callable[[Position], None]
    stood: Position = Position(0, bytes(32))
    """The position the group was told last."""
    failed_fetches: int = 0

    def stand(self, position: Position) -> None:
        """This node is ready at `position`."""
        self.stood = position
        self.group.set_position(position.round, position.state)

    async def run(self) -> None:
        self.on_phase("joining")
        position = await self.trainer.ready()
        self.stand(position)
        synced = False
        while True:
            try:
                await self.group.wait_entered()
                break
            except Behind as behind:
                fetched = await self._fetch(behind)
                if fetched is not None:
                    position, synced = fetched, True
                    self.stand(position)
        self.on_phase("training")
        await self.trainer.start(position.round, synced=synced)
        while (offer := await self.trainer.next_offer()) is not None:
            self.on_phase("waiting")
            position = await self._round(offer)
            self.stand(position)
            self.on_phase("training")
        self.on_phase("finished")

    async def _round(self, offer: Offer) -> Position:
        """One contribution to its end: applied, or dropped for a newer state."""
        self.stand(self.stood)  # it may have stepped back meanwhile, for taking too long
        self.protocol.contributed(offer.contribution, trio.current_time())
        seconds = 0.0
        while (event := self.protocol.next_event()) is not None:
            match event:
                case ReduceMean():
                    try:
                        reduced = await self._reduce(event, offer.state)
                    except (DescriptorMismatch, InvalidOperation) as error:
                        # Other settings than the others', or a sum beyond what its type can hold.
                        await self._step_back(f"round {event.round}: {error}")
                        self.protocol.contributed(offer.contribution, trio.current_time())
                        continue
                    except Behind as behind:
                        caught_up = await self._catch_up(behind)
                        if caught_up is not None:
                            return caught_up
                        self.protocol.contributed(offer.contribution, trio.current_time())
                        continue
                    seconds = reduced.seconds
                    self.protocol.collective_done(
                        CollectiveOutcome(event.round, len(reduced.epoch.members), reduced.weight),
                        trio.current_time(),
                    )
                case Apply():
                    position = await self.trainer.apply(event)
                    self.on_round(
                        RunReport(
                            position.round,
                            position.state,
                            event.members,
                            seconds,
                            event.weight,
                        )
                    )
                    return position
        raise AssertionError("the protocol ended a round without applying it")

    async def _reduce(self, event: ReduceMean, state: bytes) -> Reduced:
        views = self.trainer.views
        weight = event.weight
        if weight and not _finite(views[event.source]):
            # One NaN would reach every member's model: this round goes on without this node's work.
            self.group.notes.append(f"round {event.round}: own contribution not finite, left out")
            weight = 0.0
        return await self.group.all_reduce(
            round_descriptor(event.source, event.round, state),
            views[event.source],
            views[event.out],
            mean=True,
            weight=weight,
            wire=event.wire,
        )

    async def _catch_up(self, behind: Behind) -> Position | None:
        while True:
            fetched = await self._fetch(behind)
            if fetched is not None:
                await self.trainer.resync(fetched.round)
                return fetched
            try:
                await self.group.wait_entered()
            except Behind as newer:
                behind = newer
            else:
                # Those with the newer state are gone, and this node's own state counts again.
                return None

    async def _step_back(self, reason: str) -> None:
        """Leave the others alone for a while, then offer to take part again."""
        self.group.notes.append(reason)
        self.group.set_not_ready(reason)
        await trio.sleep(STEP_BACK_S)
        self.group.set_position(self.stood.round, self.stood.state)

    async def _fetch(self, behind: Behind) -> Position | None:
        """Bring the consensus vectors to the epoch's start; None when nobody could help (yet)."""
        self.on_phase("syncing")
        epoch, views = behind.epoch, self.trainer.views
        # Not into the shared vectors: until the digest matches, what this node holds still counts.
        arrived = {name: np.empty_like(views[name]) for name in self.averager.consensus}
        try:
            await self.handover.fetch(
                epoch.round,
                epoch.state,
                behind.holders,
                list(arrived.values()),
                lambda: self.averager.state_digest(arrived),
                nonce=self.nonce,
            )
        except StateUnavailable as error:
            self.group.notes.append(f"state not fetched: {error}")
            self.failed_fetches += 1
            if self.failed_fetches % FETCHES_BEFORE_STEPPING_BACK == 0:
                # The others wait for this node in their operations: let them go on without it.
                await self._step_back("it cannot get the state")
            await trio.sleep(RETRY_SYNC_S)
            return None
        self.failed_fetches = 0
        self.trainer.stand(None)
        for name, vector in arrived.items():
            np.copyto(views[name], vector)
        position = Position(epoch.round, epoch.state)
        self.trainer.stand(position)
        self.on_synced(position)
        return position


def _finite(vector: Vector) -> bool:
    """No NaN and no infinity; a dot product over pieces is many times faster than isfinite."""
    return all(
        math.isfinite(float(np.dot(piece, piece)))
        for piece in (vector[at : at + PIECE] for at in range(0, vector.size, PIECE))
    )


def round_descriptor(vector: str, round_: int, state: bytes) -> bytes:
    """What all members of a round must agree on besides type and length."""
    digest = hashlib.sha256(b"noded round v1\0")
    digest.update(struct.pack(">Q", round_))
    digest.update(state)
    digest.update(vector.encode())
    return digest.digest()
