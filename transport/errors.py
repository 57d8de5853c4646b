"""Every way the transport can fail, one type per decision a caller can make.

Problem: callers must tell "the other side is not ours" from "the cable broke" from "I called this wrongly" without parsing
text, and people must be told what to do next. Idea: one root, `TransportError`, with `hint`; below it three families:
*remote* (the bytes were wrong: `HandshakeFailed`, `ProtocolViolation`, ...), *environment* (`ConnectFailed`, `PeerLost`, ...)
and *local* (`UsageError`, `StreamLimitReached`, ...). Foreign exceptions (OSError, trio, cryptography) never leave this room.

Invariants: messages are one sentence and never contain unescaped bytes chosen by a peer; `hint` may be empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class TransportError(Exception):
    """Root of all errors of this room.

    Attributes:
        hint: what a person can do next; may be "".
    """

    default_hint: ClassVar[str] = ""

    def __init__(self, message: str = "", *, hint: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or type(self).__name__).splitlines()[0])
        self.hint = self.default_hint if hint is None else hint


# Local: the caller asked for something that cannot be.


class UsageError(TransportError):
    """A core or handle was used in a state that forbids the call (a bug in the caller)."""


class InvalidNodeId(TransportError):
    """Text or bytes that are not a node id."""

    default_hint = "copy the whole id, as `noded id` prints it"


class InvalidPublicKey(TransportError):
    """Bytes that are not an acceptable Ed25519 public key."""


class InvalidSwarmKey(TransportError):
    """Text that is not a swarm key."""

    default_hint = "copy the whole key, from `ns-` to the last character"


class InvalidAddress(TransportError):
    """Text that is not host:port."""

    default_hint = "write host:port, or [address]:port for IPv6"


class MessageTooLarge(TransportError):
    """A message over the size limit was to be sent."""


class StreamLimitReached(TransportError):
    """This side already has as many open streams as it may have."""

    default_hint = "close streams that are done, or raise limits.streams_per_peer"


class EndpointClosed(TransportError):
    """The endpoint is closing or closed."""


# Remote: what came in was wrong.


class MalformedMessage(TransportError):
    """A message from a peer that does not parse or does not fit its type."""


class ProtocolViolation(TransportError):
    """A peer broke the rules of the multiplexed connection; the connection is closed."""


class RecordError(TransportError):
    """A sealed record that cannot be used; fatal for its connection."""


class RecordTooLarge(RecordError):
    """A record that announces or needs more bytes than allowed."""


class MalformedRecord(RecordError):
    """A record whose header or length makes no sense."""


class AuthenticationFailed(RecordError):
    """A record whose tag is wrong: forged, damaged, replayed, reordered or cut."""


class HandshakeFailed(TransportError):
    """The secure channel was not established.

    Attributes:
        reason: the sentence of this error.
        code: the same as a stable word.
    """

    code: str = "handshake-failed"

    def __init__(self, reason: str = "", *, hint: str | None = None) -> None:
        super().__init__(reason, hint=hint)
        self.reason = str(self)


class NotNoded(HandshakeFailed):
    """The other side does not speak this protocol."""

    code = "not-noded"
    default_hint = "check the address and the port: something else answers there"


class VersionMismatch(HandshakeFailed):
    """The other side speaks another version of the protocol."""

    code = "version-mismatch"
    default_hint = "run the same release on both nodes"


class WrongSwarm(HandshakeFailed):
    """The other side belongs to another swarm."""

    code = "wrong-swarm"
    default_hint = "both nodes need the same swarm key"


class WrongPeer(HandshakeFailed):
    """The node that answered is not the one that was expected."""

    code = "wrong-peer"
    default_hint = "the address may have been given to another node, or the expected id is stale"


class SelfDialed(HandshakeFailed):
    """The other side has our own identity."""

    code = "self-dialed"
    default_hint = (
        "remove this node's own address from its bootstrap list; a key file belongs to one node"
    )


class Replayed(HandshakeFailed):
    """The other side sent what somebody else had sent before."""

    code = "replayed"


class JoinRefused(HandshakeFailed):
    """Somebody who wants to join is not listened to now."""

    code = "join-refused"


class HandshakeTimeout(HandshakeFailed):
    """The handshake did not finish before its deadline."""

    code = "handshake-timeout"


# Environment: the network, or the other process.


class ConnectFailed(TransportError):
    """A connection to one address could not be opened.

    Attributes:
        lasting: whether the cause lies with this machine and will not go away within seconds (no such network, no permission), so
            that dialing again soon makes no sense.
    """

    def __init__(
        self, message: str = "", *, hint: str | None = None, lasting: bool = False
    ) -> None:
        super().__init__(message, hint=hint)
        self.lasting = lasting


class ListenFailed(TransportError):
    """A listening address could not be opened."""


class AddressInUse(ListenFailed):
    """Another program already listens on the address."""

    default_hint = "choose another port, or stop the other program"


class ConnectionBroken(TransportError):
    """The raw connection ended or was reset."""


class PeerUnreachable(TransportError):
    """No address of a peer led to an authenticated connection.

    Attributes:
        attempts: (what was tried, why it failed), in the order tried.
    """

    def __init__(
        self,
        message: str = "",
        *,
        attempts: Sequence[tuple[str, str]] = (),
        hint: str | None = None,
    ) -> None:
        self.attempts = tuple((str(target), str(reason)) for target, reason in attempts)
        if not message:
            tried = "; ".join(f"{target}: {reason}" for target, reason in self.attempts)
            message = f"peer unreachable ({tried or 'no address to try'})"
        super().__init__(message, hint=hint)


class PeerLost(TransportError):
    """The connection to a peer ended while it was in use.

    Attributes:
        reason: why, in words.
    """

    def __init__(self, reason: str = "", *, hint: str | None = None) -> None:
        super().__init__(reason, hint=hint)
        self.reason = str(self)


class StreamError(TransportError):
    """Something about one stream; its connection is unharmed."""


class StreamClosed(StreamError):
    """The stream was closed on this side, or is gone."""


class StreamReset(StreamError):
    """The other side cancelled the stream.

    Attributes:
        reset_code: the number it gave (`frames.ResetCode` where known).
    """

    def __init__(self, message: str = "", *, reset_code: int = 0, hint: str | None = None) -> None:
        super().__init__(
            message or f"the other side reset the stream (code {reset_code})", hint=hint
        )
        self.reset_code = reset_code


class EndOfStream(StreamError):
    """The other side finished the stream cleanly; nothing more will come."""


class RemoteCallFailed(StreamError):
    """A call reached the peer and the peer could not answer it."""
