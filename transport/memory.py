"""A seeded network in memory: latency, bandwidth, loss, partitions, crashes, virtual time.

Problem: to trust fault handling one must see thousands of faults, each repeatable. Idea: an
implementation of the `transport.network` seam in which every delay and fault is drawn from
generators derived from one seed, so that a run under `transport.deterministic` is a pure
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
* A killed host vanishes: politely (its peers see a reset, as when a process dies) or silently
  (as when power fails: nothing is ever heard again).

Nothing moves the bytes: a chunk lies in the receiver's inbox with its arrival time, and the
reader sleeps until then. One alarm clock wakes all readers of the world; arrival times are
rounded up to `tick_s`, so that many share one loop pass.

`trace_digest()` hashes every send, delivery, connection and fault with its time and content;
two equal digests mean two equal runs. `network.statistics()` tells how often each fault fired,
for tests that must not be vacuous.
"""
# ruff: noqa: SLF001  (world, host, listener and stream are one model in four classes)

import hashlib
import math
import random
import struct
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import Final, Literal

import trio

from transport.address import Address
from transport.buffer import Buffer
from transport.errors import AddressInUse, ConnectFailed, ListenFailed
from transport.link_model import LinkModel, LinkSettings
from transport.network import Network, RawListener, RawStream
from transport.wakeup import AlarmClock

FIRST_EPHEMERAL_PORT: Final = 49152
CONNECT_TIMEOUT_S: Final = 127.0
"""How long Linux retries a SYN by default (tcp_syn_retries = 6)."""


def _now() -> float:
    """Return the trio time, or 0.0 while the world is being built outside of a run."""
    return trio.current_time() if trio.lowlevel.in_trio_run() else 0.0


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
        self._hosts: dict[str, MemoryHost] = {}
        self._listeners: dict[Address, MemoryListener] = {}
        self._connections: dict[int, tuple[MemoryStream, MemoryStream]] = {}
        self._connection_count = 0
        self._dead: dict[str, Literal["reset", "silent"]] = {}
        self._alarms = AlarmClock()
        self._healing = trio.lowlevel.ParkingLot()  # connection attempts over a blocked link
        self._trace = hashlib.sha256(struct.pack("<q", seed))
        self._statistics: Counter[str] = Counter()

    # The world as tests shape it

    def host(self, ip: str) -> "MemoryHost":
        """Return the network as the machine with address `ip` sees it (created when new)."""
        host = self._hosts.get(ip)
        if host is None:
            host = self._hosts[ip] = MemoryHost(self, ip)
        return host

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
            link.healed_at = _now()
            self._healing.unpark_all()
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
        """Remove a host with its listeners and connections.

        The streams and listeners on it fail at once. Its peers see a reset, or nothing at all
        if `silent`. Ending the tasks that ran there is the caller's part.
        """
        self._record("kill", ip, "silent" if silent else "reset")
        self._dead[ip] = "silent" if silent else "reset"
        for address in sorted(self._listeners):
            if address.host == ip:
                self._listeners[address]._close()
        for number in sorted(self._connections):
            pair = self._connections[number]
            for stream in pair:
                if stream.local.host == ip:
                    stream._fail("the host was killed", tell_peer=not silent)

    def revive_host(self, ip: str) -> None:
        """Bring a killed host back, with no memory of its connections."""
        self._record("revive", ip)
        self._dead.pop(ip, None)
        for number in sorted(self._connections):
            for stream in self._connections[number]:
                if stream.local.host == ip and stream._broken and stream._peer._in_window > 0:
                    stream._tell_reset()  # its retransmissions now meet a kernel that answers

    def reset_connections(self, a: str, b: str) -> int:
        """Reset every connection between two hosts; returns how many there were."""
        count = 0
        for number in sorted(self._connections):
            first, second = self._connections[number]
            if {first.local.host, second.local.host} == {a, b}:
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

    def _link(self, a: str, b: str) -> LinkModel:
        link = self._links.get((a, b))
        if link is None:
            link = self._links[a, b] = LinkModel(self._default)
        return link

    def _record(self, kind: str, *details: object) -> None:
        self._statistics[kind] += 1
        text = "|".join(map(str, details))
        self._trace.update(f"{_now():.9f} {kind} {text}\n".encode())

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

    async def _connect(self, host: "MemoryHost", address: Address) -> "MemoryStream":
        there, back = self._link(host.ip, address.host), self._link(address.host, host.ip)
        backoff_s = 1.0
        while True:
            await self._travel(there)
            listener = self._listeners.get(address)
            if self._dead.get(address.host) == "silent":
                await trio.sleep_forever()
            if listener is None:
                await self._travel(back)
                raise ConnectFailed("connection refused")
            if len(listener._waiting) < self.backlog:
                break
            await trio.sleep(backoff_s)  # Linux drops the SYN when the queue is full
            backoff_s *= 2
        if host.ip in self._dead:
            raise ConnectFailed("network is down")
        number = self._connection_count
        self._connection_count += 1
        local = Address(host=host.ip, port=host._ephemeral_port())
        outbound, inbound = self._random(number, "out"), self._random(number, "in")
        client = MemoryStream(self, number, there, outbound, local=local, remote=address)
        server = MemoryStream(self, number, back, inbound, local=address, remote=local)
        client._peer, server._peer = server, client
        self._connections[number] = (client, server)
        self._record("connect", number, local, address)
        listener._waiting.append(server)
        listener._lot.unpark()
        try:
            await self._travel(back)
        except BaseException:
            client.abort()
            raise
        return client


class MemoryHost(Network):
    """The network as one machine sees it; made by `MemoryNetwork.host`."""

    def __init__(self, world: MemoryNetwork, ip: str) -> None:
        self.world = world
        self.ip = ip
        self._next_port = FIRST_EPHEMERAL_PORT

    def __repr__(self) -> str:
        return f"<MemoryHost {self.ip}>"

    async def connect(self, address: Address, *, source: Address | None = None) -> RawStream:
        """See `Network.connect`; takes one round trip."""
        await trio.lowlevel.checkpoint()
        if self.ip in self.world._dead:
            raise ConnectFailed("network is down")
        with trio.move_on_after(CONNECT_TIMEOUT_S):
            return await self.world._connect(self, address)
        raise ConnectFailed("connection timed out")

    async def listen(self, address: Address) -> RawListener:
        """See `Network.listen`; the host part must be this host, or 0.0.0.0 for it."""
        await trio.lowlevel.checkpoint()
        if self.ip in self.world._dead:
            raise ListenFailed(f"cannot listen on {address}: network is down")
        if address.host not in ("0.0.0.0", "::", self.ip):  # noqa: S104
            raise ListenFailed(f"cannot listen on {address}: this host is {self.ip}")
        port = address.port
        while port == 0 or (
            address.port == 0 and Address(host=self.ip, port=port) in self.world._listeners
        ):
            port = self._ephemeral_port()
        bound = Address(host=self.ip, port=port)
        if bound in self.world._listeners:
            raise AddressInUse(f"cannot listen on {address}: the address is already in use")
        listener = MemoryListener(self.world, bound)
        self.world._listeners[bound] = listener
        self.world._record("listen", bound)
        return listener

    def _ephemeral_port(self) -> int:
        port = self._next_port
        self._next_port = port + 1 if port < 65535 else FIRST_EPHEMERAL_PORT
        return port


class MemoryListener(RawListener):
    """A listening address of a simulated host."""

    def __init__(self, world: MemoryNetwork, address: Address) -> None:
        self._world = world
        self.address = address
        self._waiting: deque[MemoryStream] = deque()  # bounded by world.backlog
        self._lot = trio.lowlevel.ParkingLot()
        self._closed = False

    async def accept(self) -> RawStream:
        """See `RawListener.accept`."""
        await trio.lowlevel.checkpoint()
        while not self._closed and not self._waiting:
            await self._lot.park()
        if self._closed:
            raise trio.ClosedResourceError
        return self._waiting.popleft()

    async def aclose(self) -> None:
        """See `RawListener.aclose`; connections nobody accepted are reset."""
        self._close()
        await trio.lowlevel.checkpoint()

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._world._listeners.get(self.address) is self:
                del self._world._listeners[self.address]
            while self._waiting:
                self._waiting.popleft().abort()
            self._lot.unpark_all()


class MemoryStream(RawStream):
    """One end of a simulated connection.

    The sending half of this end is the receiving half of the other: chunks lie in the
    *receiver's* `_inbox`, stamped with their arrival times.
    """

    def __init__(
        self,
        world: MemoryNetwork,
        number: int,
        link: LinkModel,
        rng: random.Random,
        *,
        local: Address,
        remote: Address,
    ) -> None:
        self._world = world
        self._number = number
        self.local = local
        self.remote = remote
        self._link = link  # from here to the other end
        self._rng = rng  # for what this end sends
        self._peer: MemoryStream
        self._inbox: deque[tuple[float, bytes]] = deque()  # bounded by the sender's window
        self._offset = 0  # bytes already read of the first chunk
        self._last_arrival = -math.inf  # of what the other end has sent so far
        self._in_window = 0  # bytes we have sent and whose credit has not come back
        self._credits: deque[tuple[float, int]] = deque()  # (time it is back here, bytes)
        self._finished_at: float | None = None  # the other end closed; its FIN arrives then
        self._reset_at: float | None = None  # the other end was reset; we notice then
        self._closed = False
        self._broken = ""  # why, once we have noticed
        self._sending = self._receiving = False
        self._readers = trio.lowlevel.ParkingLot()
        self._writers = trio.lowlevel.ParkingLot()

    def __repr__(self) -> str:
        return f"<MemoryStream {self._number} {self.local} -> {self.remote}>"

    async def send_all(self, data: Buffer) -> None:
        """See `RawStream.send_all`."""
        self._check()
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this connection")
        self._sending = True
        try:
            await trio.lowlevel.checkpoint_if_cancelled()  # the window makes us yield in the end
            with memoryview(data).cast("B") as view:
                done = 0
                while done < len(view):
                    await self._wait_window()
                    room = self._world.window_bytes - self._in_window
                    chunk = bytes(view[done : done + room])
                    self._emit(chunk)
                    done += len(chunk)
        finally:
            self._sending = False
        self._check()

    async def receive_into(self, buffer: memoryview) -> int:
        """See `RawStream.receive_into`."""
        assert len(buffer) > 0
        self._check()
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving on this connection")
        self._receiving = True
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            waited = False
            while True:
                self._check()
                now = trio.current_time()
                inbound = self._peer._link
                wake_at = math.inf
                if self._inbox:
                    wake_at = inbound.redelivery(self._inbox[0][0])
                    if wake_at <= now and not inbound.blocked:
                        count = self._take(buffer, now)
                        if not waited:
                            await trio.lowlevel.cancel_shielded_checkpoint()
                        return count
                elif self._finished_at is not None:
                    wake_at = inbound.redelivery(self._finished_at)
                    if wake_at <= now and not inbound.blocked:
                        return 0
                await self._wait(self._readers, wake_at, inbound)
                waited = True
        finally:
            self._receiving = False

    async def aclose(self) -> None:
        """See `RawStream.aclose`."""
        if not self._closed and not self._broken:
            unread = bool(self._inbox)
            if unread:  # like the kernel: closing with unread bytes is a reset
                self._tell_reset()
            else:
                self._peer._finished_at = self._stamp(0)
                self._peer._readers.unpark_all()
        self._close()
        await trio.lowlevel.checkpoint()

    def abort(self) -> None:
        """See `RawStream.abort`."""
        if not self._closed and not self._broken:
            self._tell_reset()
        self._close()

    # Internals

    def _check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError
        if not self._broken and self._reset_at is not None:
            inbound = self._peer._link
            due = self._peer._link.redelivery(self._reset_at)
            if due <= trio.current_time() and not inbound.blocked:
                self._fail("connection reset by peer", tell_peer=False)
        if self._broken:
            raise trio.BrokenResourceError(self._broken)

    def _stamp(self, size: int) -> float:
        """Return when `size` bytes sent now arrive at the other end, never before earlier ones."""
        arrival, stalled = self._link.arrival(trio.current_time(), size, self._rng)
        if stalled:
            self._world._record("stall", self._number)
        peer = self._peer
        peer._last_arrival = max(peer._last_arrival, self._world._arrival(arrival))
        return peer._last_arrival

    def _emit(self, chunk: bytes) -> None:
        reset = self._link.settings.reset
        if reset > 0 and self._rng.random() < reset:
            self._world._record("reset", self._number)
            self._fail("connection reset", tell_peer=True)
            self._check()
        peer = self._peer
        self._world._record("send", self._number, self.local.port, len(chunk), zlib.crc32(chunk))
        if peer._closed or peer._broken:
            if self._world._dead.get(peer.local.host) == "silent":
                self._in_window += len(chunk)  # nobody will ever acknowledge it
            elif self._reset_at is None:
                # The other kernel answers data for a closed socket with a reset.
                self._reset_at = self._stamp(len(chunk)) + peer._link.settings.latency_s
                self._readers.unpark_all()
            return
        self._in_window += len(chunk)
        arrival = self._stamp(len(chunk))
        peer._inbox.append((arrival, chunk))
        if len(peer._inbox) == 1:
            peer._readers.unpark_all()

    def _take(self, buffer: memoryview, now: float) -> int:
        """Move what has arrived into `buffer` and send the credit back."""
        limit, settings = len(buffer), self._peer._link.settings
        if settings.split > 0 and self._rng.random() < settings.split:
            limit = self._rng.randint(1, min(limit, max(1, len(self._inbox[0][1]))))
            self._world._record("split", self._number)
        count = 0
        while count < limit and self._inbox and self._inbox[0][0] <= now:
            chunk = self._inbox[0][1]
            part = min(limit - count, len(chunk) - self._offset)
            buffer[count : count + part] = memoryview(chunk)[self._offset : self._offset + part]
            count += part
            self._offset += part
            if self._offset == len(chunk):
                self._inbox.popleft()
                self._offset = 0
        self._world._record("deliver", self._number, self.local.port, count)
        peer = self._peer
        peer._credits.append((now + self._link.settings.latency_s, count))
        peer._writers.unpark_all()
        return count

    async def _wait_window(self) -> None:
        """Wait until at least one byte may be sent."""
        while True:
            self._check()
            now = trio.current_time()
            back = self._peer._link
            while self._credits and self._credits[0][0] <= now and not back.blocked:
                self._in_window -= self._credits.popleft()[1]
            if self._in_window < self._world.window_bytes:
                return
            wake_at = self._credits[0][0] if self._credits else math.inf
            await self._wait(self._writers, wake_at, back)

    async def _wait(self, lot: trio.lowlevel.ParkingLot, until: float, link: LinkModel) -> None:
        """Sleep until `until`, or until the lot or the healing of `link` wakes us."""
        if self._reset_at is not None:
            until = min(until, self._peer._link.redelivery(self._reset_at))
        if link.blocked:
            until = math.inf  # nothing comes through it, not even a reset; healing wakes us
        if until != math.inf:
            self._world._alarms.set(until, lot.unpark_all)
        await lot.park()

    def _wake(self) -> None:
        self._readers.unpark_all()
        self._writers.unpark_all()

    def _tell_reset(self) -> None:
        peer = self._peer
        if not peer._closed and not peer._broken and peer._reset_at is None:
            # A reset overtakes the bytes still in flight: what is not read by then is lost.
            peer._reset_at = self._world._arrival(
                trio.current_time() + self._link.settings.latency_s
            )
            peer._wake()

    def _fail(self, reason: str, *, tell_peer: bool) -> None:
        """Break this end for a reason other than a local close."""
        if self._closed or self._broken:
            return
        if tell_peer:
            self._tell_reset()
        self._broken = reason
        self._release()

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            self._release()

    def _release(self) -> None:
        self._inbox.clear()
        self._credits.clear()
        self._wake()
        peer = self._peer
        if peer._closed or peer._broken:
            self._world._connections.pop(self._number, None)
