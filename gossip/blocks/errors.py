"""What can go wrong with artefacts: one type per decision a caller can make."""

from __future__ import annotations

from gossip.errors import GossipError

__all__ = [
    "ArtefactUnavailable",
    "BlocksError",
    "InvalidArtefact",
    "InvalidArtefactId",
    "StoreFailed",
    "StoreFull",
]


class BlocksError(GossipError):
    """Root of what can be wrong with artefacts and their blocks."""


class InvalidArtefactId(BlocksError):
    """Text or bytes that are no artefact's id."""

    hint = "copy all 64 hexadecimal digits, as `noded put` prints them"


class InvalidArtefact(BlocksError):
    """A manifest, or what belongs to it, that is malformed, too large, or not what its hash says."""


class ArtefactUnavailable(BlocksError):
    """No reachable holder could give what is missing; what has arrived is kept."""

    hint = "try again when more of its holders are connected: the fetch goes on where it stopped"


class StoreFull(BlocksError):
    """The disk or the store's quota is full; nothing that was there is harmed."""

    hint = "free some space, raise blocks.quota_bytes, or unpin artefacts that are no longer needed"


class StoreFailed(BlocksError):
    """The disk refused to read or write; nothing that was there is harmed."""

    hint = "check the disk and the permissions of the data directory"
