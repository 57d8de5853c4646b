"""A seeded network in memory: latency, bandwidth, loss, partitions, crashes, virtual time.

Problem: to trust fault handling one must see thousands of faults, each repeatable. Idea: an
implementation of the `transport.network` seam in which every delay and fault is drawn from
generators derived from one seed, so that a run under `transport.simulated.deterministic` is a pure
function of that seed. It ships with the product: the researcher's simulation and our own fault
tests are the same thing.

Model (after turmoil and FoundationDB's sim2, for streams instead of datagrams):

* A *directed link* joins two hosts. It has latency, jitter, bandwidth (shared by all
  connections between the two hosts in that direction) and fault probabilities per chunk.
* Bytes arrive in order. Loss is what an application sees of TCP loss: a *stall* (the chunk and
  all behind it wait for a retransmission) or a *reset* of the connection.
* A blocked direction (partition, blackhole) delivers nothing. What was sent waits; after
  healing, it arrives. Credit for the sender returns over the reverse direction, so a one-way
  blackhole also stops the other direction once its send window is full, as with real ACKs.
* Each direction of a connection holds at most `window_bytes` between `send_all` and
  `receive_into`: a reader that stops blocks its writer and memory stays bounded.
* A host may stand behind NATs and firewalls (`transport.simulated.nat_model`), and machines behind different
  ones may have equal addresses. Such a host is called by a name: its address with those of its
  NATs before it, "198.51.100.1/10.0.0.2". Links and partitions go by the address under which two
  hosts see each other, so all hosts behind one NAT share that NAT's line to the internet.
* A killed host vanishes: politely (its peers see a reset, as when a process dies) or silently
  (as when power fails: nothing is ever heard again).

How a host opens connections is in `transport.simulated.host`, how bytes wait for their reader in
`transport.simulated.stream`. One alarm clock wakes all readers of the world; arrival times are
rounded up to `tick_s`, so that many share one loop pass.

`trace_digest()` hashes every send, delivery, connection and fault with its time and content;
two equal digests mean two equal runs. `network.statistics()` tells how often each fault fired,
for tests that must not be vacuous.
"""
# ruff: noqa: SLF001  (world, host, listener and stream are one model in four classes)

from __future__ import annotations

import hashlib
import math
import random
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal

import trio

from transport.address import Address
from transport.simulated.host import Attempt, MemoryHost, MemoryListener, MultiHomedHost
from transport.simulated.link_model import LinkModel, LinkSettings
from transport.simulated.nat_model import Nat, NatKind, Refusal
from transport.simulated.nat_topology import Gate, Realm
from transport.simulated.stream import MemoryStream
from transport.wakeup import AlarmClock

__all__ = [
    "LinkSettings",
    "MemoryHost",
    "MemoryListener",
    "MemoryNetwork",
    "MemoryStream",
    "MultiHomedHost",
    "NatKind",
]


class MemoryNetwork:
    """The whole simulated world; `host(ip)` is the network as one machine sees it.

    Args:
        seed: of every random choice made here.
        default: how links behave that nobody has set otherwise.
        window_bytes: bytes in flight and unread per direction of a connection.
        backlog: connections that may wait for `accept` per listener.
        tick_s: arrival times are rounded up to a multiple of this; 0 keeps them exact.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        default: LinkSettings | None = None,
        window_bytes: int = 256 * 1024,
        backlog: int = 128,
        tick_s: float = 0.001,
    ) -> None:
        self.seed = seed
        self.window_bytes = window_bytes
        self.backlog = backlog
        self.tick_s = tick_s
        self._default = LinkSettings() if default is None else default
        self._links: dict[tuple[str, str], LinkModel] = {}
        self._internet = Realm()
        self._gates: dict[Nat, Gate] = {}
        self._hosts: dict[str, MemoryHost] = {}  # by name
        self._attempts: dict[int, Attempt] = {}  # to connect, oldest first
        self._attempt_count = 0
        self._connections: dict[int, tuple[MemoryStream, MemoryStream]] = {}
        self._connection_count = 0
        self._dead: dict[str, Literal["reset", "silent"]] = {}
        self._alarms = AlarmClock()
        self._healing = trio.lowlevel.ParkingLot()  # connection attempts over a blocked link
        self._trace = hashlib.sha256(struct.pack("<q", seed))
        self._statistics: Counter[str] = Counter()

    # The world as tests shape it

    def host(self, ip: str, *, behind: Nat | None = None) -> MemoryHost:
        """Return the network as the machine with address `ip` sees it (created when new).

        Args:
            ip: its own address; machines behind different NATs may have the same.
            behind: what stands between it and the internet.

        Raises:
            UsageError: a NAT has this address.
        """
        realm = self._realm(behind)
        name = realm.name_of(ip)
        host = self._hosts.get(name)
        if host is None:
            host = MemoryHost(self, realm, ip)
            realm.put(ip, host)
            self._hosts[name] = host
        return host

    def nat(
        self,
        public_ip: str,
        kind: NatKind | str,
        *,
        behind: Nat | None = None,
        hairpin: bool = False,
        syn_timeout_s: float = 120.0,
        idle_timeout_s: float = 7440.0,
        closed_timeout_s: float = 120.0,
    ) -> Nat:
        """Put up a NAT or a firewall, for `host(ip, behind=...)`; see `transport.simulated.nat_model`.

        Args:
            public_ip: its outer address. Links and partitions to the hosts behind it are those of this address.
            kind: how it maps and filters.
            behind: another one before it (double NAT).
            hairpin: whether hosts behind it reach each other at the public address.
            syn_timeout_s: life of an unanswered session (seconds).
            idle_timeout_s: life of an open connection without a packet (seconds).
            closed_timeout_s: life of a session after the end of its connection (seconds).

        Raises:
            UsageError: the address is taken.
        """
        realm = self._realm(behind)
        box = Nat(
            public_ip,
            kind,
            rng=self._random("nat", realm.name_of(public_ip)),
            hairpin=hairpin,
            syn_timeout_s=syn_timeout_s,
            idle_timeout_s=idle_timeout_s,
            closed_timeout_s=closed_timeout_s,
        )
        self._gates[box] = realm.behind(box)
        return box

    def reboot_nat(self, nat: Nat, public_ip: str | None = None) -> None:
        """Let a NAT forget everything; it may come back with another public address.

        Connections through it are not told: what either end sends from now on is lost, or meets a reset.
        """
        self._record("nat-reboot", nat.public_ip, public_ip or nat.public_ip)
        nat.reboot()
        if public_ip is not None and public_ip != nat.public_ip:
            gate = self._gates[nat]
            gate.outer.move(gate, public_ip)

    def set_link(self, a: str, b: str, settings: LinkSettings, *, both: bool = True) -> None:
        """Set how bytes travel from host `a` to host `b`, and back if `both`."""
        self._link(a, b).settings = settings
        if both:
            self._link(b, a).settings = settings

    def set_default(self, settings: LinkSettings) -> None:
        """Set how all links behave, including those in use."""
        self._default = settings
        for link in self._links.values():
            link.settings = settings

    def block(self, a: str, b: str) -> None:
        """Blackhole the direction from host `a` to host `b`; bytes wait until `unblock`."""
        self._record("block", a, b)
        self._link(a, b).blocked = True

    def unblock(self, a: str, b: str) -> None:
        """Let bytes travel from host `a` to host `b` again."""
        self._record("unblock", a, b)
        link = self._link(a, b)
        if link.blocked:
            link.blocked = False
            link.healed_at = self._now()
            self._healing.unpark_all()
            for attempt in list(self._attempts.values()):
                attempt.waiter.wake()
            for number in sorted(self._connections):
                pair = self._connections[number]
                if link in (pair[0]._link, pair[1]._link):
                    for stream in pair:
                        stream._wake()

    def partition(self, *groups: Iterable[str]) -> None:
        """Cut every link, both ways, between hosts of different groups."""
        sides = [sorted(group) for group in groups]
        for index, side in enumerate(sides):
            for other in sides[index + 1 :]:
                for a in side:
                    for b in other:
                        self.block(a, b)
                        self.block(b, a)

    def heal(self) -> None:
        """Unblock every link."""
        for a, b in sorted(self._links):
            if self._links[a, b].blocked:
                self.unblock(a, b)

    def kill_host(self, ip: str, *, silent: bool = False) -> None:
        """Remove a host (by its name) with its listeners and connections.

        The streams and listeners on it fail at once. Its peers see a reset, or nothing at all
        if `silent`. Ending the tasks that ran there is the caller's part.
        """
        self._record("kill", ip, "silent" if silent else "reset")
        self._dead[ip] = "silent" if silent else "reset"
        host = self._hosts.get(ip)
        if host is not None:
            for port in sorted(host._listeners):
                host._listeners[port]._close()
        for number in sorted(self._connections):
            pair = self._connections[number]
            for stream in pair:
                if stream._host.name == ip:
                    stream._fail("the host was killed", tell_peer=not silent)

    def revive_host(self, ip: str) -> None:
        """Bring a killed host back, with no memory of its connections."""
        self._record("revive", ip)
        self._dead.pop(ip, None)
        for number in sorted(self._connections):
            for stream in self._connections[number]:
                if stream._host.name == ip and stream._broken and stream._peer._in_window > 0:
                    stream._tell_reset()  # its retransmissions now meet a kernel that answers

    def reset_connections(self, a: str, b: str) -> int:
        """Reset every connection between two hosts; returns how many there were."""
        count = 0
        for number in sorted(self._connections):
            first, second = self._connections[number]
            if {first._host.name, second._host.name} == {a, b}:
                first._fail("connection reset", tell_peer=True)
                count += 1
        return count

    # What happened

    def trace_digest(self) -> bytes:
        """Return the SHA-256 over everything that has happened so far, in order."""
        return self._trace.digest()

    def statistics(self) -> Mapping[str, int]:
        """Count events by kind: connect, send, deliver, stall, reset, split, kill, ..."""
        return dict(self._statistics)

    @property
    def open_connections(self) -> int:
        """Connections with at least one end still open."""
        return len(self._connections)

    # Internals

    @staticmethod
    def _now() -> float:
        """Return the trio time, or 0.0 while the world is being built outside of a run."""
        return trio.current_time() if trio.lowlevel.in_trio_run() else 0.0

    def _realm(self, nat: Nat | None) -> Realm:
        return self._internet if nat is None else self._gates[nat].inner

    def _link(self, a: str, b: str) -> LinkModel:
        link = self._links.get((a, b))
        if link is None:
            link = self._links[a, b] = LinkModel(self._default)
        return link

    def _record(self, kind: str, *details: object) -> None:
        self._statistics[kind] += 1
        text = "|".join(map(str, details))
        self._trace.update(f"{self._now():.9f} {kind} {text}\n".encode())

    def _arrival(self, when: float) -> float:
        if self.tick_s <= 0 or when <= trio.current_time():
            return when
        return math.ceil(when / self.tick_s) * self.tick_s

    def _random(self, *purpose: object) -> random.Random:
        """Give each user its own generator, so that one's draws do not shift another's."""
        text = "/".join(map(str, (self.seed, *purpose)))
        return random.Random(hashlib.sha256(text.encode()).digest())

    async def _travel(self, link: LinkModel) -> None:
        """Sleep until something sent over `link` now would arrive."""
        delay = link.settings.latency_s
        if delay > 0:
            await trio.sleep_until(self._arrival(trio.current_time() + delay))
        while link.blocked:
            await self._healing.park()

    def _new_attempt(self, local: Address, target: Address) -> Attempt:
        attempt = Attempt(self._attempt_count, local, target)
        self._attempt_count += 1
        self._attempts[attempt.number] = attempt
        return attempt

    def _new_number(self) -> int:
        self._connection_count += 1
        return self._connection_count - 1

    def _connected(self, client: MemoryStream, server: MemoryStream) -> None:
        self._connections[client._number] = (client, server)
        self._record("connect", client._number, client.local, client.remote)

    def _refused(self, refusal: Refusal, local: Address, target: Address) -> Refusal:
        self._record(f"syn-{refusal}", local, target)
        return refusal
