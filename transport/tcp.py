"""Kernel TCP behind the `transport.network` seam.

Problem: trio's `SocketStream` allocates for every receive and makes a scheduler pass for every
call, which costs more than encrypting the data. Idea: try the system call first and ask trio to
wait only when the kernel says "would block". To keep the loop fair, an operation that finds its
stream has gone a millisecond (or 64 calls) without waiting makes a checkpoint *after* its system
call, when the bytes are already on their way and nobody is delayed by it.

Socket options and their reasons:

* TCP_NODELAY: we write whole records; Nagle would only add a round trip.
* TCP_USER_TIMEOUT and keepalive: a vanished peer fails a blocked send within seconds instead of
  the default quarter of an hour. The heartbeats of a control connection notice sooner; this is
  the net under them.
* TCP_NOTSENT_LOWAT: keeps little unsent data in the kernel, so that an urgent frame does not
  queue behind megabytes (measured: control round trip 12 ms instead of 50 on a busy link).
* SO_MAX_PACING_RATE on bulk connections over long paths: see `_pace` (measured over 100 ms and 1 Gbit/s:
  an all-reduce of 64 MiB over five connections at 610 Mbit/s without, at 750 with it).
* SO_REUSEADDR on listeners: a restarted daemon gets its port back at once. It does not allow two
  live listeners on one port on Linux.
* SO_REUSEPORT on listeners, but only once they listen: bind(2) and listen(2) without it refuse a
  port that anybody listens on, also another node of the same user; afterwards it lets our own
  dials leave from the same port (`connect(source=)`), which set it before bind(2). Linux looks at
  the listener's option when the second socket is bound, not when the first was (measured, 6.18).
"""

import errno
import functools
import os
import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from transport.address import Address
from transport.buffer import Buffer
from transport.connect.source import SourceBusy
from transport.errors import AddressInUse, ConnectFailed, ConnectionBroken, ListenFailed
from transport.network import AcceptOverloaded, Network, PathState, RawListener, RawStream
from transport.stretch import Stretch

SEND_SLICE_BYTES: Final = 4 << 20
"""The most handed to one send call: at 4 GB/s one call stays within the millisecond."""

BACKLOG: Final = 256
USER_TIMEOUT_MS: Final = 20_000
KEEPALIVE_IDLE_S: Final = 15
KEEPALIVE_INTERVAL_S: Final = 5
KEEPALIVE_PROBES: Final = 3
NOTSENT_LOWAT_BYTES: Final = 256 << 10
UNKNOWN_RTT_US: Final = 1 << 31
UNPACED_BELOW_US: Final = 1000
"""Round trip under which a connection within one machine asks for Reno, which every kernel allows: where
the system's default paces (BBR does, with a timer per burst), an all-reduce of 64 MiB over loopback
cost 38 ms instead of 30 between two peers and 119 instead of 90 between four. Other paths keep the
default, however short they are: it copes better with loss, and it leaves shorter queues (a control
round trip beside bulk that filled 200 Mbit/s took 5 ms instead of 9)."""
LONG_PATH_US: Final = 20_000
"""Round trip from which a bulk connection has its rate bounded by what its send buffer lasts for."""
USED_SHARE: Final = 5 / 6
"""Of a full send buffer on average: the kernel wakes the writer when a third of it is free."""
SEND_BUFFERS: Final = "/proc/sys/net/ipv4/tcp_wmem"
_SO_MAX_PACING_RATE: Final = 47
"""Not in the socket module; asm-generic/socket.h, which x86 and ARM use."""
BULK_LOWAT_BYTES: Final = 2 << 20
"""For bulk links, which have no urgent frames: a transfer of 1 MiB need not wait twice to be sent
(measured: an all-reduce of 1 MiB between two peers took half the time)."""

OVERLOADED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
"""What accept(2) returns when the system, not the connection, is the problem."""

LASTING_ERRORS: Final = frozenset(
    {
        errno.ENETUNREACH,
        errno.EAFNOSUPPORT,
        errno.EADDRNOTAVAIL,
        errno.EINVAL,
        errno.EACCES,
        errno.EPERM,
    }
)
"""Causes of a failed connect(2) that lie with this machine and do not change within seconds."""

CONNECTION_ERRORS: Final = frozenset(
    {
        errno.ECONNABORTED,
        errno.EPROTO,
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
        errno.EPERM,
        errno.ETIMEDOUT,
    }
)
"""What accept(2) reports on behalf of one dead connection (accept(2), "Error handling")."""


def _reason(error: OSError) -> str:
    """A few lower-case words: "connection refused"."""
    text = error.strerror or str(error) or type(error).__name__
    return text[:1].lower() + text[1:]


def _address_of(sockaddr: tuple[str, int] | tuple[str, int, int, int]) -> Address:
    return Address(host=sockaddr[0], port=sockaddr[1])


def _configure(sock: socket.socket) -> None:
    """Set the options of a connected stream; each is an improvement, none is vital."""
    for level, option, value in (
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, getattr(socket, "TCP_KEEPIDLE", None), KEEPALIVE_IDLE_S),
        (socket.IPPROTO_TCP, getattr(socket, "TCP_KEEPINTVL", None), KEEPALIVE_INTERVAL_S),
        (socket.IPPROTO_TCP, getattr(socket, "TCP_KEEPCNT", None), KEEPALIVE_PROBES),
        (socket.IPPROTO_TCP, getattr(socket, "TCP_USER_TIMEOUT", None), USER_TIMEOUT_MS),
        (socket.IPPROTO_TCP, getattr(socket, "TCP_NOTSENT_LOWAT", None), NOTSENT_LOWAT_BYTES),
    ):
        if option is not None:
            with suppress(OSError):
                sock.setsockopt(level, option, value)


def _family_of(address: Address) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address.host else socket.AF_INET


def _share_port(sock: socket.socket) -> None:
    """Let dials of ours leave from this socket's port; without it they use another."""
    option = getattr(socket, "SO_REUSEPORT", None)
    if option is not None:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, option, 1)


def _bind_beside_listener(sock: socket.socket, source: Address) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    _share_port(sock)
    try:
        sock.bind((source.host, source.port))
    except OSError as error:
        raise SourceBusy(f"cannot dial from {source}: {_reason(error)}") from error


TCPI_RTT, TCPI_BYTES_ACKED, TCPI_MIN_RTT, TCPI_BUSY_TIME, TCP_INFO_BYTES = 68, 120, 148, 168, 176
"""Offsets in struct tcp_info, and as much of it as is asked for."""


def _tcp_info(sock: socket.socket, size: int) -> bytes | None:
    """The start of the kernel's struct tcp_info (linux/tcp.h); None where it has less."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
    return info if len(info) >= size else None


def _uint32(info: bytes, offset: int) -> int:
    return int.from_bytes(info[offset : offset + 4], sys.byteorder)


def _round_trip_us(sock: socket.socket) -> int:
    """The least round trip the kernel has seen (linux/tcp.h, tcpi_min_rtt); large when unknown.

    Not the smoothed one: right after a handshake that is mostly the peer's delayed acknowledgement.
    """
    info = _tcp_info(sock, TCPI_MIN_RTT + 4)
    return UNKNOWN_RTT_US if info is None else _uint32(info, TCPI_MIN_RTT)


def _spare_pacing(sock: socket.socket, local: Address, remote: Address) -> None:
    """Do without a timer per burst where there is no network to be fair to."""
    congestion = getattr(socket, "TCP_CONGESTION", None)
    if congestion is not None and local.host == remote.host:
        with suppress(OSError):
            if _round_trip_us(sock) < UNPACED_BELOW_US:
                sock.setsockopt(socket.IPPROTO_TCP, congestion, b"reno")


@functools.cache
def _largest_send_buffer() -> int:
    """Bytes to which the kernel lets a send buffer grow; 0 when it does not say."""
    try:
        return int(Path(SEND_BUFFERS).read_text().split()[2])
    except (OSError, ValueError, IndexError):
        return 0


class TcpStream(RawStream):
    """A connected socket; also used on Unix stream sockets (socketpair) by tests."""

    def __init__(self, sock: socket.socket, local: Address, remote: Address) -> None:
        """Take ownership of a connected, non-blocking socket."""
        self._sock: socket.socket | None = sock
        self.local = local
        self.remote = remote
        _spare_pacing(sock, local, remote)
        self._sending = self._receiving = False
        self._sent, self._received = Stretch(), Stretch()
        self._bulk = False
        self._paced_at = 0.0  # bytes per second; 0.0 on short paths
        self._least_rtt_us = UNKNOWN_RTT_US

    def __repr__(self) -> str:
        return f"<TcpStream {self.local} -> {self.remote}{'' if self._sock else ' closed'}>"

    async def send_all(self, data: Buffer) -> None:
        """See `RawStream.send_all`. After a cancellation an unknown prefix has been sent."""
        sock = self._sock
        if sock is None:
            raise trio.ClosedResourceError
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this connection")
        await trio.lowlevel.checkpoint_if_cancelled()
        self._sending = True
        try:
            with memoryview(data).cast("B") as view:
                done, size = 0, len(view)
                while done < size:
                    try:
                        done += sock.send(view[done : done + SEND_SLICE_BYTES])
                    except BlockingIOError:
                        await trio.lowlevel.wait_writable(sock)
                        self._sent.rested()
                        if self._sock is None:
                            raise trio.ClosedResourceError from None
                        continue
                    if self._sent.hogs():
                        # Shielded: the bytes are gone, a cancellation must not deny it.
                        await trio.lowlevel.cancel_shielded_checkpoint()
                        self._sent.rested()
                        if self._sock is None:
                            raise trio.ClosedResourceError
        except OSError as error:
            raise trio.BrokenResourceError(_reason(error)) from error
        finally:
            self._sending = False

    can_send_now = True

    def send_now(self, data: memoryview) -> int:
        """See `RawStream.send_now`."""
        if self._sock is None or self._sending:
            return 0
        try:
            return self._sock.send(data)
        except OSError:
            return 0

    def receive_now(self, buffer: memoryview) -> int:
        """See `RawStream.receive_now`."""
        if self._sock is None or self._receiving:
            return 0
        try:
            return self._sock.recv_into(buffer)
        except OSError:
            return 0

    async def receive_into(self, buffer: memoryview) -> int:
        """See `RawStream.receive_into`."""
        sock = self._sock
        if sock is None:
            raise trio.ClosedResourceError
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving on this connection")
        await trio.lowlevel.checkpoint_if_cancelled()
        self._receiving = True
        try:
            while True:
                try:
                    count = sock.recv_into(buffer)
                except BlockingIOError:
                    await trio.lowlevel.wait_readable(sock)
                    self._received.rested()
                    if self._sock is None:
                        raise trio.ClosedResourceError from None
                    continue
                if self._received.hogs():
                    await trio.lowlevel.cancel_shielded_checkpoint()
                    self._received.rested()
                return count
        except OSError as error:
            raise trio.BrokenResourceError(_reason(error)) from error
        finally:
            self._receiving = False

    def sending_measure(self) -> tuple[float, int] | None:
        """See `RawStream.sending_measure`: the kernel keeps it (linux/tcp.h, tcp_info from Linux 4.10)."""
        info = self._kernel_says()
        if info is None:
            return None
        (acknowledged,) = struct.unpack_from("=Q", info, TCPI_BYTES_ACKED)
        (busy_us,) = struct.unpack_from("=Q", info, TCPI_BUSY_TIME)
        return busy_us / 1e6, acknowledged

    def path_state(self) -> PathState | None:
        """See `RawStream.path_state`; of long paths."""
        info = self._kernel_says()
        if info is None or not self._paced_at:
            return None
        return PathState(self._paced_at, _uint32(info, TCPI_RTT) / max(1, self._least_rtt_us))

    def _kernel_says(self) -> bytes | None:
        """The kernel's state of the connection, as far as it is used."""
        if self._sock is None:
            return None
        try:
            info = _tcp_info(self._sock, TCP_INFO_BYTES)
        except OSError:
            return None
        if info is not None and self._bulk:
            self._pace(_uint32(info, TCPI_MIN_RTT))
        return info

    def expect_bulk(self) -> None:
        """See `RawStream.expect_bulk`; what the kernel does not offer is left as it is."""
        if self._sock is None:
            return
        self._bulk = True
        lowat = getattr(socket, "TCP_NOTSENT_LOWAT", None)
        with suppress(OSError):
            if lowat is not None:
                self._sock.setsockopt(socket.IPPROTO_TCP, lowat, BULK_LOWAT_BYTES)
        self._kernel_says()

    def _pace(self, least_rtt_us: int) -> None:
        """Over a long path send no faster than the send buffer lasts for.

        More it does not carry on average, but BBR takes a connection that waits for room in its buffer for one without
        data, so it never leaves its start and sends at three times the rate in bursts, which several such connections lose
        in the line's queue.
        """
        if not LONG_PATH_US <= least_rtt_us < self._least_rtt_us or self._sock is None:
            return
        rate = USED_SHARE * _largest_send_buffer() / (least_rtt_us / 1e6)
        with suppress(OSError):
            if rate:
                self._sock.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, int(rate))
                self._paced_at, self._least_rtt_us = rate, least_rtt_us

    async def aclose(self) -> None:
        """See `RawStream.aclose`."""
        self._close()
        await trio.lowlevel.checkpoint()

    def abort(self) -> None:
        """See `RawStream.abort`."""
        if self._sock is not None:
            with suppress(OSError):  # a zero linger makes close(2) send RST and forget the data
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._close()

    def _close(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            trio.lowlevel.notify_closing(sock)
            sock.close()


class TcpListener(RawListener):
    """A listening socket with one descriptor kept in reserve for the day they run out."""

    def __init__(self, sock: socket.socket, address: Address) -> None:
        """Take ownership of a listening, non-blocking socket."""
        self._sock: socket.socket | None = sock
        self.address = address
        self._spare: int | None = None
        self._refill()

    async def accept(self) -> RawStream:
        """See `RawListener.accept`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            if self._sock is None:
                raise trio.ClosedResourceError
            try:
                sock, sockaddr = self._sock.accept()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
                continue
            except OSError as error:
                if error.errno in OVERLOADED:
                    name = errno.errorcode.get(error.errno, str(error.errno))
                    raise AcceptOverloaded(name, shed=self._shed()) from error
                if error.errno in CONNECTION_ERRORS:
                    await trio.lowlevel.checkpoint()
                    continue
                raise ConnectionBroken(
                    f"listener on {self.address} failed: {_reason(error)}"
                ) from error
            try:
                sock.setblocking(False)
                _configure(sock)
                return TcpStream(sock, _address_of(sock.getsockname()), _address_of(sockaddr))
            except OSError:  # reset before we could look at it
                sock.close()
                await trio.lowlevel.checkpoint()
            except BaseException:
                sock.close()
                raise

    def _refill(self) -> None:
        if self._spare is None:
            with suppress(OSError):
                self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _shed(self) -> bool:
        """Turn one waiting connection away with the spare descriptor.

        Without this the kernel completes connections that nobody will ever answer: the clients
        hang until their own timeouts instead of trying another node.
        """
        if self._spare is None or self._sock is None:
            self._refill()
            return False
        os.close(self._spare)
        self._spare = None
        try:
            sock, _ = self._sock.accept()
        except OSError:
            return False
        else:
            sock.close()
            return True
        finally:
            self._refill()

    async def aclose(self) -> None:
        """See `RawListener.aclose`."""
        sock, self._sock = self._sock, None
        if sock is not None:
            trio.lowlevel.notify_closing(sock)
            sock.close()
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None
        await trio.lowlevel.checkpoint()


class TcpNetwork(Network):
    """The machine's own TCP stack."""

    async def resolve(self, address: Address) -> Sequence[Address]:
        """Look a name up (in a thread; a numeric host costs nothing)."""
        return [_address_of(sockaddr) for _, sockaddr in await self._lookup(address)]

    async def connect(self, address: Address, *, source: Address | None = None) -> RawStream:
        """Open a connection; the addresses of a name are tried one after another.

        Race them with `resolve` where time matters.

        Raises:
            SourceBusy: `source` already has a connection with `address`, perhaps one that waits in
                our listener; or `source` is not ours to dial from.
        """
        failures: list[OSError] = []
        for family, sockaddr in await self._lookup(address):
            if source is not None and family != _family_of(source):
                continue
            try:
                return await self._connect_one(family, sockaddr, source)
            except OSError as error:
                failures.append(error)
        reasons = dict.fromkeys(map(_reason, failures))
        raise ConnectFailed(
            "; ".join(reasons) or "no address to dial",
            lasting=all(failure.errno in LASTING_ERRORS for failure in failures),
        )

    async def listen(self, address: Address) -> RawListener:
        """Bind and listen; 0.0.0.0 and [::] mean all interfaces of their kind."""
        try:
            found = await self._lookup(address)
        except ConnectFailed as error:
            raise ListenFailed(f"cannot listen on {address}: {error}") from error
        family, sockaddr = found[0]
        sock = self._open_socket(family)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(sockaddr)
            sock.listen(BACKLOG)
            _share_port(sock)
            return TcpListener(sock, _address_of(sock.getsockname()))
        except OSError as error:
            sock.close()
            if error.errno == errno.EADDRINUSE:
                raise AddressInUse(
                    f"cannot listen on {address}: the address is already in use",
                    hint=f"another program has port {address.port}: stop it, or choose another",
                ) from error
            hint = ""
            if error.errno == errno.EADDRNOTAVAIL:
                hint = "this machine has no such address; 0.0.0.0 listens on all of them"
            elif error.errno == errno.EACCES:
                hint = "ports below 1024 need privileges; choose a higher one"
            raise ListenFailed(
                f"cannot listen on {address}: {_reason(error)}", hint=hint
            ) from error
        except BaseException:
            sock.close()
            raise

    async def _lookup(self, address: Address) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
        kind = socket.SOCK_STREAM
        try:
            try:
                infos = socket.getaddrinfo(
                    address.host,
                    address.port,
                    type=kind,
                    flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                )
            except socket.gaierror:  # a name: the resolver may block, so trio asks it in a thread
                infos = await trio.socket.getaddrinfo(address.host, address.port, type=kind)
        except OSError as error:
            raise ConnectFailed(
                _reason(error), hint="check the spelling of the host name"
            ) from error
        except UnicodeError as error:
            raise ConnectFailed("not a host name") from error
        unique = dict.fromkeys((family, sockaddr) for family, _, _, _, sockaddr in infos)
        return [(family, sockaddr) for family, sockaddr in unique]  # type: ignore[misc]

    def _open_socket(self, family: socket.AddressFamily) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        return sock

    async def _connect_one(
        self, family: socket.AddressFamily, sockaddr: tuple[str, int], source: Address | None
    ) -> RawStream:
        sock = self._open_socket(family)
        try:
            _configure(sock)
            if source is not None:
                _bind_beside_listener(sock, source)
            code = sock.connect_ex(sockaddr)
            if source is not None and code in (errno.EADDRNOTAVAIL, errno.EADDRINUSE):
                raise SourceBusy("a connection between the same two ports exists already")
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
            await trio.lowlevel.wait_writable(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code != 0:
                raise OSError(code, os.strerror(code))
            local, remote = sock.getsockname(), sock.getpeername()
            if local == remote:
                # TCP's simultaneous open with itself: an ephemeral port dialled its own number.
                raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
            return TcpStream(sock, _address_of(local), _address_of(remote))
        except BaseException:
            sock.close()
            raise
