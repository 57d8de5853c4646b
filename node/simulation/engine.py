"""What trains the models of a simulated swarm: the seam between the simulator and the mathematics.

The simulator knows when a node trains, never how. It hands an engine a list of legs of training whose start is
known already (a core fixes the parameters when it emits `Train`), so legs of many nodes that overlap in virtual
time can be computed in one call. That must change nothing: what a node gets back depends on its own jobs and their
order alone, never on the company they were in. There are two engines::

    exact    the run's real task with its torch optimizer, one node after the other: the bits of a real trainer
    batched  perceptrons in numpy, all nodes of a call in one stack of matrix products (`engine_numpy`)

What a real trainer keeps between two legs (momentum) an engine keeps for each node.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Final

import attrs

from gossip.decentralized.protocol import TASK_RULE, LocalRule, LocalWork, TensorSpec, Vector
from node.errors import ExitCode, NodedError
from node.run.manifest import Setting

__all__ = ["ENGINES", "Engine", "EngineError", "Job", "Score", "open_engine"]

ENGINES: Final = ("batched", "exact")
"""Names for `open_engine`."""


class EngineError(NodedError):
    """No such engine, or it cannot train this task; ends a command as bad configuration."""

    exit_code = ExitCode.BAD_CONFIG


@attrs.frozen(eq=False)
class Job:
    """One leg of training of one node."""

    node: int
    """Index of the node among those the engine was opened for."""
    params: Vector
    """Where the leg begins; lent for the call."""
    steps: int
    rule: LocalRule = TASK_RULE
    cursor: int = 0
    """Local steps this node has done before: the number of its next batch, and what a learning rate follows."""


@attrs.frozen
class Score:
    """How good a model is on the held-out set."""

    loss: float
    """Mean, in nats where the task's loss is a log-likelihood."""
    accuracy: float | None
    """Share of right answers, 0 to 1; None for a task that has none."""


class Engine(ABC):
    """Trains and scores models given as flat vectors."""

    tensors: tuple[TensorSpec, ...]
    """The trainable tensors, by offset."""
    numel: int
    """Length of a flat vector, padding included; the layout is that of a real run (`node.run.layout`)."""

    @abstractmethod
    def initial(self, node: int, *, common: bool) -> Vector:
        """A new vector: the run's seeded model, or (not `common`) one drawn for that node alone."""

    @abstractmethod
    def train(self, jobs: Sequence[Job]) -> list[LocalWork]:
        """Compute the legs, at most one for each node; results in the order of the jobs.

        Results are new vectors. A leg that does not stay finite is rolled back: it gives the parameters it began
        with, no loss, and the node's optimizer starts afresh. A node that holds no data gives back what it was
        given, with 0 samples.
        """

    @abstractmethod
    def score(self, models: Sequence[Vector]) -> list[Score]:
        """The models on the held-out set, in their order; a model that is not finite has an infinite loss."""

    def describe(self) -> str:
        """One line about the data, for people."""
        return type(self).__name__


def open_engine(
    kind: str,
    *,
    task: str,
    settings: Mapping[str, Setting],
    nodes: Sequence[str],
    data: str = "",
    seed: int = 0,
    steps: int = 0,
    parts: Sequence[tuple[int, int]] | None = None,
    without_data: Collection[int] = (),
    user_path: str = "",
) -> Engine:
    """The engine of that kind for a task.

    Args:
        kind: "batched" or "exact".
        task: name of an installed task (`module:Class` is the operator's own word here, so it is allowed).
        settings: the task's.
        nodes: name of each node, which its stream of batches follows (real trainers are named by printed node id).
        data: where the task's data lies; "" for its default.
        seed: the run's.
        steps: local steps of the whole run, which some tasks' learning rates follow; 0: no end.
        parts: for each node (index, count), the part of the split data it trains on; by default node i has part
            i of as many as there are nodes.
        without_data: nodes that only pass on and mix.
        user_path: folder that `module:Class` is imported from.

    Raises:
        EngineError: unknown kind, or a task that the batched engine has no arithmetic for.
        TaskError, DataError: what the task's settings or its data are refused for.
    """
    count = len(nodes)
    chosen = tuple(parts) if parts is not None else tuple((i, count) for i in range(count))
    if len(chosen) != count:
        raise EngineError(
            f"{len(chosen)} parts of data for {count} nodes", hint="give one part for each node"
        )
    idle = frozenset(without_data)
    if kind == "batched":
        from node.simulation.engine_numpy import NumpyEngine

        return NumpyEngine(
            task=task,
            settings=settings,
            nodes=nodes,
            data=data,
            seed=seed,
            parts=chosen,
            without_data=idle,
        )
    if kind == "exact":
        from node.simulation.engine_torch import TorchEngine

        return TorchEngine(
            task=task, settings=settings, nodes=nodes, data=data, seed=seed, steps=steps,
            parts=chosen, without_data=idle, user_path=user_path,
        )  # fmt: skip
    raise EngineError(f"no engine named {kind!r}", hint=f"there are: {', '.join(ENGINES)}")
