"""Keys and distances: one 256-bit space for node ids and record keys, with the XOR metric.

Idea (Maymounkov and Mazieres, "Kademlia", 2002, section 2.1): the distance of two ids is the number their XOR
spells. It is symmetric, obeys the triangle inequality, and for every id and distance there is exactly one id
that far away, so all lookups of a key converge along the same paths whoever starts them.

Invariants: every id is exactly 32 bytes. A record key is the hash of unambiguously framed parts, so no two
lists of parts share a key, and the swarm id is always the first part, so swarms never collide.
"""

from __future__ import annotations

import hashlib
import random

from dht.errors import InvalidKey

KEY_BYTES = 32
KEY_BITS = 8 * KEY_BYTES

_DOMAIN = b"noded dht record key v1\0"


def check_key(key: bytes) -> bytes:
    """Return `key`, or raise InvalidKey when it is not 32 bytes."""
    if not isinstance(key, bytes) or len(key) != KEY_BYTES:
        raise InvalidKey(f"a key has {KEY_BYTES} bytes", hint="derive keys with record_key()")
    return key


def record_key(swarm_id: bytes, *parts: str | bytes) -> bytes:
    """Return the 32-byte key under which records about `parts` live in this swarm.

    Args:
        swarm_id: the public id of the swarm.
        parts: what the record is about, e.g. `"run", "tiny"`. Text and bytes of equal content differ.
    """
    digest = hashlib.sha256(_DOMAIN)
    for part in (swarm_id, *parts):
        kind, raw = (b"s", part.encode()) if isinstance(part, str) else (b"b", part)
        digest.update(kind + len(raw).to_bytes(8, "big") + raw)
    return digest.digest()


def distance(first: bytes, second: bytes) -> int:
    """Return the XOR distance of two ids, from 0 (equal) to 2**256 - 1."""
    return int.from_bytes(first, "big") ^ int.from_bytes(second, "big")


def shared_prefix_bits(first: bytes, second: bytes) -> int:
    """Return how many leading bits two ids share: 0 (opposite halves) to 256 (equal)."""
    return KEY_BITS - distance(first, second).bit_length()


def random_id_in_bucket(own_id: bytes, index: int, rng: random.Random) -> bytes:
    """Return a random id that shares exactly `index` leading bits with `own_id` (0 <= index < 256)."""
    flipped = 1 << (KEY_BITS - 1 - index)
    below = rng.getrandbits(KEY_BITS) & (flipped - 1)
    prefix = int.from_bytes(own_id, "big") & ~(flipped - 1)
    return ((prefix ^ flipped) | below).to_bytes(KEY_BYTES, "big")
