"""A task: model, data and loss of a run, in one class.

A task is what a researcher writes. It runs in the trainer process only; the daemon knows its name
and nothing else. Tasks register under the entry-point group ``noded.tasks``, and a name is looked
up among what the operator installed: a manifest from a peer can select a task but not bring one.
`module:Class` names a task in the operator's own folder and is accepted only if the operator's own
configuration says the same.

Rules a task has to keep:

* parameters depend on the seed of the run alone (`build_model` is called with torch seeded);
* `batch(index)` is a pure function of the index, the run's seed and the node's name, so that the
  data cursor is one number and a restarted trainer goes on with the next batch;
* `evaluate` uses a fixed held-out set, the same at every call.

This module does not import torch, so that the names of tasks can be listed without it.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

import attrs
import msgspec

from gossip.invalid import complaint
from node.errors import ExitCode, NodedError
from node.run.manifest import Setting

if TYPE_CHECKING:
    import torch

__all__ = [
    "ENTRY_POINT_GROUP",
    "Evaluation",
    "InvalidTaskSettings",
    "Task",
    "TaskContext",
    "TaskError",
    "UnknownTask",
    "check_settings",
    "installed_tasks",
    "load_approved",
    "load_task",
    "parse_settings",
]

ENTRY_POINT_GROUP: Final = "noded.tasks"
SETTINGS_GROUP: Final = "noded.task_settings"
"""Where a task may register its `Settings`, in a module that does not import torch."""

AnySettings = TypeVar("AnySettings", bound=msgspec.Struct)


class TaskError(NodedError):
    """Root of what can be wrong with the choice of a task; ends a command as bad configuration."""

    exit_code = ExitCode.BAD_CONFIG


class UnknownTask(TaskError):
    """No task of that name is installed, or it is not allowed here."""


class InvalidTaskSettings(TaskError):
    """The task's settings are wrong; the message names the key."""


@attrs.frozen(kw_only=True)
class TaskContext:
    """What a task is built from."""

    settings: Mapping[str, Setting] = attrs.field(factory=dict)
    """`[run.task_settings]`, not validated yet."""
    data: str = ""
    """The operator's corpus; "" for the task's default."""
    seed: int = 0
    """The run's seed, equal on all members."""
    node: str = ""
    """Names this node's own stream of batches."""
    steps: int = 0
    """Local steps of the whole run; 0 means no end."""
    device: str = "cpu"
    part: tuple[int, int] | None = None
    """(index, count): train on that part of the data, cut into `count` parts alike on all nodes; None: on all of it. A task may know no parts."""

    @property
    def stream(self) -> int:
        """64-bit number of this node's stream of batches."""
        return int.from_bytes(hashlib.sha256(self.node.encode()).digest()[:8], "little")


@attrs.frozen
class Evaluation:
    """Mean loss on the held-out set."""

    loss: float
    """In nats per token where the task's loss is a log-likelihood."""
    tokens: int
    """What the mean was taken over."""
    accuracy: float | None = None
    """Share of right answers, 0 to 1, for tasks that have any."""


class Task(ABC):
    """Model, data and loss of a run."""

    name: ClassVar[str]
    Settings: ClassVar[type[msgspec.Struct]]
    """Frozen struct with `forbid_unknown_fields=True` and a default for every setting."""

    def __init__(self, context: TaskContext) -> None:
        """Keep the context; subclasses load their data here.

        Raises:
            InvalidTaskSettings: an unknown key or a value out of range.
        """
        self.context = context
        self.parsed = self.parse_settings(context.settings)

    @classmethod
    def parse_settings(cls, raw: Mapping[str, Setting]) -> Any:
        """Validate a settings table (no data is loaded); raises `InvalidTaskSettings`."""
        return parse_settings(cls.name, cls.Settings, raw)

    @abstractmethod
    def build_model(self) -> torch.nn.Module:
        """A freshly initialised model, on the CPU; torch has been seeded with the run's seed."""

    @abstractmethod
    def build_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """The local optimizer."""

    @abstractmethod
    def batch(self, index: int) -> Any:
        """The node's batch number `index`, on the context's device; a pure function."""

    @abstractmethod
    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """Mean loss of the model on a batch: a scalar to call `backward` on."""

    @abstractmethod
    def tokens(self, batch: Any) -> int:
        """Size of a batch: the node's weight in the mean and its measure of speed."""

    @abstractmethod
    def evaluate(self, model: torch.nn.Module) -> Evaluation:
        """Loss on the held-out set; leaves the model's mode and torch's random state alone."""

    def learning_rate(self, step: int) -> float | None:
        """Learning rate of local step `step` of the run; None leaves the optimizer's own."""
        del step
        return None

    def before_step(self, model: torch.nn.Module) -> None:  # noqa: B027 (a hook: most need none)
        """After `backward` and before the optimizer's step: the place to clip gradients."""

    def sample(self, model: torch.nn.Module) -> str:
        """A specimen of what the model does, printable text; "" for none."""
        del model
        return ""

    def describe(self) -> str:
        """One line about the data, for the log."""
        return self.name


def parse_settings(task: str, struct: type[AnySettings], raw: Mapping[str, Setting]) -> AnySettings:
    """A table of settings as the task's struct; raises `InvalidTaskSettings`, which names the key."""
    try:
        return msgspec.convert(dict(raw), struct)
    except msgspec.ValidationError as error:
        wrong = complaint(error, struct)
        known = ", ".join(struct.__struct_fields__)
        raise InvalidTaskSettings(
            f"task {task!r}: {wrong}", hint=wrong.hint or f"its settings are: {known}"
        ) from None


def check_settings(task: str, raw: Mapping[str, Setting]) -> None:
    """Refuse wrong settings of an installed task without importing it, and so without torch.

    The struct is looked up under the entry-point group ``noded.task_settings``, by the task's name. Settings of a task that
    registers none there are checked where it is built: in the trainer.

    Raises:
        InvalidTaskSettings: an unknown key or a value out of range.
    """
    for point in entry_points(group=SETTINGS_GROUP):
        if point.name == task:
            parse_settings(task, point.load(), raw)


def installed_tasks() -> dict[str, str]:
    """Names of the installed tasks and where each one comes from; imports none of them."""
    return {point.name: point.value for point in entry_points(group=ENTRY_POINT_GROUP)}


def load_task(name: str, *, allowed: str = "", user_path: str = "") -> type[Task]:
    """The task class called `name`.

    Args:
        name: as the manifest has it.
        allowed: the task that the operator's own configuration names, if it is `module:Class`.
        user_path: folder to append (never prepend: a user's `node.py` must not hide ours) to
            `sys.path` when `module:Class` is imported.

    Raises:
        UnknownTask: not installed, not allowed, cannot be imported, or no `Task`.
    """
    if ":" in name:
        return _load_own(name, allowed, user_path)
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name == name:
            try:
                return _checked(point.load(), name)
            except ImportError as error:
                raise UnknownTask(
                    f"task {name!r} cannot be imported: {error}",
                    hint="training needs the extra: pip install 'noded[train]'",
                ) from error
    known = ", ".join(sorted(installed_tasks())) or "none"
    raise UnknownTask(f"no task named {name!r}", hint=f"installed: {known}")


def load_approved(entry: str, folder: str, approved: str) -> type[Task]:
    """The task `module:Class` from exactly that folder, whose files the operator has approved.

    Args:
        entry: the class.
        folder: where the files were unpacked, and nothing else.
        approved: hash of the approved code in hexadecimal; the files are hashed here, right before they are imported.

    Raises:
        UnknownTask: it is other code, cannot be imported, or Python would take a module of that name from elsewhere.
    """
    from node.blocks.files import sources_of
    from node.blocks.tasks import task_of_files

    module, _, attribute = entry.partition(":")
    if task_of_files(sources_of(Path(folder)), entry).id.hex() != approved:
        raise UnknownTask(
            f"the code in {folder} is not what was approved",
            hint="start the node again: it unpacks the approved files anew",
        )
    sys.dont_write_bytecode = True  # the folder holds what was approved, and nothing else
    sys.path.append(folder)  # never before ours: approved code must not hide other modules
    try:
        loaded = importlib.import_module(module)
        origin = Path(loaded.__file__ or "").resolve()
        if not origin.is_relative_to(Path(folder).resolve()):
            raise UnknownTask(
                f"the approved task {entry!r} is hidden by an installed module of that name ({origin})",
                hint="uninstall that one, or ask for a run whose task has another name",
            )
        found = getattr(loaded, attribute)
    except (ImportError, AttributeError) as error:
        raise UnknownTask(
            f"the approved task {entry!r} cannot be imported: {error}",
            hint="it may need libraries that are not installed here",
        ) from error
    return _checked(found, entry)


def _load_own(name: str, allowed: str, user_path: str) -> type[Task]:
    if name != allowed:
        raise UnknownTask(
            f"the run asks for the task {name!r}, which this node was not told to run",
            hint=f'if you trust that code, set [run] task = "{name}" and start again',
        )
    module, _, attribute = name.partition(":")
    if user_path and user_path not in sys.path:
        sys.path.append(user_path)
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UnknownTask(
            f"task {name!r} cannot be imported: {error}",
            hint=f"looked in {user_path or 'the installed packages'}",
        ) from error
    return _checked(found, name)


def _checked(found: object, name: str) -> type[Task]:
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise UnknownTask(f"{name!r} is no subclass of node.task.Task")
    return found
