"""The relay: takes reservations and joins the two halves of circuits, as the ledger allows.

Problem: nodes that nobody can dial must be reached through somebody, who must not be ruined by it nor be able to read along.
Idea: the ledger decides, this file carries it out. A circuit is a stream from who asks and a stream to who is asked, with a
`Bridge` between them; the handshake between the two runs through it, so all that passes here is ciphertext.

A relay never works over a relay: requests that come over a relayed connection are refused, and so are targets that we reach only
over one. That bounds every path to one stranger and makes loops impossible.

Invariants: nothing is opened before the ledger has allowed it; a circuit's streams and its entry in the ledger end together; a
reservation ends with the connection of its holder; each refusal and each end is counted under its reason.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import attrs
import trio

from transport.codec import decode_untrusted, pack
from transport.endpoint import Endpoint
from transport.errors import MalformedMessage, StreamError, StreamReset, TransportError
from transport.identity import NodeId
from transport.network import Path
from transport.peer import Peer
from transport.relay.bridge import Bridge
from transport.relay.ledger import Circuit, Ledger, LedgerStatistics, Refusal
from transport.relay.messages import (
    CONNECT,
    ENDED,
    INCOMING,
    MAX_BYTES,
    RESERVE,
    Accepted,
    CircuitEnd,
    Connect,
    Ended,
    Granted,
    Incoming,
    Reason,
    Refused,
    Released,
    Reserve,
    as_reason,
    read_connect_answer,
)
from transport.relay.settings import RelaySettings
from transport.reporter import Reporter
from transport.streams.stream import Stream
from transport.watch import Lagged, PeerDown

FAREWELL_S: Final = 0.5
"""How long telling the holders of reservations that we stop may take."""

_OF_THE_TARGET: Final = {Reason.TARGET_BUSY, Reason.NO_RESERVATION}
"""What a target may say in its own name; anything else it says becomes the first of these."""
_WORTH_A_LINE: Final = {Reason.FULL, Reason.BUDGET, Reason.CIRCUITS}
"""Refusals that the relay's owner could do something about."""

_log = logging.getLogger(__name__)


@attrs.frozen
class RelayStatistics:
    """What a relay gives away; for status and metrics."""

    ledger: LedgerStatistics
    circuits_opened: int
    """Without those of a node to itself, by which it sees whether its reservation is worth anything."""
    circuits_failed: int
    """Allowed, but the target did not take them."""
    ended: Mapping[str, int]
    """How circuits ended, by reason."""
    refused: Mapping[str, int]
    """Refusals by reason."""


class RelayService:
    """Relays for members of the swarm while `run` runs.

    Args:
        endpoint: whose peers are served.
        settings: the budgets.
        spent_bytes: of the traffic budget, carried before this start.
    """

    def __init__(
        self, endpoint: Endpoint, settings: RelaySettings | None = None, *, spent_bytes: int = 0
    ) -> None:
        self.settings = RelaySettings() if settings is None else settings
        self._endpoint = endpoint
        self._reporter = Reporter(_log, endpoint.counters)
        self._ledger = Ledger(self.settings, trio.current_time(), spent_bytes=spent_bytes)
        self._bridges: dict[int, Bridge] = {}  # bounded by settings.circuits
        self._holders: dict[NodeId, Peer] = {}  # who reserved, on which connection; see `_lose`
        self._nursery: trio.Nursery | None = None
        self._opened = self._failed = 0
        self._ended: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()  # both bounded by the enums

    def __repr__(self) -> str:
        return f"<RelayService with {len(self._bridges)} circuits>"

    @property
    def serving(self) -> bool:
        """Whether `run` is running."""
        return self._nursery is not None

    @property
    def spent_bytes(self) -> int:
        """Of the traffic budget, before this start included; what has come back since is not."""
        left = self._ledger.statistics(trio.current_time()).budget_left_bytes
        return self.settings.budget_bytes - left

    def statistics(self) -> RelayStatistics:
        """Counts since the start, and what is held now."""
        return RelayStatistics(
            ledger=self._ledger.statistics(trio.current_time()),
            circuits_opened=self._opened,
            circuits_failed=self._failed,
            ended=MappingProxyType(dict(self._ended)),
            refused=MappingProxyType(dict(self._refused)),
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until the endpoint closes.

        Cancelling ends all circuits and tells those who hold a reservation, for at most half a second.

        Raises:
            UsageError: the endpoint relays already.
        """
        endpoint = self._endpoint
        endpoint.serve(CONNECT, self._connect)
        try:
            endpoint.serve_calls(RESERVE, self._reserve)
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                with endpoint.watch() as events:
                    task_status.started()
                    async for event in events:
                        match event:
                            case PeerDown(peer, _):
                                self._lose(peer)
                            case Lagged():
                                for peer in list(self._holders.values()):
                                    if peer.close_reason:
                                        self._lose(peer)
                            case _:
                                pass
        finally:
            self._nursery = None
            endpoint.unserve(RESERVE)
            endpoint.unserve(CONNECT)
            await self._stop()

    def _lose(self, peer: Peer) -> None:
        """A connection ended: its reservation with it, unless the node is back with a new one."""
        if self._holders.get(peer.node_id) is peer:
            self._release(peer.node_id)

    def _release(self, node_id: NodeId) -> None:
        self._holders.pop(node_id, None)
        self._ledger.release(node_id)

    async def _stop(self) -> None:
        for bridge in list(self._bridges.values()):
            bridge.end(CircuitEnd.STOPPED)
        with trio.move_on_after(FAREWELL_S, shield=True):
            async with trio.open_nursery() as nursery:
                for node_id in sorted(self._ledger.reservations):
                    self._release(node_id)
                    nursery.start_soon(self._tell_ended, node_id, Reason.NOT_SERVING)
        self._holders.clear()

    async def _tell_ended(self, node_id: NodeId, reason: Reason) -> None:
        peer = self._endpoint.peers.get(node_id)
        if peer is not None:
            try:
                with trio.move_on_after(self.settings.accept_s):
                    await peer.call(ENDED, pack(Ended(reason), limit=MAX_BYTES))
            except TransportError:
                pass  # it is gone, or does not care

    # Reservations

    async def _reserve(self, peer: Peer, request: bytes) -> bytes:
        return pack(self._answer_reserve(peer, request), limit=MAX_BYTES)

    def _answer_reserve(self, peer: Peer, request: bytes) -> Granted | Released | Refused:
        now = trio.current_time()
        try:
            wanted = decode_untrusted(request, Reserve, limit=MAX_BYTES)
        except MalformedMessage:
            return self._refuse(Refusal(Reason.MALFORMED))
        if wanted.release:
            self._release(peer.node_id)
            return Released()
        if not self.serving:
            return self._refuse(Refusal(Reason.NOT_SERVING))
        if peer.path is Path.RELAYED:
            return self._refuse(Refusal(Reason.RELAYED))
        given = self._ledger.reserve(peer.node_id, peer.address.host, now)
        if isinstance(given, Refusal):
            return self._refuse(given)
        if given.evicted is not None and self._nursery is not None:
            self._reporter.count("relay-evicted")
            self._nursery.start_soon(self._tell_ended, given.evicted, Reason.EVICTED)
        self._holders[peer.node_id] = peer
        settings = self.settings
        return Granted(
            expires_s=given.reservation.expires_at - now,
            bytes_per_s=settings.circuit_bytes_per_s,
            circuit_bytes=settings.circuit_bytes,
            circuit_s=settings.circuit_s,
        )

    def _refuse(self, refusal: Refusal) -> Refused:
        reason = refusal.reason
        self._refused[reason.value] += 1
        kind = f"relay-refused-{reason.value}"
        if reason in _WORTH_A_LINE:
            error = Refused(reason.value).as_error()
            self._reporter.report(kind, trio.current_time(), f"relaying for others: {error}")
        else:
            self._reporter.count(kind)
        return Refused(reason.value, refusal.retry_s)

    # Circuits

    async def _connect(self, source: Stream) -> None:
        """Serve one "relay/connect" stream: preamble, bridge, end."""
        allowed = await self._allow(source)
        if allowed is None:
            return  # nothing came that could be answered
        if isinstance(allowed, Refused):
            await self._send(source, allowed)
            return
        try:
            await self._join(allowed, source)
        finally:
            self._ledger.close(allowed)

    async def _allow(self, source: Stream) -> Circuit | Refused | None:
        try:
            with trio.move_on_after(self.settings.accept_s) as scope:
                message = await source.receive_message()
            if scope.cancelled_caught:
                source.reset()
                self._refuse(Refusal(Reason.MALFORMED))
                return None
            request = decode_untrusted(message, Connect, limit=MAX_BYTES)
        except (MalformedMessage, StreamError):
            return self._refuse(Refusal(Reason.MALFORMED))
        if not self.serving:
            return self._refuse(Refusal(Reason.NOT_SERVING))
        if source.peer.path is Path.RELAYED:
            return self._refuse(Refusal(Reason.RELAYED))
        if request.target == self._endpoint.node_id:
            return self._refuse(Refusal(Reason.SELF))
        asker = source.peer
        given = self._ledger.open(
            asker.node_id, asker.address.host, request.target, trio.current_time()
        )
        return self._refuse(given) if isinstance(given, Refusal) else given

    async def _join(self, circuit: Circuit, source: Stream) -> None:
        """Get the target's half, tell the source, and copy until the end."""
        peer = self._endpoint.peers.get(circuit.target)
        if peer is None:
            await self._fail(source, Reason.NO_RESERVATION)
            return
        if peer.path is Path.RELAYED:
            await self._fail(source, Reason.RELAYED)
            return
        try:
            target = await peer.open_stream(INCOMING)
        except TransportError:
            await self._fail(source, Reason.TARGET_BUSY)
            return
        try:
            refusal = await self._offer(circuit, target)
            if refusal is None and not self.serving:
                refusal = Reason.NOT_SERVING  # stopped while the target was asked
            if refusal is not None:
                await self._fail(source, refusal)
                return
            await source.send_message(pack(Accepted(), limit=MAX_BYTES))
            is_trial = circuit.source == circuit.target  # brings nobody to anybody: not counted
            self._opened += not is_trial
            bridge = self._bridges[circuit.number] = Bridge(self._ledger, circuit, source, target)
            try:
                code = await bridge.run()
            finally:
                del self._bridges[circuit.number]
            known = code in CircuitEnd.__members__.values()
            word = "reset" if not known else CircuitEnd(code or 0).name.lower().replace("_", "-")
            if not is_trial:
                self._ended["finished" if code is None else word] += 1
        finally:
            target.reset()  # no effect on a stream that has ended

    async def _offer(self, circuit: Circuit, target: Stream) -> Reason | None:
        """Ask the target; None when it takes the circuit."""
        try:
            with trio.move_on_after(self.settings.accept_s):
                await target.send_message(pack(Incoming(circuit.source), limit=MAX_BYTES))
                message = await target.receive_message()
                answer = read_connect_answer(message)
                if isinstance(answer, Accepted):
                    return None
                reason = as_reason(answer.reason)
                return reason if reason in _OF_THE_TARGET else Reason.TARGET_BUSY
        except (StreamReset, StreamError, MalformedMessage):
            return Reason.TARGET_BUSY
        except TransportError:
            return Reason.SILENT  # its connection ended meanwhile
        return Reason.SILENT

    async def _fail(self, source: Stream, reason: Reason) -> None:
        self._failed += 1
        await self._send(source, self._refuse(Refusal(reason)))

    async def _send(self, source: Stream, refused: Refused) -> None:
        try:
            await source.send_message(pack(refused, limit=MAX_BYTES))
        except TransportError:
            pass  # it has given up
