"""The batched engine: perceptrons of many nodes trained in one stack of matrix products.

A simulated swarm of small models spends its time in the interpreter and in torch's dispatch, not in arithmetic. So
the models of J nodes are rows of one matrix, a layer's weights are a (J, out, in) view of it, and one `np.matmul`
computes that layer for all of them. numpy hands each (batch, in) x (in, out) product to BLAS on its own, and every
other operation here is per element or along the last axes, so a node's bits do not depend on who else is in the stack.

Backpropagation is written out. For logits z, softmax p and one-hot t the mean cross-entropy has dz = (p - t) / B;
then, layer by layer downwards, dW = dz^T h, db = sum dz, dh = dz W, and ReLU passes where h > 0. SGD is torch's::

    g += weight_decay * x;  m = momentum * m + g  (the first time m = g);  x -= rate * m

Shape legend: j nodes, b examples of a batch, d values of a flat vector, f features, c classes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from gossip.decentralized.protocol import LocalWork, Vector
from node.data.sampling import batch_draws, stream_of
from node.run.manifest import Setting
from node.simulation.engine import Engine, EngineError, Job, Score
from node.task import UnknownTask, installed_tasks
from node.tasks.perceptron import Recipe, own_seed, recipe
from node.tasks.portion import all_parts

__all__ = ["NumpyEngine"]

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

STACK: Final = 32
"""Nodes computed together: enough to hide the interpreter, few enough for their activations to stay in the cache."""


class NumpyEngine(Engine):
    """Perceptrons with SGD; see `node.simulation.engine.Engine`."""

    def __init__(
        self,
        *,
        task: str,
        settings: Mapping[str, Setting],
        nodes: Sequence[str],
        data: str = "",
        seed: int = 0,
        parts: Sequence[tuple[int, int]],
        without_data: Collection[int] = (),
    ) -> None:
        """Load the data; raises `EngineError` if the task is no perceptron, and what the task raises."""
        found = recipe(task, settings, data)
        if found is None:
            if ":" not in task and task not in (known := sorted(installed_tasks())):
                raise UnknownTask(f"no task named {task!r}", hint=f"installed: {', '.join(known)}")
            raise EngineError(
                f"the batched engine computes perceptrons only, and the task {task!r} is none as it is set",
                hint="take --engine exact, which trains any task with torch"
                + (", or --set task_settings.model=mlp" if task == "images" else ""),
            )
        self._recipe = found
        self._network = Network(found)
        self._settings = found.settings
        self.tensors = found.tensors
        self.numel = found.layout.numel
        self._nodes = tuple(nodes)
        self._seed = seed
        self._train_x, self._test_x = found.data.flat()
        self._train_y, self._test_y = found.data.train_y, found.data.test_y
        self._streams = np.array([_stream(name) for name in nodes], np.uint64)
        self._portions = self._deal(parts)
        self._idle = frozenset(without_data)
        self._momentum: dict[int, Vector] = {}

    def initial(self, node: int, *, common: bool) -> Vector:
        """Xavier-uniform from the run's seed, or from one of the node's own."""
        return self._recipe.initial(
            self._seed if common else own_seed(self._seed, self._nodes[node])
        )

    def describe(self) -> str:
        """Source and size of the data."""
        return self._recipe.data.describe()

    def train(self, jobs: Sequence[Job]) -> list[LocalWork]:
        """See the base class."""
        assert len({job.node for job in jobs}) == len(jobs), "one leg at a time for each node"
        works: dict[int, LocalWork] = {}
        groups: dict[tuple[str, float, int], list[Job]] = {}
        for job in jobs:
            if job.node in self._idle or not job.steps:
                works[job.node] = LocalWork(
                    job.params.copy(), 0, 0.0, None,
                    np.zeros_like(job.params) if job.rule.kind == "gradient" else None,
                )  # fmt: skip
            else:
                key = (job.rule.kind, job.rule.rho, self._batch_size(job.node))
                groups.setdefault(key, []).append(job)
        for group in groups.values():
            group.sort(key=lambda job: -job.steps)  # those still training are always the first rows
            for first in range(0, len(group), STACK):
                stack = group[first : first + STACK]
                works.update(zip((job.node for job in stack), self._legs(stack), strict=True))
        return [works[job.node] for job in jobs]

    def score(self, models: Sequence[Vector]) -> list[Score]:
        """See the base class."""
        found: list[Score] = []
        for first in range(0, len(models), STACK):
            rows_jd = np.stack(models[first : first + STACK])
            examples = np.broadcast_to(self._test_x, (len(rows_jd), *self._test_x.shape))
            with np.errstate(over="ignore", invalid="ignore"):
                logits_jbc = self._network.forward(rows_jd, examples)[-1]
                losses_jb = _cross_entropy(logits_jbc, self._test_y[None, :])
                right_jb = np.argmax(logits_jbc, axis=2) == self._test_y
            for row, loss, right in zip(rows_jd, losses_jb, right_jb, strict=True):
                mean = float(np.mean(loss, dtype=np.float64))
                finite = bool(np.isfinite(row).all()) and np.isfinite(mean)
                found.append(Score(mean if finite else float("inf"), float(np.mean(right))))
        return found

    # ---- one stack of nodes ------------------------------------------------------------------

    def _legs(self, jobs: list[Job]) -> list[LocalWork]:
        """Legs of one rule and one size of batch, by descending number of steps."""
        settings, rule = self._settings, jobs[0].rule
        size = self._batch_size(jobs[0].node)
        x_jd = np.stack([job.params for job in jobs]).astype(np.float32, copy=False)
        m_jd = np.zeros_like(x_jd) if settings.momentum else x_jd[:0]
        for row, job in enumerate(jobs):
            if job.node in self._momentum:
                m_jd[row] = self._momentum[job.node]
        steps = np.array([job.steps for job in jobs])
        total = np.zeros(len(jobs))
        gradient_jd = np.zeros(x_jd.shape) if rule.kind == "gradient" else None
        with np.errstate(over="ignore", invalid="ignore"):  # what diverges is rolled back below
            for step in range(int(steps[0])):
                live = int(np.searchsorted(-steps, -step))  # rows whose leg is longer than `step`
                x, m = x_jd[:live], m_jd[:live]
                examples, labels = self._batch(jobs[:live], step, size)
                loss_j, g_jd = self._network.gradient(x, examples, labels)
                if rule.kind == "sam" and rule.rho:
                    g_jd = self._network.gradient(x + _ascent(g_jd, rule.rho), examples, labels)[1]
                total[:live] += loss_j
                if gradient_jd is not None:
                    gradient_jd[:live] += g_jd
                else:
                    self._step(x, m, g_jd, jobs[:live], step)
        works = []
        for row, job in enumerate(jobs):
            mean = None
            if gradient_jd is not None:
                mean = (gradient_jd[row] / job.steps).astype(np.float32)
            elif settings.momentum:
                self._momentum[job.node] = m_jd[row].copy()
            loss = float(total[row] / job.steps)
            works.append(
                self._rolled_back_unless_finite(
                    job, LocalWork(x_jd[row].copy(), job.steps, float(job.steps * size), loss, mean)
                )
            )
        return works

    def _step(self, x: Floats, m: Floats, g: Floats, jobs: list[Job], step: int) -> None:
        """One step of SGD for all rows, in place."""
        settings = self._settings
        if settings.weight_decay:
            g += np.float32(settings.weight_decay) * x
        if settings.momentum:
            m *= np.float32(settings.momentum)
            m += g
            g = m
        if settings.decay == 1.0:
            x -= np.float32(settings.learning_rate) * g
        else:
            rates = [settings.learning_rate * settings.decay ** (job.cursor + step) for job in jobs]
            x -= np.array(rates, np.float32)[:, None] * g

    def _rolled_back_unless_finite(self, job: Job, work: LocalWork) -> LocalWork:
        gradient = work.gradient
        if np.isfinite(work.params).all() and (gradient is None or np.isfinite(gradient).all()):
            return work
        self._momentum.pop(job.node, None)
        nothing = None if gradient is None else np.zeros_like(gradient)
        return LocalWork(job.params.copy(), work.steps, work.samples, None, nothing)

    # ---- data --------------------------------------------------------------------------------

    def _deal(self, parts: Sequence[tuple[int, int]]) -> list[Indices]:
        counts = sorted({count for _, count in parts})
        data = self._recipe.data
        dealt = {
            count: all_parts(self._settings, data.train_y, count, seed=self._seed, users=data.users)
            for count in counts
        }
        return [dealt[count][index] for index, count in parts]

    def _batch_size(self, node: int) -> int:
        return self._settings.batch or len(self._portions[node])

    def _batch(self, jobs: list[Job], step: int, size: int) -> tuple[Floats, Indices]:
        """(J, B, F) examples and (J, B) labels."""
        nodes = [job.node for job in jobs]
        if not self._settings.batch:
            chosen = np.stack([self._portions[node] for node in nodes])
        else:
            cursors = np.array([job.cursor + step for job in jobs], np.uint64)
            drawn = batch_draws(self._streams[nodes], self._seed, cursors, size)
            lengths = np.array([len(self._portions[node]) for node in nodes], np.uint64)
            places = (drawn % lengths[:, None]).astype(np.int64)
            chosen = np.stack(
                [self._portions[node][row] for node, row in zip(nodes, places, strict=True)]
            )
        return self._train_x[chosen], self._train_y[chosen]


class Network:
    """Forward and backward passes of a stack of perceptrons."""

    def __init__(self, recipe: Recipe) -> None:
        slots = {slot.name: slot for slot in recipe.layout.slots}
        self._layers = [
            (slots[f"layers.{at}.weight"], slots[f"layers.{at}.bias"])
            for at in range(len(recipe.widths) - 1)
        ]
        self._l2 = recipe.settings.l2

    def forward(self, x_jd: Floats, examples_jbf: Floats) -> list[Floats]:
        """The input of each layer and, last, the logits (J, B, C)."""
        activations = [examples_jbf]
        for at, (weight, bias) in enumerate(self._layers):
            z = np.matmul(activations[-1], _view(x_jd, weight.start, weight.shape).swapaxes(1, 2))
            z += _view(x_jd, bias.start, bias.shape)[:, None, :]
            if at + 1 < len(self._layers):
                np.maximum(z, 0, out=z)
            activations.append(z)
        return activations

    def gradient(
        self, x_jd: Floats, examples_jbf: Floats, labels_jb: Indices
    ) -> tuple[npt.NDArray[np.float64], Floats]:
        """Mean loss of each node's batch and its gradient: (J,), (J, D)."""
        activations = self.forward(x_jd, examples_jbf)
        logits = activations[-1]
        batch = logits.shape[1]
        losses = _cross_entropy(logits, labels_jb)
        loss_j: npt.NDArray[np.float64] = np.mean(losses, axis=1, dtype=np.float64)
        dz = _softmax(logits)
        np.put_along_axis(
            dz, labels_jb[..., None], np.take_along_axis(dz, labels_jb[..., None], 2) - 1, 2
        )
        dz /= np.float32(batch)
        g_jd = np.zeros_like(x_jd)
        for at in range(len(self._layers) - 1, -1, -1):
            weight, bias = self._layers[at]
            _view(g_jd, weight.start, weight.shape)[...] = np.matmul(
                dz.swapaxes(1, 2), activations[at]
            )
            _view(g_jd, bias.start, bias.shape)[...] = dz.sum(axis=1)
            if at:
                dz = np.matmul(dz, _view(x_jd, weight.start, weight.shape))
                dz *= activations[at] > 0
        if self._l2:
            loss_j = loss_j + 0.5 * self._l2 * np.sum(np.square(x_jd, dtype=np.float64), axis=1)
            g_jd += np.float32(self._l2) * x_jd
        return loss_j, g_jd


def _view(rows_jd: Floats, start: int, shape: tuple[int, ...]) -> Floats:
    """One parameter of every row, (J, *shape), without a copy."""
    size = int(np.prod(shape))
    view: Floats = rows_jd[:, start : start + size].reshape(len(rows_jd), *shape)
    return view


def _softmax(logits: Floats) -> Floats:
    shifted: Floats = logits - logits.max(axis=-1, keepdims=True)
    np.exp(shifted, out=shifted)
    shifted /= shifted.sum(axis=-1, keepdims=True)
    return shifted


def _cross_entropy(logits: Floats, labels: Indices) -> Floats:
    """-log softmax at the label, one value for each example."""
    top = logits.max(axis=-1)
    total = np.exp(logits - top[..., None]).sum(axis=-1)
    chosen = np.take_along_axis(logits, np.broadcast_to(labels, logits.shape[:-1])[..., None], -1)
    loss: Floats = np.log(total) + top - chosen[..., 0]
    return loss


def _ascent(g_jd: Floats, rho: float) -> Floats:
    """The ascent rho * g / |g| for each node, over all its parameters together (Foret et al. 2021)."""
    norms = np.sqrt(np.sum(np.square(g_jd, dtype=np.float64), axis=1))
    step: Floats = g_jd * (rho / (norms + 1e-12)).astype(np.float32)[:, None]
    return step


def _stream(node: str) -> int:
    """As `TaskContext.stream` has it."""
    return stream_of(node)
