"""Reaching nodes through relays, and being reached.

Problem: a node that nobody can dial must be reachable through somebody, and whoever dials it must find the way with nothing but an
address. Idea: `Reservations` keeps places with relays and says which addresses to publish; this file dials such addresses, and
takes what comes in through them. To dial: connect to the relay as to any peer, open "relay/connect", name the target, and treat
what follows as a raw stream. Inbound circuits ("relay/incoming") enter the endpoint like connections from outside.

Invariants: a relay is always a peer connected without a relay; a circuit is only taken from a relay that keeps a reservation of
ours, and at most MAX_INCOMING at once; every wait here has an end.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import attrs
import trio

from transport.address import Address
from transport.codec import decode_untrusted, pack
from transport.endpoint import Endpoint
from transport.errors import (
    ConnectFailed,
    MalformedMessage,
    PeerUnreachable,
    StreamError,
    StreamReset,
    TransportError,
)
from transport.identity import NodeId
from transport.network import Path, RawStream
from transport.peer import Peer
from transport.relay.candidates import Candidates
from transport.relay.messages import (
    CONNECT,
    ENDINGS,
    INCOMING,
    MAX_BYTES,
    Accepted,
    Connect,
    Incoming,
    Reason,
    Refused,
    RelayRefused,
    read_connect_answer,
)
from transport.relay.reservations import ANSWER_S, RelayStatus, Reservations
from transport.relay.settings import RelaySettings
from transport.relay.trial import Trials
from transport.reporter import Reporter
from transport.streams.frames import ResetCode
from transport.streams.raw import StreamRaw
from transport.streams.stream import Stream

__all__ = ["MAX_INCOMING", "RelayClient", "RelayStatus"]

MAX_INCOMING: Final = 64
"""Circuits to us at once, all relays; each is a peer to be, and a relay could open streams for nothing."""

AskToCome = Callable[[Address], Awaitable[bool]]

_log = logging.getLogger(__name__)


class RelayClient:
    """Our use of relays; dialing through them works from the start, being reached while `run` runs.

    Args:
        endpoint: gets its `relay_dialer`.
        settings: how many relays to keep.
        on_change: called with the new `addresses` whenever they change; must not block or raise.

    Attributes:
        ask_to_come: asks a peer to come to us over one of `addresses`, and says whether one came; None without such peers.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        settings: RelaySettings | None = None,
        *,
        on_change: Callable[[tuple[Address, ...]], None] = lambda _: None,
    ) -> None:
        wanted = (RelaySettings() if settings is None else settings).wanted
        self._endpoint = endpoint
        self._reporter = Reporter(_log, endpoint.counters)
        self._reservations = Reservations(endpoint, wanted, self._reporter, on_change)
        self._reservations.attempt = self._try
        self._trials = Trials(endpoint.node_id, self.circuit, endpoint.random_bytes)
        self.ask_to_come: AskToCome | None = None
        self._incoming = 0
        endpoint.relay_dialer = self.circuit
        endpoint.serve(INCOMING, self._take)

    def __repr__(self) -> str:
        return f"<RelayClient with {len(self.relays)} of {self.wanted} relays>"

    @property
    def candidates(self) -> Candidates:
        """Nodes that may serve; `add` some at any time, as `host:port/via/<their id>`."""
        return self._reservations.candidates

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where others reach us through relays; to be advertised."""
        return self._reservations.addresses

    @property
    def relays(self) -> tuple[RelayStatus, ...]:
        """Through whom we are reached, the nearest first."""
        return self._reservations.relays

    @property
    def on_change(self) -> Callable[[tuple[Address, ...]], None]:
        """Called with the new `addresses` whenever they change; must not block or raise."""
        return self._reservations.on_change

    @on_change.setter
    def on_change(self, told: Callable[[tuple[Address, ...]], None]) -> None:
        self._reservations.on_change = told

    @property
    def wanted(self) -> int:
        """Reservations to keep; may be set at any time, 0 gives all up."""
        return self._reservations.wanted

    @wanted.setter
    def wanted(self, count: int) -> None:
        self._reservations.wanted = count

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the reservations until the endpoint closes.

        Cancelling gives them up, and tells the relays for at most half a second.
        """
        await self._reservations.run(task_status=task_status)

    # Dialing

    async def circuit(self, address: Address, target: NodeId) -> RawStream:
        """Open a circuit to `target` through the relay at `address`.

        Args:
            address: where the relay listens, with its id.
            target: whom to reach; not authenticated before a handshake has run through the circuit.

        Raises:
            RelayRefused: the relay said no; its reason and a hint.
            ConnectFailed: the relay cannot be reached, or was lost meanwhile.
        """
        relay = await self._reach_relay(address, target)
        stream = None
        try:
            with trio.move_on_after(ANSWER_S):
                stream = await relay.open_stream(CONNECT)
                await stream.send_message(pack(Connect(target), limit=MAX_BYTES))
                answer = read_connect_answer(await stream.receive_message())
                if isinstance(answer, Refused):
                    raise answer.as_error()
                raw = _circuit_raw(stream, relay)
                stream = None
                return raw
        except StreamReset as error:
            serves = error.reset_code != ResetCode.NO_SUCH_PROTOCOL
            raise RelayRefused(Reason.CIRCUITS if serves else Reason.NOT_SERVING) from None
        except (MalformedMessage, StreamError):
            raise RelayRefused(Reason.MALFORMED) from None
        except ConnectFailed:
            raise
        except TransportError as error:
            raise ConnectFailed(f"the relay was lost: {error}", hint=error.hint) from None
        finally:
            if stream is not None:
                stream.reset()
        raise ConnectFailed(f"the relay gave no answer within {ANSWER_S:g} s")

    async def _reach_relay(self, address: Address, target: NodeId) -> Peer:
        relay_id = address.relay_id
        if relay_id is None:
            raise ConnectFailed("the address names no relay")
        if relay_id == target:
            raise RelayRefused(Reason.SELF)
        if relay_id == self._endpoint.node_id:
            raise ConnectFailed(
                "this node is the relay, and the peer is not connected to it",
                hint="the peer's address is stale: look it up again",
            )
        try:
            relay = await self._endpoint.connect([address.direct], expected=relay_id)
        except PeerUnreachable as error:
            reasons = "; ".join(reason for _, reason in error.attempts)
            raise ConnectFailed(f"the relay is unreachable: {reasons}", hint=error.hint) from None
        except TransportError as error:
            raise ConnectFailed(f"the relay is unreachable: {error}", hint=error.hint) from None
        if relay.path is Path.RELAYED:
            raise RelayRefused(Reason.RELAYED)
        return relay

    # Trials

    async def _try(self, status: RelayStatus) -> str | None:
        """Whether a relay carries something to us: "" if it does, why not, None if that cannot be said."""
        if not status.addresses:
            return None
        address = status.addresses[0]
        if self.ask_to_come is not None and await self.ask_to_come(address):
            self.candidates.brought(status.node_id)
            return ""
        return await self._trials.attempt(status.node_id, address)

    # Inbound circuits

    async def _take(self, stream: Stream) -> None:
        """Take one circuit from a relay of ours; lives as long as the circuit."""
        relay = stream.peer
        try:
            with trio.move_on_after(ANSWER_S) as scope:
                message = await stream.receive_message()
            if scope.cancelled_caught:
                stream.reset()
                return
            incoming = decode_untrusted(message, Incoming, limit=MAX_BYTES)
        except (MalformedMessage, StreamError):
            await self._decline(stream, Reason.MALFORMED)
            return
        if relay.path is Path.RELAYED or not self._reservations.may_bring(relay.node_id):
            await self._decline(stream, Reason.NO_RESERVATION)
            return
        if self._incoming >= MAX_INCOMING:
            await self._decline(stream, Reason.TARGET_BUSY)
            return
        from_us = incoming.source == self._endpoint.node_id
        if from_us and not self._trials.waits_for(relay.node_id):
            await self._decline(stream, Reason.TARGET_BUSY)
            return
        self._incoming += 1
        raw = _circuit_raw(stream, relay)
        try:
            with trio.CancelScope() as life:
                stream.scope = life  # useless without the stream
                await stream.send_message(pack(Accepted(), limit=MAX_BYTES))
                if from_us:
                    await self._trials.take(relay.node_id, raw)
                    return
                await self._endpoint.take_inbound(raw)
                if not raw.closed:
                    self.candidates.brought(relay.node_id)
                await raw.wait_closed()
        finally:
            self._incoming -= 1
            raw.abort()

    async def _decline(self, stream: Stream, reason: Reason) -> None:
        self._reporter.count(f"circuit-refused-{reason.value}")
        await stream.send_message(pack(Refused(reason.value), limit=MAX_BYTES))


def _circuit_raw(stream: Stream, relay: Peer) -> StreamRaw:
    return StreamRaw(
        stream,
        local=relay.primary.link.raw.local,
        remote=attrs.evolve(relay.address, relay=str(relay.node_id)),
        path=Path.RELAYED,
        resets=ENDINGS,
    )
