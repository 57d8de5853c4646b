"""The knobs of a node: every configuration key with its type, default, bounds and meaning.

Problem: a configuration file, its documentation, `noded config explain` and the code that reads it
drift apart when each is written by hand.

Idea: this is the one place. The types below are frozen msgspec Structs whose annotations carry the
bounds and the text; `node.config` validates against them, `node.config_text` renders the commented
default file and the explanations from them. A text says what a knob does and what turning it up buys
and costs, with the unit.

The table `[limits]` is the transport's own struct, documented where its budgets are argued.

Invariants: every key has a default or the whole table is optional; every key has a text (a test looks).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from node.paths import NodePaths, node_paths
from transport.limits import Limits
from transport.relay.settings import RelaySettings

__all__ = [
    "DEFAULT_PORT",
    "PRESETS",
    "BlocksSection",
    "Config",
    "LogSection",
    "NetworkSection",
    "NodeSection",
    "RunSection",
    "TrainerSection",
]

DEFAULT_PORT: Final = 7447

Text: TypeAlias = Annotated[str, Meta(max_length=4096)]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]
LogFormat: TypeAlias = Literal["auto", "human", "json", "journal"]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file."""


class NodeSection(_Section, frozen=True):
    """Who this node is and where it keeps its files."""

    name: Annotated[
        str,
        Meta(
            max_length=64,
            description="What people call this node in tables. A label, never an identity. "
            "Empty: the machine's host name.",
        ),
    ] = ""
    site: Annotated[
        str,
        Meta(
            max_length=64,
            description="Name of the place this node is at, the same on all nodes that are near each other (a room, a "
            "data centre). Where a run has several, values are summed within a site first and cross between sites once. "
            "Empty: not said.",
        ),
    ] = ""
    data_dir: Annotated[
        str,
        Meta(
            max_length=4096,
            description="Folder for keys, sockets and runs; 0700. A relative path starts at this "
            "file. Empty: this file's own folder.",
        ),
    ] = ""


class NetworkSection(_Section, frozen=True):
    """How other nodes reach this one, and whom it asks first."""

    listen: Annotated[
        tuple[Text, ...],
        Meta(
            max_length=16,
            description="Addresses to accept peers on, as host:port; port 0 takes any free one. "
            'This is the whole network surface of a node. For IPv6 as well, add "[::]:7447". '
            "Empty: accept nobody, dial only.",
        ),
    ] = (f"0.0.0.0:{DEFAULT_PORT}",)
    bootstrap: Annotated[
        tuple[Text, ...],
        Meta(
            max_length=64,
            description="Addresses of nodes of the same swarm to ask first. One that answers is "
            "enough, the others are found through it; none answering is retried for ever. "
            "Empty: wait until somebody dials this node.",
        ),
    ] = ()
    advertise: Annotated[
        tuple[Text, ...],
        Meta(
            max_length=16,
            description="Addresses to tell others, when they are not the ones listened on: a "
            "forwarded port, a public address. Empty: found by this node itself.",
        ),
    ] = ()
    port_mapping: Annotated[
        bool,
        Meta(
            description="Whether to ask the router for an open port (PCP, NAT-PMP, UPnP), so that "
            "others can dial this node. Only asked when it listens beyond this machine.",
        ),
    ] = True
    hole_punching: Annotated[
        bool,
        Meta(
            description="Whether to turn relayed connections into direct ones, by dialing at the "
            "same moment as the other node.",
        ),
    ] = True
    lan_discovery: Annotated[
        bool,
        Meta(
            description="Whether to tell members on the same networks by multicast where this node "
            "listens, and to dial those that do. Only done when it listens beyond this machine.",
        ),
    ] = True
    membership: Annotated[
        Literal["lan", "wan"],
        Meta(
            description="How fast a node that says nothing is listed as lost: lan within 5 seconds, "
            "wan within 15, for lines that stall for seconds."
        ),
    ] = "lan"
    relays: Annotated[
        tuple[Text, ...],
        Meta(
            max_length=16,
            description="Relays to use besides those found, as host:port/via/NODE-ID.",
        ),
    ] = ()


class RunSection(_Section, frozen=True):
    """The training run this node takes part in; leave the table out for a node that only helps."""

    name: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=64,
            description="The run's name in the swarm: letters, digits, '.', '_', '-'.",
        ),
    ]
    create: Annotated[
        bool,
        Meta(
            description="true: start the run if it does not exist; exactly one node should say so. "
            "false: find it by its name, and take task, protocol and all numbers from it.",
        ),
    ] = False
    task: Annotated[
        str,
        Meta(min_length=1, max_length=256, description="What to train: a registered task's name."),
    ] = "byte-gpt"
    protocol: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=64,
            description="How the members combine their work: a registered protocol's name.",
        ),
    ] = "diloco"
    every: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="Local steps in a round. Doubling it halves the traffic, and lets the "
            "members drift further apart between rounds.",
        ),
    ] = 32
    steps: Annotated[
        int,
        Meta(
            ge=0,
            le=1_000_000_000,
            description="Local steps of each member in the whole run; 0 trains until stopped.",
        ),
    ] = 0
    min_members: Annotated[
        int,
        Meta(
            ge=1,
            le=256,
            description="Ready members that the first round waits for. Later rounds go on with "
            "whoever is there, within the quorum.",
        ),
    ] = 1
    quorum: Annotated[
        Literal["majority", "any"],
        Meta(
            description="majority: when the members lose sight of each other, only the larger part "
            "goes on. any: every part goes on, and the one with most progress wins afterwards.",
        ),
    ] = "majority"
    seed: Annotated[
        int,
        Meta(ge=0, le=2**53 - 1, description="Seed of the first weights and of each data order."),
    ] = 0
    data: Annotated[
        str,
        Meta(
            max_length=4096,
            description="A file or folder to train on; a relative path starts at this file. "
            "Empty: what the task takes by itself (byte-gpt: Python's own source files).",
        ),
    ] = ""
    part: Annotated[
        str,
        Meta(
            max_length=32,
            pattern=r"^([1-9][0-9]{0,5}/[1-9][0-9]{0,5})?$",
            description='Which part of the data this node trains on, as "3/8" for the third of eight; the task '
            "cuts them alike on all nodes. Empty: all of it.",
        ),
    ] = ""
    task_settings: Annotated[
        dict[str, Any],
        Meta(
            max_length=64,
            description="Settings of the task; `noded config explain TASK` documents them.",
        ),
    ] = msgspec.field(default_factory=dict)
    protocol_settings: Annotated[
        dict[str, Any],
        Meta(
            max_length=64,
            description="Settings of the protocol; `noded config explain PROTOCOL` documents them.",
        ),
    ] = msgspec.field(default_factory=dict)


class TrainerSection(_Section, frozen=True):
    """The training process beside the daemon."""

    auto: Annotated[
        bool,
        Meta(
            description="true: the daemon starts the run's task itself, and restarts it if it dies. "
            "false: wait for a script of yours to attach.",
        ),
    ] = True
    threads: Annotated[
        int,
        Meta(
            ge=1,
            le=1024,
            description="Threads that torch computes with. One fewer than the cores keeps "
            "the daemon prompt.",
        ),
    ] = 1
    device: Annotated[
        str,
        Meta(min_length=1, max_length=32, description='Where torch computes: "cpu", "cuda:0", ...'),
    ] = "cpu"
    user_path: Annotated[
        str,
        Meta(
            max_length=4096,
            description="Folder with task code of your own, which run.task may then name as "
            "module:Class; a relative path starts at this file. Empty: installed tasks only.",
        ),
    ] = ""
    evaluate_every: Annotated[
        int,
        Meta(
            ge=0,
            le=1_000_000,
            description="Rounds between two evaluations on the held-out data; 0 evaluates at the "
            "start and the end only. Each one costs some seconds of training.",
        ),
    ] = 5
    checkpoint_every: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="Rounds between two checkpoints. A crash of every member loses at most "
            "this many; each one costs a write of the whole model.",
        ),
    ] = 5
    keep_checkpoints: Annotated[
        int, Meta(ge=1, le=1000, description="How many checkpoints stay on disk; older ones go.")
    ] = 3


class BlocksSection(_Section, frozen=True):
    """Artefacts: what is kept on the disk for others and oneself, and how fast it is given away."""

    quota_bytes: Annotated[
        int,
        Meta(
            ge=1 << 20,
            le=1 << 50,
            description="Most bytes that artefacts may take in the data directory. When they do, those that "
            "were not used for longest and are not pinned make room.",
        ),
    ] = 20 << 30
    upload_bytes_per_s: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 40,
            description="Cap on what all fetchers together get from this node, in bytes per second; 0 for none. "
            "Training goes over other connections: a cap keeps a thin line free for it. "
            "limits.upload_bytes_per_s caps both.",
        ),
    ] = 0


class LogSection(_Section, frozen=True):
    """What the daemon says on its standard error."""

    level: Annotated[LogLevel, Meta(description="The least important messages to show.")] = "info"
    format: Annotated[
        LogFormat,
        Meta(
            description="human: lines for a terminal. json: one object a line. journal: a priority "
            "instead of a time, for systemd. auto: journal under systemd, else human.",
        ),
    ] = "auto"


class SwarmSection(_Section, frozen=True):
    """Who may be a member of the swarm."""

    open: Annotated[
        bool,
        Meta(
            description="Whether nodes that nobody invited may take part. They get a quarter of this node's "
            "places and memory, and what swarm.strangers says. Every member of one swarm must say the same.",
        ),
    ] = False
    strangers: Annotated[
        Literal["observer", "trainer"],
        Meta(
            description="In an open swarm, what nodes that nobody invited may do at most: look on, or train. "
            "Nobody answers for them, and their updates are not checked for sense.",
        ),
    ] = "observer"
    certificate_days: Annotated[
        int,
        Meta(
            ge=1,
            le=3650,
            description="For how many days a certificate is good that this node issues or renews (days). "
            "Members renew by themselves in the last third of that time.",
        ),
    ] = 365


class Config(_Section, frozen=True):
    """A whole configuration. As `node.config.load_config` returns it, its paths are absolute."""

    node: NodeSection = msgspec.field(default_factory=NodeSection)
    network: NetworkSection = msgspec.field(default_factory=NetworkSection)
    swarm: SwarmSection = msgspec.field(default_factory=SwarmSection)
    limits: Limits = msgspec.field(default_factory=Limits)
    relay: RelaySettings = msgspec.field(default_factory=RelaySettings)
    run: RunSection | None = None
    trainer: TrainerSection = msgspec.field(default_factory=TrainerSection)
    blocks: BlocksSection = msgspec.field(default_factory=BlocksSection)
    log: LogSection = msgspec.field(default_factory=LogSection)

    @property
    def data_dir(self) -> Path:
        """The node's data directory, absolute."""
        return Path(self.node.data_dir)

    @property
    def paths(self) -> NodePaths:
        """The node's files."""
        return node_paths(self.data_dir)


PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    # On one machine nobody else should get in, and silence means a dead process.
    "local": {"network.listen": (f"127.0.0.1:{DEFAULT_PORT}",)},
    # The defaults are made for this one.
    "lan": {},
    # Home links stall for seconds without being dead; fewer heartbeats spare metered ones.
    "wan": {
        "limits.heartbeat_s": 3.0,
        "limits.silence_s": 15.0,
        "network.membership": "wan",
    },
}
"""What `noded init --preset` writes; the presets differ only where they must."""
