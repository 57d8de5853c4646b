"""One leg of local training: a few steps from given parameters, by one of the rules a protocol may ask for.

Shared by the supervised trainer of a real node and by the simulator's exact engine, so that the two take the same
steps to the last bit. The loop's parameters are views of one flat vector (`node.training.binding`); whoever calls has
put the start of the leg there, and finds its end there.

Rules (`gossip.decentralized.protocol.LocalRule`):

* "task": the task's own optimizer;
* "gradient": no step; the mean gradient over the batches;
* "sam": sharpness-aware minimisation (Foret et al. 2021). For each batch g = grad(x), then g' = grad(x + rho g / |g|)
  on the same batch, x restored to its very bits, and the optimizer steps with g'. The norm is over all parameters
  together. Running statistics (batch norm) follow the first pass only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs
import torch

from gossip.decentralized.protocol import LocalRule
from node.training.task_loop import TaskLoop

__all__ = ["Leg", "local_step", "take_gradients"]


@attrs.frozen
class Leg:
    """What some steps amounted to."""

    steps: int = 0
    samples: float = 0.0
    """Tokens or samples seen."""
    loss_sum: float = 0.0

    def after(self, loss: float, samples: int) -> Leg:
        """With one more step."""
        return Leg(self.steps + 1, self.samples + samples, self.loss_sum + loss)

    @property
    def loss(self) -> float | None:
        """Mean over its batches; None before the first."""
        return self.loss_sum / self.steps if self.steps else None


def local_step(loop: TaskLoop, rule: LocalRule, cursor: int) -> tuple[float, int]:
    """One step of the rule "task" or "sam" with batch number `cursor`: (loss, samples).

    The learning rate follows `cursor` too.
    """
    loss, samples = loop.backward(cursor, cursor)
    if rule.kind == "sam" and rule.rho:
        _ascend_and_backward(loop, rule.rho, cursor)
    loop.optimizer.step()
    return float(loss), samples


def take_gradients(
    loop: TaskLoop, cursor: int, steps: int, into: Mapping[str, torch.Tensor]
) -> Iterator[tuple[float, int]]:
    """The rule "gradient": yields (loss, samples) of each batch; afterwards `into` holds the mean gradient.

    Args:
        loop: its parameters stay as they are.
        cursor: number of the first batch.
        steps: how many.
        into: one tensor for each trainable parameter, by name; overwritten. Summed in the order of the batches.
    """
    sums = {name: torch.zeros_like(target, dtype=torch.float64) for name, target in into.items()}
    for step in range(steps):
        loss, samples = loop.backward(cursor + step, cursor + step)
        for name, parameter in loop.model.named_parameters():
            if name in sums and parameter.grad is not None:
                sums[name] += parameter.grad
        yield float(loss), samples
    for name, target in into.items():
        target.copy_(sums[name] / max(steps, 1))


def _ascend_and_backward(loop: TaskLoop, rho: float, cursor: int) -> None:
    """Replace the gradients by those at params + rho g / |g|."""
    moved = [p for p in loop.model.parameters() if p.requires_grad and p.grad is not None]
    with torch.no_grad():
        squares = [p.grad.double().square().sum() for p in moved if p.grad is not None]
        scale = rho / (float(torch.stack(squares).sum().sqrt()) + 1e-12)
        kept = [p.detach().clone() for p in moved]
        statistics = {name: b.clone() for name, b in loop.model.named_buffers()}
        for p in moved:
            assert p.grad is not None
            p.add_(p.grad, alpha=scale)
    loop.backward(cursor, cursor)
    with torch.no_grad():
        for p, before in zip(moved, kept, strict=True):
            p.copy_(before)
        for name, b in loop.model.named_buffers():
            b.copy_(statistics[name])
