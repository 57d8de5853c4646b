"""The seam between the transport and the world: raw byte streams, listeners, networks.

Everything above this file (handshake driver, peers, endpoints, the DHT, the collectives) sees
only these three abstract classes, so the same code runs over kernel TCP (`transport.tcp`) and
over the seeded in-memory network (`transport.simulated.memory`) under a virtual clock.

A raw stream is *not* a `trio.abc.Stream`: it receives into the caller's buffer (no allocation
per read, which is what makes 256 KiB records cheap), and it may skip trio's "always a
checkpoint" rule as long as it never runs for more than about a millisecond without one.

Contract of every implementation:

* `send_all` and `receive_into` may run at the same time, each in one task at a time.
* A cancelled `send_all` leaves an unknown prefix on the wire: the stream is then useless for
  framed data and the caller must `abort()` it. That is why one writer task owns each stream.
* A cancelled `receive_into` consumes nothing.
* `abort()` and `aclose()` wake every task blocked on the stream with
  `trio.ClosedResourceError`; calling either again does nothing.
* A broken connection is `trio.BrokenResourceError`, whose text says why ("connection reset").
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import StrEnum
from typing import ClassVar, NamedTuple

from transport.address import Address
from transport.buffer import Buffer
from transport.errors import TransportError

__all__ = ["AcceptOverloaded", "Buffer", "Network", "Path", "PathState", "RawListener", "RawStream"]


class AcceptOverloaded(TransportError):
    """Accepting failed for want of a system resource (descriptors, buffers); it may pass.

    Attributes:
        reason: the symbolic errno, for example "EMFILE".
        shed: True if one waiting connection was turned away, so that it does not hang.
    """

    def __init__(self, reason: str, *, shed: bool) -> None:
        super().__init__(
            f"cannot accept connections: {reason}",
            hint="raise the limit of open files (ulimit -n), or lower the connection limits",
        )
        self.reason = reason
        self.shed = shed


class Path(StrEnum):
    """How two nodes are connected, for people and for those who choose partners."""

    DIRECT = "direct"
    """One of them dialed an address of the other."""
    REVERSED = "reversed"
    """Met over a relay; then the one that could dial did."""
    PUNCHED = "punched"
    """Met over a relay; then both dialed at once through their NATs."""
    RELAYED = "relayed"
    """A third node carries the bytes, sealed from end to end."""


class PathState(NamedTuple):
    """What a connection over a long path meets."""

    most: float
    """Bytes per second that its own buffer allows, on average."""
    queueing: float
    """The round trip now, in units of the least one: over 1 where data stands in queues."""


class RawStream(ABC):
    """An ordered, reliable, unauthenticated byte stream; see the module for its contract."""

    local: Address
    """Our end of the connection."""

    remote: Address
    """The other end of the connection, as the network reports it."""

    path: Path = Path.DIRECT
    """How the bytes travel, and who made the connection possible."""

    inner: bool = False
    """Whether it runs inside our other connection with the same peer, where its bytes are counted
    and held to the rate caps already."""

    @property
    def within_machine(self) -> bool:
        """Whether both ends have one address, without a relay between."""
        return self.local.host == self.remote.host and self.path is not Path.RELAYED

    @abstractmethod
    async def send_all(self, data: Buffer) -> None:
        """Send all of `data`; it is not referenced any more when this returns.

        Raises:
            trio.BrokenResourceError: the connection is broken.
            trio.ClosedResourceError: it was closed here.
            trio.BusyResourceError: another task is sending.
        """

    @abstractmethod
    async def receive_into(self, buffer: memoryview) -> int:
        """Wait for bytes and put them at the start of `buffer` (which must not be empty).

        Returns:
            How many bytes came, or 0 at the end of the stream.

        Raises:
            trio.BrokenResourceError: the connection is broken.
            trio.ClosedResourceError: it was closed here.
            trio.BusyResourceError: another task is receiving.
        """

    can_send_now: bool = False
    """Whether `send_now` may take something."""

    def send_now(self, data: memoryview) -> int:
        """Hand over what the network takes of `data` without waiting; return how much that was.

        For use while no `send_all` is under way. Errors show with the next `send_all`.
        """
        del data
        return 0

    def receive_now(self, buffer: memoryview) -> int:
        """Put what is there already at the start of `buffer`; return how much that was.

        For use while no `receive_into` is under way. An end or an error shows with the next one.
        """
        del buffer
        return 0

    def sending_measure(self) -> tuple[float, int] | None:
        """Seconds in which data was under way, and the bytes that arrived, since the connection began; None if unknown.

        Time without anything to send does not count, so the one divided by the other is what the path carries.
        """
        return None

    def path_state(self) -> PathState | None:
        """What it meets; None when that is unknown, or the path so short that a connection fills it."""
        return None

    def expect_bulk(self) -> None:  # noqa: B027 - a hint that a network may ignore
        """Hint: large transfers follow, and throughput counts more than what lies unsent."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close in order: bytes already accepted by the network still travel. Never blocks."""

    @abstractmethod
    def abort(self) -> None:
        """Close hard, without waiting: the peer sees a reset. Needs a running trio loop."""


class RawListener(ABC):
    """A bound address that accepts raw streams."""

    address: Address
    """The address really bound (port 0 is replaced by the chosen one)."""

    @abstractmethod
    async def accept(self) -> RawStream:
        """Wait for the next connection. Cancelling loses none.

        Raises:
            AcceptOverloaded: out of descriptors or memory; call again after a pause.
            trio.ClosedResourceError: the listener was closed.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Stop listening and wake a waiting `accept`. Never blocks."""


class Network(ABC):
    """A way to reach other machines.

    Attributes:
        seeded: all that happens follows from a seed, so nobody on it may do what another machine would not.
    """

    seeded: ClassVar[bool] = False

    @abstractmethod
    async def connect(self, address: Address, *, source: Address | None = None) -> RawStream:
        """Open a stream to `address`; the deadline is the caller's cancel scope.

        Args:
            address: where to; without a relay.
            source: local address to dial from, shared with a listener of ours, so that a NAT maps
                both alike. None lets the system choose. Two tasks of two machines that dial each
                other from where they listen may meet in the middle (RFC 9293, section 3.5: a
                simultaneous open); both then get the stream here, or one does from its listener.

        Raises:
            ConnectFailed: refused, unreachable, or timed out below us; its text is the reason
                alone, since the caller knows the address.
        """

    @abstractmethod
    async def listen(self, address: Address) -> RawListener:
        """Bind `address` (port 0 chooses one) and start listening.

        Raises:
            AddressInUse: somebody else listens there.
            ListenFailed: any other reason.
        """

    async def resolve(self, address: Address) -> Sequence[Address]:
        """Turn a host name into numeric addresses, in order of preference.

        The default is for networks without names.

        Raises:
            ConnectFailed: the name is unknown.
        """
        return (address,)
