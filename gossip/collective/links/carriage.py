"""How the values of one call travel: as they are, or in a wire format (sans-IO).

`exact` carries the bytes of the vector's own type, and what arrives of a result is received in its final place.
A wire format (`gossip.collective.formats`) carries float32 values in fewer bytes: what arrives is received in a buffer of one
segment and decoded from there. Either way, what is not finite is refused: by the member that would send it, as
NotFinite, and by the first that is sent it, as RefusedPayload with the sender's name; unless the algorithm looks for it elsewhere
(`looks`), for values as they are.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gossip.collective.call import EXACT
from gossip.collective.elements import Elements, elements_of
from gossip.collective.formats.registry import format_named
from gossip.collective.formats.wire_format import RefusedPayload, WireFormat
from gossip.collective.links.buffers import Workspace, as_bytes
from gossip.errors import InvalidOperation, NotFinite
from transport.identity import NODE_ID_BYTES, NodeId
from transport.secure.record import BULK_RECORD_BYTES

Array = npt.NDArray[Any]

_BYTES: Final = np.dtype(np.uint8)
_FLOAT32: Final = np.dtype(np.float32)
_NOBODY: Final = NodeId(bytes(NODE_ID_BYTES))
SEGMENT_VALUE_BYTES: Final = BULK_RECORD_BYTES
"""Of values, as they are added, that are worked on together, but for long segments: source, target and wire buffers stay in a core's cache."""
LONG_SEGMENT: Final = 4
"""How many times as long as others a long segment of a wire format is, if that does not make it more than a record of a link. A segment costs some 0.2 ms beside
its values: with int8 in long ones an all-reduce of 64 MiB takes 0.83 of the time. On a slow line a chain of eight takes twice as long for 4 MiB then, as
each member has to have a segment before the next one gets it."""
ALIGN: Final = 256
"""Parts of a vector begin at a wire format's block, so that a block is of one part."""


class Carriage:
    """Packs and opens the values of one call; keeps buffers of two segments.

    Args:
        elements: type of the values.
        wire: `exact` or the name of a format.
        most: values that a segment has at most, if that is known to be fewer than usual.
        workspace: where its buffers are.
        looks: whether values as they are have to be finite here.
        long: a wire format's segments are as long as one may be: where each is waited for only once, and not by one member after the other.

    Raises:
        InvalidOperation: that format does not carry values of this type.
        UnknownFormat: there is none of that name.
    """

    def __init__(
        self,
        elements: Elements,
        wire: str,
        most: int | None = None,
        *,
        workspace: Workspace | None = None,
        looks: bool = True,
        long: bool = False,
    ) -> None:
        self._elements = elements
        self._looks = looks
        self._workspace = workspace or Workspace()
        self._format: WireFormat | None = None if wire == EXACT else format_named(wire)
        if self._format is not None and elements.dtype != np.float32:
            raise InvalidOperation(f"{wire} carries float32 values, not {elements.dtype.name}")
        values = max(ALIGN, SEGMENT_VALUE_BYTES // elements.total.itemsize)
        if self._format is not None and long:
            record = BULK_RECORD_BYTES // self._format.encoded_bytes(ALIGN) * ALIGN
            values = min(LONG_SEGMENT * values, record)
        self.per_segment = values
        """Values per segment."""
        self._most = self.per_segment if most is None else min(most, self.per_segment)
        # Two of each, in turn: what came last may still be to be added when the next comes.
        self._wires = (np.empty(0, np.uint8), np.empty(0, np.uint8))
        self._opened = (np.empty(0, elements.total), np.empty(0, elements.total))

    @property
    def exact(self) -> bool:
        """True when values travel as they are."""
        return self._format is None

    def largest(self, count: int) -> int:
        """The most bytes that `count` values take."""
        if self._format is None:
            return count * self._elements.dtype.itemsize
        return self._format.encoded_bytes(count)

    def pack(self, values: Array) -> memoryview:
        """The bytes of `values`; with `exact` their own memory.

        Raises:
            NotFinite: a value cannot be carried.
        """
        if self.exact and self._looks and not self._elements.finite(values):
            raise NotFinite(f"not all of {values.size} values are finite")
        return self.pack_finite(values)

    def pack_finite(self, values: Array) -> memoryview:
        """As `pack`, of values that the caller has looked at."""
        if self._format is None:
            return as_bytes(values)
        data = np.empty(self._format.encoded_bytes(values.size), np.uint8)
        return data[: self._format.encode_into(values, data)].data

    def apply(self, payload: memoryview, part: Array, sender: NodeId) -> None:
        """Let `part` be what others will decode from a payload that was packed here; nothing with `exact`."""
        if self._format is not None:
            self._format.decode_untrusted_into(np.asarray(payload), part, sender=sender)

    def _two(self, use: str, size: int, dtype: np.dtype[Any]) -> tuple[Array, Array]:
        array = self._workspace.array
        return array(use, size, dtype), array(f"{use}, the other", size, dtype)

    # What arrives to be added

    def buffer(self, size: int) -> memoryview:
        """Where a payload of `size` bytes, at most the largest of a segment, is to be received."""
        if not self._wires[0].size:
            self._wires = self._two("wire", self.largest(self._most), _BYTES)
        self._wires = self._wires[::-1]
        return as_bytes(self._wires[0][:size])

    def open(self, size: int, count: int, sender: NodeId) -> Array:
        """The `count` values that the last `buffer(size)` holds, until the one after the next payload is received.

        Raises:
            RefusedPayload: they are not that many finite values.
        """
        data = self._wires[0][:size]
        if self._format is None:
            values: Array = data.view(self._elements.dtype)
            self._check(values, count, sender)
            return values
        if not self._opened[0].size:
            self._opened = self._two("opened", self._most, self._elements.total)
        self._opened = self._opened[::-1]
        opened = self._opened[0][:count]
        self._format.decode_untrusted_into(data, opened, sender=sender)
        return opened

    # What arrives as a result

    def place(self, part: Array, size: int) -> memoryview:
        """Where the payload of a result that belongs into `part` is to be received."""
        return as_bytes(part) if self.exact and size == part.nbytes else self.buffer(size)

    def accept(self, part: Array, size: int, sender: NodeId) -> None:
        """See that `part` holds the values that were received in `place(part, size)`.

        Raises:
            RefusedPayload: they are not that many finite values.
        """
        if self._format is not None:
            self._format.decode_untrusted_into(self._wires[0][:size], part, sender=sender)
            return
        if size != part.nbytes:
            raise RefusedPayload(sender, f"{size} bytes where {part.nbytes} were expected")
        self._check(part, part.size, sender)

    def _check(self, values: Array, count: int, sender: NodeId) -> None:
        if values.size != count:
            raise RefusedPayload(sender, f"{values.size} values where {count} were expected")
        if self._looks and not self._elements.finite(values):
            raise RefusedPayload(sender, "values that are not finite")


def wire_bytes(count: int, wire: str) -> int:
    """The most bytes that `count` float32 values take."""
    return Carriage(elements_of(_FLOAT32), wire).largest(count)


def carried(values: Array, wire: str) -> Array:
    """What others get of 1-D values, as a copy.

    Raises:
        NotFinite: one of them cannot be carried in that format; `exact` carries all.
    """
    got = values.copy()
    carriage = Carriage(elements_of(values.dtype), wire, looks=False)
    carriage.apply(carriage.pack(got), got, _NOBODY)
    return got
