"""What each side of a handshake says about itself and about the connection; travels encrypted.

Problem: a peer's name, its addresses and the purpose of the connection must be known the moment it is authenticated, and all of
it is chosen by the peer. Idea: one small msgpack map, checked by the same validators on the way out and on the way in, so that
what can be made can also be read.

Invariants: `decode_intro` raises `HandshakeFailed` only; unknown keys are ignored, so a later release may add some; a key that
came after the first release is left out when it has nothing to say, so that the bytes of what was there before do not change.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

import attrs
import msgspec

from transport.address import Address
from transport.codec import decode_untrusted, pack
from transport.errors import HandshakeFailed, InvalidAddress, TransportError, UsageError

MAX_INTRO_BYTES = 3072
MAX_NAME_CHARS = 64
MAX_LISTEN = 16
MAX_LABEL_BYTES = 64

IntroKind: TypeAlias = Literal["control", "bulk", "probe"]


def _check_name(_intro: object, _attribute: object, value: str) -> None:
    if not isinstance(value, str) or len(value) > MAX_NAME_CHARS or not value.isprintable():
        raise UsageError(f"a node's name has at most {MAX_NAME_CHARS} printable characters")


def _as_tuple(addresses: Iterable[Address]) -> tuple[Address, ...]:
    return tuple(addresses)


def _check_listen(_intro: object, _attribute: object, value: tuple[Address, ...]) -> None:
    if len(value) > MAX_LISTEN or not all(isinstance(address, Address) for address in value):
        raise UsageError(f"a node advertises at most {MAX_LISTEN} addresses")


def _check_label(_intro: object, _attribute: object, value: bytes) -> None:
    if not isinstance(value, bytes) or len(value) > MAX_LABEL_BYTES:
        raise UsageError(f"a bulk label has at most {MAX_LABEL_BYTES} bytes")


def _check_observed(_intro: object, _attribute: object, value: str) -> None:
    if value == "":
        return
    try:
        address = Address.parse(value)
    except InvalidAddress as error:
        raise UsageError(f"the observed address is {error}") from None
    if address.relay or str(address) != value:
        raise UsageError("the observed address is not plain host:port")


@attrs.frozen
class Intro:
    """What each side says about itself and about the connection, encrypted in the handshake."""

    kind: IntroKind = attrs.field(
        default="control", validator=attrs.validators.in_(("control", "bulk", "probe"))
    )
    """The initiator's decides what the connection is for; "probe" tests whether the responder can be dialed at all."""
    name: str = attrs.field(default="", validator=_check_name)
    """The node's name for people; not unique, not verified."""
    listen: tuple[Address, ...] = attrs.field(
        default=(), converter=_as_tuple, validator=_check_listen
    )
    """Where the node says it can be dialed."""
    label: bytes = attrs.field(default=b"", validator=_check_label)
    """Which `accept_bulk` a bulk connection is for, or the nonce of a probe."""
    observed: str = attrs.field(default="", validator=_check_observed)
    """The address the sender sees the reader at, `host:port`; "" when there is none (a relayed connection)."""
    aegis: bool = False
    """Whether the sender can seal and open long records with AEGIS-256X4 (`transport.secure.aegis`): they are if both can."""


class _IntroMessage(msgspec.Struct, frozen=True):
    kind: IntroKind
    name: str = ""
    listen: tuple[str, ...] = ()
    label: bytes = b""
    observed: str = ""
    aegis: bool = False


def encode_intro(intro: Intro) -> bytes:
    """The bytes that go behind the signature.

    Raises:
        UsageError: more than `MAX_INTRO_BYTES`, so the other side would refuse them.
    """
    message: dict[str, object] = {
        "kind": intro.kind,
        "name": intro.name,
        "listen": [str(address) for address in intro.listen],
        "label": intro.label,
    }
    if intro.observed:
        message["observed"] = intro.observed
    if intro.aegis:
        message["aegis"] = True
    data = pack(message)
    if len(data) > MAX_INTRO_BYTES:
        raise UsageError(
            f"the intro has {len(data)} bytes, limit {MAX_INTRO_BYTES}: shorten the addresses"
        )
    return data


def decode_intro(data_untrusted: bytes) -> Intro:
    """Read what the other side says.

    Raises:
        HandshakeFailed: whatever is wrong with it.
    """
    try:
        message = decode_untrusted(data_untrusted, _IntroMessage, limit=MAX_INTRO_BYTES)
        listen = tuple(Address.parse(text) for text in message.listen[: MAX_LISTEN + 1])
        return Intro(
            message.kind, message.name, listen, message.label, message.observed, message.aegis
        )
    except TransportError as error:
        raise HandshakeFailed(f"the other side's introduction is malformed: {error}") from None
