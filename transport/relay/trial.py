"""Whether a relay carries anything: circuits of a node to itself, with a nonce that must come back in.

Problem: a relay may grant a place and carry nothing (it is overloaded, broken, or means ill), and a node that nobody can dial would be unreachable without
knowing it. Idea: ask the relay for a circuit to ourselves, as anybody would ask for one to us, and send 32 random bytes into it. They come in at the other
end, on a circuit that names us as its source, or the relay is no use.

A relay that means ill can tell such a circuit from others and serve it alone; that is why `Reservations` also looks at who has come over each, and why
peers are asked to come (`transport.reach.dial_back`) where there are any.

Invariants: a nonce is good once and for one relay; a circuit from ourselves for which no trial waits is refused; every wait has an end.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from transport.address import Address
from transport.errors import TransportError
from transport.identity import NodeId
from transport.network import RawStream
from transport.relay.messages import Reason, RelayRefused

NONCE_BYTES: Final = 32
TRIAL_S: Final = 10.0
"""How long all of it may take: a circuit of two circuits' length, on a slow line."""

NO_VERDICT: Final = frozenset(
    {
        Reason.RATE,
        Reason.CIRCUITS,
        Reason.PEER_CIRCUITS,
        Reason.SOURCE_CIRCUITS,
        Reason.TARGET_BUSY,
    }
)
"""Refusals that say that the relay, or we, have much to do, and not that it carries nothing."""

Circuit = Callable[[Address, NodeId], Awaitable[RawStream]]


class Trials:
    """The trials of one node.

    Args:
        node_id: ours.
        circuit: opens one, as `RelayClient.circuit`.
        random_bytes: of nonces.
    """

    def __init__(
        self, node_id: NodeId, circuit: Circuit, random_bytes: Callable[[int], bytes]
    ) -> None:
        self._node_id = node_id
        self._circuit = circuit
        self._random_bytes = random_bytes
        self._waiting: dict[NodeId, tuple[bytes, trio.Event]] = {}  # by relay; one each

    def waits_for(self, relay: NodeId) -> bool:
        """Whether a circuit from ourselves over this relay may come now."""
        return relay in self._waiting

    async def attempt(self, relay: NodeId, address: Address) -> str | None:
        """Try whether the relay carries something to us; one at a time for each relay.

        Args:
            relay: one that keeps a reservation of ours.
            address: where it listens, with its id.

        Returns:
            "" if it does, why not, or None if nothing can be said. Never raises for what the relay does.
        """
        nonce, arrived = self._random_bytes(NONCE_BYTES), trio.Event()
        self._waiting[relay] = nonce, arrived
        raw = None
        try:
            with trio.move_on_after(TRIAL_S):
                raw = await self._circuit(address, self._node_id)
                await raw.send_all(nonce)
                await arrived.wait()
                return ""
        except RelayRefused as error:
            return None if error.reason in NO_VERDICT else str(error)
        except TransportError as error:
            return str(error)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            return f"it broke our circuit to ourselves: {error}"
        finally:
            del self._waiting[relay]
            if raw is not None:
                raw.abort()
        return f"it took our circuit to ourselves, and nothing came through within {TRIAL_S:g} s"

    async def take(self, relay: NodeId, raw: RawStream) -> None:
        """Read what came in on a circuit from ourselves; the caller closes it."""
        waiting = self._waiting.get(relay)
        if waiting is None:
            return
        nonce, arrived = waiting
        got, room = bytearray(), memoryview(bytearray(NONCE_BYTES))
        try:
            with trio.move_on_after(TRIAL_S):
                while len(got) < NONCE_BYTES:
                    count = await raw.receive_into(room)
                    if not count:
                        return
                    got += room[:count]
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return
        if hmac.compare_digest(bytes(got), nonce):
            arrived.set()
