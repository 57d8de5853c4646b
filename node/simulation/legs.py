"""Legs of local training, computed late and together.

A leg's parameters are fixed when a core asks for it and its result is due when virtual time has passed, so between the
two it may be computed at any moment. The first leg that falls due has all that are open computed in one call of the
engine: that is what makes many small models fast.
"""

from __future__ import annotations

import attrs

from gossip.decentralized.protocol import LocalRule, LocalWork, Train
from node.simulation.engine import Engine, Job

__all__ = ["Leg", "Legs"]


@attrs.define(eq=False)
class Leg:
    """One leg of one node."""

    job: Job
    began_s: float
    due_s: float
    work: LocalWork | None = None

    def steps_by(self, now: float) -> int:
        """Whole steps that were done by `now`."""
        if now >= self.due_s:
            return self.job.steps
        return int(self.job.steps * (now - self.began_s) / (self.due_s - self.began_s))


class Legs:
    """The legs that run, at most one for each node."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._open: dict[int, Leg] = {}
        """By node; not computed yet."""

    def begin(self, node: int, train: Train, cursor: int, now: float, due_s: float) -> Leg:
        """Note a leg."""
        job = Job(node, train.params, train.steps, train.rule, cursor)
        leg = self._open[node] = Leg(job, now, due_s)
        return leg

    def cancel(self, leg: Leg) -> None:
        """Its result is not wanted any more."""
        if self._open.get(leg.job.node) is leg:
            del self._open[leg.job.node]

    def result(self, leg: Leg) -> LocalWork:
        """What it gave; computes all legs that are open if it has not been computed."""
        if leg.work is None:
            legs = [self._open[node] for node in sorted(self._open)]
            self._open.clear()
            for one, work in zip(legs, self._engine.train([one.job for one in legs]), strict=True):
                one.work = work
        assert leg.work is not None, "a leg that is due was open"
        return leg.work


def passes(rule: LocalRule) -> int:
    """How often a step of this rule goes over its batch."""
    return 2 if rule.kind == "sam" else 1
