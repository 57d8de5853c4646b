"""What nodes with rounds say to each other; models travel beside `Model`. Theory of operation: `gossip.decentralized.rounds.base`.

Each is a msgpack map with its `type`. All numbers are bounded when they are read, so that arithmetic on them cannot get
out of hand; unknown fields are ignored.
"""

from __future__ import annotations

from typing import Final

import msgspec

from transport.codec import decode_untrusted
from transport.errors import MalformedMessage

MAX_STAMP: Final = 1 << 48
"""Exchanges of a run; a thousand a second would take nine thousand years."""
MAX_DEGREE: Final = 1 << 20


class Model(msgspec.Struct, frozen=True, tag="model", omit_defaults=True):
    """The sender's payload of a stamp; the vectors travel beside it."""

    stamp: int
    degree: int
    """Targets of the sender's plan: both ends of an edge compute its weight from both degrees."""
    confirm: bool = False
    """The receiver is to say whether it takes this model, `Taken` or `Skip`; the sender mixes the receiver's only then."""


class Skip(msgspec.Struct, frozen=True, tag="skip"):
    """The sender has closed this stamp without the receiver's model, and all before it up to where it mixed one last."""

    stamp: int
    since: int
    """The last stamp at which the sender mixed a model of the receiver; -1: it never did."""


class Taken(msgspec.Struct, frozen=True, tag="taken"):
    """The sender has the receiver's model of this stamp in time, and mixes it unless it is told otherwise."""

    stamp: int


class Waiting(msgspec.Struct, frozen=True, tag="waiting"):
    """The sender is still at this stamp, because of somebody else."""

    stamp: int


AnyMessage = Model | Skip | Taken | Waiting


def parse_untrusted(message: bytes, *, carries_vectors: bool) -> AnyMessage:
    """A message with every number in its range; the vectors of a `Model` are for the caller to check.

    Raises:
        MalformedMessage: it is none of these, or vectors are there that do not belong to it.
    """
    decoded: AnyMessage = decode_untrusted(message, AnyMessage)  # type: ignore[arg-type]
    if not 0 <= decoded.stamp < MAX_STAMP:
        raise MalformedMessage("a stamp out of range")
    if isinstance(decoded, Model):
        if not 0 <= decoded.degree <= MAX_DEGREE:
            raise MalformedMessage("a degree out of range")
    elif carries_vectors:
        raise MalformedMessage("only models carry vectors")
    if isinstance(decoded, Skip) and not -1 <= decoded.since <= decoded.stamp:
        raise MalformedMessage("a skip that ends before it begins")
    return decoded
