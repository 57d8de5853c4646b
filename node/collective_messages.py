"""What a training process asks its daemon for in collectives, and what it is told (sans-IO).

A socket of its own beside the trainer's (`SOCKET_NAME`), frames as in `node.trainer_messages`::

    process                           daemon
    Hello            ->            <- Welcome, or Refused and the end
    Borrow(arena)    ->            <- Lent(arena), the shared memory's descriptor rides on it
    Operate(id) ...  ->            <- Done(id) or Failed(id), in whatever order they end
    Synchronise(id)  ->            <- Done(id) or Failed(id)
    Cancel(id)       ->            (the operation ends as given up)
    Return(arena)    ->

An **arena** is shared memory that the daemon makes and lends: two vectors of the same size, "source" and "out". It
belongs to one request at a time. Everything is bounded: MAX_REQUESTS under way, MAX_ARENAS lent, and a frame is at most 64 KiB.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from node.trainer_messages import decode_body, frame

__all__ = [
    "MAX_ARENAS",
    "MAX_REQUESTS",
    "SOCKET_NAME",
    "VERSION",
    "Borrow",
    "Cancel",
    "CollectiveAnswer",
    "CollectiveRequest",
    "Done",
    "Failed",
    "Hello",
    "Lent",
    "Operate",
    "Refused",
    "Return",
    "Synchronise",
    "Tensor",
    "Welcome",
    "decode_answer",
    "decode_request",
    "encode",
]

VERSION: Final = 1
SOCKET_NAME: Final = "ops.sock"
"""Beside the trainer socket."""
MAX_REQUESTS: Final = 32
"""Under way at once."""
MAX_ARENAS: Final = 64
MAX_TENSORS: Final = 2048
"""Of one declared state; their names have to fit into a frame."""

Name = Annotated[str, Meta(min_length=1, max_length=64)]
Number = Annotated[int, Meta(ge=0, le=2**53)]
Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
Seconds = Annotated[float, Meta(gt=0, le=1e9)]
Vectors = ("source", "out")


class _Message(msgspec.Struct, frozen=True, tag_field="t"):
    """Base of all messages."""


class Hello(_Message, frozen=True):
    """First of a process."""

    version: int
    run: Name
    alone: bool
    """No trainer is attached or will be: the node takes part for this process."""
    model: Digest
    """What members must have alike to be in one epoch; of a process that is alone."""
    pid: Annotated[int, Meta(ge=1, lt=2**31)]


class Borrow(_Message, frozen=True):
    """A wish for shared memory."""

    arena: Number
    words: Annotated[int, Meta(ge=1, le=2**38)]
    """Size of each of its two vectors in units of 4 bytes."""


class Return(_Message, frozen=True):
    """The arena is not needed any more."""

    arena: Number


class Operate(_Message, frozen=True):
    """One collective; the values are in the arena's "source", the result comes into its "out"."""

    id: Number
    arena: Number
    kind: Name
    dtype: Name
    count: Number
    """Values in the source."""
    reduce: Name
    weight: float
    wire: Name
    algorithm: Name
    tag: Annotated[int, Meta(ge=1, le=15)]
    label: Annotated[str, Meta(max_length=256)]
    """What all members must agree on besides."""
    root: Digest | None = None
    timeout_s: Seconds | None = None
    within: Digest | None = None
    sole: bool = False
    """The process asks for nothing more before this has ended."""


class Tensor(msgspec.Struct, frozen=True, array_like=True):
    """Where a tensor of the declared state lies in the arena's "source"."""

    name: Annotated[str, Meta(max_length=200)]
    dtype: Name
    shape: Annotated[tuple[Number, ...], Meta(max_length=16)]
    at: Number
    """Bytes from the start, a multiple of 64."""


class Synchronise(_Message, frozen=True):
    """Bring the declared state into parity; it is overwritten where it lies, if it has to be."""

    id: Number
    arena: Number
    tensors: Annotated[tuple[Tensor, ...], Meta(max_length=MAX_TENSORS)]
    revision: Number
    label: Annotated[str, Meta(max_length=64)]
    timeout_s: Seconds | None = None
    sole: bool = False


class Cancel(_Message, frozen=True):
    """Give a request up."""

    id: Number


class Welcome(_Message, frozen=True):
    """The process is served."""

    node: Digest


class Refused(_Message, frozen=True):
    """It is not, and the connection ends."""

    reason: Annotated[str, Meta(max_length=1024)]


class Lent(_Message, frozen=True):
    """The arena is there."""

    arena: Number
    words: Number


class Done(_Message, frozen=True):
    """A request has succeeded, with a certificate."""

    id: Number
    epoch: Digest
    members: Annotated[tuple[Digest, ...], Meta(max_length=256)]
    weight: float
    length: Number
    """Values of the result."""
    algorithm: str
    seconds: float
    fetched_blocks: Number = 0


class Failed(_Message, frozen=True):
    """A request has not succeeded."""

    id: Number
    error: Name
    """Name of the error in `gossip.errors`."""
    message: Annotated[str, Meta(max_length=2048)]
    hint: Annotated[str, Meta(max_length=1024)] = ""


CollectiveRequest = Hello | Borrow | Return | Operate | Synchronise | Cancel
CollectiveAnswer = Welcome | Refused | Lent | Done | Failed

_requests: Final[Any] = msgspec.msgpack.Decoder(CollectiveRequest)
_answers: Final[Any] = msgspec.msgpack.Decoder(CollectiveAnswer)


def encode(message: CollectiveRequest | CollectiveAnswer) -> bytes:
    """The whole frame of `message`, length first; raises `TrainerProtocolError` if too long."""
    return frame(message)


def decode_request(body: bytes) -> CollectiveRequest:
    """Decode a frame's body at the daemon; raises `TrainerProtocolError` only."""
    message: CollectiveRequest = decode_body(_requests, body)
    return message


def decode_answer(body: bytes) -> CollectiveAnswer:
    """Decode a frame's body at the process; raises `TrainerProtocolError` only."""
    message: CollectiveAnswer = decode_body(_answers, body)
    return message
