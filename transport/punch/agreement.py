"""Punching a hole: two nodes behind NATs agree, over a relay, to dial each other at the same moment (sans-IO).

Problem: a NAT lets a packet in only from where one went out, so neither of two nodes behind NATs can dial the other; but if both
dial at once, from the ports the NATs know, each SYN opens the way for the other's (Ford, Srisuresh, Kegel 2005, arXiv
cs/0603074, section 4; RFC 9293, section 3.5). Idea: libp2p's DCUtR (libp2p/specs: relay/DCUtR.md), one stream per punch:

    coordinator                                follower
      CONNECT(token, addresses)          ->
                                        <-     CONNECT(the same token, addresses)
      SYNC(the same token)               ->
      dials half a round trip later            dials at once, both for `ROUND_S`
      CONNECT(a fresh token, addresses)  ->    when that led nowhere, up to `MAX_ROUNDS` times; each measures the round trip anew
      END(reason)                       <->    at any time; also when it worked

A NAT that drops what it does not know needs no precision: the later SYN finds the hole. One that answers with RST does, and two
of those only meet by chance; therefore failed dials are repeated after random gaps of `MIN_GAP_S` to `MAX_GAP_S` (measured: 11 of
12 with 100 ms of skew, where a fixed gap gave none of 8). A dial that nobody answers is left to the kernel, which repeats its SYN
after 1 s and 3 s (RFC 6298): a new dial would have another sequence number, which a NAT that follows the old one lets in from
neither side. For the same reason the plain dials leave from another port: after one that was given up, the other side's SYN would come
in through its hole to the listener, whose answer the NAT drops as none of that connection's (captured; it lasts for a minute or two).

Invariants: at most `MAX_ADDRESSES` addresses of the other side are looked at; a message out of order is a `MalformedMessage` and the
end of the session; time and chance are arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

from transport.address import Address
from transport.errors import InvalidAddress, MalformedMessage, UsageError
from transport.punch.messages import (
    MAX_ADDRESSES,
    Connect,
    End,
    EndReason,
    Message,
    Sync,
    decode,
    encode,
)

MAX_ROUNDS: Final = 3
ROUND_S: Final = 5.0
"""How long both sides dial in one round."""
MIN_GAP_S: Final = 0.02
MAX_GAP_S: Final = 0.3
MAX_ATTEMPTS: Final = 40
"""Dials of one address in one round; with the mean gap, what fits into `ROUND_S`."""
MIN_REVERSE_S: Final = 0.3
MAX_REVERSE_S: Final = 1.5
MAX_FAILED_HANDSHAKES: Final = 3
"""Connections to one address that lead to no peer, until a session dials it no more: somebody else may be there."""

State: TypeAlias = Literal["idle", "connecting", "ready", "dialing", "over"]


class PunchSession:
    """One side of one punch, as messages go; the dialing is the driver's.

    Args:
        coordinates: whether this side measures and gives the signal.
        addresses: where we can be met; the first `MAX_ADDRESSES` are told.

    Attributes:
        state: "idle", then per round "connecting" (a CONNECT is under way, or the SYNC that follows), "ready" (the
            coordinator has its answer) and "dialing"; at last "over".
        round: 1 to `MAX_ROUNDS` once begun.
        rtt_s: the last round trip over the relay, seconds; None for the follower.
        theirs: where the other side says it can be met; not screened.
        dial_at: when to dial, in the caller's time.
        ended: why the other side ended the session; None while it has not.
    """

    def __init__(self, *, coordinates: bool, addresses: Sequence[Address]) -> None:
        self.coordinates = coordinates
        self.state: State = "idle"
        self.round = 0
        self.rtt_s: float | None = None
        self.theirs: tuple[Address, ...] = ()
        self.dial_at = 0.0
        self.ended: EndReason | None = None
        self._addresses = tuple(str(address) for address in addresses[:MAX_ADDRESSES])
        self._token = b""
        self._sent_at = 0.0

    @property
    def over(self) -> bool:
        """Whether either side has ended the session."""
        return self.state == "over"

    @property
    def may_go_on(self) -> bool:
        """Whether another round is allowed."""
        return self.state != "over" and self.round < MAX_ROUNDS

    @property
    def dial_until(self) -> float:
        """When this round's dialing ends."""
        return self.dial_at + ROUND_S

    @property
    def reverse_s(self) -> float:
        """How long a plain dial to the other side may take before it is given up for the punch."""
        return min(MAX_REVERSE_S, max(MIN_REVERSE_S, 2 * (self.rtt_s or 0.0)))

    def begin(self, token: bytes, now: float) -> bytes:
        """Coordinator: start a round; the message to send.

        Args:
            token: `TOKEN_BYTES` fresh random bytes.
            now: seconds, any origin.

        Raises:
            UsageError: this is not the time.
        """
        if not self.coordinates or self.state not in ("idle", "dialing") or not self.may_go_on:
            raise UsageError("no round of this punch can begin now")
        self.round += 1
        self.state = "connecting"
        self._token, self._sent_at = token, now
        return encode(Connect(token, self._addresses))

    def sync(self, now: float) -> bytes:
        """Coordinator: give the signal; the message to send at once. Sets `dial_at`."""
        if not self.coordinates or self.state != "ready":
            raise UsageError("the other side has not answered yet")
        self.state = "dialing"
        self.dial_at = now + (self.rtt_s or 0.0) / 2
        return encode(Sync(self._token))

    def end(self, reason: EndReason) -> bytes:
        """End the session here; the message to send."""
        self.state = "over"
        return encode(End(reason.value))

    def receive(self, data_untrusted: bytes, now: float) -> bytes:
        """Take one message; returns the answer to send, or b"".

        Raises:
            MalformedMessage: it is malformed or out of order; the session is over.
        """
        try:
            if self.state == "over":
                raise MalformedMessage("the punch is over")
            message = decode(data_untrusted)
            if isinstance(message, End):
                self.state, self.ended = "over", message.why
                return b""
            if self.coordinates:
                self._take_answer(message, now)
                return b""
            return self._follow(message, now)
        except MalformedMessage:
            self.state = "over"
            raise

    def _take_answer(self, message: Message, now: float) -> None:
        if self.state != "connecting" or not isinstance(message, Connect):
            raise MalformedMessage("a message of the punch out of order")
        if message.token != self._token:
            raise MalformedMessage("the answer belongs to another round")
        self.rtt_s = max(0.0, now - self._sent_at)
        self.theirs = _addresses_of(message)
        self.state = "ready"

    def _follow(self, message: Message, now: float) -> bytes:
        if isinstance(message, Connect):
            if self.state not in ("idle", "dialing") or not self.may_go_on:
                raise MalformedMessage("a message of the punch out of order")
            self.round += 1
            self.state = "connecting"
            self._token, self.theirs = message.token, _addresses_of(message)
            return encode(Connect(message.token, self._addresses))
        if self.state != "connecting" or not isinstance(message, Sync):
            raise MalformedMessage("a message of the punch out of order")
        if message.token != self._token:
            raise MalformedMessage("the signal belongs to another round")
        self.state, self.dial_at = "dialing", now
        return b""


def _addresses_of(message: Connect) -> tuple[Address, ...]:
    try:
        return tuple(
            dict.fromkeys(Address.parse(text) for text in message.addresses[:MAX_ADDRESSES])
        )
    except InvalidAddress as error:
        raise MalformedMessage(f"an address of the punch is {error}") from None


def gap_s(chance: float) -> float:
    """The pause before a failed dial is repeated, seconds.

    Args:
        chance: uniform in [0, 1).
    """
    return MIN_GAP_S + (MAX_GAP_S - MIN_GAP_S) * chance
