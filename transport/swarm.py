"""Which swarm a node belongs to: a 32-byte key that all its nodes share.

Problem: a node must refuse strangers before it spends work on them or tells them who it is. Idea: one secret per swarm enters
every handshake; from it come a public `id` (bound into every signature) and an 8-byte `tag`, sent in clear so that a node of
another swarm gets a plain answer instead of a cryptic failure.

Invariants: the key is in no log, no `repr` and no wire byte; id and tag are one-way functions of it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from functools import cached_property
from typing import Self

import attrs

from transport.errors import InvalidSwarmKey
from transport.text import decode32, encode32

SWARM_KEY_BYTES = 32
TAG_BYTES = 8
_ID_DOMAIN = b"noded swarm id v1\x00"
_TAG_DOMAIN = b"noded swarm tag v1\x00"


def _check_key(_swarm: object, _attribute: object, value: bytes) -> None:
    if not isinstance(value, bytes) or len(value) != SWARM_KEY_BYTES:
        raise InvalidSwarmKey(f"a swarm key is {SWARM_KEY_BYTES} bytes")


@attrs.frozen(slots=False)  # cached_property needs the instance dict
class Swarm:
    """A swarm, by its shared secret."""

    key: bytes = attrs.field(repr=False, validator=_check_key)
    """32 random secret bytes."""

    @classmethod
    def generate(cls, random_bytes: Callable[[int], bytes]) -> Self:
        """A new swarm; `random_bytes` is os.urandom outside simulations."""
        return cls(random_bytes(SWARM_KEY_BYTES))

    @classmethod
    def parse(cls, text: str) -> Self:
        """The swarm of a key text (`ns-...`).

        Raises:
            InvalidSwarmKey: with what is wrong, never with the text.
        """
        try:
            return cls(decode32("ns", text))
        except ValueError as error:
            raise InvalidSwarmKey(f"not a swarm key: {error}") from None

    @cached_property
    def id(self) -> bytes:
        """32 bytes that name the swarm in public."""
        return hashlib.sha256(_ID_DOMAIN + self.key).digest()

    @cached_property
    def tag(self) -> bytes:
        """8 bytes of the hello; a hint, proves nothing."""
        return hashlib.sha256(_TAG_DOMAIN + self.id).digest()[:TAG_BYTES]

    @property
    def key_text(self) -> str:
        """The secret in printable form, with a check character."""
        return encode32("ns", self.key)

    def proof(self, domain: bytes, data: bytes) -> bytes:
        """HMAC-SHA256 under the swarm key: only members can make or check it."""
        return hmac.digest(self.key, domain + b"\x00" + data, "sha256")
