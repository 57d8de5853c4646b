"""Reach one peer through several candidate addresses: the first that answers rightly wins.

Problem: a node is known under several addresses (LAN, public, stale) and most of them hang
instead of failing. Idea (Happy Eyeballs, RFC 8305): start one attempt after another, a quarter of
a second apart or as soon as one fails, let them run side by side, and cancel the rest when one
has completed its whole handshake.

Candidates that name a relay come last, and later: a direct connection is worth waiting a second for.

An attempt asks `commit` before it sends the message that completes the handshake, so exactly one
attempt at a time can become real at the other side.

Invariants: when `dial` returns or raises, no attempt is running and every stream but the winner's
is closed; the reason of each attempt is kept, in the order of the candidates.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final, Generic, TypeVar

import trio

from transport.address import Address
from transport.errors import ConnectFailed, PeerUnreachable, TransportError
from transport.network import Network, RawStream

STAGGER_S: Final = 0.25
"""RFC 8305, section 5: the recommended delay between attempts."""

CONNECT_TIMEOUT_S: Final = 10.0
"""For the connection alone; the kernel would try for two minutes and explain nothing."""

MAX_CANDIDATES: Final = 16
"""Addresses tried per dial, names resolved: peers advertise what they like."""

MAX_RELAYED: Final = 4
"""How many of them may be relayed; they have their places whatever else is advertised."""

RELAY_DELAY_S: Final = 1.0
"""Head start of the direct candidates: a connection over half the world is established by then."""

DIRECT: Final = "direct"
RELAY: Final = "relay"
"""The first word of an attempt's reason: which way failed."""

T = TypeVar("T")
Commit = Callable[[], bool]
Connect = Callable[[Address], Awaitable[RawStream]]
"""Opens a raw stream to an address, relayed ones included."""
Hold = Callable[[Address], AbstractContextManager[object]]
"""Reserves what an attempt needs, for as long as it lasts; may raise a `TransportError` instead."""
Establish = Callable[[RawStream, Address, Commit], Awaitable[T]]
"""Turns a raw stream into the result; closes the stream itself when it fails."""


async def dial(
    network: Network,
    candidates: Sequence[Address],
    establish: Establish[T],
    discard: Callable[[T], None],
    *,
    connect: Connect | None = None,
    hold: Hold = nullcontext,
    head_start_s: float = RELAY_DELAY_S,
) -> T:
    """Connect to the candidates, staggered, and return what the first `establish` returns.

    Cancelling ends all attempts and closes their streams.

    Args:
        network: where names are resolved, and where to connect.
        candidates: addresses or names, the most promising first.
        establish: makes a result of a stream, or closes the stream and raises.
        discard: closes a result that nobody can take any more (a late cancellation).
        connect: how to open a stream; `network.connect` when None.
        hold: what each attempt reserves before it begins.
        head_start_s: how long relayed candidates wait for the direct ones.

    Raises:
        PeerUnreachable: every attempt failed; its `attempts` say how.
    """
    connect = network.connect if connect is None else connect
    race: _Race[T] = _Race(network, establish, connect, hold)
    addresses = await race.resolve(candidates)
    try:
        async with trio.open_nursery() as nursery:
            for index, address in enumerate(addresses):
                if address.relay and index and not addresses[index - 1].relay:
                    with trio.move_on_after(head_start_s):
                        await race.all_failed()
                failed = trio.Event()
                race.running += 1
                nursery.start_soon(race.attempt, index, address, failed, nursery.cancel_scope)
                if index < len(addresses) - 1:
                    with trio.move_on_after(STAGGER_S):
                        await failed.wait()
    except BaseException:
        for result in race.winner:
            discard(result)
        raise
    if race.winner:
        return race.winner[0]
    reasons = [*race.unresolved, *(race.reasons[index] for index in sorted(race.reasons))]
    raise PeerUnreachable(attempts=reasons, hint=race.hint)


class _Race(Generic[T]):
    """One dial: who runs, who has won, and why the others lost."""

    def __init__(
        self, network: Network, establish: Establish[T], connect: Connect, hold: Hold
    ) -> None:
        self.network = network
        self.establish = establish
        self.connect = connect
        self.hold = hold
        self.running = 0
        self.winner: list[T] = []
        self.reasons: dict[int, tuple[str, str]] = {}  # at most MAX_CANDIDATES
        self.unresolved: list[tuple[str, str]] = []
        self.hint: str | None = None
        self._committed: int | None = None
        self._failures = trio.lowlevel.ParkingLot()

    async def all_failed(self) -> None:
        """Wait until no attempt runs."""
        while self.running:
            await self._failures.park()

    async def resolve(self, candidates: Sequence[Address]) -> list[Address]:
        """Replace names by addresses, without doubles, keeping the order.

        Relayed candidates come last; the name of a relay is resolved by whoever dials it.
        """
        found: dict[Address, None] = {}
        relayed = list(dict.fromkeys(address for address in candidates if address.relay))
        relayed = relayed[:MAX_RELAYED]
        for candidate in dict.fromkeys(candidates):
            if candidate.relay:
                continue
            try:
                for address in await self.network.resolve(candidate):
                    found[address] = None
            except ConnectFailed as error:
                self.unresolved.append((str(candidate), f"{DIRECT}: {error}"))
                self.hint = self.hint or error.hint
        return [*list(found)[: MAX_CANDIDATES - len(relayed)], *relayed]

    async def attempt(
        self, index: int, address: Address, failed: trio.Event, scope: trio.CancelScope
    ) -> None:
        def commit() -> bool:
            if self._committed is None:
                self._committed = index
            return self._committed == index

        try:
            with self.hold(address):
                result = await self._connect_and_establish(address, commit)
        except TransportError as error:
            stage = RELAY if address.relay else DIRECT
            self.reasons[index] = (str(address), f"{stage}: {error}")
            self.hint = self.hint or error.hint
            if self._committed == index:
                self._committed = None  # its last message never left: the next one may
        else:
            self.winner.append(result)
            scope.cancel()
        finally:
            self.running -= 1
            self._failures.unpark_all()
            failed.set()

    async def _connect_and_establish(self, address: Address, commit: Commit) -> T:
        with trio.move_on_after(CONNECT_TIMEOUT_S) as connecting:
            raw = await self.connect(address)
        if connecting.cancelled_caught:
            raise ConnectFailed("connection timed out")
        try:
            return await self.establish(raw, address, commit)
        except BaseException:
            raw.abort()
            raise
