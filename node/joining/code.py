"""The text that joins a swarm: one pasted line that says where to ask, whom to believe, and that one may ask.

Problem: a newcomer has nothing: no address, no key to trust, no right to come in. All of it has to fit into a line that survives
mail programs, chats and narrow terminals, and whoever sees the line on its way to the newcomer may use it once and no more.

Idea: base32 in groups, like a node id, around these bytes:

    version (1) | swarm id (32) | issuer (16) | secret (16) | expiry (4) | address ... | check (3)

    issuer      the first half of the issuing node's id: 128 bits, enough that nobody mints a second one
    expiry      seconds since 1970, unsigned, rounded up
    address     4 | IPv4 (4) | port (2)     6 | IPv6 (16) | port (2)     128 + length | host name | port (2)
    check       the first bytes of SHA-256 over everything before, under a domain of its own

The invite's id and the key that proves possession are one-way functions of the secret (`invite_id`, `invite_key`), so neither
has to be in the text, and neither says anything about it. An address is a member's, not necessarily the issuer's: any member
passes the request on.

Invariants: one value has exactly one canonical text; parsing is lenient in case, in white space, in dashes and in the look-alikes
0, 1 and 8; the secret is in no `repr` and in no error.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import unicodedata
from collections.abc import Iterator
from typing import Final, Self

import attrs

from node.errors import ExitCode, NodedError
from transport.address import Address
from transport.errors import InvalidAddress
from transport.identity import NodeId

__all__ = [
    "INVITE_ID_BYTES",
    "ISSUER_BYTES",
    "InvalidCode",
    "InviteCode",
    "invite_id",
    "invite_key",
]

PREFIX: Final = "ni"
VERSION: Final = 1
SWARM_ID_BYTES: Final = 32
ISSUER_BYTES: Final = 16
SECRET_BYTES: Final = 16
INVITE_ID_BYTES: Final = 16
MAX_ADDRESSES: Final = 4
MAX_HOST_BYTES: Final = 100
MAX_TEXT: Final = 4096
"""Characters looked at; a code with four long names has some 1000."""
_CHECK_BYTES: Final = 3
_FIXED_BYTES: Final = 1 + SWARM_ID_BYTES + ISSUER_BYTES + SECRET_BYTES + 4
_NAME: Final = 128
_GROUP: Final = 8

_ALPHABET: Final = frozenset("abcdefghijklmnopqrstuvwxyz234567")
_LOOK_ALIKE: Final = str.maketrans({"0": "o", "1": "l", "8": "b"})
_CHECK_DOMAIN: Final = b"noded invite code v1\x00"
_ID_DOMAIN: Final = b"noded invite id v1"
_KEY_DOMAIN: Final = b"noded invite key v1"


class InvalidCode(NodedError):
    """Text that is no invite code."""

    exit_code = ExitCode.USAGE

    def __init__(self, why: str, *, hint: str = "") -> None:
        super().__init__(
            f"not an invite code: {why}",
            hint=hint
            or "copy all of it, from `ni-` to the last character, as it was printed on the other machine",
        )


def invite_id(secret: bytes) -> bytes:
    """16 bytes that name an invite in public; whoever forwards a request sees them."""
    return hmac.digest(secret, _ID_DOMAIN, "sha256")[:INVITE_ID_BYTES]


def invite_key(secret: bytes) -> bytes:
    """32 bytes that prove possession of the code; only the issuer's ledger holds them."""
    return hmac.digest(secret, _KEY_DOMAIN, "sha256")


def _check_addresses(_code: object, _attribute: object, value: tuple[Address, ...]) -> None:
    if len(value) > MAX_ADDRESSES:
        raise InvalidCode(f"more than {MAX_ADDRESSES} addresses")
    for address in value:
        if address.relay or address.is_wildcard or not address.port or "%" in address.host:
            raise InvalidCode("an address in it cannot be dialed from elsewhere")
        if len(address.host) > MAX_HOST_BYTES:
            raise InvalidCode("a host name in it is too long")


@attrs.frozen
class InviteCode:
    """What a code says. Raises `InvalidCode` for what no text can hold."""

    swarm_id: bytes
    """Names the swarm and, as a hash of its root key, whom to believe."""
    issuer: bytes
    """The first half of the id of the node that decides."""
    secret: bytes = attrs.field(repr=False)
    expires_s: int
    """Seconds since 1970."""
    addresses: tuple[Address, ...] = attrs.field(validator=_check_addresses)
    """Of members that pass the request on, the most promising first."""

    def __attrs_post_init__(self) -> None:
        sizes = (len(self.swarm_id), len(self.issuer), len(self.secret))
        if sizes != (SWARM_ID_BYTES, ISSUER_BYTES, SECRET_BYTES):
            raise InvalidCode("a part of it has the wrong length")
        if not 0 <= self.expires_s < 1 << 32:
            raise InvalidCode("its end is out of range")

    @property
    def id(self) -> bytes:
        """Of the invite."""
        return invite_id(self.secret)

    @property
    def key(self) -> bytes:
        """Proves possession of this code."""
        return invite_key(self.secret)

    def is_issuer(self, node_id: NodeId) -> bool:
        """Whether a node of this id is the one that decides."""
        return bytes(node_id[:ISSUER_BYTES]) == self.issuer

    @property
    def text(self) -> str:
        """The code itself: one line, a secret."""
        body = bytes([VERSION]) + self.swarm_id + self.issuer + self.secret
        body += self.expires_s.to_bytes(4, "big") + b"".join(map(_address_bytes, self.addresses))
        symbols = _base32(body + _check(body))
        groups = [symbols[at : at + _GROUP] for at in range(0, len(symbols), _GROUP)]
        return "-".join([PREFIX, *groups])

    @classmethod
    def parse(cls, text_untrusted: str) -> Self:
        """The code in a text, whatever mail and terminals did to its spaces, lines and dashes.

        Raises:
            InvalidCode: what is wrong, never the text.
        """
        if len(text_untrusted) > MAX_TEXT:
            raise InvalidCode("too long")
        text = _plain(text_untrusted)
        if not text.startswith(PREFIX):
            raise InvalidCode(f"it does not begin with {PREFIX}-", hint=_confused_with(text))
        symbols = text.removeprefix(PREFIX).translate(_LOOK_ALIKE)
        if not _ALPHABET.issuperset(symbols):
            raise InvalidCode("a character in it is not base32")
        data = _from_base32(symbols)
        body, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
        if not body or _check(body) != check:
            raise InvalidCode("its check does not match: something was left out or mistyped")
        if body[0] != VERSION:
            raise InvalidCode(
                f"it is of version {body[0]}, and this release reads version {VERSION}",
                hint="install the release that the other node runs",
            )
        if len(body) < _FIXED_BYTES:
            raise InvalidCode("too short")
        at = 1 + SWARM_ID_BYTES
        return cls(
            swarm_id=body[1:at],
            issuer=body[at : at + ISSUER_BYTES],
            secret=body[at + ISSUER_BYTES : at + ISSUER_BYTES + SECRET_BYTES],
            expires_s=int.from_bytes(body[_FIXED_BYTES - 4 : _FIXED_BYTES], "big"),
            addresses=tuple(_addresses(body[_FIXED_BYTES:])),
        )


def _check(body: bytes) -> bytes:
    return hashlib.sha256(_CHECK_DOMAIN + body).digest()[:_CHECK_BYTES]


def _plain(text: str) -> str:
    """Without separators: spaces, line ends, all kinds of dashes, and what cannot be seen."""
    return "".join(
        character
        for character in text
        if not character.isspace() and unicodedata.category(character) not in {"Pd", "Cf", "Cc"}
    ).lower()


def _confused_with(text: str) -> str:
    if text.startswith("nd"):
        return "that is a node's id; `noded invite` on a member of the swarm prints a code"
    if text.startswith("ns"):
        return "that is a swarm's key; `noded invite` on a member of the swarm prints a code"
    return ""


def _base32(data: bytes) -> str:
    return base64.b32encode(data).decode("ascii").rstrip("=").lower()


def _from_base32(symbols: str) -> bytes:
    if len(symbols) % 8 in {1, 3, 6}:
        raise InvalidCode("something was left out")
    data = base64.b32decode(symbols.upper() + "=" * (-len(symbols) % 8))
    if _base32(data) != symbols:
        raise InvalidCode("its last character is wrong")
    return data


def _address_bytes(address: Address) -> bytes:
    port = address.port.to_bytes(2, "big")
    if address.is_ip:
        ip = ipaddress.ip_address(address.host)
        return bytes([ip.version]) + ip.packed + port
    host = address.host.encode("ascii")
    return bytes([_NAME + len(host)]) + host + port


def _addresses(data: bytes) -> Iterator[Address]:
    while data:
        kind, data = data[0], data[1:]
        size = {4: 4, 6: 16}.get(kind, kind - _NAME)
        if size <= 0 or len(data) < size + 2:
            raise InvalidCode("an address in it makes no sense")
        host, port, data = (
            data[:size],
            int.from_bytes(data[size : size + 2], "big"),
            data[size + 2 :],
        )
        try:
            text = host.decode("ascii") if kind > _NAME else str(ipaddress.ip_address(host))
            address = Address(text, port)
        except (InvalidAddress, UnicodeDecodeError):
            raise InvalidCode("an address in it makes no sense") from None
        if kind > _NAME and (address.is_ip or address.host != text):
            raise InvalidCode("an address in it is not in its canonical form")
        yield address
