"""One message of a decentralized protocol on its stream: a small packed message, and vectors beside it.

Problem: a model is far too large for msgpack, and whoever announces its size chooses how much memory we give. Idea: a head of
at most 78 bytes says all sizes; a `Decoder` has checked them against the run's own model before it allocates anything, and
waits to be told that there is room::

    | version u8 = 1 | vectors u8, 0 to 8 | message bytes u32 |     6 bytes, big-endian
    | type u8: 4 (float32) or 8 (float64) | values u64 |            9 bytes for each vector
    | message, at most 64 KiB | vectors, little-endian, one after the other |

The stream ends with the last byte. Sans-IO.

Invariants: whatever the bytes, `Decoder` raises `MalformedMessage` and nothing else; before `admit` it holds the head and what
came with it in one piece; a vector has 1 to `numel` values, and all of them are finite.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final

import attrs
import numpy as np
import numpy.typing as npt

from gossip.collective.links.buffers import as_bytes
from gossip.decentralized.arithmetic import is_finite
from gossip.decentralized.protocol import MAX_MESSAGE_BYTES, MAX_VECTORS, AnyVector
from transport.buffer import Buffer
from transport.errors import MalformedMessage

__all__ = ["VERSION", "Arrived", "Decoder", "encode_head", "parts", "wire_bytes"]

VERSION: Final = 1
_FIXED: Final = struct.Struct(">BBI")
_VECTOR: Final = struct.Struct(">BQ")
_TYPES: Final[dict[int, npt.DTypeLike]] = {4: "<f4", 8: "<f8"}


@attrs.frozen(eq=False)
class Arrived:
    """A whole message."""

    message: bytes
    vectors: tuple[AnyVector, ...]


def encode_head(message: bytes, vectors: Sequence[AnyVector]) -> bytes:
    """What goes before message and vectors."""
    assert len(message) <= MAX_MESSAGE_BYTES, f"a message of {len(message)} bytes"
    assert len(vectors) <= MAX_VECTORS, f"{len(vectors)} vectors in one message"
    table = [_VECTOR.pack(vector.itemsize, vector.size) for vector in vectors]
    return _FIXED.pack(VERSION, len(vectors), len(message)) + b"".join(table)


def parts(message: bytes, vectors: Sequence[AnyVector]) -> Iterator[Buffer]:
    """Everything to be sent, in order; vectors are views of themselves, not copies."""
    yield encode_head(message, vectors) + message
    for vector in vectors:
        kind = _TYPES[vector.itemsize]
        yield as_bytes(np.ascontiguousarray(vector.astype(kind, copy=False)))


def wire_bytes(message: bytes, vectors: Sequence[AnyVector]) -> int:
    """Bytes of the whole message on its stream."""
    head = _FIXED.size + _VECTOR.size * len(vectors)
    return head + len(message) + sum(vector.nbytes for vector in vectors)


class Decoder:
    """Takes the bytes of one message as they come.

    Args:
        numel: values of the run's flat parameter vector; no vector is longer.
    """

    def __init__(self, numel: int) -> None:
        self.size: int | None = None
        """Bytes that `admit` allocates; None while the head is not complete."""
        self._numel = numel
        self._early = bytearray()  # of the head, and what came with its last byte
        self._kinds: list[tuple[npt.DTypeLike, int]] = []
        self._message = bytearray()
        self._vectors: list[npt.NDArray[Any]] = []
        self._places: list[memoryview] = []
        """What is still to be filled, in order."""
        self._admitted = False

    @property
    def complete(self) -> bool:
        """Whether the last byte has come."""
        return self._admitted and not self._places

    @property
    def has_vectors(self) -> bool:
        """Whether the message that has come carries any."""
        return bool(self._vectors)

    def feed(self, data: Buffer) -> None:
        """Take the next bytes of the stream.

        Raises:
            MalformedMessage: they cannot be part of an acceptable message.
        """
        if self._admitted:
            self._fill(memoryview(data))
            return
        self._early += data
        if self.size is None:
            self._parse_head()

    def admit(self) -> None:
        """Allocate what the head announced: there is room for `size` bytes.

        Raises:
            MalformedMessage: more came already than was announced.
        """
        assert self.size is not None, "admitted before its head has come"
        assert not self._admitted, "admitted twice"
        self._admitted = True
        (length,) = struct.unpack_from(">I", self._early, 2)
        self._message = bytearray(length)
        self._vectors = [np.empty(values, kind) for kind, values in self._kinds]
        places = [memoryview(self._message), *(as_bytes(vector) for vector in self._vectors)]
        self._places = [place for place in places if place.nbytes]
        rest = memoryview(self._early)[_FIXED.size + _VECTOR.size * len(self._kinds) :]
        self._fill(rest)
        rest.release()
        self._early = bytearray()

    def take(self) -> Arrived:
        """The message, once it is complete.

        Raises:
            MalformedMessage: the stream ended too early, or a value is not finite.
        """
        if not self.complete:
            raise MalformedMessage("a message is cut off by the end of its stream")
        if not all(is_finite(vector) for vector in self._vectors):
            raise MalformedMessage("a vector holds values that are not finite")
        return Arrived(bytes(self._message), tuple(self._vectors))

    def _parse_head(self) -> None:
        if len(self._early) < _FIXED.size:
            return
        version, count, length = _FIXED.unpack_from(self._early)
        if version != VERSION:
            raise MalformedMessage(f"a message of version {version}, not {VERSION}")
        if count > MAX_VECTORS:
            raise MalformedMessage(f"{count} vectors in one message, limit {MAX_VECTORS}")
        if length > MAX_MESSAGE_BYTES:
            raise MalformedMessage(f"message of {length} bytes, limit {MAX_MESSAGE_BYTES}")
        if len(self._early) < _FIXED.size + _VECTOR.size * count:
            return
        size = length
        for index in range(count):
            item, values = _VECTOR.unpack_from(self._early, _FIXED.size + _VECTOR.size * index)
            kind = _TYPES.get(item)
            if kind is None:
                raise MalformedMessage(f"a vector of unknown type {item}")
            if not 1 <= values <= self._numel:
                raise MalformedMessage(f"a vector of {values} values, the model has {self._numel}")
            self._kinds.append((kind, values))
            size += item * values
        self.size = size

    def _fill(self, data: memoryview) -> None:
        data = data.cast("B") if data.format != "B" else data
        while data.nbytes:
            if not self._places:
                raise MalformedMessage("more bytes than the message announced")
            place = self._places[0]
            count = min(place.nbytes, data.nbytes)
            place[:count] = data[:count]
            data = data[count:]
            if count == place.nbytes:
                self._places.pop(0)
            else:
                self._places[0] = place[count:]
