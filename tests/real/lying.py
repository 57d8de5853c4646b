"""A `noded` whose library gives wrong bytes for every block: what a hostile or broken member could run."""

from __future__ import annotations

import sys

from node.blocks.library import NodeLibrary
from node.cli.main import main

honest_read = NodeLibrary.read


def read(self: NodeLibrary, artefact: bytes, block: int) -> bytes | None:
    data = honest_read(self, artefact, block)
    return None if not data else data[:-1] + bytes([data[-1] ^ 1])


NodeLibrary.read = read  # type: ignore[method-assign]
sys.exit(main())
