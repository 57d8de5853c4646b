"""Bulk links where no second TCP connection is possible: the bulk handshake in a stream to the peer itself.

Problem: a peer behind a NAT that was reached by punching or over a relay takes no further dials, and cannot dial us either, yet
tensors must get across. Idea: open a stream of protocol "bulk/over-stream" on the connection that exists and treat it as a raw
stream. It shares that connection's credit and its NORMAL class, so it is slower than a connection of its own and never in the way
of urgent frames; callers try the other ways first.
"""

from typing import TYPE_CHECKING, Final

import trio

from transport.streams.raw import StreamRaw
from transport.streams.stream import Stream

if TYPE_CHECKING:
    from transport.endpoint import Endpoint
    from transport.network import RawStream
    from transport.peer import Peer

PROTOCOL: Final = "bulk/over-stream"


async def open_over_stream(peer: "Peer") -> "RawStream":
    """A raw stream to `peer` inside its connection, ready for a handshake of kind "bulk".

    Does not wait for the peer: one that does not serve this shows as a broken stream on first use.

    Raises:
        PeerLost: not connected any more.
        StreamLimitReached: too many streams are open.
    """
    return _raw(await peer.open_stream(PROTOCOL))


def serve_bulk_streams(endpoint: "Endpoint") -> None:
    """Take the streams that peers open with `open_over_stream`, as if they were connections from outside.

    Raises:
        UsageError: served already.
    """

    async def take(stream: Stream) -> None:
        raw = _raw(stream)
        with trio.CancelScope() as scope:
            stream.scope = scope  # useless without the stream
            try:
                await endpoint.take_inbound(raw, bulk_of=stream.peer.node_id)
                await raw.wait_closed()  # the stream ends with its handler
            finally:
                raw.abort()

    endpoint.serve(PROTOCOL, take)


def _raw(stream: Stream) -> StreamRaw:
    carrier = stream.peer.primary.link.raw
    raw = StreamRaw(stream, local=carrier.local, remote=carrier.remote, path=carrier.path)
    raw.inner = True
    return raw
