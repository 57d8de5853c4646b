"""Builds what a manifest names and takes one local step at a time.

Shared by the supervised trainer (`node.training.worker`) and by training alone (`node.training.solo`), so that the
two can be compared: same model, same data order, same optimizer, same arithmetic.
"""

from __future__ import annotations

import attrs
import torch

from node.run.manifest import RunManifest
from node.task import Task, TaskContext, load_approved, load_task

__all__ = ["TaskLoop"]


class TaskLoop:
    """A task with its model and optimizer, ready to train."""

    def __init__(
        self,
        manifest: RunManifest,
        *,
        node: str = "",
        part: tuple[int, int] | None = None,
        data: str = "",
        device: str = "cpu",
        allowed_task: str = "",
        user_path: str = "",
        approved: str = "",
    ) -> None:
        """Build everything; raises `TaskError`, `CorpusError`, or what the task raises."""
        class_ = (
            load_approved(allowed_task, user_path, approved)
            if approved
            else load_task(manifest.task, allowed=allowed_task, user_path=user_path)
        )
        self.task: Task = class_(
            TaskContext(
                settings=manifest.task_settings,
                data=data,
                seed=manifest.seed,
                node=node,
                steps=manifest.steps,
                device=device,
                part=part,
            )
        )
        torch.manual_seed(manifest.seed)
        self.model = self.task.build_model().to(device)
        self.optimizer = self.task.build_optimizer(self.model)

    def set_node(self, node: str) -> None:
        """Name this node's stream of batches; known only once the daemon has answered."""
        self.task.context = attrs.evolve(self.task.context, node=node)

    def backward(self, index: int, step: int) -> tuple[torch.Tensor, int]:
        """Everything of a local step but the optimizer's: (loss, tokens).

        Args:
            index: number of the batch in this node's stream.
            step: local step of the run, which the learning rate follows.
        """
        rate = self.task.learning_rate(step)
        if rate is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
        batch = self.task.batch(index)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.task.loss(self.model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        self.task.before_step(self.model)
        return loss.detach(), self.task.tokens(batch)
