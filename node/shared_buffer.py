"""The shared vectors: one anonymous piece of memory that daemon and trainer both see.

Problem: a round hands hundreds of megabytes from the trainer to the daemon and back. Sending them
through the socket would copy them twice and stall the event loop.

Idea: the daemon makes an anonymous file (`memfd_create`), passes its descriptor once over the Unix
socket (SCM_RIGHTS), and both sides map it. The file holds the protocol's fp32 vectors one after
another, each starting on a page of its own::

    offset 0                stride               2 * stride
    | vectors[0] (numel) .. | vectors[1] ..      | ...        stride = 4 * numel up to a page

Only the small messages of `trainer_messages` say whose turn it is to write which vector; the memory
itself has no locks.

Invariants:
- The size is sealed at creation, so no side can shrink the file under the other one's feet (which
  would end it with SIGBUS).
- The descriptor never reaches a child process (close-on-exec), nor a name in the file system.
- `attach` maps only a file of exactly the size that the layout asks for.
"""

from __future__ import annotations

import array
import fcntl
import mmap
import os
import socket
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from node.errors import NodedError

__all__ = [
    "MAX_NUMEL",
    "MAX_VECTORS",
    "BufferMismatch",
    "SharedBuffer",
    "Vector",
    "fd_ancillary",
    "recv_with_fd",
    "send_with_fd",
]

Vector = npt.NDArray[np.float32]

MAX_VECTORS: Final = 64
"""Most vectors of one buffer; protocols use two to eight."""
MAX_NUMEL: Final = 1 << 38
"""Most values per vector: 1 TiB each, far above what one node can hold."""

_PAGE: Final = mmap.PAGESIZE
_FLOAT_BYTES: Final = 4
_F_ADD_SEALS: Final = 1033  # linux/fcntl.h; Python's fcntl has the names from 3.8, typeshed not all
_SEALS: Final = 0x0001 | 0x0002 | 0x0004  # no more seals, no shrinking, no growing


class BufferMismatch(NodedError):
    """The descriptor received is not the buffer that was announced."""


class SharedBuffer:
    """Named fp32 vectors of one length in shared memory.

    Both ends hold one. Closing unmaps the memory as soon as no view of it is left: numpy arrays and
    tensors made from `views` keep it alive, so closing early is safe.
    """

    def __init__(self, fd: int, numel: int, names: Sequence[str]) -> None:
        """Take over `fd`, which must have the layout's size; use `create` or `attach`."""
        self._fd = fd
        self.numel = numel
        self.names = tuple(names)
        self._map: mmap.mmap | None = mmap.mmap(fd, _size_bytes(numel, len(self.names)))
        stride = _stride_bytes(numel)
        self.views: dict[str, Vector] = {
            name: np.frombuffer(self._map, np.float32, numel, index * stride)
            for index, name in enumerate(self.names)
        }

    @classmethod
    def create(cls, numel: int, names: Sequence[str]) -> SharedBuffer:
        """Make a zeroed buffer.

        Raises:
            BufferMismatch: `numel` or `names` make no layout.
            OSError: the kernel has no memory or descriptor left.
        """
        _check_layout(numel, names)
        fd = os.memfd_create("noded-vectors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, _size_bytes(numel, len(names)))
            fcntl.fcntl(fd, _F_ADD_SEALS, _SEALS)
            return cls(fd, numel, names)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def attach(cls, fd: int, numel: int, names: Sequence[str]) -> SharedBuffer:
        """Map a received descriptor and take it over (it is closed on failure too).

        Raises:
            BufferMismatch: the file has not exactly the size of this layout.
        """
        try:
            _check_layout(numel, names)
            expected, found = _size_bytes(numel, len(names)), os.fstat(fd).st_size
            if found != expected:
                raise BufferMismatch(
                    f"the shared buffer has {found} bytes, {expected} were announced",
                    hint="daemon and training process are of different versions: reinstall both",
                )
            return cls(fd, numel, names)
        except BaseException:
            os.close(fd)
            raise

    @property
    def fd(self) -> int:
        """The descriptor to pass on; stays owned by this object."""
        return self._fd

    @property
    def size_bytes(self) -> int:
        """Size of the whole mapping."""
        return _size_bytes(self.numel, len(self.names))

    def view(self, name: str) -> Vector:
        """The vector `name`; raises `BufferMismatch` if the buffer has none of that name."""
        try:
            return self.views[name]
        except KeyError:
            raise BufferMismatch(f"the shared buffer has no vector {name!r}") from None

    def close(self) -> None:
        """Give up descriptor and mapping; idempotent. Views that are still in use stay valid."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self.views = {}
        mapping, self._map = self._map, None
        if mapping is not None:
            try:
                mapping.close()
            except BufferError:
                # Somebody still holds a view; the mapping goes with the last one.
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _stride_bytes(numel: int) -> int:
    return -(-numel * _FLOAT_BYTES // _PAGE) * _PAGE


def _size_bytes(numel: int, vectors: int) -> int:
    return _stride_bytes(numel) * vectors


def _check_layout(numel: int, names: Sequence[str]) -> None:
    if not 1 <= numel <= MAX_NUMEL:
        raise BufferMismatch(f"a shared vector cannot have {numel} values")
    if not 1 <= len(names) <= MAX_VECTORS or len(set(names)) != len(names):
        raise BufferMismatch(f"a shared buffer cannot have the vectors {list(names)[:8]}")


def fd_ancillary(fd: int) -> list[tuple[int, int, bytes]]:
    """Ancillary data for `sendmsg` that passes `fd` (also for an asynchronous socket)."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]).tobytes())]


def send_with_fd(sock: socket.socket, data: bytes, fd: int) -> None:
    """Send all of `data` on a blocking Unix socket, `fd` riding on its first byte."""
    sent = sock.sendmsg([data], fd_ancillary(fd))
    if sent < len(data):
        sock.sendall(memoryview(data)[sent:])


def recv_with_fd(sock: socket.socket, limit: int) -> tuple[bytes, list[int]]:
    """Receive up to `limit` bytes and the descriptors that came with them (usually none).

    The caller owns the descriptors. Empty bytes mean that the other side has closed.
    """
    ancillary_bytes = socket.CMSG_SPACE(4 * array.array("i").itemsize)
    data, ancillary, _flags, _address = sock.recvmsg(
        limit, ancillary_bytes, socket.MSG_CMSG_CLOEXEC
    )
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    return data, list(fds)
