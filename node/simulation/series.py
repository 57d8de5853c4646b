"""Curves from the files of simulations: what `noded plot` draws, and prints with `--json`.

A file's label is what sets it apart from the other files: the keys of the scenario in which they differ. Files that
differ in the seed alone are runs of one thing and get one label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import msgspec

from node.simulation.records import Header, NotASimulation, Point, Spread, read_records

__all__ = ["X_NAMES", "Y_NAMES", "Series", "common_title", "read_series"]

X_NAMES: Final = ("rounds", "bytes", "time", "steps")
Y_NAMES: Final = ("accuracy", "loss", "consensus")

_SHORT: Final = ("protocol_settings.", "task_settings.")
"""Prefixes that a label does without."""
_UNTOLD: Final = ("seed", "ids", "run_id")

Figures = list[float | None]


@attrs.frozen
class Series:
    """One run as curves: equally long lists, None where nothing is known."""

    label: str
    file: str
    seed: int
    x: list[float]
    mean: Figures
    low: Figures
    """Lower quartile of the nodes; for "consensus" all None, as are `high` and `worst`."""
    high: Figures
    worst: Figures
    newest: Figures
    """Of the model that completed the highest round."""


def read_series(
    paths: Sequence[Path], x: str, y: str, labels: Sequence[str] = ()
) -> tuple[list[Series], list[Header]]:
    """The curves of several files, in their order, and the files' headers.

    Raises:
        NotASimulation: a file that is none, one without points, or one that has no accuracy where that is asked for.
    """
    files = [read_records(path) for path in paths]
    headers: list[Header] = [records[0] for records in files]
    names = list(labels) or _labels(headers)
    found = []
    for path, records, name in zip(paths, files, names, strict=True):
        points = [record for record in records if isinstance(record, Point)]
        if not points:
            raise NotASimulation(f"{path} holds no points", hint="let the simulation run longer")
        found.append(_series(path, records[0], points, label=name, x=x, y=y))
    return found, headers


def _series(
    path: Path, header: Header, points: list[Point], *, label: str, x: str, y: str
) -> Series:
    along: list[float] = [
        {"rounds": p.round, "bytes": p.bytes, "time": p.time_s, "steps": p.steps}[x] for p in points
    ]
    seed = header.scenario.seed
    if y == "consensus":
        nothing: Figures = [None] * len(points)
        means: Figures = [p.consensus for p in points]
        return Series(label, str(path), seed, along, means, nothing, nothing, nothing, nothing)
    spreads: list[Spread] = []
    for point in points:
        one = point.loss if y == "loss" else point.accuracy
        if one is None:
            raise NotASimulation(f"{path} has no accuracy", hint="plot its loss: --y loss")
        spreads.append(one)
    newest = [p.newest_loss if y == "loss" else p.newest_accuracy for p in points]
    return Series(
        label=label,
        file=str(path),
        seed=seed,
        x=along,
        mean=[one.mean for one in spreads],
        low=[one.low for one in spreads],
        high=[one.high for one in spreads],
        worst=[one.worst for one in spreads],
        newest=newest,
    )


def _flat(header: Header) -> dict[str, Any]:
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        else:
            flat[prefix] = value

    walk("", msgspec.to_builtins(header.scenario))
    return flat


def _labels(headers: Sequence[Header]) -> list[str]:
    flats = [_flat(header) for header in headers]
    keys = list(dict.fromkeys(key for flat in flats for key in flat))
    missing = object()
    told = [
        key
        for key in keys
        if key not in _UNTOLD
        and any(flat.get(key, missing) != flats[0].get(key, missing) for flat in flats)
    ]
    if len({flat["protocol"] for flat in flats}) > 1:
        # A setting that one of the protocols does not have says nothing about the other.
        told = [
            key
            for key in told
            if not key.startswith("protocol_settings.") or _differs_within(key, flats)
        ]
    labels = []
    for flat in flats:
        parts = []
        for key in told:
            if key not in flat:
                continue
            name = next((key.removeprefix(p) for p in _SHORT if key.startswith(p)), key)
            parts.append(str(flat[key]) if key == "protocol" else f"{name}={_plain(flat[key])}")
        labels.append(", ".join(parts) or flat["protocol"])
    return labels


def _differs_within(key: str, flats: Sequence[Mapping[str, Any]]) -> bool:
    seen: dict[str, Any] = {}
    for flat in flats:
        if key in flat and seen.setdefault(flat["protocol"], flat[key]) != flat[key]:
            return True
    return False


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def common_title(headers: Sequence[Header]) -> str:
    """What all runs have in common, in a few words."""
    scenarios = [header.scenario for header in headers]
    words = []
    if len({s.protocol for s in scenarios}) == 1:
        words.append(scenarios[0].protocol)
    if len({s.task for s in scenarios}) == 1:
        words.append(scenarios[0].task)
    if len({s.nodes for s in scenarios}) == 1:
        words.append(f"{scenarios[0].nodes} nodes")
    if len({s.every for s in scenarios}) == 1:
        steps = scenarios[0].every
        words.append(f"{steps} local step{'s' if steps != 1 else ''} a round")
    return ", ".join(words)
