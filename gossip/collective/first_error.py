"""The one error that says most of those that ended an operation together (sans-IO)."""

from __future__ import annotations

from collections.abc import Iterator

from gossip.collective.formats.wire_format import RefusedPayload
from gossip.errors import DescriptorMismatch, NotFinite


def first_error(group: BaseExceptionGroup[Exception]) -> Exception:
    """What no retry can help before who is to blame, and that before anything else; of as many the first."""
    leaves = list(_leaves(group))
    for telling in (DescriptorMismatch, NotFinite, RefusedPayload):
        for leaf in leaves:
            if isinstance(leaf, telling):
                return leaf
    return leaves[0]


def _leaves(group: BaseExceptionGroup[Exception]) -> Iterator[Exception]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
