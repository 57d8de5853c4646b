"""When nodes come and go of themselves: traces that are drawn before the run begins, or read from a file.

A trace is the list of all changes in the order of time, so a run can be replayed with the same changes and another
protocol. Two kinds are drawn: exponential sessions and absences (the usual model of home machines), and days: a node
is there for the first part of its own day, which begins at a random hour.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from node.errors import ConfigError
from node.simulation.chance import stream
from node.simulation.scenario import Churn

__all__ = ["Change", "ChangeKind", "absent_at_first", "changes", "read_trace"]

MAX_TRACE_BYTES: Final = 64 << 20

ChangeKind = Literal["join", "leave", "crash", "silence"]


class Change(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One node comes or goes."""

    at_s: Annotated[float, msgspec.Meta(ge=0)]
    node: Annotated[int, msgspec.Meta(ge=0)]
    change: ChangeKind
    """"join": it starts, or starts again; "leave": in good order; "crash": without a word, and its connections
    break; "silence": without a word, and they seem to stand."""


def changes(settings: Churn, nodes: int, seed: int) -> Iterator[Change]:
    """All changes of a swarm in the order of time; endless for a drawn trace without `until_s`."""
    if settings.kind == "none":
        return
    if settings.kind == "file":
        yield from read_trace(Path(settings.file), nodes)
        return
    who = stream(seed, "churn")
    moving = sorted(who.sample(range(nodes), round(settings.share * nodes)))
    yield from heapq.merge(*(_life(settings, node, seed) for node in moving), key=_when)


def _when(change: Change) -> tuple[float, int]:
    return change.at_s, change.node


def _life(settings: Churn, node: int, seed: int) -> Iterator[Change]:
    rng = stream(seed, "churn", node)
    drawn = settings.kind == "exponential"
    awake_s = settings.awake * settings.day_s
    now = 0.0
    session_s = rng.expovariate(1 / settings.session_s) if drawn else awake_s
    if not drawn:
        hour = rng.random() * settings.day_s
        if hour < awake_s:
            session_s = awake_s - hour
        else:
            now = settings.day_s - hour
            yield Change(now, node, "join")
    while True:
        now += session_s
        if settings.until_s and now > settings.until_s:
            return
        yield Change(now, node, "crash" if rng.random() < settings.crash else "leave")
        now += rng.expovariate(1 / settings.absence_s) if drawn else settings.day_s - awake_s
        yield Change(now, node, "join")
        session_s = rng.expovariate(1 / settings.session_s) if drawn else awake_s


def absent_at_first(settings: Churn, nodes: int, seed: int) -> frozenset[int]:
    """Nodes that are not there when the run begins: those whose first change is to join."""
    if settings.kind == "none":
        return frozenset()
    if settings.kind == "file":
        first: dict[int, str] = {}
        for change in read_trace(Path(settings.file), nodes):
            first.setdefault(change.node, change.change)
        return frozenset(node for node, change in first.items() if change == "join")
    who = stream(seed, "churn")
    moving = sorted(who.sample(range(nodes), round(settings.share * nodes)))
    found = set()
    for node in moving:
        first_change = next(_life(settings, node, seed), None)
        if first_change is not None and first_change.change == "join":
            found.add(node)
    return frozenset(found)


def read_trace(path: Path, nodes: int) -> list[Change]:
    """The changes in a file of JSON lines, in the order of time.

    Raises:
        ConfigError: the file, or one of its lines, by number.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TRACE_BYTES + 1)
        if len(content) > MAX_TRACE_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_TRACE_BYTES} bytes", key="churn.file")
        lines = content.splitlines()
    except OSError as error:
        raise ConfigError(
            f"churn.file: {path} cannot be read: {error.strerror}", key="churn.file"
        ) from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            change = msgspec.json.decode(line, type=Change)
        except msgspec.MsgspecError as error:
            raise ConfigError(
                f"churn.file: {path}, line {number}: {error}", key="churn.file"
            ) from None
        if change.node >= nodes:
            raise ConfigError(
                f"churn.file: {path}, line {number}: node {change.node} of {nodes}",
                key="churn.file",
            )
        found.append(change)
    return sorted(found, key=_when)
