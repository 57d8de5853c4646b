"""Rounds of a protocol of certified collectives, the trainer's side.

After `every` steps this node's contribution is computed into shared memory, the daemon is told, and the loop waits until the
round has an outcome and applies it. All arithmetic is the protocol's averager; everything that touches the network is the daemon's.

    local steps  ->  Contribute  ->  (daemon: all-reduce, certificate)  ->  Outcome  ->  apply
        ^                                                                                 |
        '---------------------------------------------------------------------------------'

Invariants:
- Alone, a loop trains bit for bit as it would without the session: parameters are aligned views, and an outcome without other
  members changes none of them.
- A contribution with NaN or infinity in it never leaves the node: the round is rolled back to the consensus state and joined
  with weight 0.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np

from gossip.protocol import Averager
from node.trainer_messages import (
    Applied,
    Contribute,
    DaemonMessage,
    Hurry,
    Outcome,
    Ready,
    Resync,
    Start,
)
from node.training.attachment import Attachment
from node.training.daemon_link import DaemonLost
from node.training.snapshot import Loop, Position, read_snapshot, saved_vectors
from node.training.work import Work

__all__ = ["Rounds"]

_log = logging.getLogger("noded")


class Rounds(Work):
    """The loop's rounds.

    Args:
        attachment: to the daemon.
        averager: the protocol's arithmetic.
    """

    def __init__(self, attachment: Attachment, averager: Averager) -> None:
        super().__init__(attachment)
        self._averager = averager
        self._steps = 0
        self._tokens_contributed = 0
        self._saved_step = -1
        self._hurry = False
        self._digest = b""

    @property
    def global_step(self) -> int:
        """See `Work.global_step`: local steps per node since the run began."""
        return self._step_after(self.round) + self._steps

    @property
    def finished(self) -> bool:
        """See `Work.finished`."""
        rounds = self.attachment.manifest.rounds
        return bool(rounds) and self.round >= rounds

    @property
    def saved(self) -> bool:
        """See `Work.saved`."""
        return self._saved_step == self._step_after(self.round)

    def _step_after(self, rounds: int) -> int:
        return self.attachment.manifest.step_after(rounds)

    def open(self) -> None:
        """See `Work.open`."""
        attachment = self.attachment
        attachment.bind(self._averager.vectors)
        checkpoint = attachment.attached.checkpoint
        if checkpoint is None:
            self._averager.start(attachment.views)
        else:
            position = read_snapshot(Path(checkpoint), attachment.manifest.hash, self._loop())
            self._averager.resume(attachment.views)
            attachment.binding.fetch()
            self.round = position.round
            self._tokens_contributed = position.tokens
            self._saved_step = position.step
            attachment.meter.resume(position.tokens)
            attachment.cursor = dict(position.cursor)
        self._digest = self._averager.state_digest(attachment.views)
        attachment.send(Ready(self.round, self._step_after(self.round), self._digest))

    def _loop(self) -> Loop:
        attachment = self.attachment
        return Loop(
            attachment.model,
            attachment.optimizer,
            attachment.binding,
            attachment.views,
            saved_vectors(self._averager),
        )

    def save(self) -> bool:
        """See `Work.save`; holds the consensus state of the last completed round and this node's private state."""
        self.save_wanted = False
        attachment, step = self.attachment, self._step_after(self.round)
        position = Position(self.round, step, attachment.meter.tokens, dict(attachment.cursor))

        def valid() -> bool:
            # Not so when stopped in the middle of a round: the daemon may be writing a peer's state there.
            return self._averager.state_digest(attachment.views) == self._digest

        if not attachment.save(self._loop(), position, self._digest, valid):
            return False
        self._saved_step = step
        return True

    def step_done(self) -> None:
        """See `Work.step_done`."""
        attachment = self.attachment
        self._steps += 1
        with attachment.guarded():
            self.drain()
            if attachment.link is None:
                return
            if self.started and not self.finished and attachment.stop_reason is None:
                quota = self._step_after(self.round + 1) - self._step_after(self.round)
                if self._hurry or self._steps >= quota:
                    self._exchange()
            attachment.report(self.global_step)
            if self.save_wanted:
                self.save()

    def _exchange(self) -> None:
        """One round: contribute, wait, apply."""
        attachment = self.attachment
        assert attachment.link is not None
        self._hurry = False
        attachment.binding.store()
        weight = float(attachment.meter.tokens - self._tokens_contributed) or float(self._steps)
        params = attachment.views["params"]
        if not math.isfinite(float(np.dot(params, params))):
            _log.warning(
                "noded: the local parameters are not finite after step %d;"
                " this node goes back to the run's state and sits the round out",
                self.global_step,
            )
            self._averager.resume(attachment.views)
            attachment.binding.fetch()
            # Moments that saw the infinity would bring it back with the next step.
            attachment.optimizer.state.clear()
            weight = 0.0
        self._averager.contribute(attachment.views)
        mean_loss = attachment.meter.take_mean_loss()
        attachment.link.send(Contribute(self.round, self._steps, weight, mean_loss, self._digest))
        begun = attachment.clock()
        # Ends with the round (no steps are left in it), the link, or the wish to stop. In the last
        # case the contribution may or may not have counted; the daemon tells the next process.
        while self._steps and attachment.link is not None and attachment.stop_reason is None:
            message = attachment.link.receive()
            if isinstance(message, Outcome):
                self._apply(message)
            elif message is not None:
                self.handle(message)
        self.wait_seconds += attachment.clock() - begun

    def _apply(self, outcome: Outcome) -> None:
        attachment = self.attachment
        assert attachment.link is not None
        if outcome.round != self.round:
            raise DaemonLost(f"the daemon settled round {outcome.round}, not {self.round}")
        self._averager.apply(
            attachment.views, members=outcome.members, weight=outcome.weight, alone=outcome.alone
        )
        if not outcome.alone:
            attachment.binding.fetch()
        self.peers = outcome.members - 1
        self._enter_round(self.round + 1)
        attachment.link.send(Applied(self.round, self._step_after(self.round), self._digest))

    def _enter_round(self, number: int) -> None:
        self.round = number
        self._steps = 0
        self._hurry = False
        self._tokens_contributed = self.attachment.meter.tokens
        self._digest = self._averager.state_digest(self.attachment.views)

    def handle(self, message: DaemonMessage) -> None:
        """See `Work.handle`."""
        match message:
            case Start(round=number, source=source):
                if source == "synced":
                    self._adopt(number)
                self.started = True
            case Resync(round=number):
                self._adopt(number)
                self.started = True
                self.attachment.send(Applied(number, self._step_after(number), self._digest))
            case Hurry(round=number):
                self._hurry = number == self.round
            case _:
                super().handle(message)

    def _adopt(self, number: int) -> None:
        """The consensus vectors hold a peer's state: go on from there."""
        self._averager.resume(self.attachment.views)
        self.attachment.binding.fetch()
        self._enter_round(number)
