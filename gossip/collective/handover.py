"""Handing the consensus state to a member that lacks it (trio driver).

The fetcher asks a holder for (round, state digest); the holder answers with the sizes and sends its
consensus vectors over a bulk link that the fetcher opens. The fetcher checks the digest of what
arrived against the epoch's start state, so a wrong or changing holder costs one attempt and never
changes anything: the vectors are written to the node's own memory, but nobody is told to use them
before the digest matches.

Time-outs follow progress, not the size: a large state over a slow line takes as long as it takes.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any, Final

import attrs
import msgspec
import numpy.typing as npt
import trio

from gossip.collective.buffers import as_bytes
from gossip.collective.certificate import Bytes32
from gossip.errors import StateUnavailable
from transport.bulk.link import MAX_PAYLOAD_BYTES, BulkLink
from transport.codec import decode_untrusted, pack
from transport.endpoint import Endpoint
from transport.errors import MalformedMessage, TransportError
from transport.identity import NodeId
from transport.peer import Peer

ANSWER_S: Final = 10.0
"""For the call and the connection; no byte of the state has moved yet."""
STALL_S: Final = 20.0
"""Without one more piece (at most 1 MiB) for so long, the other side is given up."""
MIN_BYTES_PER_S: Final = 65536
"""A transfer has to be this fast on the whole: a trickle would hold the fetcher for ever."""
ACCEPT_S: Final = 10.0
MAX_TRANSFERS: Final = 2
"""Fetchers served at a time by one node; others are told to ask somebody else."""

_HEADER = struct.Struct(">BQ")

Array = npt.NDArray[Any]


@attrs.frozen
class HeldState:
    """What a holder can hand over now."""

    round: int
    state: bytes
    vectors: Sequence[Array]


class _Request(msgspec.Struct, frozen=True):
    round: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    state: Bytes32
    nonce: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]


class _Answer(msgspec.Struct, frozen=True):
    ok: bool
    sizes: Annotated[tuple[int, ...], msgspec.Meta(max_length=16)] = ()
    reason: Annotated[str, msgspec.Meta(max_length=200)] = ""


class Handover:
    """Serves this node's state and fetches others'; made by `open_handover`."""

    def __init__(
        self,
        endpoint: Endpoint,
        run: bytes,
        held: Callable[[], HeldState | None],
        nursery: trio.Nursery,
    ) -> None:
        self.served = 0
        self.fetched = 0
        self._endpoint = endpoint
        self._protocol = f"handover/{run.hex()[:32]}"
        self._held = held
        self._nursery = nursery
        self._serving: set[NodeId] = set()

    async def fetch(
        self,
        round_: int,
        state: bytes,
        holders: Sequence[NodeId],
        into: Sequence[Array],
        digest: Callable[[], bytes],
        *,
        nonce: Callable[[], bytes],
    ) -> None:
        """Fill `into` with the state of (round_, state) from the first holder that has it.

        Args:
            round_: rounds completed in the wanted state.
            state: its digest.
            holders: members to ask, in this order.
            into: one vector per consensus vector, of the right sizes.
            digest: computes the state digest of what lies in `into`.
            nonce: gives 16 fresh random bytes per attempt.

        Cancellation leaves `into` undefined.

        Raises:
            StateUnavailable: no holder could; the message has every holder's reason.
        """
        reasons = []
        for holder in holders:
            peer = self._endpoint.peers.get(holder)
            if peer is None:
                reasons.append(f"{holder.short}: not connected")
                continue
            try:
                await self._fetch_from(peer, _Request(round_, state, nonce()), into)
            except (TransportError, StateUnavailable) as error:
                reasons.append(f"{holder.short}: {error}")
                continue
            if digest() == state:
                self.fetched += 1
                return
            reasons.append(f"{holder.short}: sent another state than it announced")
        raise StateUnavailable("; ".join(reasons) or "nobody holds the state")

    async def _fetch_from(self, peer: Peer, request: _Request, into: Sequence[Array]) -> None:
        with _patience(ANSWER_S, "it does not answer"):
            try:
                reply = await peer.call(self._protocol, pack(request))
                answer = decode_untrusted(reply, _Answer)
            except MalformedMessage as error:
                raise StateUnavailable(f"malformed answer: {error}") from None
            if not answer.ok:
                raise StateUnavailable(answer.reason or "it refused without a reason")
            if answer.sizes != tuple(vector.nbytes for vector in into):
                raise StateUnavailable("its vectors have other sizes than ours")
            link = await peer.open_bulk(b"handover/" + request.nonce)
        try:
            with _patience(_allowed_s(into), "its transfer is too slow"):
                for index, vector in enumerate(into):
                    await _receive_vector(link, index, vector)
        finally:
            link.abort("handover done")

    async def serve(self, peer: Peer, request: bytes) -> bytes:
        """Call handler: check that this node holds what is asked for, and start sending it."""
        wanted = decode_untrusted(request, _Request)
        held = self._held()
        if held is None or (held.round, held.state) != (wanted.round, wanted.state):
            return pack(_Answer(ok=False, reason="this node does not hold that state"))
        if len(self._serving) >= MAX_TRANSFERS or peer.node_id in self._serving:
            return pack(_Answer(ok=False, reason="busy with other transfers"))
        self._serving.add(peer.node_id)
        self._nursery.start_soon(self._send, peer, wanted.nonce, held)
        return pack(_Answer(ok=True, sizes=tuple(vector.nbytes for vector in held.vectors)))

    async def _send(self, peer: Peer, nonce: bytes, held: HeldState) -> None:
        try:
            with trio.fail_after(ACCEPT_S):
                link = await self._endpoint.accept_bulk(peer.node_id, b"handover/" + nonce)
            try:
                with _patience(_allowed_s(held.vectors), "the fetcher is too slow"):
                    for index, vector in enumerate(held.vectors):
                        await _send_vector(link, index, vector)
                    await link.aclose()
                self.served += 1
            finally:
                link.abort("handover done")
        except (TransportError, StateUnavailable, trio.TooSlowError):
            return  # the fetcher sees the link end and asks somebody else
        finally:
            self._serving.discard(peer.node_id)


@contextmanager
def _patience(seconds: float, complaint: str) -> Iterator[None]:
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise StateUnavailable(f"{complaint} (given up after {seconds:.0f} s)") from None


def _allowed_s(vectors: Sequence[Array]) -> float:
    return STALL_S + sum(vector.nbytes for vector in vectors) / MIN_BYTES_PER_S


async def _send_vector(link: BulkLink, index: int, vector: Array) -> None:
    data = as_bytes(vector)
    for start in range(0, len(data), MAX_PAYLOAD_BYTES):
        with _patience(STALL_S, "the fetcher takes nothing"):
            await link.send(_HEADER.pack(index, start), data[start : start + MAX_PAYLOAD_BYTES])


async def _receive_vector(link: BulkLink, index: int, vector: Array) -> None:
    data = as_bytes(vector)
    done = 0

    def sink(header: bytes, length: int) -> memoryview:
        nonlocal done
        if header != _HEADER.pack(index, done) or not 0 < length <= len(data) - done:
            raise StateUnavailable("a piece of the state came out of place")
        piece = data[done : done + length]
        done += length
        return piece

    while done < len(data):
        with _patience(STALL_S, "it sends nothing"):
            await link.receive(sink)


@asynccontextmanager
async def open_handover(
    endpoint: Endpoint, run: bytes, held: Callable[[], HeldState | None]
) -> AsyncIterator[Handover]:
    """Serve `held()` to the run's members and be able to fetch from them."""
    async with trio.open_nursery() as nursery:
        handover = Handover(endpoint, run, held, nursery)
        endpoint.serve_calls(handover._protocol, handover.serve)  # noqa: SLF001 - one unit
        try:
            yield handover
        finally:
            endpoint.unserve(handover._protocol)  # noqa: SLF001
            nursery.cancel_scope.cancel()
