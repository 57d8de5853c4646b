"""An artefact read straight from a store's folder, beside the daemon that owns it: for the command line, which writes files as its own user.

Reads only, and believes nothing: manifest, leaves and every block are checked against the id.
"""

from __future__ import annotations

from pathlib import Path

from gossip.blocks.errors import ArtefactUnavailable, InvalidArtefact
from gossip.blocks.manifest import MAX_BLOCKS, MAX_MANIFEST_BYTES, Manifest
from gossip.blocks.merkle import HASH_BYTES, leaf_hash
from node.blocks.store import read_regular
from node.errors import Refused

__all__ = ["StoredArtefact"]


class StoredArtefact:
    """One artefact in the store at `root`.

    Raises:
        ArtefactUnavailable: it is not there, or damaged.
        Refused: this user may not read the store.
    """

    def __init__(self, root: Path, artefact: bytes) -> None:
        folder = root / "artefacts" / artefact.hex()
        self._data = root / "data"
        try:
            self.manifest = Manifest.decode(read_regular(folder / "manifest", MAX_MANIFEST_BYTES))
            self._leaves = self.manifest.check_leaves(
                read_regular(folder / "leaves", MAX_BLOCKS * HASH_BYTES)
            )
        except PermissionError:
            raise Refused(
                f"this user may not read the daemon's store ({root})",
                hint="run as the user the daemon runs as, or with sudo",
            ) from None
        except (OSError, InvalidArtefact) as error:
            raise ArtefactUnavailable(f"the artefact is not in {root}: {error}") from None
        if self.manifest.id != artefact:
            raise ArtefactUnavailable(f"what lies in {folder} is another artefact")

    def read(self, block: int) -> bytes | None:
        """A block, checked; None if it is missing or damaged."""
        name = self._leaves[block].hex()
        try:
            data = read_regular(self._data / name[:2] / name, self.manifest.block_size(block))
        except (OSError, InvalidArtefact):
            return None
        return data if leaf_hash(data) == self._leaves[block] else None
