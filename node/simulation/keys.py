"""Where a key belongs that `--set` was given without its table.

Problem: a key without a table is a setting of the protocol, so whoever writes `--set split=dirichlet` or `--set loss=0.1` hears that the
protocol has none of that name, which is true and no help. Idea: all the tables are at hand, so the place is looked up and named.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from gossip.errors import UnknownProtocol
from gossip.protocol import installed_protocols, load_plugin
from node.errors import ConfigError
from node.simulation.scenario import Scenario
from node.task import UnknownTask, load_task
from node.tasks.settings import ImagesSettings, PerceptronSettings

__all__ = ["check_assigned", "places"]

OPTIONS: Final = frozenset(
    {"nodes", "protocol", "task", "data", "engine", "rounds", "every", "seed"}
)


def check_assigned(scenario: Scenario, assigned: Iterable[str]) -> None:
    """Refuse settings of the protocol that belong elsewhere.

    Args:
        scenario: what is to run.
        assigned: dotted keys that `--set` gave.

    Raises:
        ConfigError: the protocol has no such setting, and something else has, or a file set it.
    """
    try:
        known = load_plugin(scenario.protocol).Settings.__struct_encode_fields__
    except UnknownProtocol:  # that is told by whoever needs it
        return
    told = set(assigned)
    for name in scenario.protocol_settings:
        if name in known:
            continue
        key = f"protocol_settings.{name}"
        if key not in told:  # the file's, and perhaps another protocol's
            hint = "the scenario's file sets it; to do without its settings:  --set scenario.protocol_settings={}"
        elif found := list(places(name, scenario)):
            hint = "did you mean " + ", or ".join(found) + "?"
        else:
            continue  # the protocol names the nearest of its own
        message = f"protocol {scenario.protocol!r}: there is no setting {name!r}"
        raise ConfigError(message, key=key, hint=hint)


def places(name: str, scenario: Scenario) -> Iterator[str]:
    """What could have been meant by a key of that name, as one writes it."""
    if name in OPTIONS:
        yield f"--{name}"
        return
    defaults = Scenario(protocol=scenario.protocol)
    for field in Scenario.__struct_encode_fields__:
        table = getattr(defaults, field)
        if not isinstance(table, msgspec.Struct):
            if field == name:
                yield f"--set scenario.{name}=..."
        elif field == name:
            yield f"a key of the table {name} (--set {name}.{table.__struct_encode_fields__[0]}=...)"
        elif name in table.__struct_encode_fields__:
            yield f"--set {field}.{name}=..."
    if name in _task_settings(scenario.task):
        yield f"--set task_settings.{name}=..."
    others = [
        each
        for each in sorted(installed_protocols())
        if each != scenario.protocol and name in load_plugin(each).Settings.__struct_encode_fields__
    ]
    if others:
        yield f"--protocol {' or '.join(others)}"


def _task_settings(task: str) -> tuple[str, ...]:
    if task in {"digits", "images"}:  # known without torch
        settings = ImagesSettings if task == "images" else PerceptronSettings
        return settings.__struct_encode_fields__
    try:
        return load_task(task).Settings.__struct_encode_fields__
    except UnknownTask:  # that is told by whoever needs it
        return ()
