"""A datagram that says "a member of this swarm listens here", for the others on the same network.

Problem: two members in one house should find each other though their line to the world, or the address they were given, is gone. But
whoever shouts on a network tells everybody, and whoever acts on shouts can be aimed at others. Idea: one datagram of 138 bytes,
sealed for members and signed by the node; whoever believes it dials, and the handshake proves the rest. Nobody ever answers one, so
nothing can be amplified.

    tag (8) | Ed25519 key (32) | ms since 1970 (8) | TCP port (2) | signature (64) over "noded beacon v1" 00 | what is before
    MAC (16) under the swarm's key, over what is before

    tag     first bytes of a MAC of the swarm's key alone: members of other swarms and strangers' datagrams are dropped after 8 bytes

The address is the one that the datagram came from. A beacon counts once: its time must be later than the last of the same node, and
within ten minutes of ours.

Invariants: the MAC is checked before the signature; at most one hint for each node in `QUIET_S` and `PER_MINUTE` in all; the table
of nodes holds only those that passed the MAC, at most `MAX_NODES`; a malformed datagram is counted and changes nothing.
"""

from __future__ import annotations

import hmac
import random
import struct
from collections import Counter
from typing import Final

import attrs

from transport.address import Address
from transport.budget.rates import TokenBucket
from transport.errors import TransportError
from transport.identity import Identity, NodeId, verify
from transport.swarm import Swarm

__all__ = ["BEACON_BYTES", "Beacon", "Hint"]

_HEAD: Final = struct.Struct(">8s32sQH")
_SIGNATURE_BYTES: Final = 64
_MAC_BYTES: Final = 16
BEACON_BYTES: Final = _HEAD.size + _SIGNATURE_BYTES + _MAC_BYTES
_TAG_DOMAIN: Final = b"noded beacon tag v1"
_MAC_DOMAIN: Final = b"noded beacon mac v1"
_SIGNED_DOMAIN: Final = b"noded beacon v1\x00"

WINDOW_MS: Final = 600_000
"""Clocks may be wrong by minutes and two nodes still find each other."""
FIRST_S: Final = (0.0, 1.0, 4.0)
"""A multicast datagram may be lost; three rarely are."""
EVERY_S: Final = 60.0
QUIET_S: Final = 30.0
"""Between two hints about the same node: one attempt to connect takes about that long at worst."""
PER_MINUTE: Final = 30
MAX_NODES: Final = 1024


@attrs.frozen
class Hint:
    """Where a member may listen; nothing is proven until it has been dialed."""

    node_id: NodeId
    address: Address


class Beacon:
    """One node's beacon; sans-IO.

    Args:
        identity: our key.
        swarm: its key seals and opens beacons.
        rng: for jitter.
        now: monotonic seconds; the first beacon is due at once.
    """

    def __init__(self, identity: Identity, swarm: Swarm, rng: random.Random, now: float) -> None:
        self._identity = identity
        self._swarm = swarm
        self._tag = swarm.proof(_TAG_DOMAIN, b"")[:8]
        self._rng = rng
        self._due = [now + delay for delay in FIRST_S]
        self._bucket = TokenBucket(PER_MINUTE / 60, PER_MINUTE, now)
        self._seen: dict[bytes, tuple[int, float]] = {}
        """By key: the last beacon's time, and when the last hint was given."""
        self.counters: Counter[str] = Counter()
        """Datagrams by what came of them: `hint`, or why not."""

    def next_deadline(self) -> float:
        """When the next beacon is due, monotonic seconds."""
        return self._due[0]

    def tick(self, now: float) -> bool:
        """Whether a beacon is to be sent now."""
        if now < self._due[0]:
            return False
        del self._due[0]
        if not self._due:
            self._due.append(now + EVERY_S * self._rng.uniform(0.8, 1.2))
        return True

    def make(self, port: int, now_ms: int) -> bytes:
        """The datagram for one interface.

        Args:
            port: where we listen there.
            now_ms: milliseconds since 1970.
        """
        head = _HEAD.pack(self._tag, self._identity.public_key, now_ms, port)
        signed = head + self._identity.sign(_SIGNED_DOMAIN + head)
        return signed + self._mac(signed)

    def receive(self, data_untrusted: bytes, host: str, now: float, now_ms: int) -> Hint | None:
        """What a datagram tells; None for most of them.

        Args:
            data_untrusted: the datagram.
            host: where it came from, an IP literal (with its zone, if it is link-local).
            now: monotonic seconds.
            now_ms: milliseconds since 1970.
        """
        outcome, hint = self._judge(bytes(data_untrusted), host, now, now_ms)
        self.counters[outcome] += 1
        return hint

    def _judge(self, data: bytes, host: str, now: float, now_ms: int) -> tuple[str, Hint | None]:
        if len(data) != BEACON_BYTES or data[:8] != self._tag:
            return "foreign", None
        signed, mac = data[:-_MAC_BYTES], data[-_MAC_BYTES:]
        if not hmac.compare_digest(self._mac(signed), mac):
            return "forged", None
        _, key, sent_ms, port = _HEAD.unpack_from(signed)
        if key == self._identity.public_key:
            return "own", None
        last_ms, hinted = self._seen.get(key, (-1, -QUIET_S))
        if sent_ms <= last_ms or abs(sent_ms - now_ms) > WINDOW_MS:
            return "stale", None
        if now - hinted < QUIET_S:
            return "quiet", None
        if not self._bucket.take(1, now):
            return "flood", None
        if not verify(key, signed[_HEAD.size :], _SIGNED_DOMAIN + signed[: _HEAD.size]):
            return "forged", None
        self._seen.pop(key, None)
        if len(self._seen) >= MAX_NODES:
            del self._seen[next(iter(self._seen))]
        self._seen[key] = (sent_ms, now)
        try:
            hint = Hint(NodeId.of_public_key(key), Address(host, port))
        except TransportError:
            return "malformed", None
        return ("hint", hint) if port else ("malformed", None)

    def _mac(self, signed: bytes) -> bytes:
        return self._swarm.proof(_MAC_DOMAIN, signed)[:_MAC_BYTES]
