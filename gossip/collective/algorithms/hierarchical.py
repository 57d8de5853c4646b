"""All-reduce of members that live at a few sites: within each site first, then between one of each (trio driver).

What crosses the slow lines between sites is one vector per site each way, whatever number of members a site has,
and only that travels in the call's wire format::

    1. each site:   the mean of its members (or their minimum, ...), at the first of them, as values are
    2. the firsts:  all-reduce of these by the butterfly, each with its site's weight
    3. each site:   the first one tells the others, as values are

A mean of means with the sites' weights is the mean of all, and their weighted sum the sum; with one more
rounding than the butterfly has. The root is over the whole result, which every member hashes itself.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import trio
from blake3 import blake3

from gossip.collective.agreement.certificate import result_root
from gossip.collective.algorithms.butterfly import butterfly
from gossip.collective.call import EXACT, Call, Kind, Reduce
from gossip.collective.links.buffers import as_bytes
from gossip.collective.links.exchange import Links
from gossip.errors import InvalidOperation

Array = npt.NDArray[Any]

_SITE, _BETWEEN, _BACK = 0, 16, 32
_PIECE_BYTES = 1 << 22
"""Hashed at a time: half a millisecond."""
_WEIGHT = struct.Struct(">d")


def site_members(sites: Sequence[int], site: int) -> list[int]:
    """The members of a site, by index."""
    return [rank for rank, at in enumerate(sites) if at == site]


def leaders(sites: Sequence[int]) -> list[int]:
    """The first member of each site, ascending."""
    return [rank for rank, at in enumerate(sites) if at not in sites[:rank]]


def talks_to(sites: Sequence[int], rank: int) -> list[int]:
    """Whom a member needs links with."""
    site = site_members(sites, sites[rank])
    if rank != site[0]:
        return [site[0]]
    return sorted({*site, *leaders(sites)} - {rank})


async def hierarchical(
    links: Links, call: Call, sites: Sequence[int], source: Array, out: Array
) -> tuple[bytes, float]:
    """Carry out an all-reduce; returns the root and the members' total weight.

    Args:
        links: to and from all of `talks_to`.
        call: what to do.
        sites: at which site each member is, by index.
        source: only read.
        out: undefined until this returns. The first of a site needs the memory of a third vector.

    Cancellation leaves the links unusable.

    Raises:
        InvalidOperation: integers have no mean, so they are not added this way.
        NotFinite, RefusedPayload, CollectiveAborted, DescriptorMismatch, LinkClosed: as for `butterfly`.
    """
    if call.reduce is Reduce.SUM and source.dtype.kind in "iu":
        raise InvalidOperation("integers are not added site by site; use the butterfly or the ring")
    summing = call.reduce in {Reduce.SUM, Reduce.MEAN}
    within = attrs.evolve(call, wire=EXACT, reduce=Reduce.MEAN if summing else call.reduce)
    members = site_members(sites, sites[links.rank])
    site = links.among(members)
    weight = 0.0
    of_site = np.empty_like(source) if site.rank == 0 else out
    step = attrs.evolve(within, kind=Kind.REDUCE_SCATTER)
    _, of_site_weight = await butterfly(site, step, source, of_site, owners=(0,), stage=_SITE)
    if site.rank == 0:
        between = attrs.evolve(call, weight=of_site_weight)
        _, weight = await butterfly(
            links.among(leaders(sites)), between, of_site, out, stage=_BETWEEN
        )
    step = attrs.evolve(within, kind=Kind.BROADCAST)
    _, weight = await butterfly(site, step, out, out, owners=(0,), weight=weight, stage=_BACK)
    return result_root([await _digest(out), _WEIGHT.pack(weight)]), weight


async def _digest(out: Array) -> bytes:
    """Of the whole result, in pieces: other tasks shall not wait for all of it."""
    hasher, data = blake3(), as_bytes(out)
    for start in range(0, len(data), _PIECE_BYTES):
        hasher.update(data[start : start + _PIECE_BYTES])
        await trio.lowlevel.checkpoint()
    return hasher.digest()
