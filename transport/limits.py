"""How much anybody may cost us: the `[limits]` section.

Problem: everything a remote party can make us hold or compute needs a number, in one place, with its reason. Idea: one frozen
struct, used as the configuration section directly; `docs/limits.md` is its table, beside the limits that are fixed by the protocol.
Who may start a handshake is decided in `transport.budget.admission`; what is held for whom is counted in `transport.budget.scopes`.

Invariants: every figure is positive and finite, except the rate caps, where 0 means that there is none.
"""

from __future__ import annotations

from typing import Final

import msgspec

from transport.budget.admission import Admission, Refusal, source_of
from transport.streams.frames import WIDEST_CLASS_BYTES

__all__ = ["NO_CAP", "Admission", "Limits", "Refusal", "source_of"]

NO_CAP: Final = 0
MIN_RATE_BYTES_PER_S: Final = 8192
"""Least rate cap: heartbeats, handshakes and the largest control record (64 KiB) still get through within seconds."""
RATE_CAPS: Final = frozenset(
    f"{prefix}{direction}_bytes_per_s"
    for prefix in ("", "per_peer_")
    for direction in ("upload", "download")
)
HANDSHAKE_BYTES: Final = 16384
"""Reserved for one handshake: what is read (5 KiB) and sent, its keys and its task (5 KiB measured)."""
LINK_BYTES: Final = 1 << 20
"""Reserved for a control link beside its stream windows: one record of 256 KiB sealed, one being opened, and buffers at rest."""
BULK_LINK_BYTES: Final = 3 << 20
"""Reserved for a bulk link: 1 MiB being received, 1 MiB sealed to be sent, and their overhead. Memory shared within one machine comes on top (16 MiB in each direction, when all of
it is used): only a process of the same user can have it."""
PENDING_LINKS: Final = 4
"""Links of one peer that wait to take over its connection, beside the one in use."""


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Budgets of one node; the fields are the keys of `[limits]`."""

    pending_handshakes: int = 64
    """Handshakes under way at once, all sources (count). Each holds a task, a socket and at most 5 KiB: under 1 MiB in all."""
    pending_handshakes_per_source: int = 32
    """Handshakes under way at once from one source (count). Half of the total, so that one address cannot take all of it; public
    networks use 8, but a swarm started on one machine dials a node from 31 neighbours at the same moment."""
    new_connections_per_source_per_s: float = 0.2
    """Refill of a source's tokens (tokens per second); the rate public peer-to-peer networks use against floods."""
    new_connections_per_source_burst: int = 64
    """Tokens of a source at rest (count). Only handshakes that do not end with a member use them up; 64 lets a 32-node swarm
    on one address start while some of its dials fail, public networks use 16."""
    handshake_timeout_s: float = 5.0
    """From the first byte to an authenticated peer (seconds); a handshake needs two round trips, so this bears RTTs over 1 s."""
    heartbeat_s: float = 1.0
    """Between two pings on a control connection (seconds)."""
    silence_s: float = 4.0
    """Without any byte from a peer before it counts as lost (seconds): three lost heartbeats and some slack, so that a silent peer
    leaves a collective within 5 s."""
    max_peers: int = 256
    """Authenticated peers at once (count); more than the nodes of any run measured so far, and under the usual 1,024 file limit."""
    streams_per_peer: int = 256
    """Streams a peer may have open on us at once, and we on it (count)."""
    accept_backlog: int = 64
    """Streams a peer opened that this side has not looked at yet (count); more are refused with a reset."""
    bulk_links_per_peer: int = 56
    """Bulk connections with one peer (count): of collectives the first lane has up to 8 each way over a long path, 15 more lanes have one
    each way, and 8 carry large data."""
    send_buffer_bytes: int = 4194304
    """Bytes accepted from the application and not yet sent, per peer and priority class; one stream holds at most 512 KiB of it."""

    memory_bytes: int = 4294967296
    """Promised to remote parties in all: buffers of handshakes, links, streams and bulk links (bytes). 256 peers are promised 9 MiB of
    stream window and 1 MiB of buffers each, which is 2.5 GiB; the rest is for bulk links. Promised is more than used: an idle peer costs under 100 KiB."""
    unauthenticated_memory_bytes: int = 4194304
    """Of that, for parties that have not proved who they are (bytes): 16 KiB for each pending handshake, four times over."""
    peer_memory_bytes: int = 188743680
    """Of that, for one peer (bytes): 9 MiB of stream window, and 56 bulk links of 3 MiB; so one member cannot take what others need."""
    descriptors: int = 896
    """Sockets of connections and dials at once (count): the usual limit of 1,024 open files, less 128 for the program's own,
    for punches and for dial-back tests."""
    upload_bytes_per_s: int = 0
    """Cap on what is sent to all peers together (bytes per second, 0 = none). For metered or shared lines: half of the upstream keeps a
    home line usable. Heartbeats go first, so a cap slows training and loses nobody."""
    download_bytes_per_s: int = 0
    """Cap on what is received from all peers together (bytes per second, 0 = none); the senders are slowed down by TCP, nothing is lost."""
    per_peer_upload_bytes_per_s: int = 0
    """Cap on what is sent to one peer over all its connections (bytes per second, 0 = none), so that one that asks for everything
    leaves the line to the others."""
    per_peer_download_bytes_per_s: int = 0
    """Cap on what is received from one peer over all its connections (bytes per second, 0 = none)."""

    @property
    def connections_per_peer(self) -> int:
        """Connections with one peer at once (count).

        Bulk links; the control connection and its duplicate of crossed dials; links that wait to take over.
        """
        return self.bulk_links_per_peer + 2 + PENDING_LINKS

    @property
    def connection_bytes(self) -> int:
        """Reserved for a control connection: its link, and the stream windows that the peer may fill (bytes)."""
        return sum(WIDEST_CLASS_BYTES) + LINK_BYTES

    @property
    def memory_per_peer_bytes(self) -> int:
        """Upper bound of stream data held for one peer, both directions (bytes); bulk links come with their own buffers."""
        return sum(WIDEST_CLASS_BYTES) + 2 * self.send_buffer_bytes

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if name in RATE_CAPS:
                if value != NO_CAP and value < MIN_RATE_BYTES_PER_S:
                    raise ValueError(
                        f"limits.{name} must be 0 (no cap) or at least {MIN_RATE_BYTES_PER_S}"
                    )
            elif not value > 0 or value == float("inf"):
                raise ValueError(f"limits.{name} must be positive and finite, not {value}")
        if self.silence_s <= self.heartbeat_s:
            raise ValueError("limits.silence_s must be longer than limits.heartbeat_s")
        if self.send_buffer_bytes < 65536:
            raise ValueError("limits.send_buffer_bytes must hold one message of 64 KiB")
        if self.unauthenticated_memory_bytes < HANDSHAKE_BYTES * self.pending_handshakes:
            raise ValueError(
                "limits.unauthenticated_memory_bytes must hold limits.pending_handshakes handshakes of 16 KiB"
            )
        if self.peer_memory_bytes < sum(WIDEST_CLASS_BYTES) + LINK_BYTES:
            raise ValueError("limits.peer_memory_bytes must hold the stream windows of a peer")
        if self.memory_bytes < self.unauthenticated_memory_bytes + self.peer_memory_bytes:
            raise ValueError(
                "limits.memory_bytes must hold the share of strangers and that of one peer"
            )
