"""Legs of a decentralized protocol, the trainer's side: train for as long as the daemon says, from where it says.

The protocol lives in the daemon, with its arithmetic. Here are the steps in between, and what only this process can do with a
model: evaluate it, and save it together with the optimizer's state.

    Leg  ->  local steps from "params"  ->  LegDone  ->  (daemon: messages, mixing)  ->  Leg ...
    Look ->  evaluate or save "model", at the next step boundary  ->  Looked

Two kinds of loops: a supervised one asks for each leg (`next_leg`, `finish_leg`) and follows any rule; a script's own loop goes on
as it is and is held after the last step of a leg until the next one has come, which is possible for the rule "task" alone.

Invariants: parameters (or a gradient) with NaN or infinity in them are never handed over as good, and the optimizer forgets the
moments that saw them; evaluating and saving changes neither the parameters nor the optimizer.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import torch

from gossip.decentralized.arithmetic import is_finite, model_digest
from node.run.layout import Layout as FlatLayout
from node.task import Evaluation
from node.trainer_messages import (
    MAX_SAMPLE_CHARACTERS,
    TENSORS_PER_LAYOUT,
    CancelLeg,
    Conclude,
    DaemonMessage,
    Evaluated,
    Layout,
    Leg,
    LegDone,
    Look,
    Looked,
    Ready,
    Sample,
    TensorPlace,
)
from node.training.attachment import Attachment, JoinRefused
from node.training.snapshot import Loop, Position, read_snapshot
from node.training.work import Work

__all__ = ["Examiner", "Legs"]

VECTORS: Final = ("params", "model", "gradient")
WAIT_S: Final = 3600.0
"""Between two looks whether there is anything to wait for; the daemon's end is noticed at once."""
STEPS: Final = "steps"
"""In the cursor: local steps of this node."""

_log = logging.getLogger("noded")


class Examiner(Protocol):
    """Looks at the model as it is bound now; what a task can do and a script's loop cannot."""

    def evaluate(self) -> Evaluation: ...  # noqa: D102
    def sample(self) -> str: ...  # noqa: D102


class Legs(Work):
    """The loop's legs.

    Args:
        attachment: to the daemon.
        examiner: of the model; None for a script's own loop, whose evaluations are its own business.
    """

    def __init__(self, attachment: Attachment, examiner: Examiner | None) -> None:
        super().__init__(attachment)
        self.leg: Leg | None = None
        """The one that runs."""
        self.cancelled = False
        """Whether the daemon has given it up."""
        self._examiner = examiner
        self._steps = 0
        self._tokens_before = 0
        self._concluded = False
        self._saved_round = -1

    @property
    def global_step(self) -> int:
        """See `Work.global_step`: local steps of this node since the run began."""
        return self.attachment.cursor.get(STEPS, 0)

    @property
    def finished(self) -> bool:
        """See `Work.finished`."""
        return self._concluded

    @property
    def saved(self) -> bool:
        """See `Work.saved`."""
        return self._saved_round == self.round

    def open(self) -> None:
        """See `Work.open`."""
        attachment = self.attachment
        attachment.bind(VECTORS)
        views, checkpoint = attachment.views, attachment.attached.checkpoint
        if checkpoint is not None:
            run = attachment.manifest.hash
            position = read_snapshot(Path(checkpoint), run, self._loop("model"))
            np.copyto(views["params"], views["model"])
            attachment.binding.fetch()
            attachment.meter.resume(position.tokens)
            attachment.cursor = dict(position.cursor)
            self.round = self._saved_round = position.round
        for page in _pages(attachment.binding.layout):
            attachment.send(page)
        attachment.binding.store()
        attachment.send(Ready(self.round, self.global_step, model_digest(views["params"])))

    # ---- legs ----

    def gradients(self) -> dict[str, torch.Tensor]:
        """Views of the vector "gradient", one for each trainable parameter."""
        flat = self.attachment.views["gradient"]
        return {
            name: torch.from_numpy(view)
            for name, view in self.attachment.binding.layout.split(flat)
        }

    def next_leg(self) -> Leg | None:
        """Wait for the next leg; None when the run is finished, or the loop is to end."""
        attachment, begun = self.attachment, self.attachment.clock()
        while self.leg is None and not self.finished and attachment.stop_reason is None:
            if not self.receive_until(attachment.clock() + WAIT_S) and attachment.link is None:
                break
        self.wait_seconds += attachment.clock() - begun
        return self.leg

    def step_done(self) -> None:
        """See `Work.step_done`."""
        attachment = self.attachment
        attachment.cursor[STEPS] = self.global_step + 1
        with attachment.guarded():
            if self.leg is not None:
                self._steps += 1
            self.drain()
            attachment.report(self.global_step)
            leg = self.leg
            if attachment.wishes.supervised or leg is None or not self._steps:
                return
            if self.cancelled or self._steps >= leg.steps:
                self.finish_leg()
                self.next_leg()

    def finish_leg(self) -> None:
        """Hand over what the leg gave: in "params", and in "gradient" where the rule says so."""
        attachment, leg = self.attachment, self.leg
        assert leg is not None, "no leg runs"
        attachment.binding.store()
        views = attachment.views
        finite = is_finite(views["gradient" if leg.kind == "gradient" else "params"])
        if not finite:
            _log.warning(
                "noded: the local parameters are not finite after step %d; the leg does not count",
                self.global_step,
            )
            # Moments that saw the infinity would bring it back with the next step.
            attachment.optimizer.state.clear()
        samples = float(attachment.meter.tokens - self._tokens_before) or float(self._steps)
        loss = attachment.meter.take_mean_loss()
        self.leg = None
        attachment.send(LegDone(leg.number, self._steps, samples, loss, self.global_step, finite))
        self._steps = 0

    def handle(self, message: DaemonMessage) -> None:
        """See `Work.handle`."""
        match message:
            case Leg():
                self._begin(message)
            case CancelLeg(number=number):
                self.cancelled = self.leg is not None and self.leg.number == number
            case Look():
                self._look(message)
            case Conclude(round=number, peers=peers):
                self.round, self.peers, self._concluded = number, peers, True
                if self.leg is None:
                    self.attachment.binding.fetch()
            case _:
                super().handle(message)

    def _begin(self, leg: Leg) -> None:
        if leg.kind != "task" and not self.attachment.wishes.supervised:
            raise JoinRefused(
                f"the run's protocol needs legs of kind {leg.kind!r}, which a script's own loop cannot do",
                hint="train the run's task with trainer.auto = true, or choose other settings for the protocol",
            )
        self.leg, self.round, self.peers = leg, leg.round, leg.peers
        self.cancelled, self.started = False, True
        self._steps = 0
        self._tokens_before = self.attachment.meter.tokens
        self.attachment.meter.take_mean_loss()
        self.attachment.binding.fetch()

    # ---- looking ----

    def _look(self, look: Look) -> None:
        attachment = self.attachment
        if self._examiner is not None and (look.evaluate or look.sample):
            with attachment.binding.lend(attachment.views["model"]):
                if look.evaluate:
                    found = self._examiner.evaluate()
                    step = attachment.manifest.step_after(look.round)
                    attachment.send(
                        Evaluated(look.round, step, found.loss, found.tokens, found.accuracy)
                    )
                if look.sample:
                    self._tell_sample(self._examiner.sample())
        if look.save:
            self._save("model", look.round)
        attachment.send(Looked(look.number))

    def _tell_sample(self, text: str) -> None:
        if text:
            self.attachment.send(Sample(text[:MAX_SAMPLE_CHARACTERS]))

    def save(self) -> bool:
        """See `Work.save`; holds the parameters as they are now."""
        self.save_wanted = False
        self.attachment.binding.store()
        return self._save("params", self.round)

    def _save(self, vector: str, number: int) -> bool:
        attachment = self.attachment
        if attachment.link is None:
            return False
        position = Position(
            number,
            attachment.manifest.step_after(number),
            attachment.meter.tokens,
            dict(attachment.cursor),
        )
        digest = model_digest(attachment.views[vector])
        if not attachment.save(self._loop(vector), position, digest, lambda: True):
            return False
        self._saved_round = number
        return True

    def _loop(self, vector: str) -> Loop:
        attachment = self.attachment
        return Loop(
            attachment.model,
            attachment.optimizer,
            attachment.binding,
            attachment.views,
            (vector,),
        )


def _pages(flat: FlatLayout) -> Iterator[Layout]:
    places = [TensorPlace(slot.name, slot.start, slot.shape) for slot in flat.slots]
    for first in range(0, len(places), TENSORS_PER_LAYOUT):
        yield Layout(tuple(places[first : first + TENSORS_PER_LAYOUT]))
