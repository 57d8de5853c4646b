"""A trainer of a decentralized protocol: legs of training, and looks at the node's model (trio driver).

Who may write the shared vectors is settled by turns: "params" is ours between a `LegDone` and the next `Leg`, "model" is ours
but for the time from a `Look` to its `Looked`.

Invariant: one leg and one look are under way at most; a leg that was given up is waited for before the next one begins.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import attrs
import numpy as np
import trio

from gossip.decentralized.network.driver import THREADED_NUMEL
from gossip.decentralized.protocol import LocalWork, TensorSpec, Train, Vector
from gossip.rounds import TrainerGone
from node.run.manifest import RunManifest
from node.run.trainer_connection import Note, TrainerConnection
from node.shared_buffer import SharedBuffer
from node.trainer_messages import (
    MAX_TENSORS,
    Attach,
    CancelLeg,
    Conclude,
    Finished,
    Layout,
    Leg,
    LegDone,
    Look,
    Looked,
    Ready,
    TrainerMessage,
    TrainerProtocolError,
)

__all__ = ["VECTORS", "LegLink", "Opened"]

VECTORS: Final = ("params", "model", "gradient")

_log = logging.getLogger(__name__)


@attrs.frozen(eq=False)
class Opened:
    """What a trainer brings along."""

    tensors: tuple[TensorSpec, ...]
    params: Vector
    """A copy: initial ones, or those of the checkpoint."""
    round: int
    state_sha256: bytes


class LegLink(TrainerConnection):
    """One attached trainer; `run` must be running for anything to happen."""

    def __init__(
        self,
        stream: trio.SocketStream,
        attach: Attach,
        manifest: RunManifest,
        buffer: SharedBuffer,
        on_note: Callable[[Note], None],
    ) -> None:
        super().__init__(stream, attach, manifest, buffer, on_note)
        self.opened: Opened | None = None
        """None before `Ready`."""
        self._tensors: list[TensorSpec] = []
        self._leg: Leg | None = None
        self._done: LegDone | None = None
        self._legs = 0
        self._looks = 0
        self._looking = False
        self._changed = trio.Event()

    def on_end(self) -> None:
        """See `TrainerConnection.on_end`."""
        self._notify()

    def on_answer(self, message: TrainerMessage) -> None:
        """See `TrainerConnection.on_answer`."""
        match message:
            case Layout(tensors=tensors) if self.opened is None:
                for place in tensors:
                    self._add(TensorSpec(place.name, place.offset, place.shape))
            case Ready() if self.opened is None:
                params = self.views["params"].copy()
                self.opened = Opened(
                    tuple(self._tensors), params, message.round, message.state_sha256
                )
            case LegDone() if self._leg is not None and message.number == self._leg.number:
                self._leg, self._done = None, message
            case Looked() if self._looking and message.number == self._looks:
                self._looking = False
            case Finished():
                pass
            case _:
                raise TrainerProtocolError(f"{type(message).__name__} out of turn")
        self._notify()

    def _add(self, spec: TensorSpec) -> None:
        end = self._tensors[-1].offset + self._tensors[-1].numel if self._tensors else 0
        if spec.offset < end or spec.offset + spec.numel > self.attach.numel:
            raise TrainerProtocolError(f"the tensor {spec.name[:80]!r} lies where it cannot")
        if len(self._tensors) >= MAX_TENSORS:
            raise TrainerProtocolError(f"a model of more than {MAX_TENSORS} tensors")
        self._tensors.append(spec)

    def _notify(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self.gone.is_set():
                raise TrainerGone(self.error or "the trainer is gone")
            await self._changed.wait()

    async def wait_opened(self) -> Opened:
        """Wait until the trainer is ready; raises `TrainerGone`."""
        await self._until(lambda: self.opened is not None)
        assert self.opened is not None
        return self.opened

    async def train(self, leg: Train, round_: int, peers: int) -> LocalWork:
        """Do a leg, after a round with the work of so many peers in it; what it gave is lent until the next one.

        A leg that ends in NaN or infinity changes nothing: its parameters are those it began with, its gradient is zero.
        Cancelling gives the leg up; the trainer ends it at its next step boundary.

        Raises:
            TrainerGone: the trainer ended, or cannot do such a leg.
        """
        await self._until(lambda: self._leg is None)
        if leg.rule.kind != "task" and not self.attach.supervised:
            reason = (
                f"the run's protocol needs legs of kind {leg.rule.kind!r}, which a script cannot do: "
                "have the daemon train the run's task (trainer.auto), or change the protocol's settings"
            )
            self.stop(reason, save=False)
            raise TrainerGone(reason)
        await _copy(leg.params, self.views["params"])
        self._legs += 1
        self._leg = asked = Leg(self._legs, round_, leg.steps, leg.rule.kind, leg.rule.rho, peers)
        self.send(asked)
        try:
            await self._until(lambda: self._leg is not asked)
        except trio.Cancelled:
            with suppress(TrainerGone):
                self.send(CancelLeg(asked.number))
            raise
        done = self._done
        assert done is not None
        gradient = self.views["gradient"] if leg.rule.kind == "gradient" else None
        if done.finite:
            return LocalWork(self.views["params"], done.steps, done.samples, done.loss, gradient)
        _log.warning("a leg of %d steps ended in values that are not finite: undone", done.steps)
        if gradient is not None:
            gradient.fill(0)
        return LocalWork(leg.params, done.steps, done.samples, None, gradient)

    async def look(
        self,
        model: Vector,
        round_: int,
        *,
        evaluate: bool = False,
        save: bool = False,
        sample: bool = False,
    ) -> None:
        """Have the model of a round evaluated, saved, shown; the notes come before this returns.

        Raises:
            TrainerGone: the trainer ended meanwhile.
        """
        await self._until(lambda: not self._looking)
        self._looks += 1
        number, self._looking = self._looks, True
        try:
            await _copy(model, self.views["model"])
            self.send(Look(number, round_, evaluate=evaluate, save=save, sample=sample))
        except BaseException:
            self._looking = False
            raise
        await self._until(lambda: not self._looking or self._looks != number)

    async def conclude(self, model: Vector, round_: int, peers: int) -> None:
        """All rounds are done, and no leg begins any more: the trainer ends with the model; raises `TrainerGone`."""
        if self._leg is None:
            await _copy(model, self.views["params"])
        self.send(Conclude(round_, peers))

    def stop(self, reason: str, *, save: bool) -> None:
        """Ask the trainer to end. What is worth saving was saved by `look`."""
        del save
        super().stop(reason, save=False)


async def _copy(source: Vector, target: Vector) -> None:
    """A large model is copied in a thread: it takes longer than a heartbeat may wait."""
    if source.size < THREADED_NUMEL:
        np.copyto(target, source)
        await trio.lowlevel.checkpoint()
    else:
        await trio.to_thread.run_sync(np.copyto, target, source)
