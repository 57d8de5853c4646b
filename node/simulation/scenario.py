"""What is simulated: the swarm, its machines and links, what happens to it, and when it is over.

One frozen value, read from a TOML file (keys of the file are the fields below) and from the command line. Whatever is
not known is refused by its path, so that a misspelt fault is never a run without it. With the seed it decides the
whole simulation; nothing else does.

Times are seconds of the virtual clock unless a name ends in `round`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from gossip.invalid import complaint
from node.errors import ConfigError
from node.run.manifest import Setting

__all__ = [
    "Churn",
    "Discovery",
    "Disruption",
    "LinkClass",
    "Links",
    "Scenario",
    "Speed",
    "Stop",
    "parse_scenario",
    "read_scenario",
]

MAX_FILE_BYTES: Final = 1 << 20

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Positive = Annotated[float, msgspec.Meta(ge=1e-9, le=1e15)]
NotNegative = Annotated[float, msgspec.Meta(ge=0, le=1e15)]
Sigma = Annotated[float, msgspec.Meta(ge=0, le=10)]
"""Of a logarithm; at 10 one in a hundred is more than 10^10 times as much as usual."""
Stay = Annotated[float, msgspec.Meta(ge=1e-3, le=1e15)]
"""Seconds; nodes that came and went faster would do nothing else."""
Count = Annotated[int, msgspec.Meta(ge=0)]


class Speed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long one local step takes on each node."""

    kind: Literal["constant", "lognormal", "two-class"] = "constant"
    """"constant": the same everywhere; "lognormal": `step_s` times a lognormal factor of median 1;
    "two-class": a share `slow_share` of the nodes takes `slow_factor` times as long."""
    step_s: Positive = 0.1
    """Seconds of one local step."""
    sigma: Sigma = 0.5
    """Of the factor's logarithm, for "lognormal"."""
    slow_share: Share = 0.2
    """Chance of a node to be slow, for "two-class"."""
    slow_factor: Positive = 5.0
    """How many times as long a slow node takes."""
    jitter: Sigma = 0.0
    """Each leg of training takes a lognormal factor of this sigma longer or shorter."""


class LinkClass(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One kind of access link, drawn for a node with a chance of `share` (relative to those of the other classes)."""

    share: Positive = 1.0
    latency_s: NotNegative = 0.02
    """From the node to the middle of the network: a message takes the sum of both ends."""
    up: NotNegative = 0.0
    """Bytes per second that leave the node; 0: no limit."""
    down: NotNegative = 0.0
    """Bytes per second that reach it; 0: no limit."""


class Links(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How each node is connected."""

    latency_s: NotNegative = 0.02
    """From each node to the middle of the network: a message takes the sum of both ends. Like the next two not read where there are `classes`."""
    up: NotNegative = 0.0
    """Bytes per second that leave a node; 0: no limit."""
    down: NotNegative = 0.0
    """Bytes per second that reach a node; 0: no limit."""
    bandwidth_sigma: Sigma = 0.0
    """A lognormal factor on `up` and `down`, drawn once for each node."""
    jitter_s: NotNegative = 0.0
    """Mean of an exponential extra delay of each message, so that two may overtake each other."""
    loss: Share = 0.0
    """Chance of a message to be lost on its way."""
    loss_noticed: Share = 0.0
    """Share of the losses that the sender hears of, one round trip later; the others are silent."""
    classes: tuple[LinkClass, ...] = ()
    """Kinds of links, drawn for each node by their `share`: a list of tables with `share`, `latency_s`, `up` and `down`."""


class Churn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Nodes that come and go of themselves."""

    kind: Literal["none", "exponential", "diurnal", "file"] = "none"
    """"none"; "exponential": sessions and absences of exponential length; "diurnal": a node is there while its own day,
    shifted at random, is young enough; "file": what `file` says."""
    share: Share = 1.0
    """Of the nodes that come and go; the others stay."""
    session_s: Stay = 600.0
    """Mean length of a session, for "exponential"."""
    absence_s: Stay = 120.0
    """Mean length of an absence, for "exponential"."""
    day_s: Stay = 1000.0
    """Length of a day, for "diurnal"."""
    awake: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.7
    """Share of the day that a node is there, for "diurnal"."""
    crash: Share = 0.5
    """Share of the departures without a word; the others leave in good order."""
    file: str = ""
    """JSON lines {"at_s": 12.5, "node": 3, "change": "join" | "leave" | "crash" | "silence"}; a node whose first
    change is "join" is absent until then."""
    until_s: NotNegative = 0.0
    """No changes after this, except to come back; 0: no end."""


class Disruption(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One blow at one moment: a set of nodes is gone for good, without a word."""

    case: Literal["none", "hub-data", "hub-relay", "leaf", "random"] = "none"
    """Whom it strikes. "hub-data": the best connected nodes; "hub-relay": the same, which held no data but passed
    models on; "leaf": the worst connected; "random": any."""
    share: Share = 0.1
    """Of all nodes, rounded; at least one."""
    at_round: Count | None = None
    """When the first node completes this round; 0: as soon as all have started."""
    at_s: NotNegative | None = None
    """Or at this time. Neither: never, which gives the run without the blow."""
    silent: bool = False
    """The struck hold their connections and answer nothing, so that nobody hears of a send that failed."""


class Discovery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When the others hear who came and who went."""

    rewire: bool = True
    """Whether anybody hears that a node is gone. If not, those left behind keep it among the members they know:
    its links are simply dead."""
    join_s: NotNegative = 1.0
    """After a node has come."""
    leave_s: NotNegative = 0.5
    """After a departure in good order."""
    lost_s: NotNegative = 8.0
    """After a crash: what a failure detector needs."""
    spread_s: NotNegative = 0.0
    """Each node hears of each change up to this much later, at random."""


class Stop(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What ends a simulation besides the rounds."""

    time_s: NotNegative = 0.0
    """Virtual time; 0: no limit."""
    accuracy: Share = 0.0
    """Mean accuracy of the nodes that are there; 0: none."""
    patience_s: Positive = 3600.0
    """With no round completed by anybody for so long, the swarm stands still."""


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that decides a simulation."""

    protocol: str
    """Name of an installed protocol (on the command line "dpsgd" unless told otherwise)."""
    protocol_settings: dict[str, Any] = msgspec.field(default_factory=dict)
    """Its settings: see the page on protocols."""
    nodes: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 10
    """How many there are."""
    rounds: Count = 100
    """Legs of training (or whatever the protocol counts) of each node; 0: no end of its own."""
    every: Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)] = 5
    """Local steps of one leg of training."""
    seed: Count = 0
    """Of everything that is drawn, and of the task's model and data."""
    task: str = "digits"
    """Name of an installed task."""
    task_settings: dict[str, Setting] = msgspec.field(default_factory=dict)
    """Its settings, how its data is split among them: see the page on tasks."""
    data: str = ""
    """Where the task's data lies; "" for its default."""
    engine: Literal["batched", "exact"] = "batched"
    """"batched": numpy, many nodes in one call; "exact": the task in torch, bit-equal to a real trainer."""
    common_start: bool = True
    """All nodes begin with the run's seeded model; else each with its own, unless the protocol needs a common one."""
    newcomers: Literal["initial", "fetch"] = "fetch"
    """What a node that joins later begins with: its initial model, or that of a member, which travels over both
    links. A node that comes back goes on with its own last completed one."""
    run_id: str = ""
    """64 hexadecimal digits, for the same run as a real one; "" derives it from the seed."""
    ids: tuple[str, ...] = ()
    """Printed node ids, one for each node, as of a real run; else they are derived from the seed."""
    evaluate_every: Count = 0
    """Rounds between two points of the metrics; 0 gives about forty in all."""
    evaluate_nodes: Count = 0
    """Nodes whose models are scored, drawn once; 0: all."""
    speed: Speed = Speed()
    links: Links = Links()
    churn: Churn = Churn()
    disruption: Disruption = Disruption()
    discovery: Discovery = Discovery()
    stop: Stop = Stop()

    @property
    def point_every(self) -> int:
        """Rounds between two points."""
        return self.evaluate_every or max(1, self.rounds // 40)


def read_scenario(path: Path, changes: Mapping[str, Any] | None = None) -> Scenario:
    """The scenario in a TOML file, with some keys replaced (`ConfigError` names the key).

    Paths in the file (`data`, `churn.file`) begin where the file lies.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_FILE_BYTES} bytes")
        raw = tomllib.loads(text.decode())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as a scenario: {error}") from None
    for table, key in ((raw, "data"), (raw.get("churn"), "file")):
        if isinstance(table, dict) and isinstance(name := table.get(key), str) and name:
            table[key] = str(path.parent / name)
    return parse_scenario(raw, changes)


def parse_scenario(raw: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> Scenario:
    """A scenario from plain values.

    Args:
        raw: as a TOML file gives them.
        changes: values for dotted keys ("links.loss") that win over those in `raw`.

    Raises:
        ConfigError: an unknown key, a value out of range, or two that contradict each other; names the key.
    """
    merged: dict[str, Any] = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in raw.items()
    }
    for key, value in (changes or {}).items():
        table, dot, name = key.partition(".")
        if not dot:
            merged[key] = value
            continue
        inner = merged.setdefault(table, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{key}: {table} is no table", key=key)
        inner[name] = value
    merged.setdefault("protocol", "dpsgd")
    try:
        scenario = msgspec.convert(merged, Scenario, strict=False)
    except msgspec.ValidationError as error:
        wrong = complaint(error, Scenario)
        raise ConfigError(
            str(wrong), key=wrong.key, hint=wrong.hint or "docs/simulation.md lists all keys"
        ) from None
    _check(scenario)
    return scenario


def _check(scenario: Scenario) -> None:
    def refuse(key: str, message: str, hint: str = "") -> None:
        raise ConfigError(f"{key}: {message}", key=key, hint=hint)

    stop = scenario.stop
    if not (scenario.rounds or stop.time_s or stop.accuracy):
        refuse("rounds", "it would never end", "give rounds, stop.time_s or stop.accuracy")
    if scenario.ids and len(scenario.ids) != scenario.nodes:
        refuse("ids", f"{len(scenario.ids)} ids for {scenario.nodes} nodes")
    if len(set(scenario.ids)) != len(scenario.ids):
        refuse("ids", "one id is there twice")
    if scenario.run_id:
        try:
            length = len(bytes.fromhex(scenario.run_id))
        except ValueError:
            length = 0
        if length != 32:
            refuse("run_id", "is not 64 hexadecimal digits")
    if (scenario.churn.kind == "file") != bool(scenario.churn.file):
        refuse("churn.file", 'goes with churn.kind = "file"')
    blow = scenario.disruption
    if blow.at_round is not None and blow.at_s is not None:
        refuse("disruption.at_s", "and disruption.at_round are both given")
