"""Which connected peers take part in a decentralized run with the same model (trio driver).

Two nodes that are connected greet each other with one call, in either direction: whoever answers it takes part, and so does
whoever asks. A peer that does not serve the run yet is asked again now and then, and when it begins it asks us.

Invariants: a neighbour is connected, may train by its certificate, said hello with our model's digest, and has not been put out
with `put_out` during the last `OUT_S`; one greeting is under way with a peer at most.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Final

import msgspec
import trio

from transport.codec import decode_untrusted, pack
from transport.endpoint import Endpoint
from transport.errors import MalformedMessage, PeerLost, RemoteCallFailed, TransportError
from transport.identity import NodeId
from transport.peer import Peer, handler_of_calls

__all__ = ["Hello", "Neighbours"]

HELLO_S: Final = 5.0
"""For the answer to a greeting."""
RETRY_FIRST_S: Final = 0.5
RETRY_MOST_S: Final = 30.0
"""Between two greetings of a peer that does not take part; it greets us when it begins, so this only bounds a loss."""
OUT_S: Final = 300.0
"""For how long a node that sent nonsense is not listened to."""
MAX_OUT: Final = 1024
HELLO_VERSION: Final = 1

_log = logging.getLogger(__name__)


class Hello(msgspec.Struct, frozen=True):
    """Request and answer of a greeting."""

    v: int
    model: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    """Digest over names, shapes and layout of the parameters."""
    here: bool
    """False says goodbye."""


class Neighbours:
    """The peers to exchange models with; `run` has to be running.

    Args:
        endpoint: our place on the network.
        run: id of the run, 32 bytes.
        model: digest of the model's layout, 32 bytes.
        on_change: called after every change of `nodes`.
    """

    def __init__(
        self, endpoint: Endpoint, run: bytes, *, model: bytes, on_change: Callable[[], None]
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._endpoint = endpoint
        self._protocol = f"gossip/hello/{run.hex()[:32]}"
        self._model = model
        self._on_change = on_change
        self._here: dict[NodeId, Peer] = {}
        self._out: dict[NodeId, float] = {}
        self._greeting: dict[NodeId, tuple[Peer, trio.CancelScope]] = {}
        self._changed = trio.Event()
        self._leaving = False

    @property
    def nodes(self) -> list[NodeId]:
        """The neighbours, ascending."""
        return sorted(self._here)

    def peer(self, node: NodeId) -> Peer | None:
        """The connection with a neighbour; None if it is none."""
        return self._here.get(node)

    def is_out(self, node: NodeId) -> bool:
        """Whether it was put out a short time ago."""
        return self._out.get(node, 0.0) > trio.current_time()

    def put_out(self, node: NodeId, reason: str) -> None:
        """Take no notice of a node for `OUT_S`: it does not keep the rules."""
        self.counters["put-out"] += 1
        _log.warning("%s is not listened to for %.0f s: %s", node.short, OUT_S, reason)
        self._out[node] = trio.current_time() + OUT_S
        while len(self._out) > MAX_OUT:
            del self._out[next(iter(self._out))]
        self._forget(node)

    async def known(self, node: NodeId, patience_s: float) -> bool:
        """Wait until `node` is a neighbour; False if it is none after that time (seconds), or was put out."""
        with trio.move_on_after(patience_s):
            while node not in self._here:
                if self.is_out(node) or node not in self._endpoint.peers:
                    return False
                await self._changed.wait()
        return node in self._here

    async def wait_change(self) -> None:
        """Wait until `nodes` changes."""
        await self._changed.wait()

    async def run(self) -> None:
        """Greet whoever is connected, until cancelled."""
        self._endpoint.serve(
            self._protocol, handler_of_calls(self._answer), permitted=lambda m: m.may_train
        )
        try:
            async with trio.open_nursery() as nursery:
                with self._endpoint.watch() as events:
                    self._reconcile(nursery)
                    while True:
                        with trio.move_on_after(OUT_S):  # who was put out is looked at again
                            await events.receive()
                        self._reconcile(nursery)
        finally:
            self._endpoint.unserve(self._protocol)

    async def goodbye(self) -> None:
        """Tell the neighbours that we leave; bound it with a deadline."""
        self._leaving = True
        async with trio.open_nursery() as nursery:
            for node in self.nodes:
                nursery.start_soon(self._say_goodbye, self._here[node])

    async def _say_goodbye(self, peer: Peer) -> None:
        with suppress(TransportError):
            await peer.call(self._protocol, self._hello())

    def _hello(self) -> bytes:
        return pack(Hello(HELLO_VERSION, self._model, not self._leaving))

    async def _answer(self, peer: Peer, request: bytes) -> bytes:
        try:
            self._heard(peer, decode_untrusted(request, Hello))
        except MalformedMessage as error:
            self.counters["malformed-hello"] += 1
            raise RemoteCallFailed(str(error)) from None
        return self._hello()

    def _heard(self, peer: Peer, hello: Hello) -> None:
        node = peer.node_id
        if hello.v != HELLO_VERSION or (hello.here and hello.model != self._model):
            self.counters["other-model"] += 1
        elif self._endpoint.peers.get(node) is not peer or not peer.member.may_train:
            return
        elif hello.here and not self.is_out(node):
            if self._here.get(node) is not peer:
                self._here[node] = peer
                self._tell()
            return
        self._forget(node)

    def _forget(self, node: NodeId) -> None:
        if self._here.pop(node, None) is not None:
            self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()
        self._on_change()

    def _reconcile(self, nursery: trio.Nursery) -> None:
        """Greet new peers, and forget those that are gone."""
        peers = self._endpoint.peers
        for node, peer in sorted(self._here.items()):
            if peers.get(node) is not peer:
                self._forget(node)
        for node, (peer, scope) in sorted(self._greeting.items()):
            if peers.get(node) is not peer:
                scope.cancel()
                del self._greeting[node]
        for node, peer in sorted(peers.items()):
            if node not in self._here and node not in self._greeting and peer.member.may_train:
                scope = trio.CancelScope()
                self._greeting[node] = (peer, scope)
                nursery.start_soon(self._greet, peer, scope)

    async def _greet(self, peer: Peer, scope: trio.CancelScope) -> None:
        """Ask a peer until it is a neighbour or gone."""
        node, delay_s = peer.node_id, RETRY_FIRST_S
        with scope:
            while node not in self._here and not self._leaving and not self.is_out(node):
                with trio.move_on_after(HELLO_S):
                    try:
                        answer = await peer.call(self._protocol, self._hello())
                        self._heard(peer, decode_untrusted(answer, Hello))
                    except RemoteCallFailed:
                        self.counters["unserved"] += 1
                    except MalformedMessage:
                        self.counters["malformed-hello"] += 1
                    except PeerLost:
                        break
                if node not in self._here:
                    await self._known_or_later(node, delay_s)
                    delay_s = min(2 * delay_s, RETRY_MOST_S)
        if self._greeting.get(node) == (peer, scope):
            del self._greeting[node]

    async def _known_or_later(self, node: NodeId, delay_s: float) -> None:
        with trio.move_on_after(delay_s):
            while node not in self._here:
                await self._changed.wait()
