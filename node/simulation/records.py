"""The file that a simulation writes: JSON lines, the first one says what was simulated, the last one how it ended.

    {"kind": "header", "schema": "noded.simulation/1", "scenario": {...}, ...}
    {"kind": "completed", ...}      with `--hashes` only
    {"kind": "point", ...}
    {"kind": "end", "digest": "...", "cost": {...}}

All but `cost` (real seconds and memory) is the same for the same scenario. A file without an end was cut off, and what
it holds is true all the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

from node.errors import NodedError
from node.simulation.scenario import Scenario

__all__ = [
    "SCHEMA",
    "Completion",
    "Cost",
    "End",
    "Header",
    "NotASimulation",
    "Point",
    "Record",
    "Spread",
    "Writer",
    "encode",
    "read_records",
    "spread",
]

SCHEMA: Final = "noded.simulation/1"
MAX_FILE_BYTES: Final = 1 << 30


class NotASimulation(NodedError):
    """A file is not one that `noded simulate` wrote; the message names the line."""


class Spread(msgspec.Struct, frozen=True):
    """How a figure is spread over the nodes; None stands for a value that is not finite."""

    mean: float | None
    worst: float | None
    low: float | None
    """Lower quartile."""
    median: float | None
    high: float | None
    """Upper quartile."""
    best: float | None


class Header(msgspec.Struct, frozen=True, tag="header", tag_field="kind"):
    """First line."""

    schema: str
    noded: str
    """Version of the program."""
    numpy: str
    scenario: Scenario
    run: str
    """Id of the run, hexadecimal."""
    ids: list[str]
    """Printed ids of the nodes, by index."""
    model_values: int
    """Values of a model's flat vector."""
    data: str
    """The data in one line."""
    struck: list[int]
    """Nodes that the disruption strikes."""


class Completion(msgspec.Struct, frozen=True, tag="completed", tag_field="kind"):
    """A node completed a round."""

    node: int
    round: int
    time_s: float
    sha256: str
    """Of the model's little-endian float32 bytes."""


class Point(msgspec.Struct, frozen=True, tag="point", tag_field="kind"):
    """The swarm at one moment."""

    round: int
    """Highest round completed by any node."""
    round_mean: float
    """Mean over the nodes that are there."""
    time_s: float
    bytes: int
    """Put on the network by all nodes since the beginning."""
    transfers: float
    """Values sent, in models."""
    messages: int
    lost: int
    steps: int
    """Local steps of all nodes."""
    alive: int
    parts: int
    """Connected parts of those who reached each other since the point before."""
    largest: int
    """Nodes in the largest part."""
    alone: int
    """Nodes that reached nobody and were reached by nobody."""
    consensus: float | None
    """Root of the mean squared distance of the models from their mean."""
    loss: Spread
    """On the held-out data, of the nodes that are there (or of the sample that is scored)."""
    accuracy: Spread | None
    newest_loss: float | None
    """Of the model that completed the highest round last."""
    newest_accuracy: float | None


class Cost(msgspec.Struct, frozen=True):
    """What the simulation itself took; differs from run to run."""

    real_s: float
    cpu_s: float
    node_steps_per_cpu_s: float
    peak_rss_bytes: int


class End(msgspec.Struct, frozen=True, tag="end", tag_field="kind"):
    """Last line."""

    reason: str
    """"rounds", "time", "accuracy", "stalled", "empty" (nobody is left) or "interrupted"."""
    digest: str
    """SHA-256 over everything that happened and all models at the end."""
    time_s: float
    round: int
    steps: int
    bytes: int
    transfers: float
    messages: int
    lost: int
    refused: int
    events: int
    models: dict[str, str]
    """SHA-256 of the model of each node that is there, by index."""
    cost: Cost


Record = Header | Completion | Point | End


def encode(record: Record) -> bytes:
    """One line, without its end; figures that are not finite become null."""
    return msgspec.json.encode(record)


def spread(values: Sequence[float], *, higher_is_better: bool) -> Spread:
    """The figures of a list of values, a value that is not finite counting as the worst."""
    worst = -math.inf if higher_is_better else math.inf
    clean = sorted(value if math.isfinite(value) else worst for value in values)
    ends = (clean[0], clean[-1]) if higher_is_better else (clean[-1], clean[0])

    def quantile(share: float) -> float:
        place = share * (len(clean) - 1)
        below = math.floor(place)
        above = min(below + 1, len(clean) - 1)
        if clean[below] == clean[above]:
            return clean[below]
        return clean[below] + (place - below) * (clean[above] - clean[below])

    mean = math.fsum(clean) / len(clean) if math.isfinite(sum(clean)) else worst
    found = (mean, ends[0], quantile(0.25), quantile(0.5), quantile(0.75), ends[1])
    return Spread(*(value if math.isfinite(value) else None for value in found))


class Writer:
    """Writes records to any number of files at once, line by line, so that an interrupted run leaves what it has."""

    def __init__(self, files: Iterable[BinaryIO]) -> None:
        self._files = list(files)

    def add(self, file: BinaryIO) -> None:
        """Write what follows to this one, too."""
        self._files.append(file)

    def write(self, record: Record) -> None:
        """One more line."""
        line = encode(record) + b"\n"
        for file in self._files:
            file.write(line)
            file.flush()


def read_records(path: Path) -> list[Any]:
    """All records of a file; a last line that is cut off is left out.

    Raises:
        NotASimulation: it is not such a file.
    """
    try:
        with path.open("rb") as file:
            too_large = path.stat().st_size > MAX_FILE_BYTES  # a device has no size, and no end
            content = b"" if too_large else file.read(MAX_FILE_BYTES + 1)
        if too_large or len(content) > MAX_FILE_BYTES:
            raise NotASimulation(f"{path} is larger than {MAX_FILE_BYTES} bytes")
        lines = content.split(b"\n")
    except OSError as error:
        raise NotASimulation(f"{path} cannot be read: {error.strerror}") from None
    decoder = msgspec.json.Decoder(Header | Completion | Point | End)
    found: list[Record] = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            found.append(decoder.decode(line))
        except (msgspec.MsgspecError, RecursionError) as error:
            if number == len(lines) and found:
                break  # no newline at its end: the writer was killed in the middle of it
            raise NotASimulation(
                f"{path}, line {number}: {error}",
                hint="give a file that noded simulate --out wrote",
            ) from None
    if not found or not isinstance(found[0], Header) or found[0].schema != SCHEMA:
        raise NotASimulation(
            f"{path} does not begin with a header of {SCHEMA}",
            hint="give a file that noded simulate --out wrote",
        )
    return found
