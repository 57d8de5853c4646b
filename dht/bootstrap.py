"""Bootstrap addresses: where a node that knows nobody asks first, and asks again for as long as it lives.

Each address has one task. It tries at once, then again after a growing pause until the node there has answered, and whenever that
node is no longer connected: a seed that comes back, or a partition that heals, is noticed within `bootstrap_most_s`.

Invariants: at most `MAX_ADDRESSES` addresses over the service's life; one attempt has one deadline; a failure has a reason in words.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence

import attrs
import trio

from dht.errors import DhtClosed, DhtError
from dht.messages import PROTOCOL, Answer, Ping, Pong, Query
from dht.node import DhtNode
from dht.seam import DhtEndpoint, DhtPeer, contact_of
from dht.settings import DhtSettings
from transport.address import Address
from transport.codec import decode_untrusted, pack
from transport.errors import TransportError
from transport.identity import NodeId

MAX_ADDRESSES = 64
_MAX_REASON_CHARS = 300

_log = logging.getLogger(__name__)


@attrs.define
class Seed:
    """One address and how it went."""

    address: Address
    attempts: int = 0
    node_id: NodeId | None = None
    reason: str = "not tried yet"
    """"" once reached."""


class Bootstrapper:
    """The bootstrap addresses of one service, whose nursery the tasks live in."""

    def __init__(
        self,
        endpoint: DhtEndpoint[DhtPeer],
        node: DhtNode,
        nursery: trio.Nursery,
        *,
        rng: random.Random,
        settings: DhtSettings,
        met: Callable[[NodeId], None],
    ) -> None:
        self._endpoint = endpoint
        self._node = node
        self._nursery = nursery
        self._rng = rng
        self._settings = settings
        self._met = met
        self._seeds: dict[Address, Seed] = {}
        self._changed = trio.Event()
        self._closed = False

    async def first_try(self, addresses: Sequence[Address]) -> list[Seed]:
        """Take addresses on, and wait until each has answered or failed.

        An answer from one shortens the wait for the others to the patience of a search.

        Raises:
            DhtError: too many addresses. DhtClosed. Cancelling leaves the background at work.
        """
        mine: list[Seed] = []
        for address in dict.fromkeys(addresses):
            seed = self._seeds.get(address)
            if seed is None:
                if len(self._seeds) >= MAX_ADDRESSES:
                    raise DhtError(f"more than {MAX_ADDRESSES} bootstrap addresses")
                seed = self._seeds[address] = Seed(address)
                self._nursery.start_soon(self._keep, seed)
            mine.append(seed)
        patience = trio.CancelScope()
        with patience:
            while any(seed.attempts == 0 for seed in mine):
                if any(seed.node_id is not None for seed in mine):
                    soon = trio.current_time() + self._settings.lookup.patience_s
                    patience.deadline = min(patience.deadline, soon)
                await self._changed.wait()
                if self._closed:
                    raise DhtClosed("the DHT is closed")
        return mine

    def status(self) -> dict[str, str]:
        """Return for each address "" if it was reached when last tried, else the reason."""
        return {str(seed.address): seed.reason for seed in self._seeds.values()}

    def close(self) -> None:
        """Wake whoever waits; the tasks end with their nursery."""
        self._closed = True
        self._changed.set()

    async def _keep(self, seed: Seed) -> None:
        """Reach one address, and again whenever its node is not connected, for ever."""
        failures = 0
        while True:
            if seed.node_id is None or seed.node_id not in self._endpoint.peers:
                await self._try(seed)
                seed.attempts += 1
                self._changed.set()
                self._changed = trio.Event()
                failures = 0 if seed.reason == "" else failures + 1
            pause_s = self._settings.bootstrap_most_s
            if failures:
                first_s = self._settings.bootstrap_first_s
                pause_s = min(pause_s, first_s * 2.0 ** min(failures - 1, 16))
            await trio.sleep(pause_s * self._rng.uniform(0.8, 1.2))

    async def _try(self, seed: Seed) -> None:
        reason = f"no answer within {self._settings.bootstrap_dial_s:g} s"
        try:
            with trio.move_on_after(self._settings.bootstrap_dial_s):
                peer = await self._endpoint.connect([seed.address])
                self._met(peer.node_id)
                query = Query(server=self._node.serving, body=Ping())
                answer = decode_untrusted(await peer.call(PROTOCOL, pack(query)), Answer)
                if isinstance(answer.body, Pong):
                    reason = ""
                    seed.node_id = peer.node_id
                    if answer.server:
                        self._node.met(contact_of(peer), trio.current_time())
                        self._met(peer.node_id)
                else:
                    reason = "the node there does not take part in the DHT"
        except TransportError as error:
            reason = (str(error) or type(error).__name__)[:_MAX_REASON_CHARS]
        except Exception:  # noqa: BLE001 (one address must not end the service)
            self._node.counters["internal_errors"] += 1
            _log.exception("bootstrapping failed in a way that is a defect of this program")
            reason = "internal error, see the log"
        seed.reason = reason
