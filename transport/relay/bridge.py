"""One circuit at the relay: bytes copied both ways, metered, until one side or a limit ends it.

Problem: a relay holds bytes of people who may stop reading, stop writing, or never stop. Idea: two loops with one chunk in hand
each. A loop reads, has the ledger book what it read, waits as long as the ledger says, writes, and only then reads on, so a reader
that stops stops its writer through the credit of the streams, and nothing piles up here.

How it ends:

* A side that finishes its direction ends it for the other side too; the opposite direction goes on. When both have finished, all
  that was sent has been passed on.
* A side that resets its stream or is lost ends the circuit at once, and the other side learns it by a reset. Except: a side that
  has finished and is then not read from any more has merely closed, so what it sent is still delivered, and what comes the other
  way is thrown away for a moment.
* The ledger, the clock (`circuit_s`), silence (`idle_s`) or the owner end it with a code of `CircuitEnd`.
"""

from __future__ import annotations

from typing import Final

import trio

from transport.errors import PeerLost, StreamError, StreamReset
from transport.relay.ledger import Circuit, Ledger
from transport.relay.messages import CircuitEnd
from transport.relay.settings import CHUNK_BYTES
from transport.streams.frames import ResetCode
from transport.streams.stream import Stream

OPENING_S: Final = 5.0
"""How long a new circuit may carry nothing: its source has a handshake to begin, and whoever has not must not hold a place."""
CLOSING_S: Final = 3.0
"""How long the second direction may go on when its reader has closed; the writer notices the end within a round trip."""


class Bridge:
    """The two directions of one circuit.

    Args:
        ledger: books what is carried.
        circuit: allowed by the ledger; the caller closes it.
        source: the stream of who asked, after the preamble.
        target: the stream to whom it leads, likewise.
    """

    def __init__(self, ledger: Ledger, circuit: Circuit, source: Stream, target: Stream) -> None:
        self._ledger = ledger
        self._circuit = circuit
        self._source = source
        self._target = target
        for stream in (source, target):
            stream.fix_window()  # a circuit holds what `CIRCUIT_MEMORY_BYTES` says, however fast it is
        self._finished: set[Stream] = set()  # whose direction was passed on to its end
        self._end: int | None = None
        self._scope = trio.CancelScope()

    def end(self, code: int) -> None:
        """End the circuit now; both sides are reset with `code`."""
        if self._end is None:
            self._end = code
        self._scope.cancel()

    async def run(self) -> int | None:
        """Copy until the circuit ends; both streams are done with then.

        Cancelling resets both sides.

        Returns:
            The reset code it ended with, or None if both sides finished.
        """
        settings = self._ledger.settings
        whole = False
        try:
            with self._scope, trio.move_on_after(settings.circuit_s):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch, settings.idle_s)
                    async with trio.open_nursery() as pumps:
                        pumps.start_soon(self._pump, self._source, self._target)
                        pumps.start_soon(self._pump, self._target, self._source)
                    nursery.cancel_scope.cancel()
                    whole = self._end is None
        finally:
            if not whole:
                if self._end is None:
                    late = trio.current_time() - self._circuit.opened_at >= settings.circuit_s
                    self._end = CircuitEnd.TOO_LONG if late else CircuitEnd.PEER_LOST
                self._source.reset(self._end)
                self._target.reset(self._end)
        self._source.close()
        self._target.close()
        return self._end

    async def _pump(self, source: Stream, sink: Stream) -> None:
        ledger, circuit = self._ledger, self._circuit
        try:
            while data := await source.receive_some(CHUNK_BYTES):
                now, back = trio.current_time(), source is self._target
                wait_s = ledger.carry(circuit, len(data), now, back=back)
                if isinstance(wait_s, CircuitEnd):
                    self.end(wait_s)
                    return
                if wait_s > 0:
                    await trio.sleep(wait_s)
                try:
                    await sink.send_all(data)
                except StreamReset:
                    if sink not in self._finished:
                        raise
                    await self._discard(source)
                    return
            self._finished.add(source)
            try:
                await sink.send_eof()
            except StreamReset:
                if sink not in self._finished:
                    raise
        except StreamReset as error:
            self.end(error.reset_code or ResetCode.CANCELLED)
        except PeerLost:
            self.end(CircuitEnd.PEER_LOST)
        except StreamError:
            self.end(ResetCode.CANCELLED)

    async def _discard(self, source: Stream) -> None:
        """Throw away what nobody reads any more, so that the other direction can end in order."""
        with trio.move_on_after(CLOSING_S) as scope:
            while await source.receive_some(CHUNK_BYTES):
                pass
        if scope.cancelled_caught:
            self.end(ResetCode.CANCELLED)

    async def _watch(self, idle_s: float) -> None:
        """End a circuit that carries nothing: a new one after OPENING_S, later noticed after idle_s to twice that."""
        carried = -1
        await trio.sleep(OPENING_S)
        if not self._circuit.carried:
            self.end(CircuitEnd.IDLE)
        while carried != self._circuit.carried:
            carried = self._circuit.carried
            await trio.sleep(idle_s)
        self.end(CircuitEnd.IDLE)
