"""A raw stream carried by a stream of another connection: relay circuits, and bulk links without a second TCP connection.

Problem: the handshake, the record layer and bulk links want a `RawStream`, and sometimes the only way to the other node leads
through a connection that exists already, its own or a relay's. Idea: adapt one multiplexed `Stream`. Everything above runs
unchanged, sealed from end to end a second time, so whoever carries the outer connection sees ciphertext only.

What the layers below already give, and what is mapped here:

* Credit bounds what is under way: at most 256 KiB queued here and 256 KiB unread there.
* A cancelled receive consumes nothing; a cancelled send leaves an unknown prefix, as the contract of `RawStream` says.
* Their errors become the two of the contract, with a text that says who ended it.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import trio

from transport.address import Address
from transport.buffer import Buffer
from transport.errors import PeerLost, StreamClosed, StreamReset
from transport.network import Path, RawStream
from transport.streams.frames import ResetCode
from transport.streams.stream import Stream

_RESETS: Final[Mapping[int, str]] = MappingProxyType(
    {
        ResetCode.CANCELLED: "connection reset by peer",
        ResetCode.REFUSED: "the peer has too many streams open",
        ResetCode.NO_SUCH_PROTOCOL: "the peer does not serve this",
        ResetCode.HANDLER_FAILED: "the peer failed to serve this",
    }
)


class StreamRaw(RawStream):
    """The two directions of `stream` as a raw stream; it owns the stream from now on.

    Args:
        stream: fresh, or after a preamble that both sides have read.
        local: our end, as it is to be shown.
        remote: the other end; for a circuit the relay's address, with its id.
        path: how the bytes travel.
        resets: what reset codes mean where the protocol has codes of its own.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        local: Address,
        remote: Address,
        path: Path,
        resets: Mapping[int, str] = _RESETS,
    ) -> None:
        self.local = local
        self.remote = remote
        self.path = path
        self._stream = stream
        self._resets = resets
        self._closed = trio.Event()
        stream.fix_window()  # what is carried has urgent bytes of its own, which wait behind the rest

    def __repr__(self) -> str:
        return f"<StreamRaw {self.path} {self.local} -> {self.remote}>"

    async def send_all(self, data: Buffer) -> None:
        """See `RawStream.send_all`."""
        try:
            await self._stream.send_all(data)
        except (PeerLost, StreamReset, StreamClosed) as error:
            raise self._mapped(error) from None

    async def receive_into(self, buffer: memoryview) -> int:
        """See `RawStream.receive_into`."""
        assert len(buffer) > 0
        try:
            data = await self._stream.receive_some(len(buffer))
        except (PeerLost, StreamReset, StreamClosed) as error:
            raise self._mapped(error) from None
        buffer[: len(data)] = data
        return len(data)

    async def aclose(self) -> None:
        """See `RawStream.aclose`."""
        self._closed.set()
        await self._stream.aclose()

    def abort(self) -> None:
        """See `RawStream.abort`."""
        self._closed.set()
        self._stream.reset(ResetCode.CANCELLED)

    @property
    def closed(self) -> bool:
        """Whether this side has closed or aborted it."""
        return self._closed.is_set()

    async def wait_closed(self) -> None:
        """Wait until this side has closed or aborted it: the handler that served the stream must live as long."""
        await self._closed.wait()

    def _mapped(self, error: PeerLost | StreamReset | StreamClosed) -> Exception:
        if isinstance(error, StreamClosed):
            return trio.ClosedResourceError("closed here")
        if isinstance(error, StreamReset):
            code = error.reset_code
            text = self._resets.get(code) or _RESETS.get(code) or f"reset by peer (code {code})"
            return trio.BrokenResourceError(text)
        carrier = "relay" if self.path is Path.RELAYED and self.remote.relay else "peer"
        return trio.BrokenResourceError(f"the connection to the {carrier} ended: {error.reason}")
