"""Who is meant by what somebody typed after `noded ping`, and how long a reply takes.

A name, an id or the start of one means a connected peer; a node that is not connected is looked up and dialed
when its whole id is known. Whatever does not lead to a reply says which of these it was: mistyped, ambiguous,
this node itself, gone (since when, and why), not known to anybody, or known and not to be reached.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import trio

from node.errors import PeerNotReachable, TimedOut, UsageError
from node.status import LEFT_THE_SWARM, Parts, peer_rows
from transport.address import Address
from transport.errors import TransportError
from transport.identity import NodeId
from transport.network import Path
from transport.peer import Peer

__all__ = ["measure", "whom"]

PING_S: Final = 5.0
LOOKUP_S: Final = 5.0
REACH_S: Final = 15.0
"""For connecting to a node that is to be pinged: direct attempts, then a relay."""
PREFIX: Final = "nd-"
NEARLY_WHOLE: Final = 6
"""An id of whose characters at most so many are missing was meant to be whole."""

Find = Callable[[NodeId], Awaitable[Sequence[Address]]]


async def whom(parts: Parts, wanted: str, find: Find) -> Peer:
    """The connected peer that `wanted` means, connected now if it was not.

    Args:
        parts: of this daemon.
        wanted: a name, an id, or the start of one.
        find: where a node can be reached, as the swarm says; empty if nobody knows.

    Raises:
        UsageError: it can mean several peers, means this node, or is a mistyped id.
        PeerNotReachable: it means nobody, or somebody who is gone or cannot be reached.
        TimedOut: the attempts to connect did not end.
    """
    text = wanted.strip()
    me = parts.endpoint.node_id
    rows = [row for row in peer_rows(parts) if _means(row, text)]
    connected = [row for row in rows if NodeId.parse(row["id"]) in parts.endpoint.peers]
    chosen = connected or rows
    if not chosen and (text == parts.config.node.name or text.lower() in {str(me), me.short}):
        raise UsageError(f"{text} is this node itself", hint="noded peers lists the others")
    if len(chosen) > 1:
        ids = ", ".join(NodeId.parse(row["id"]).short for row in chosen)
        raise UsageError(
            f"{text!r} can mean {len(chosen)} peers: {ids}", hint="use more of the id you mean"
        )
    node_id = NodeId.parse(chosen[0]["id"]) if chosen else _whole_id(text)
    if node_id is None:
        raise PeerNotReachable(
            f"nobody known here is named {text!r}, and no known id starts like that",
            hint="noded peers lists them; a name, an id, or the start of one will do, "
            "and a whole id is looked up in the swarm",
        )
    peer = parts.endpoint.peers.get(node_id)
    if peer is not None:
        return peer
    return await _connect(parts, node_id, chosen[0] if chosen else None, find)


async def measure(peer: Peer, count: int) -> list[tuple[float, Path, NodeId | None]]:
    """Of so many pings: seconds to the reply, path, and the relay on it.

    Raises:
        PeerNotReachable: it was lost meanwhile.
        TimedOut: it is connected and does not answer.
    """
    replies = []
    for _ in range(count):
        with trio.move_on_after(PING_S) as patience:
            try:
                replies.append((await peer.ping(), peer.path, peer.relay))
            except TransportError as error:
                raise PeerNotReachable(
                    f"{peer.name or peer.node_id.short} was lost meanwhile: {error}",
                    hint="noded peers shows whether it comes back",
                ) from None
        if patience.cancelled_caught:
            raise TimedOut(
                f"no reply from {peer.name or peer.node_id.short} within {PING_S:.0f} s",
                hint="it is connected and does not answer: it may be overloaded, or just lost",
            )
    return replies


async def _connect(parts: Parts, node_id: NodeId, row: dict[str, Any] | None, find: Find) -> Peer:
    gone = "" if row is None else f"{_gone(row, node_id)}; "
    found: Sequence[Address] = ()
    with trio.move_on_after(LOOKUP_S):
        found = await find(node_id)
    if not found:
        who = "" if row is not None else f"{node_id.short}: "
        raise PeerNotReachable(
            f"{gone}{who}nobody in the swarm says where it is now",
            hint=_what_next(row),
        )
    with trio.move_on_after(REACH_S):
        try:
            return await parts.endpoint.connect(list(found), expected=node_id)
        except TransportError as error:
            raise PeerNotReachable(f"{gone}{error}", hint=error.hint) from None
    raise TimedOut(f"{gone}{node_id.short} was not reached within {REACH_S:.0f} s")


def _what_next(row: dict[str, Any] | None) -> str:
    if row is None:
        return "is the node running, and in this swarm? `noded id` there prints its id"
    reason = row["reason"] or ""
    if "certificate is refused" in reason or reason.startswith(("revoked", LEFT_THE_SWARM)):
        return "noded members --history says who left or was revoked, when and why"
    return "start it again if it is yours; it is found by itself once it is back"


def _gone(row: dict[str, Any], node_id: NodeId) -> str:
    """`barn (nd-...) left 12 s ago (stopped by its operator)`."""
    name = f"{row['name']} ({node_id.short})" if row["name"] else node_id.short
    how = "left" if row["state"] == "left" else "was lost"
    since = row["last_seen_s"]
    when = "" if since is None else f" {since:.0f} s ago"
    return f"{name} {how}{when}" + (f" ({row['reason']})" if row["reason"] else "")


def _whole_id(text: str) -> NodeId | None:
    """The id, if `text` was meant to be a whole one.

    Raises:
        UsageError: it was, and is mistyped.
    """
    if not text.lower().startswith(PREFIX):
        return None
    try:
        return NodeId.parse(text)
    except TransportError as error:
        if len(text) < len(str(NodeId(bytes(32)))) - NEARLY_WHOLE:
            return None  # the start of one
        raise UsageError(str(error), hint=error.hint) from None


def _means(row: dict[str, Any], wanted: str) -> bool:
    return bool(wanted) and (row["name"] == wanted or row["id"].startswith(wanted.lower()))
