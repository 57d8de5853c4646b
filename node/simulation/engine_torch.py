"""The exact engine: each simulated node has the run's real task, model and optimizer, and trains as a trainer would.

What the real trainer does with a leg is done here by the same code (`node.training.leg`) on parameters that are views
of an aligned flat vector (`node.training.binding`), so a simulated node and a real one that began with the same bits
end with the same bits. A process has one random state, and here many nodes share a process: each node's is put in
place before its leg and kept after it (only models with dropout notice).

It costs what torch costs: 400 microseconds of CPU for a step of the perceptron of `digits`, where `engine_numpy` takes 25.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import attrs
import numpy as np
import torch

from gossip.decentralized.protocol import LocalWork, TensorSpec, Vector
from node.run.layout import ALIGNMENT
from node.run.manifest import RunManifest, Setting
from node.simulation.engine import Engine, Job, Score
from node.tasks.perceptron import own_seed
from node.training.binding import Binding
from node.training.leg import Leg, local_step, take_gradients
from node.training.task_loop import TaskLoop

__all__ = ["TorchEngine"]


@attrs.define(eq=False)
class _Trainer:
    """One node's loop, its parameters as a flat vector, and its random state between two legs."""

    loop: TaskLoop
    binding: Binding
    flat: Vector
    random: torch.Tensor


class TorchEngine(Engine):
    """The run's own task in torch; see `node.simulation.engine.Engine`."""

    def __init__(
        self,
        *,
        task: str,
        settings: Mapping[str, Setting],
        nodes: Sequence[str],
        data: str = "",
        seed: int = 0,
        steps: int = 0,
        parts: Sequence[tuple[int, int]],
        without_data: Collection[int] = (),
        user_path: str = "",
    ) -> None:
        """Build the first node's loop; raises what the task raises. Sets torch to one thread, as a trainer has by default."""
        torch.set_num_threads(1)
        self._manifest = RunManifest(
            name="simulated", task=task, task_settings=dict(settings), seed=seed, steps=steps
        )
        self._nodes, self._parts = tuple(nodes), tuple(parts)
        self._data, self._user_path = data, user_path
        self._idle = frozenset(without_data)
        self._trainers: dict[int, _Trainer] = {}
        first = self._trainer(0)
        layout = first.binding.layout
        self.numel = layout.numel
        self.tensors = tuple(TensorSpec(slot.name, slot.start, slot.shape) for slot in layout.slots)
        self._common = first.flat.copy()

    def initial(self, node: int, *, common: bool) -> Vector:
        """What the task builds with the run's seed, or with one of the node's own."""
        if common:
            return self._common.copy()
        trainer = self._trainer(node)
        task, kept = trainer.loop.task, trainer.loop.task.context
        seed = own_seed(self._manifest.seed, self._nodes[node])
        before = torch.get_rng_state()
        try:
            task.context = attrs.evolve(kept, seed=seed)
            torch.manual_seed(seed)
            return _flattened(task.build_model())
        finally:
            task.context = kept
            torch.set_rng_state(before)

    def train(self, jobs: Sequence[Job]) -> list[LocalWork]:
        """See the base class."""
        return [self._leg(job) for job in jobs]

    def score(self, models: Sequence[Vector]) -> list[Score]:
        """See the base class."""
        trainer = self._trainer(0)
        kept, found = trainer.flat.copy(), []
        for model in models:
            np.copyto(trainer.flat, model)
            trainer.binding.fetch()
            result = trainer.loop.task.evaluate(trainer.loop.model)
            finite = bool(np.isfinite(model).all()) and np.isfinite(result.loss)
            found.append(Score(result.loss if finite else float("inf"), result.accuracy))
        np.copyto(trainer.flat, kept)
        trainer.binding.fetch()
        return found

    def describe(self) -> str:
        """One line about the data."""
        return self._trainer(0).loop.task.describe()

    # ---- one node ----------------------------------------------------------------------------

    def _leg(self, job: Job) -> LocalWork:
        gradient = np.zeros(self.numel, np.float32) if job.rule.kind == "gradient" else None
        if job.node in self._idle or not job.steps:
            return LocalWork(job.params.copy(), 0, 0.0, None, gradient)
        trainer = self._trainer(job.node)
        np.copyto(trainer.flat, job.params)
        trainer.binding.fetch()
        leg = Leg()
        with _random_state(trainer):
            if gradient is not None:
                into = {
                    name: torch.from_numpy(view)
                    for name, view in trainer.binding.layout.split(gradient)
                }
                for loss, samples in take_gradients(trainer.loop, job.cursor, job.steps, into):
                    leg = leg.after(loss, samples)
            else:
                for step in range(job.steps):
                    leg = leg.after(*local_step(trainer.loop, job.rule, job.cursor + step))
        trainer.binding.store()
        if not (
            np.isfinite(trainer.flat).all() and (gradient is None or np.isfinite(gradient).all())
        ):
            trainer.loop.optimizer.state.clear()
            nothing = None if gradient is None else np.zeros_like(gradient)
            return LocalWork(job.params.copy(), leg.steps, leg.samples, None, nothing)
        return LocalWork(trainer.flat.copy(), leg.steps, leg.samples, leg.loss, gradient)

    def _trainer(self, node: int) -> _Trainer:
        if node not in self._trainers:
            before = torch.get_rng_state()
            loop = TaskLoop(
                self._manifest,
                node=self._nodes[node],
                part=self._parts[node],
                data=self._data,
                allowed_task=self._manifest.task,
                user_path=self._user_path,
            )
            binding = Binding(loop.model)
            flat = _aligned(binding.layout.numel)
            binding.attach(flat)
            self._trainers[node] = _Trainer(loop, binding, flat, torch.get_rng_state())
            torch.set_rng_state(before)
        return self._trainers[node]


@contextmanager
def _random_state(trainer: _Trainer) -> Iterator[None]:
    """The node's own random state while its leg is computed."""
    before = torch.get_rng_state()
    torch.set_rng_state(trainer.random)
    try:
        yield
    finally:
        trainer.random = torch.get_rng_state()
        torch.set_rng_state(before)


def _flattened(model: torch.nn.Module) -> Vector:
    binding = Binding(model)
    flat = np.zeros(binding.layout.numel, np.float32)
    binding.attach(flat)
    binding.store()
    return flat


def _aligned(numel: int) -> Vector:
    """Zeros whose first value lies on a boundary of 64 bytes, as in a trainer's shared memory."""
    room = np.zeros(numel + ALIGNMENT, np.float32)
    offset = (-room.ctypes.data // 4) % ALIGNMENT
    return room[offset : offset + numel]
