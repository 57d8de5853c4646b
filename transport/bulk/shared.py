"""Shared memory between two processes of one machine, for the records of one bulk link's direction.

Problem: over loopback the kernel copies every byte twice, through pages that have left the caches by
the time they are used again: that was half of an all-reduce's CPU time. Idea: as NCCL does within a
machine, let the sender seal its records straight into memory that the receiver has mapped as well.
The connection stays: it carries a notice for each slot that was filled and a credit for each that was
emptied, and its end is the end of the link, so that a killed process is noticed as before.

The sender makes an anonymous file (memfd_create(2)) that can no longer shrink, and tells the receiver,
over the sealed link, its path below /proc and a random word that lies in it. A process that may not
open that path (another user, another container), or finds another word there, declines: then the
link goes on as it was.

What lies in the memory is sealed as on the wire. Who can write there while it is being opened is the
peer itself (or a process of the same user, which could do worse): a peer needs no such trick to send
what it likes, and a wrong notice ends the link.

Layout: `SLOTS` slots of `SLOT_BYTES`, then the word.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import struct
from typing import Final

import trio

from transport.errors import RecordError, TransportError
from transport.network import RawStream
from transport.secure.record import HEADER_BYTES

MAX_SHARED_BYTES: Final = 4 << 20
"""Payload of one transfer. What a transfer costs beside its bytes (a head, a notice, waking who waits for it) was a fifth of an all-reduce
among four in transfers of 1 MiB; the caches do not notice, as its parts are sealed and opened one by one."""
SLOT_BYTES: Final = MAX_SHARED_BYTES + 4096
"""With head and tags; pages never used cost nothing."""
SLOTS: Final = 4
"""Three would do for the flow; with more bytes in all, a slot that comes round has left the other processor's cache,
and taking it back from there costs twice as much where two processors share none."""
TOLD_TOGETHER: Final = SLOTS // 2
"""Emptied slots that the sender is told of at once: a system call for each cost as much as a small transfer, and the sender
need not know while it has others."""
WORD_BYTES: Final = 32
_NOTICE: Final = struct.Struct(">I")
_WORD_AT: Final = SLOTS * SLOT_BYTES
TOTAL_BYTES: Final = _WORD_AT + mmap.PAGESIZE
MAX_PATH_BYTES: Final = 64
_NAME: Final = "noded-bulk"
_SHOWN_AS: Final = b"/memfd:noded-bulk (deleted)"
_SEALS: Final = ("F_SEAL_SHRINK", "F_SEAL_GROW", "F_SEAL_SEAL")


class NotShared(TransportError):
    """The memory cannot be shared with this peer; the message says why."""

    default_hint = "the link goes on over the network"


class Lane:
    """The mapped slots; they are used in turn.

    Attributes:
        word: proves to the other side that it mapped the same memory.
    """

    def __init__(self, memory: mmap.mmap, word: bytes) -> None:
        self.word = word
        view = memoryview(memory)
        self._slots = [
            view[index * SLOT_BYTES : (index + 1) * SLOT_BYTES] for index in range(SLOTS)
        ]
        self._turn = 0

    @property
    def slot(self) -> memoryview:
        """The slot whose turn it is."""
        return self._slots[self._turn]

    def advance(self) -> None:
        """It is the next slot's turn."""
        self._turn = (self._turn + 1) % SLOTS


class Outgoing:
    """The sender's end of a lane, with the connection that carries its notices."""

    def __init__(self, lane: Lane, raw: RawStream) -> None:
        self._lane = lane
        self._raw = raw
        self._free = SLOTS
        self._news = memoryview(bytearray(SLOTS))

    @property
    def slot(self) -> memoryview:
        """Where to put the next transfer; only when a slot is free."""
        return self._lane.slot

    def free_now(self) -> bool:
        """Whether a slot is free, as far as that can be known without waiting."""
        if not self._free:
            self._free = self._raw.receive_now(self._news)
        return self._free > 0

    async def wait_free(self) -> None:
        """Wait until a slot is free.

        Raises:
            trio.BrokenResourceError: the connection ended, or broke.
            trio.ClosedResourceError: it was closed here.
        """
        while not self.free_now():
            self._free = await self._raw.receive_into(self._news)
            if not self._free:
                raise trio.BrokenResourceError("the connection was cut")

    def filled(self, size: int) -> memoryview:
        """The slot holds `size` bytes now; returns the notice of it, to be sent on the connection."""
        self._lane.advance()
        self._free -= 1
        return memoryview(_NOTICE.pack(size))


class Incoming:
    """The receiver's end of a lane, with the connection that carries its notices."""

    def __init__(self, lane: Lane, raw: RawStream) -> None:
        self._lane = lane
        self._raw = raw
        self._untold = 0  # slots that were emptied, which the peer was not told
        self._news = memoryview(bytearray(_NOTICE.size * SLOTS))
        self._notices = bytearray()

    async def next(self) -> tuple[memoryview, int]:
        """Wait for the next filled slot; returns it, and how many bytes of it were filled.

        Raises:
            RecordError: the notice cannot be true.
            trio.BrokenResourceError: the connection ended, or broke.
            trio.ClosedResourceError: it was closed here.
        """
        if self._untold >= TOLD_TOGETHER:
            await self._raw.send_all(bytes(self._untold))
            self._untold = 0
        while len(self._notices) < _NOTICE.size:
            got = await self._raw.receive_into(self._news)
            if not got:
                raise trio.BrokenResourceError("the connection was cut")
            self._notices += self._news[:got]
        (size,) = _NOTICE.unpack_from(self._notices)
        del self._notices[: _NOTICE.size]
        if not HEADER_BYTES < size <= SLOT_BYTES:
            raise RecordError(f"notice of {size} bytes in shared memory")
        slot = self._lane.slot
        self._lane.advance()
        return slot, size

    def emptied(self) -> None:
        """The slot handed out last may be filled again; the sender learns it with the next ones."""
        self._untold += 1
        if self._untold < TOLD_TOGETHER:
            return
        self._untold -= self._raw.send_now(memoryview(bytes(self._untold)))


class Offer:
    """Memory made here, until the other side has opened it or declined.

    Raises:
        NotShared: this system has no such memory.
    """

    def __init__(self) -> None:
        if not hasattr(os, "memfd_create"):
            raise NotShared("this system has no memfd_create")
        try:
            self._descriptor = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as error:
            raise NotShared(f"no shared memory: {error.strerror}") from error
        try:
            os.ftruncate(self._descriptor, TOTAL_BYTES)
            fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, _wanted_seals())
            memory = mmap.mmap(self._descriptor, TOTAL_BYTES)
        except OSError as error:
            os.close(self._descriptor)
            raise NotShared(f"no shared memory: {error.strerror}") from error
        word = secrets.token_bytes(WORD_BYTES)
        memory[_WORD_AT : _WORD_AT + WORD_BYTES] = word
        self.lane = Lane(memory, word)
        self.path = f"/proc/{os.getpid()}/fd/{self._descriptor}".encode()

    def close(self) -> None:
        """Nobody can open it any more; who has keeps it."""
        os.close(self._descriptor)


def accept(path: bytes, word: bytes) -> Lane:
    """Map what a peer offers.

    Raises:
        NotShared: it is not there for this process, or it is something else.
    """
    parts = path.split(b"/")
    if (
        len(path) > MAX_PATH_BYTES
        or len(parts) != 5
        or parts[:2] != [b"", b"proc"]
        or parts[3] != b"fd"
        or not (parts[2].isdigit() and parts[4].isdigit())
    ):
        raise NotShared("not a path of a process's descriptor")
    try:
        # Nothing else is opened on a peer's word: opening a device, say, may do something.
        if os.readlink(path) != _SHOWN_AS:  # noqa: PTH115 - bytes, and no normalisation
            raise NotShared("the peer's descriptor is something else")
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NotShared(f"cannot open the peer's memory: {error.strerror}") from error
    try:
        if os.fstat(descriptor).st_size != TOTAL_BYTES:
            raise NotShared("the peer's memory is of another size")
        # Sealed, so that it cannot be cut off under the mapping, which would kill this process.
        if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _wanted_seals() != _wanted_seals():
            raise NotShared("the peer's memory could be cut off")
        memory = mmap.mmap(descriptor, TOTAL_BYTES, prot=mmap.PROT_READ)
    except (OSError, ValueError) as error:
        raise NotShared(f"cannot map the peer's memory: {error}") from error
    finally:
        os.close(descriptor)
    if not secrets.compare_digest(memory[_WORD_AT : _WORD_AT + WORD_BYTES], word):
        memory.close()
        raise NotShared("that is not the memory which the peer means")
    return Lane(memory, word)


def _wanted_seals() -> int:
    seals = 0
    for name in _SEALS:
        seals |= getattr(fcntl, name)
    return seals
