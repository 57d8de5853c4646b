"""A round waits for its slowest member.

When most others are done, this node asks its trainer to hurry; when the trainer does not answer, it lets the others go on without it.
"""

from __future__ import annotations

import logging
from typing import Final

import trio

from gossip.collective.group import Group
from node.run.figures import Figures
from node.run.trainer import Trainers
from node.run.trainer_link import TrainerLink

__all__ = ["Stragglers"]

HURRY_AFTER_S: Final = 3.0
"""Grace for this node's trainer once most members wait; stragglers do fewer steps then."""
STUCK_S: Final = 45.0
"""From hurrying the trainer to letting the others go on without this node."""
LOOK_S: Final = 0.5

_log = logging.getLogger(__name__)


class Stragglers:
    """Watches over one node's trainer; `watch` must be running for anything to happen."""

    def __init__(self, group: Group, trainers: Trainers[TrainerLink], figures: Figures) -> None:
        self._group = group
        self._trainers = trainers
        self._figures = figures
        self._hurry_at: float | None = None
        self._hurried_at: float | None = None

    def members_wait(self, count: int, of: int) -> None:
        """So many of the epoch's members have done their part of the round."""
        if 2 * count >= of and self._figures.phase == "training" and self._hurry_at is None:
            self._hurry_at = trio.current_time() + HURRY_AFTER_S

    def done(self) -> None:
        """This node has done its part."""
        self._hurry_at = None

    async def watch(self) -> None:
        """Hurry and give up at the times they are due, until cancelled."""
        while True:
            await trio.sleep(LOOK_S)
            self._look(trio.current_time())

    def _look(self, now: float) -> None:
        figures, link = self._figures, self._trainers.current
        if figures.phase != "training":
            self._hurried_at = None
        elif self._hurried_at is not None and now > self._hurried_at + STUCK_S:
            # Doubt oneself first: the others can go on, and this node catches up.
            self._hurried_at = None
            _log.warning("the trainer has not answered for %.0f s; the others go on", STUCK_S)
            self._group.set_not_ready("its trainer does not answer")
        if self._hurry_at is None or link is None or now < self._hurry_at:
            return
        self._hurry_at = None
        if figures.phase == "training":
            self._hurried_at = now
            link.hurry(figures.round)
