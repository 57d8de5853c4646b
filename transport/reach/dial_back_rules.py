"""Dial-backs: what is asked and answered, whom a server dials, and how often (sans-IO).

Problem: "please dial me there" is a request to send packets to an address that the asker chose, which is what floods are made of. Idea:
a server dials only the IP address at which it sees the asker itself, exactly one port of it, so that nobody can point it at somebody
else; and it does so seldom: per asker, per network of askers, and in all (after AutoNAT v2, libp2p/specs: autonat/autonat-v2.md, and the
limits of go-libp2p, p2p/protocol/autonatv2/options.go: 60 and 12 a minute). That costs the server at most four SYNs and one handshake per
request of about the same size, so there is nothing to amplify.

    request   {"address": "host:port", "nonce": bytes 16}
    answer    {"outcome": "reached" | "failed" | "refused", "reason": text <= 128 characters}

"failed" and "refused" differ: only the former says something about the address.

Invariants: decoders raise `MalformedMessage` only; in any 60 seconds at most the configured numbers are let through; at most
`max_known` askers, and as many networks, are remembered, and forgetting one never lifts the limit of all.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, Literal

import attrs
import msgspec

from transport.address import Address
from transport.budget.accounts import Accounts
from transport.budget.admission import source_of
from transport.budget.rates import TokenBucket
from transport.codec import decode_untrusted, pack
from transport.errors import InvalidAddress, MalformedMessage, UsageError
from transport.identity import NodeId

PROTOCOL: Final = "reach/dial-back"
NONCE_BYTES: Final = 16
MAX_REASON_CHARS: Final = 128
MAX_MESSAGE_BYTES: Final = 1024

_Nonce = Annotated[bytes, msgspec.Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
_Reason = Annotated[str, msgspec.Meta(max_length=MAX_REASON_CHARS)]
_AddressText = Annotated[str, msgspec.Meta(max_length=MAX_MESSAGE_BYTES)]


class Outcome(StrEnum):
    """What came of a request."""

    REACHED = "reached"
    FAILED = "failed"
    REFUSED = "refused"


class _Request(msgspec.Struct, frozen=True):
    address: _AddressText
    nonce: _Nonce


class _Answer(msgspec.Struct, frozen=True):
    outcome: Literal["reached", "failed", "refused"]
    reason: _Reason = ""


@attrs.frozen
class DialBackRequest:
    """Dial me at `address`, and show `nonce`."""

    address: Address
    nonce: bytes


@attrs.frozen
class DialBackAnswer:
    """What the server says came of it."""

    outcome: Outcome
    reason: str = ""


def encode_request(request: DialBackRequest) -> bytes:
    """The bytes of a request."""
    return pack(_Request(str(request.address), request.nonce), limit=MAX_MESSAGE_BYTES)


def decode_request(data_untrusted: bytes) -> DialBackRequest:
    """Read a request.

    Raises:
        MalformedMessage: whatever is wrong with it.
    """
    message = decode_untrusted(data_untrusted, _Request, limit=MAX_MESSAGE_BYTES)
    try:
        return DialBackRequest(Address.parse(message.address), message.nonce)
    except InvalidAddress as error:
        raise MalformedMessage(f"the address to dial is {error}") from None


def encode_answer(answer: DialBackAnswer) -> bytes:
    """The bytes of an answer; a long reason is cut."""
    reason = answer.reason[:MAX_REASON_CHARS]
    return pack(_Answer(answer.outcome.value, reason), limit=MAX_MESSAGE_BYTES)


def decode_answer(data_untrusted: bytes) -> DialBackAnswer:
    """Read an answer; a reason with unprintable characters is escaped.

    Raises:
        MalformedMessage: whatever is wrong with it.
    """
    message = decode_untrusted(data_untrusted, _Answer, limit=MAX_MESSAGE_BYTES)
    said = message.reason
    return DialBackAnswer(Outcome(message.outcome), said if said.isprintable() else ascii(said))


def objection(wanted: Address, asker: Address, *, relayed: bool) -> str:
    """Why a server does not dial `wanted` for an asker it sees at `asker`; "" if it may."""
    if relayed:
        return "you are connected over a relay, so I do not know your address"
    if not wanted.is_ip or wanted.port == 0:
        return "not an IP address and a port"
    if wanted.relay:
        return ""  # that is another question: whether the server is connected with that relay
    if wanted.host != asker.host:
        return f"I dial only the address I see you at, {asker.host}"
    return ""


@attrs.frozen(kw_only=True)
class DialBackLimits:
    """What a server does for others."""

    per_minute: int = 60
    """Dials in any minute, all askers (count)."""
    per_network_per_minute: int = 30
    """Of them for askers in one network: an IPv4 address or an IPv6 /56 (count)."""
    per_asker_per_minute: int = 12
    """Of them for one node (count)."""
    at_once: int = 8
    """Dials under way (count); each holds a socket for `dial_s` at most."""
    dial_s: float = 8.0
    """Longest dial, handshake included (seconds): a SYN and three more, which bears 5 % of loss easily."""
    max_known: int = 1024
    """Askers remembered, and as many networks (count)."""

    def __attrs_post_init__(self) -> None:
        if any(not value > 0 for value in attrs.astuple(self)):
            raise UsageError("the limits of dial-backs are positive")


class DialBackGate:
    """Decides whether a server serves one more request.

    Half of each number may come at once and the other half comes back in a minute, so that no minute has more than the whole.
    """

    def __init__(self, limits: DialBackLimits, now: float) -> None:
        self.limits = limits
        self._all = TokenBucket(*_halves(limits.per_minute), now)
        self._askers: Accounts[NodeId] = Accounts(
            *_halves(limits.per_asker_per_minute), most=limits.max_known
        )
        self._networks: Accounts[str] = Accounts(
            *_halves(limits.per_network_per_minute), most=limits.max_known
        )
        self._busy: set[NodeId] = set()  # bounded by limits.at_once

    def enter(self, asker: NodeId, host: str, now: float) -> str:
        """Begin to serve `asker` at `host`; "" and one `leave` is owed, or why not."""
        limits = self.limits
        if asker in self._busy or len(self._busy) >= limits.at_once:
            return "busy with other dial-backs; ask again later"
        buckets = (
            self._askers.of(asker, now),
            self._networks.of(source_of(host), now),
            self._all,
        )
        if any(bucket.level(now) < 1 for bucket in buckets):
            return "too many dial-backs in the last minute; ask again later"
        for bucket in buckets:
            bucket.take(1, now)
        self._busy.add(asker)
        return ""

    def leave(self, asker: NodeId) -> None:
        """End what `enter` began."""
        self._busy.remove(asker)

    @property
    def known(self) -> int:
        """Askers or networks held, whichever are more; never above `max_known`."""
        return max(len(self._askers), len(self._networks))


def _halves(per_minute: int) -> tuple[float, float]:
    """Rate per second and burst: half of a minute's number may come at once."""
    burst = max(1.0, per_minute // 2)
    return max(per_minute - burst, 0.5) / 60, burst
