"""What a training session writes into a checkpoint's tensors file, and reads back.

Names in the file::

    <parameter>                         consensus parameters, under their own names: any program can
                                        load the model from here
    noded.<vector>.<parameter>          the protocol's other vectors (outer momentum, ...)
    noded.optimizer.<key>.<parameter>   private: moments of the local optimizer
    noded.random.torch                  private: torch's random state
    __metadata__["noded"]               JSON: round, step, tokens, cursor, plain numbers

The consensus part is what members agree on; the private part makes a restart of this very node
exact and is worth nothing to others. Everything is split by parameter, so that the file does not
depend on how the flat vector is laid out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs
import msgspec
import torch

from gossip.protocol import Averager
from node.run.checkpoint import CheckpointCorrupt, Trust, load
from node.run.tensor_file import WrittenFile, write_tensors
from node.shared_buffer import Vector
from node.training.binding import Binding, capture_private, restore_private

__all__ = ["Loop", "Position", "read_snapshot", "saved_vectors", "write_snapshot"]

METADATA_KEY: Final = "noded"
_DISCARDED: Final = ("params", "delta", "reduced")
"""Vectors that hold nothing worth saving between two rounds."""


class Position(msgspec.Struct, frozen=True):
    """Where a training loop stands."""

    round: int
    step: int
    """Local steps per node that the consensus state stands for."""
    tokens: int
    """Seen by this node."""
    cursor: dict[str, int]
    """Counters of the loop's own."""


class _Metadata(msgspec.Struct, frozen=True):
    position: Position
    numbers: dict[str, float]
    """Plain numbers of the optimizer's state."""


@attrs.frozen
class Loop:
    """Everything a snapshot is taken of."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    binding: Binding
    views: Mapping[str, Vector]
    vectors: tuple[str, ...]
    """Those that are saved; the first one is the model, whose tensors have their own names in the file."""

    def prefix(self, vector: str) -> str:
        """What names of the tensors of `vector` begin with."""
        return "" if vector == self.vectors[0] else f"noded.{vector}."


def saved_vectors(averager: Averager) -> tuple[str, ...]:
    """The consensus vectors, the parameters first, and private ones that outlive a round."""
    consensus = averager.consensus
    own = [n for n in averager.vectors if n not in consensus and n not in _DISCARDED]
    return (*consensus, *own)


def write_snapshot(path: Path, loop: Loop, position: Position) -> WrittenFile:
    """Write a new file and fsync it; raises `BadTensorFile` or OSError and leaves nothing then."""
    tensors, numbers = capture_private(loop.model, loop.optimizer, loop.binding)
    for vector in loop.vectors:
        for name, view in loop.binding.layout.split(loop.views[vector]):
            tensors[loop.prefix(vector) + name] = view
    metadata = msgspec.json.encode(_Metadata(position, numbers)).decode()
    return write_tensors(path, tensors, {METADATA_KEY: metadata})


def read_snapshot(path: Path, run_id: bytes, loop: Loop) -> Position:
    """Load a published checkpoint into the loop: saved vectors, buffers, optimizer, random state.

    The parameters are for the caller to set from the vectors.

    Raises:
        CheckpointMissing: nothing there.
        CheckpointCorrupt: damaged, of another run, or of a model with other parameters.
    """
    checkpoint, found = load(path, Trust(run_id=run_id))
    layout = loop.binding.layout
    try:
        metadata = msgspec.json.decode(found.metadata.get(METADATA_KEY, ""), type=_Metadata)
        for vector in loop.vectors:
            prefix = loop.prefix(vector)
            parts = {slot.name: found.tensors[prefix + slot.name] for slot in layout.slots}
            layout.join(parts, loop.views[vector])
    except (KeyError, ValueError, TypeError, msgspec.MsgspecError) as error:
        raise CheckpointCorrupt(checkpoint.path, f"it does not fit the model: {error}") from error
    restore_private(loop.model, loop.optimizer, loop.binding, found.tensors, metadata.numbers)
    # Signed, where the file's own metadata is only covered by the hash: the same numbers.
    return msgspec.structs.replace(
        metadata.position, round=checkpoint.manifest.round, step=checkpoint.manifest.step
    )
