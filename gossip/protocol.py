"""The plug-in point: how the nodes of one run combine their work.

A protocol has two halves, because a node has two processes:

* the **coordinator** lives in the daemon. It is a sans-IO core: it hears what the trainer
  contributed and what peers sent, and says which exchange to run next and when a result is to be
  applied. It never sees a tensor, a clock or a socket;
* the **averager** lives in the trainer. It is arithmetic on flat fp32 vectors that both processes
  see in shared memory, in a fixed order of operations, so that equal bytes in give equal state out.

Coordinator verbs are those of every core in this project: inputs (`contributed`, `collective_done`), then `next_event`.
Protocols that exchange messages of their own and need no collective have another contract
(`gossip.decentralized.protocol`) and the same registry.

Protocols register under the entry-point group ``noded.protocols``; `gossip.conformance` holds the
checks that every one of them must pass, built in or not.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, ClassVar

import attrs
import msgspec
import numpy as np
import numpy.typing as npt

from gossip.collective.call import EXACT
from gossip.collective.links.buffers import as_bytes
from gossip.errors import InvalidSettings, UnknownProtocol
from gossip.invalid import complaint

ENTRY_POINT_GROUP = "noded.protocols"
DIGEST_CHUNK_BYTES = 1 << 20  # hashing holds no lock, but slicing keeps memoryviews small

Vector = npt.NDArray[np.float32]
Views = Mapping[str, Vector]


@attrs.frozen
class Contribution:
    """What this node's trainer offers for one round."""

    round: int
    """Rounds completed before this one."""
    steps: int
    """Local optimizer steps since the last round."""
    weight: float
    """Share in the mean, in tokens (or samples); 0 takes part without moving the result."""


@attrs.frozen
class CollectiveOutcome:
    """How a requested collective ended, once it did end with a certificate."""

    round: int
    members: int
    """Members of the certified epoch, this node included."""
    weight: float
    """Sum of all members' weights."""


@attrs.frozen
class ReduceMean:
    """Event: run the weighted mean of `source` over the epoch's members into `out`."""

    round: int
    source: str
    out: str
    weight: float
    wire: str = EXACT
    """How values travel: as they are, or in a format that every member applies (`gossip.collective.formats`)."""


@attrs.frozen
class Apply:
    """Event: the trainer may apply what `out` holds now."""

    round: int
    members: int
    weight: float
    alone: bool
    """True when no other member took part: the averager then keeps the local work as it is."""


Event = ReduceMean | Apply


class Averager(ABC):
    """Trainer side of a protocol: pure arithmetic on views of the shared vectors.

    Vectors named in `consensus` are bit-identical on all members of an epoch after every round;
    all others are private to the node. No method performs I/O or keeps state of its own.
    """

    vectors: ClassVar[tuple[str, ...]]
    """Names of the fp32 vectors, each as long as the flat parameter vector."""
    consensus: ClassVar[tuple[str, ...]]
    """The subset a late joiner receives and `state_digest` covers."""

    @abstractmethod
    def start(self, views: Views) -> None:
        """`params` were just initialised: set up the other vectors from them."""

    @abstractmethod
    def resume(self, views: Views) -> None:
        """The consensus vectors were loaded (checkpoint or peer): set `params` from them."""

    @abstractmethod
    def contribute(self, views: Views) -> None:
        """Write this node's contribution; the consensus vectors stay as they are."""

    @abstractmethod
    def apply(self, views: Views, *, members: int, weight: float, alone: bool) -> None:
        """Apply the certified result to the consensus vectors and to `params`."""

    def state_digest(self, views: Views) -> bytes:
        """SHA-256 over the consensus vectors' little-endian bytes, in the order of `consensus`."""
        digest = hashlib.sha256()
        for name in self.consensus:
            data = as_bytes(views[name])
            for start in range(0, len(data), DIGEST_CHUNK_BYTES):
                digest.update(data[start : start + DIGEST_CHUNK_BYTES])
        return digest.digest()


class Plugin(ABC):
    """What all protocols have in common: a name, and settings that are checked before anything starts."""

    name: ClassVar[str]
    Settings: ClassVar[type[msgspec.Struct]]

    def __init__(self, settings: msgspec.Struct) -> None:
        self.settings = settings

    @classmethod
    def parse_settings(cls, raw: Mapping[str, Any]) -> msgspec.Struct:
        """Validate a `[run.protocol_settings]` table.

        Raises:
            InvalidSettings: an unknown key or a value out of range; the message names it.
        """
        try:
            return msgspec.convert(dict(raw), cls.Settings, strict=False)
        except msgspec.ValidationError as error:
            wrong = complaint(error, cls.Settings)
            raise InvalidSettings(
                f"protocol {cls.name!r}: {wrong}",
                hint=wrong.hint or f"see:  noded config explain {cls.name}",
            ) from None


class Protocol(Plugin):
    """Daemon side of a protocol of certified collectives, for one node in one run."""

    def __init__(self, settings: msgspec.Struct) -> None:
        super().__init__(settings)
        self._events: deque[Event] = deque()

    @classmethod
    @abstractmethod
    def averager(cls, settings: Mapping[str, Any]) -> Averager:
        """The trainer side, for raw settings as in the run's manifest (InvalidSettings)."""

    @abstractmethod
    def contributed(self, contribution: Contribution, now: float) -> None:
        """The trainer has finished its local steps of a round."""

    @abstractmethod
    def collective_done(self, outcome: CollectiveOutcome, now: float) -> None:
        """A collective asked for with `ReduceMean` holds a certificate."""

    def next_event(self) -> Event | None:
        """The next thing the driver has to do, or None."""
        return self._events.popleft() if self._events else None


def installed_protocols() -> dict[str, str]:
    """Names of the installed protocols and where each one comes from."""
    return {point.name: point.value for point in entry_points(group=ENTRY_POINT_GROUP)}


def load_plugin(name: str) -> type[Plugin]:
    """The protocol class registered under `name`, of either kind.

    Raises:
        UnknownProtocol: nothing of that name is installed (the hint lists what is), or it cannot
            be imported, or it is no protocol.
    """
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name == name:
            try:
                loaded = point.load()
            except Exception as error:
                raise UnknownProtocol(
                    f"protocol {name!r} cannot be loaded from {point.value}: {error}",
                    hint="install it again, together with what it needs",
                ) from error
            if not (isinstance(loaded, type) and issubclass(loaded, Plugin)):
                raise UnknownProtocol(f"{point.value} is registered as {name!r} but is no Protocol")
            return loaded
    known = ", ".join(sorted(installed_protocols())) or "none"
    raise UnknownProtocol(f"no protocol named {name!r}", hint=f"installed: {known}")


def load_protocol(name: str) -> type[Protocol]:
    """The protocol of certified collectives registered under `name`.

    Raises:
        UnknownProtocol: as for `load_plugin`, or it is one without collectives.
    """
    loaded = load_plugin(name)
    if not issubclass(loaded, Protocol):
        raise UnknownProtocol(f"the protocol {name!r} makes no collectives")
    return loaded
