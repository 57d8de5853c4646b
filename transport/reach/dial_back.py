"""Asking a peer to dial us, and dialing for peers: the driver around `transport.reach.dial_back_rules`.

Problem: whether strangers reach our listener can only be seen from outside, and the one who looks may say anything. Idea: the asker
makes a nonce that nobody else knows; the server dials from a port of its own choice (from its listening port, it would come in
through the hole that our connection with it made), does the whole handshake as the asker's node id demands, and shows the nonce in it as
the label of a connection of kind "probe". Only a nonce that came in counts as reached, whatever the server says; the tally in
`transport.reach.reachability` outvotes those who deny or dial by another way.

A filter by address alone (not by port) lets a server in that strangers would not pass: such a NAT looks reachable from here, and is for
every peer we have sent something to.

A relayed address can be asked about as well: the server then comes over that relay, if it is connected with it already. So a node learns whether a relay
brings others to it, and the relay cannot tell such a visit from any other.

Invariants: a server dials only the asker's own address, at most `DialBackLimits.at_once` at a time, and answers within
`DialBackLimits.dial_s`; no task outlives its call; an expected nonce is forgotten when its question ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

import attrs
import trio

from transport.address import Address
from transport.endpoint import Endpoint
from transport.errors import (
    ConnectFailed,
    MalformedMessage,
    PeerLost,
    RemoteCallFailed,
    TransportError,
)
from transport.identity import NodeId
from transport.network import Path
from transport.peer import Peer
from transport.reach.dial_back_rules import (
    NONCE_BYTES,
    PROTOCOL,
    DialBackAnswer,
    DialBackGate,
    DialBackLimits,
    DialBackRequest,
    Outcome,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
    objection,
)

ANSWER_S: Final = 15.0
"""Longest wait for an answer: the server's dial, and round trips on slow paths."""
PROOF_S: Final = 2.0
"""Longest wait for the nonce after the answer: they travel on different connections."""


@attrs.frozen
class DialBackResult:
    """What one question brought."""

    address: Address
    """Where the server was to dial."""
    server: NodeId
    server_host: str
    """Where we see the server, for the tally by networks."""
    reached: bool | None
    """True: the nonce came in. False: the server says it failed. None: no statement about the address."""
    reason: str = ""
    """Why not; "" when reached."""


# Serving


class DialBackServer:
    """Dials peers that ask for it; made by `serve_dial_back`."""

    def __init__(self, endpoint: Endpoint, limits: DialBackLimits) -> None:
        self._endpoint = endpoint
        self._gate = DialBackGate(limits, trio.current_time())

    async def answer(self, peer: Peer, request: bytes) -> bytes:
        """Handle one call.

        Raises:
            RemoteCallFailed: the request makes no sense.
        """
        try:
            wanted = decode_request(request)
        except MalformedMessage:
            self._count("malformed")
            raise RemoteCallFailed("malformed request") from None
        host = peer.address.host
        relayed = peer.path is Path.RELAYED
        why_not = objection(wanted.address, peer.address, relayed=relayed)
        why_not = why_not or self._objection_to_relay(peer.node_id, wanted.address)
        why_not = why_not or self._gate.enter(peer.node_id, host, trio.current_time())
        if why_not:
            self._count(Outcome.REFUSED)
            return encode_answer(DialBackAnswer(Outcome.REFUSED, why_not))
        try:
            reason = f"no answer within {self._gate.limits.dial_s:g} s"
            with trio.move_on_after(self._gate.limits.dial_s):
                reason = await self._dial(peer.node_id, wanted)
        finally:
            self._gate.leave(peer.node_id)
        outcome = Outcome.FAILED if reason else Outcome.REACHED
        self._count(outcome)
        return encode_answer(DialBackAnswer(outcome, reason))

    def _objection_to_relay(self, asker: NodeId, address: Address) -> str:
        """Why not to come over the relay that an address names; "" without one.

        Only over one that we are connected with anyway: no asker may send us to an address that it names.
        """
        if not address.relay:
            return ""
        relay = None if address.relay_id is None else self._endpoint.peers.get(address.relay_id)
        if relay is None or relay.path is Path.RELAYED or relay.node_id == asker:
            return "I am not connected with that relay"
        return "" if self._endpoint.relay_dialer is not None else "I use no relays"

    async def _dial(self, asker: NodeId, wanted: DialBackRequest) -> str:
        """Dial and show the nonce; returns what went wrong, or ""."""
        endpoint = self._endpoint
        try:
            if wanted.address.relay:
                assert endpoint.relay_dialer is not None  # it was looked at
                raw = await endpoint.relay_dialer(wanted.address, asker)
            else:
                raw = await endpoint.network.connect(wanted.address)
            await endpoint.probe(raw, asker, wanted.nonce)
            await raw.aclose()
        except ConnectFailed as error:
            return str(error)
        except TransportError as error:  # something answers there, but not the asker
            return f"connected, but {error}"
        return ""

    def _count(self, what: str) -> None:
        self._endpoint.counters[f"dial-backs-{what}"] += 1


def serve_dial_back(endpoint: Endpoint, limits: DialBackLimits | None = None) -> DialBackServer:
    """Dial peers that ask for it, from now on and as long as the endpoint lives.

    Raises:
        UsageError: served already.
    """
    server = DialBackServer(endpoint, DialBackLimits() if limits is None else limits)
    endpoint.serve_calls(PROTOCOL, server.answer)
    return server


# Asking


class _ProbeHook(Protocol):
    def __call__(self, server: NodeId, nonce: bytes, /) -> None: ...


class _Probes:
    """The nonces we wait for; hangs in `Endpoint.on_probe`, before what may hang there already."""

    def __init__(self, behind: _ProbeHook | None) -> None:
        self._behind = behind
        self._expected: dict[tuple[NodeId, bytes], trio.Event] = {}  # one for each open question

    def __call__(self, server: NodeId, nonce: bytes) -> None:
        event = self._expected.get((server, nonce))
        if event is not None:
            event.set()
        elif self._behind is not None:
            self._behind(server, nonce)

    @contextmanager
    def expect(self, server: NodeId, nonce: bytes) -> Iterator[trio.Event]:
        event = self._expected[server, nonce] = trio.Event()
        try:
            yield event
        finally:
            del self._expected[server, nonce]


def _probes_of(endpoint: Endpoint) -> _Probes:
    hook = endpoint.on_probe
    if not isinstance(hook, _Probes):
        hook = endpoint.on_probe = _Probes(hook)
    return hook


async def ask_dial_back(endpoint: Endpoint, peer: Peer, address: Address) -> DialBackResult:
    """Ask `peer` whether it reaches us at `address`; waits for at most `ANSWER_S` and `PROOF_S`.

    Never raises for what the peer or the network does. Cancelling forgets the question.
    """
    server_host = peer.address.host

    def result(reached: bool | None, reason: str = "") -> DialBackResult:
        return DialBackResult(address, peer.node_id, server_host, reached, reason)

    nonce = endpoint.random_bytes(NONCE_BYTES)
    with _probes_of(endpoint).expect(peer.node_id, nonce) as proof:
        said: DialBackAnswer | None = None
        reason = f"no answer within {ANSWER_S:g} s"
        try:
            with trio.move_on_after(ANSWER_S):
                request = encode_request(DialBackRequest(address, nonce))
                said = decode_answer(await peer.call(PROTOCOL, request))
                reason = said.reason
        except (RemoteCallFailed, PeerLost, MalformedMessage) as error:
            reason = str(error)
        if said is not None and said.outcome is Outcome.REACHED:
            reason = "it says that it reached us, but nothing came in"
            with trio.move_on_after(PROOF_S):
                await proof.wait()
        if proof.is_set():
            return result(True)
        if said is not None and said.outcome is Outcome.FAILED:
            return result(False, reason)
        return result(None, reason)


def can_be_asked(peer: Peer, address: Address) -> bool:
    """Whether it makes sense to ask `peer` about `address`: connected directly, by the same family."""
    return (
        peer.path is not Path.RELAYED
        and address.is_ip
        and not address.relay
        and (":" in peer.address.host) == (":" in address.host)
    )
