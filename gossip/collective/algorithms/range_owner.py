"""All-reduce in two hops: each range of the vector has one owner, who adds it up (sans-IO).

Also called butterfly all-reduce, as in hivemind (Ryabinin et al. 2021), with one difference on which the
equality of members hangs: there an owner answers each contributor with a difference in bytes of its own,
here with one encoding for all, and applies what that decodes to itself.

Steps at one member, where O is the owner of range r::

    contribution(O)  ->  encode own values of r once, send to O
    take(S, bytes)       as owner: add S's decoded values, in member order whatever order they come in
    result()         ->  as owner, when all are in: divide, encode once, send to everybody
    take_result(O, bytes) decode r into the output; the owner does the same with its own bytes

Invariants:

* every value is encoded once on its way to the owner and once on its way back, so the error is that of
  two encodings however many members there are (a ring of N encodes N times);
* sums are made in member order in fp32 by one member, so they are the same for everybody;
* each member hashes every owner's bytes itself: an owner that sends different bytes to different members
  makes their results, and so their votes, differ, and there is no forwarder who could;
* contributions wait encoded: beyond its vectors a member holds its own range once for each member.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import numpy as np
from blake3 import blake3

from gossip.collective.certificate import result_root
from gossip.collective.formats.wire_format import Bytes, RefusedPayload, Values, WireFormat
from gossip.errors import InvalidOperation
from transport.identity import NodeId

ALIGN = 256
"""Ranges start at a wire format's block, so that a block has one owner."""

_WEIGHT = struct.Struct("<d")


def owner_bounds(length: int, shares: Sequence[float]) -> list[int]:
    """`len(shares)` + 1 boundaries of the owners' ranges, in proportion to what each can carry."""
    total = sum(shares)
    blocks = -(-length // ALIGN)
    ends, seen = [0], 0.0
    for share in shares:
        seen += share
        ends.append(min(length, round(blocks * seen / total) * ALIGN))
    ends[-1] = length
    return ends


class RangeOwner:
    """One all-reduce at one member.

    Args:
        members: all of them, in the order in which everybody adds.
        me: this member's index.
        source: 1-D contiguous values; only read.
        out: as long; undefined until `done`.
        weight: factor of this member's values, finite and not negative; with 0 they are not looked at.
        mean: divide by the sum of the weights.
        uplink: the format of contributions.
        downlink: the format of results; the same for all members, as everything else but values and weight.
        shares: how much of the vector each member owns; equal parts when left out.

    Raises:
        InvalidOperation: the arguments cannot be reduced.
    """

    def __init__(
        self,
        members: Sequence[NodeId],
        me: int,
        source: Values,
        out: Values,
        *,
        weight: float = 1.0,
        mean: bool = False,
        uplink: WireFormat,
        downlink: WireFormat,
        shares: Sequence[float] | None = None,
    ) -> None:
        if source.dtype != np.float32 or out.dtype != np.float32 or source.shape != out.shape:
            raise InvalidOperation("source and out must be float32 vectors of the same length")
        if not (math.isfinite(weight) and weight >= 0):
            raise InvalidOperation(f"a weight must be finite and not negative, not {weight}")
        given = list(shares) if shares is not None else [1.0] * len(members)
        if len(given) != len(members) or min(given) < 0 or not 0 < sum(given) < math.inf:
            raise InvalidOperation("one share for each member, none negative, not all zero")
        self._members = tuple(members)
        self._me = me
        self._source, self._out = source, out
        self._weight, self._mean = weight, mean
        self._uplink, self._downlink = uplink, downlink
        self._bounds = owner_bounds(source.size, given)
        self._waiting: dict[int, tuple[float, Bytes]] = {}
        self._next = 0
        first, last = self._range(me)
        self._sum = np.zeros(last - first, np.float32)
        self._arrived = np.empty(last - first, np.float32)
        self._total = 0.0
        self._weights: dict[int, float] = {}
        self._digests: dict[int, bytes] = {}
        self._add_what_is_in_turn()

    def _range(self, owner: int) -> tuple[int, int]:
        return self._bounds[owner], self._bounds[owner + 1]

    # ---- towards the owner -----------------------------------------------------------------

    def contribution(self, owner: int) -> bytes:
        """This member's part of the range of another one: its weight, then the encoded values.

        Raises:
            NotFinite: a value cannot be carried.
        """
        first, last = self._range(owner)
        data = np.empty(_WEIGHT.size + self._uplink.encoded_bytes(last - first), np.uint8)
        data[: _WEIGHT.size] = np.frombuffer(_WEIGHT.pack(self._weight), np.uint8)
        size = self._uplink.encode_into(self._weighted(first, last), data[_WEIGHT.size :])
        return data[: _WEIGHT.size + size].tobytes()

    def _weighted(self, first: int, last: int) -> Values:
        values = self._source[first:last]
        if self._weight == 1.0:
            return values
        if self._weight == 0.0:
            return np.zeros_like(values)  # 0 * NaN is NaN: what counts nothing is not touched
        product: Values = values * np.float32(self._weight)
        return product

    def take(self, sender: int, data: bytes) -> None:
        """As owner: a member's contribution; a second one of the same member is refused.

        Raises:
            RefusedPayload: it is none; the operation cannot go on, and it is known because of whom.
        """
        name = self._members[sender]
        if sender == self._me or sender < self._next or sender in self._waiting:
            raise RefusedPayload(name, "a contribution that was here already")
        first, last = self._range(self._me)
        limit = _WEIGHT.size + self._uplink.encoded_bytes(last - first)
        if not _WEIGHT.size <= len(data) <= limit:
            raise RefusedPayload(name, f"a contribution of {len(data)} bytes, at most {limit}")
        (weight,) = _WEIGHT.unpack_from(data)
        if not (math.isfinite(weight) and weight >= 0):
            raise RefusedPayload(name, f"a weight of {weight}")
        self._waiting[sender] = (weight, np.frombuffer(data, np.uint8, offset=_WEIGHT.size))
        self._add_what_is_in_turn()

    def _add_what_is_in_turn(self) -> None:
        while self._next < len(self._members):
            if self._next == self._me:
                weight = self._weight
                self._sum += self._weighted(*self._range(self._me))
            elif self._next in self._waiting:
                weight, data = self._waiting.pop(self._next)
                name = self._members[self._next]
                self._uplink.decode_untrusted_into(data, self._arrived, sender=name)
                self._sum += self._arrived
            else:
                return
            self._total += weight
            self._next += 1

    # ---- and back ----------------------------------------------------------------------------

    @property
    def summed(self) -> bool:
        """True when every member's contribution to this member's range is in."""
        return self._next == len(self._members)

    def result(self) -> bytes:
        """As owner, once `summed`: the same bytes for everybody, this member included.

        Raises:
            NotFinite: finite values whose sum is not; or this member's own were not.
        """
        assert self.summed, "a result before the last contribution"
        if self._mean and self._total > 0:
            self._sum /= np.float32(self._total)
        data = np.empty(_WEIGHT.size + self._downlink.encoded_bytes(self._sum.size), np.uint8)
        data[: _WEIGHT.size] = np.frombuffer(_WEIGHT.pack(self._total), np.uint8)
        size = self._downlink.encode_into(self._sum, data[_WEIGHT.size :])
        encoded = data[: _WEIGHT.size + size].tobytes()
        self.take_result(self._me, encoded)
        return encoded

    def take_result(self, owner: int, data: bytes) -> None:
        """The finished range of `owner`.

        Raises:
            RefusedPayload: it does not decode, or came twice.
        """
        name = self._members[owner]
        if owner in self._digests:
            raise RefusedPayload(name, "a result that was here already")
        first, last = self._range(owner)
        if len(data) < _WEIGHT.size:
            raise RefusedPayload(name, f"a result of {len(data)} bytes")
        (weight,) = _WEIGHT.unpack_from(data)
        if not (math.isfinite(weight) and weight >= 0):
            raise RefusedPayload(name, f"a total weight of {weight}")
        encoded = np.frombuffer(data, np.uint8, offset=_WEIGHT.size)
        self._downlink.decode_untrusted_into(encoded, self._out[first:last], sender=name)
        self._weights[owner] = weight
        self._digests[owner] = blake3(data).digest()

    @property
    def done(self) -> bool:
        """True when every range is in `out`."""
        return len(self._digests) == len(self._members)

    @property
    def weight(self) -> float:
        """Sum of the members' weights, once `done`, as the first owner counted it."""
        return self._weights[0]

    @property
    def root(self) -> bytes:
        """What to vote for, once `done`: a digest over all owners' bytes."""
        return result_root(self._digests[owner] for owner in range(len(self._members)))
