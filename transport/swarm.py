"""Which swarm a node belongs to: a root key that says who is a member, and a secret that keeps strangers cheap.

Problem: a node must refuse strangers before it spends work on them or tells them who it is, and it must know its fellows without asking anybody.
Idea: the public half of the swarm's root key names the swarm (`id`, bound into every signature) and is what certificates lead to
(`transport.trust`); one secret that members share opens the outer gate of every handshake, before any public-key operation. An
8-byte `tag`, sent in clear, gives a node of another swarm a plain answer instead of a cryptic failure.

Who wants to join has no secret. It knocks with a key made of the swarm's id, which only invites and members tell (`Gate.joining`): enough to
keep scanners out, and worth nothing but one request to join. In an open swarm the secret is made of the root key, so anybody has it who
knows the swarm's name.

Invariants: the secret is in no log, no `repr` and no wire byte; id and tag are one-way functions of public values.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from functools import cached_property
from typing import Self

import attrs

from transport.errors import InvalidSwarmKey
from transport.identity import is_acceptable_public_key
from transport.text import decode32, encode32
from transport.trust.chain import root_swarm_id

SWARM_KEY_BYTES = 32
TAG_BYTES = 8
_TAG_DOMAIN = b"noded swarm tag v2\x00"
_JOIN_DOMAIN = b"noded join gate v1\x00"
_OPEN_DOMAIN = b"noded open swarm gate v1\x00"


def _check_key(_swarm: object, _attribute: object, value: bytes) -> None:
    if not isinstance(value, bytes) or len(value) != SWARM_KEY_BYTES:
        raise InvalidSwarmKey(f"a swarm key is {SWARM_KEY_BYTES} bytes")


def _check_root(_swarm: object, _attribute: object, value: bytes) -> None:
    if not isinstance(value, bytes) or not is_acceptable_public_key(value):
        raise InvalidSwarmKey("a swarm's root is an Ed25519 public key")


@attrs.frozen(slots=False)  # cached_property needs the instance dict
class Gate:
    """What the first bytes of a handshake are checked against."""

    id: bytes
    """32 bytes that name the swarm."""
    key: bytes = attrs.field(repr=False)
    """32 bytes; whoever has them may say who it is."""

    @classmethod
    def joining(cls, swarm_id: bytes) -> Self:
        """The gate for those who have no more than an invite."""
        return cls(swarm_id, hashlib.sha256(_JOIN_DOMAIN + swarm_id).digest())

    @cached_property
    def tag(self) -> bytes:
        """8 bytes of the hello; a hint, proves nothing."""
        return hashlib.sha256(_TAG_DOMAIN + self.id).digest()[:TAG_BYTES]

    def proof(self, domain: bytes, data: bytes) -> bytes:
        """HMAC-SHA256 under the gate's key."""
        return hmac.digest(self.key, domain + b"\x00" + data, "sha256")


@attrs.frozen(slots=False)
class Swarm:
    """A swarm, by its secret and the public half of its root key."""

    key: bytes = attrs.field(repr=False, validator=_check_key)
    """32 random secret bytes, the same for all members; can be changed without making another swarm."""
    root: bytes = attrs.field(validator=_check_root)
    """The root's Ed25519 public key."""
    is_open: bool = False
    """Whether strangers may take part: then the key is none that anybody keeps secret."""

    @classmethod
    def generate(cls, random_bytes: Callable[[int], bytes], root: bytes) -> Self:
        """A new closed swarm of that root key; `random_bytes` is os.urandom outside simulations."""
        return cls(random_bytes(SWARM_KEY_BYTES), root)

    @classmethod
    def open_to_all(cls, root: bytes) -> Self:
        """The open swarm of that root key."""
        return cls(hashlib.sha256(_OPEN_DOMAIN + root).digest(), root, is_open=True)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The swarm of its text: `ns-... nr-...` (secret and root), or `no-...` (an open swarm's root).

        Raises:
            InvalidSwarmKey: with what is wrong, never with the text.
        """
        words = text.split()
        try:
            if len(words) == 1 and words[0].lower().startswith("no-"):
                return cls.open_to_all(decode32("no", words[0]))
            if len(words) != 2:
                raise ValueError("its secret and its root belong together, two words")
            return cls(decode32("ns", words[0]), decode32("nr", words[1]))
        except ValueError as error:
            raise InvalidSwarmKey(f"not a swarm key: {error}") from None

    @cached_property
    def id(self) -> bytes:
        """32 bytes that name the swarm in public."""
        return root_swarm_id(self.root, is_open=self.is_open)

    @cached_property
    def gate(self) -> Gate:
        """The outer gate of handshakes between members."""
        return Gate(self.id, self.key)

    @property
    def tag(self) -> bytes:
        """8 bytes of the hello."""
        return self.gate.tag

    @property
    def key_text(self) -> str:
        """What `parse` reads: secret unless the swarm is open."""
        root = encode32("no" if self.is_open else "nr", self.root)
        return root if self.is_open else f"{encode32('ns', self.key)} {root}"

    def proof(self, domain: bytes, data: bytes) -> bytes:
        """HMAC-SHA256 under the swarm key: only members can make or check it."""
        return self.gate.proof(domain, data)
