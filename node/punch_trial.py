"""A hole punch to see whether punches work here: with a member of the configured run that is reached over a relay.

Problem: `noded netcheck` can only guess from what a NAT does whether two nodes behind NATs would meet. Idea: try it once, with somebody who really is behind
one. Members tell the DHT the relays over which they are reached; such a member takes part in punches by the usual protocol, and may decline.

Invariants: at most `MAX_PARTNERS` members are tried and `TRIAL_S` are spent; what goes wrong is in the result, never an exception.
"""

from __future__ import annotations

from typing import Any, Final

import trio

from dht.errors import DhtError
from dht.key import record_key
from dht.provider import Kind
from dht.service import Dht
from node.reach_report import no_trial, punch_row
from transport.address import Address
from transport.endpoint import Endpoint
from transport.errors import InvalidAddress, TransportError
from transport.identity import NodeId
from transport.network import Path
from transport.punch.puncher import Puncher
from transport.punch.upgrader import PunchRecord

MAX_PARTNERS: Final = 3
TRIAL_S: Final = 20.0
"""For all of it (seconds); a punch that works takes one or two, one that cannot some sixteen."""

Partner = tuple[NodeId, tuple[Address, ...]]


async def try_punch(
    endpoint: Endpoint, puncher: Puncher, dht: Dht, run: str | None
) -> dict[str, Any]:
    """Punch with the first member that can be reached over a relay; returns the `punch_trial` of `noded.netcheck/1`.

    Args:
        endpoint: connected to somebody of the swarm.
        puncher: its own.
        dht: where to look.
        run: the name of the run whose members to ask; None without one.
    """
    if run is None:
        return no_trial("the configuration names no run whose members could be asked")
    reason = f"no member of the run {run!r} is reached over a relay, as far as the DHT knows"
    with trio.move_on_after(TRIAL_S) as patience:
        for node_id, addresses in (await _partners(endpoint, dht, run))[:MAX_PARTNERS]:
            try:
                peer = await endpoint.connect(addresses, expected=node_id)
            except TransportError as error:
                reason = f"{node_id.short} was not reached over its relay: {error}"
                continue
            if peer.path is not Path.RELAYED:
                reason = f"{node_id.short} is connected without a relay already"
                continue
            report = await puncher.punch(peer)
            return punch_row(node_id, PunchRecord(trio.current_time(), report), trio.current_time())
    if patience.cancelled_caught:
        reason = f"it was given up after {TRIAL_S:g} s"
    return no_trial(reason)


async def _partners(endpoint: Endpoint, dht: Dht, run: str) -> list[Partner]:
    """Members of the runs of that name that are reached over relays, with their relayed addresses."""
    found: dict[NodeId, tuple[Address, ...]] = {}
    try:
        records = await dht.get(record_key(endpoint.swarm.id, "run", run))
        for run_id in sorted({record.value for record in records if len(record.value) == 32}):
            for provider in await dht.providers(Kind.RUN, run_id):
                relayed = tuple(a for a in map(_parsed, provider.addresses) if a and a.relay)
                node_id = NodeId(provider.node_id)
                if relayed and node_id != endpoint.node_id:
                    found[node_id] = relayed
    except DhtError:  # it closes
        pass
    return sorted(found.items())


def _parsed(text: str) -> Address | None:
    try:
        return Address.parse(text)
    except InvalidAddress:
        return None
