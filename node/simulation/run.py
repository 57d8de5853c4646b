"""One simulation from its scenario to its last record.

The loop is: do everything that is due at the next moment, then look whether a point, the blow or the end is due. So
whatever ends a run, or strikes it, does so between two moments and never in the middle of one.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

import attrs
import msgspec
import numpy as np

from gossip.decentralized.arithmetic import model_digest
from gossip.decentralized.protocol import DecentralizedProtocol
from node import __version__
from node.simulation.assembly import assemble, identities, run_id_of
from node.simulation.chance import stream
from node.simulation.churn import Change, absent_at_first, changes
from node.simulation.engine import Engine
from node.simulation.metrics import Metrics
from node.simulation.records import SCHEMA, Completion, Cost, End, Header, Point, Record
from node.simulation.scenario import Scenario
from node.simulation.trace import Happening, Trace
from node.simulation.world import Node

__all__ = ["Progress", "Simulation", "identities", "run_id_of"]

REPORT_EVERY_S: Final = 0.1
"""Real seconds between two calls of `progress`."""


@attrs.frozen
class Progress:
    """How far a simulation is."""

    time_s: float
    """Virtual."""
    round: int
    rounds: int
    """To do; 0: not known."""
    share: float
    """Done, 0 to 1, by the rounds or the time, whichever is further."""
    alive: int
    steps: int
    """Local steps of all nodes."""


class Simulation:
    """One run of one scenario.

    Args:
        scenario: what to simulate.
        write: takes the records, in order.
        progress: is told how far it is, ten times a second of real time.
        watch: is told of everything that happens.
        hashes: write a record of each completed round, with the model's hash.
        engine: trains instead of the one that the scenario names (for tests).
        protocol: its class instead of the one that the scenario names (for tests).
        user_path: folder that a task `module:Class` is imported from.

    Raises:
        ConfigError, TaskError, EngineError: as for `assemble`.
    """

    def __init__(
        self,
        scenario: Scenario,
        *,
        write: Callable[[Record], None] = lambda _record: None,
        progress: Callable[[Progress], None] | None = None,
        watch: Callable[[Happening], None] | None = None,
        hashes: bool = False,
        engine: Engine | None = None,
        protocol: type[DecentralizedProtocol] | None = None,
        user_path: str = "",
    ) -> None:
        self._began_s, self._began_cpu_s = time.monotonic(), time.process_time()
        self.scenario = scenario
        self._write = write
        self._progress = progress
        self._reported_s = 0.0
        self._interrupted = False
        made = assemble(scenario, engine=engine, protocol=protocol, user_path=user_path)
        self.ids, self.run_id, self.settings = made.ids, made.run_id, made.settings
        self.struck, self.engine = made.struck, made.engine
        self.world = made.world(Trace(watch))
        self._hashes = hashes
        self._metrics = Metrics(
            self.world, self.engine, every=scenario.point_every, scored=self._scored()
        )
        self.world.on_completed = self._completed
        self._changes = changes(scenario.churn, scenario.nodes, scenario.seed)
        self._has_struck = False
        blow = scenario.disruption
        self._blow_is_due = blow.case != "none" and blow.at_round is not None
        self._moved_s = 0.0
        """When a round was completed last."""

    def _scored(self) -> frozenset[int] | None:
        count = self.scenario.evaluate_nodes
        if not count or count >= self.scenario.nodes:
            return None
        chosen = stream(self.scenario.seed, "scored").sample(range(self.scenario.nodes), count)
        return frozenset(chosen)

    # ---- running it --------------------------------------------------------------------------

    def interrupt(self) -> None:
        """End after the present moment, with the records that are due; safe to call from a signal handler."""
        self._interrupted = True

    def run(self) -> End:
        """Simulate to the end; the last record, which has been written as well.

        Raises:
            SimulationFault: a core broke its contract.
        """
        scenario, world = self.scenario, self.world
        self._write(self._header())
        world.begin(absent_at_first(scenario.churn, scenario.nodes, scenario.seed))
        self._next_change()
        blow = scenario.disruption
        if blow.case != "none" and blow.at_s is not None:
            world.heap.at(blow.at_s, self._strike)
        reason = ""
        for point in self._points():
            self._write(point)
            if self._is_good(point):
                reason = "accuracy"
                break
        return self._end(reason or self._why())

    def _points(self) -> Iterator[Point]:
        """Carry the world on, and take the points that fall due."""
        world, metrics = self.world, self._metrics
        last: Point | None = None
        first = True
        while not self._why():
            world.heap.instant()
            if self._blow_is_due and metrics.highest >= (self.scenario.disruption.at_round or 0):
                self._strike()
            if first or metrics.due:
                first = False
                last = metrics.take()
                if last is not None:
                    yield last
            self._report()
        if last is None or last.time_s < world.now or last.round_mean != self._round_mean():
            point = metrics.take()
            if point is not None:
                yield point

    def _round_mean(self) -> float:
        alive = self.world.alive()
        return round(sum(node.round for node in alive) / len(alive), 3) if alive else 0.0

    def _why(self) -> str:
        """Why it is over; "" if it is not."""
        if self._interrupted:
            return "interrupted"
        world, stop = self.world, self.scenario.stop
        upcoming = world.heap.next_s()
        if world.present and world.finished == world.present:
            return "rounds"
        if stop.time_s and (upcoming is None or upcoming > stop.time_s):
            return "time"
        if upcoming is None:
            return "stalled" if world.present else "empty"
        if upcoming - self._moved_s > stop.patience_s:
            return "stalled" if world.present else "empty"
        return ""

    def _is_good(self, point: Point) -> bool:
        goal = self.scenario.stop.accuracy
        mean = point.accuracy.mean if point.accuracy is not None else None
        return bool(goal) and mean is not None and mean >= goal

    def _completed(self, node: Node) -> None:
        self._metrics.completed(node)
        self._moved_s = self.world.now
        if self._hashes:
            assert node.model is not None
            self._write(
                Completion(node.index, node.round, self.world.now, model_digest(node.model).hex())
            )

    def _next_change(self) -> None:
        change = next(self._changes, None)
        if change is not None:
            self.world.heap.at(change.at_s, self._change, change)

    def _change(self, change: Change) -> None:
        struck_for_good = change.node in set(self.struck) and self._has_struck
        if change.change == "join":
            if not struck_for_good:
                self.world.join(change.node)
        elif change.change == "leave":
            self.world.leave(change.node)
        else:
            self.world.crash((change.node,), silent=change.change == "silence")
        self._next_change()

    def _strike(self) -> None:
        self._blow_is_due = False
        self._has_struck = True
        self.world.crash(self.struck, silent=self.scenario.disruption.silent)

    def _report(self) -> None:
        if self._progress is None:
            return
        now = time.monotonic()
        if now - self._reported_s < REPORT_EVERY_S:
            return
        self._reported_s = now
        scenario, metrics, world = self.scenario, self._metrics, self.world
        shares = [0.0]
        if scenario.rounds:
            shares.append(max(metrics.highest, self._round_mean()) / scenario.rounds)
        if scenario.stop.time_s:
            shares.append(world.now / scenario.stop.time_s)
        self._progress(
            Progress(
                time_s=world.now,
                round=metrics.highest,
                rounds=scenario.rounds,
                share=min(1.0, max(shares)),
                alive=world.present,
                steps=world.totals.steps,
            )
        )

    # ---- first and last record ---------------------------------------------------------------

    def _header(self) -> Header:
        return Header(
            schema=SCHEMA,
            noded=__version__,
            numpy=np.__version__,
            scenario=msgspec.structs.replace(
                self.scenario, protocol_settings=msgspec.to_builtins(self.settings)
            ),
            run=self.run_id.hex(),
            ids=[str(id_) for id_ in self.ids],
            model_values=self.engine.numel,
            data=self.engine.describe(),
            struck=self.struck,
        )

    def _end(self, reason: str) -> End:
        world = self.world
        models = {}
        for node in world.alive():
            assert node.model is not None
            world.trace.add_model(node.index, node.model)
            models[str(node.index)] = model_digest(node.model).hex()
        totals = world.totals
        cpu_s = time.process_time() - self._began_cpu_s
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        record = End(
            reason=reason,
            digest=world.trace.hexdigest(),
            time_s=world.now,
            round=self._metrics.highest,
            steps=totals.steps,
            bytes=totals.bytes,
            transfers=round(totals.values / world.numel, 3),
            messages=totals.messages,
            lost=totals.lost,
            refused=totals.refused,
            events=world.heap.done,
            models=models,
            cost=Cost(
                real_s=round(time.monotonic() - self._began_s, 3),
                cpu_s=round(cpu_s, 3),
                node_steps_per_cpu_s=round(totals.steps / max(cpu_s, 1e-9), 1),
                peak_rss_bytes=peak if sys.platform == "darwin" else peak * 1024,
            ),
        )
        self._write(record)
        return record
