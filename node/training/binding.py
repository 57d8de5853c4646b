"""Ties a torch model and its optimizer to flat vectors and to tensors that a file can hold.

Two ways of tying. Parameters that are fp32, dense and on the CPU *become* views of the shared
"params" vector: the optimizer then writes where the daemon reads and a round copies nothing. If
any parameter is otherwise (a GPU, half precision), all are copied out before a round and back
after it.

Only parameters that require gradients take part. Everything else that a model or an optimizer
keeps (buffers, moments, random state) is private: saved with a checkpoint, never exchanged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import torch

from node.run.layout import Layout
from node.shared_buffer import Vector

__all__ = ["Binding", "capture_private", "restore_private"]

OPTIMIZER_PREFIX: Final = "noded.optimizer."
RANDOM_STATE: Final = "noded.random.torch"


class Binding:
    """A model's trainable parameters, seen as one flat vector."""

    def __init__(self, model: torch.nn.Module) -> None:
        """Look at the model; nothing is changed before `attach`."""
        self._parameters = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        self.layout = Layout.of({name: p.shape for name, p in self._parameters.items()})
        self.shares_memory = all(
            p.dtype == torch.float32 and p.device.type == "cpu" and p.is_contiguous()
            for p in self._parameters.values()
        )
        self._flat: Vector | None = None

    @property
    def parameters(self) -> Mapping[str, torch.nn.Parameter]:
        """The trainable parameters by name."""
        return self._parameters

    def attach(self, flat: Vector) -> None:
        """Write the parameters into `flat`, and make them views of it where that is possible."""
        self._flat = flat
        flat.fill(0)
        with torch.no_grad():
            for name, view in self.layout.split(flat):
                parameter, shared = self._parameters[name], torch.from_numpy(view)
                shared.copy_(parameter)
                if self.shares_memory:
                    parameter.data = shared

    def detach(self) -> None:
        """Give every parameter storage of its own again, with the values it has now."""
        self._flat = None
        if self.shares_memory:
            with torch.no_grad():
                for parameter in self._parameters.values():
                    parameter.data = parameter.data.clone()

    def store(self) -> None:
        """Bring the flat vector up to date with the model, before it is read."""
        if not self.shares_memory and self._flat is not None:
            with torch.no_grad():
                for name, view in self.layout.split(self._flat):
                    torch.from_numpy(view).copy_(self._parameters[name])

    def fetch(self) -> None:
        """Bring the model up to date with the flat vector, after it was written."""
        if not self.shares_memory and self._flat is not None:
            with torch.no_grad():
                for name, view in self.layout.split(self._flat):
                    self._parameters[name].copy_(torch.from_numpy(view))

    @contextlib.contextmanager
    def lend(self, flat: Vector) -> Iterator[None]:
        """Inside the block the model's parameters have the values of `flat`; afterwards those that they had."""
        assert self._flat is not None, "bound to nothing"
        parameters = self._parameters.values()
        kept = [p.data if self.shares_memory else p.detach().clone() for p in parameters]
        with torch.no_grad():
            for name, view in self.layout.split(flat):
                if self.shares_memory:
                    self._parameters[name].data = torch.from_numpy(view)
                else:
                    self._parameters[name].copy_(torch.from_numpy(view))
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(parameters, kept, strict=True):
                    if self.shares_memory:
                        parameter.data = value
                    else:
                        parameter.copy_(value)


def capture_private(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, binding: Binding
) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, float]]:
    """What a restart needs beyond the consensus vectors: (tensors by name, plain numbers)."""
    tensors: dict[str, np.ndarray[Any, Any]] = {
        RANDOM_STATE: torch.get_rng_state().numpy(),
    }
    numbers: dict[str, float] = {}
    for name, buffer in model.state_dict().items():
        if name not in binding.parameters:
            tensors[name] = _to_numpy(buffer)
    for name, parameter in binding.parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            full = f"{OPTIMIZER_PREFIX}{key}.{name}"
            if isinstance(value, torch.Tensor):
                tensors[full] = _to_numpy(value)
            elif isinstance(value, int | float):
                numbers[full] = value
    return tensors, numbers


def restore_private(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    binding: Binding,
    tensors: Mapping[str, np.ndarray[Any, Any]],
    numbers: Mapping[str, float],
) -> None:
    """Put back what `capture_private` took; tensors of unfitting shape are left out.

    Call it before the parameters are loaded: a tied parameter is listed under its second name too.
    """
    own = model.state_dict()
    with torch.no_grad():
        for name, buffer in own.items():
            saved = tensors.get(name)
            private = name not in binding.parameters
            if private and saved is not None and saved.shape == tuple(buffer.shape):
                buffer.copy_(torch.from_numpy(saved.copy()))
    found: dict[str, dict[str, Any]] = {name: {} for name in binding.parameters}
    # Adam's "step" lives on the CPU, except for kernels that read it on the device.
    counted_there = {
        id(parameter)
        for group in optimizer.param_groups
        if group.get("fused") or group.get("capturable")
        for parameter in group["params"]
    }
    for full, value in [*tensors.items(), *numbers.items()]:
        if not full.startswith(OPTIMIZER_PREFIX):
            continue
        key, _, name = full.removeprefix(OPTIMIZER_PREFIX).partition(".")
        parameter = binding.parameters.get(name)
        if parameter is None:
            continue
        if not isinstance(value, np.ndarray):
            found[name][key] = value
        elif value.ndim == 0:
            device = parameter.device if id(parameter) in counted_there else torch.device("cpu")
            found[name][key] = torch.from_numpy(value.copy()).to(device)
        elif value.shape == tuple(parameter.shape):
            found[name][key] = torch.from_numpy(value.copy()).to(parameter.device)
    for name, state in found.items():
        if state:
            optimizer.state[binding.parameters[name]] = state
    random_state = tensors.get(RANDOM_STATE)
    if random_state is not None and random_state.dtype == np.uint8:
        # Its format belongs to torch; one of another version is worth less than going on.
        with contextlib.suppress(RuntimeError):
            torch.set_rng_state(torch.from_numpy(random_state.copy()))


def _to_numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()  # numpy has no bfloat16, and fp32 holds all its values
    array: np.ndarray[Any, Any] = tensor.detach().cpu().contiguous().numpy()
    return array
