"""Lives of a node: numbers drawn at each start, by which others notice that it has begun again.

Problem: a node that restarts has forgotten what it counted with its peers, and messages of its earlier life may still be under way. Idea:
every message carries the sender's session, and where it matters the receiver's, as far as the sender knows it.
"""

from __future__ import annotations

import hashlib
import random
import struct
from typing import Annotated, Final

import msgspec

RETIRED_SESSIONS: Final = 4
"""Earlier sessions of a peer whose late messages are known as such."""

Session = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
"""In a message; 0: not known."""
Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
"""In a message: what is counted up from 0 within a session, or within a pair of them."""


def draw_session(rng: random.Random, now: float) -> int:
    """A session that none before it can be mistaken for, even with the same seed."""
    seed = struct.pack(">dQ", now, rng.getrandbits(64))
    return int.from_bytes(hashlib.blake2b(seed, digest_size=8).digest(), "big") >> 1
