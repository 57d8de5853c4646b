"""Why a node is not let in: one word on the wire, one sentence and one next step for the person, one exit code.

Invariant: the numbers are of the wire; adding one is fine, changing one is not.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from node.errors import ExitCode, NodedError

__all__ = ["JoinRefused", "Reason"]


class Reason(IntEnum):
    """Why a request to join was refused."""

    UNKNOWN = 1
    """The issuer has no such invite."""
    EXPIRED = 2
    USED_UP = 3
    """Somebody else has redeemed it, as often as it allows."""
    WRONG_SECRET = 4
    """There is such an invite, and the request was not made with its code."""
    ISSUER_REVOKED = 5
    """What the issuer signs counts no more."""
    ISSUER_UNREACHABLE = 6
    """Said by a member that was to pass the request on."""
    REVOKED = 7
    """The node that asks was a member, and was revoked."""
    WITHDRAWN = 8
    """The issuer has taken the invite back."""
    BUSY = 9
    """Too many requests; later one may be taken."""
    MALFORMED = 10
    """The request makes no sense to the one asked; another release, perhaps."""
    CANNOT_RECORD = 11
    """The issuer cannot write its ledger, and what is not on disk is not granted."""
    CANNOT_CERTIFY = 12
    """The issuer's own certificate does not let it certify this node."""

    @property
    def word(self) -> str:
        """For counters and JSON."""
        return self.name.lower().replace("_", "-")


_TEXTS: Final[dict[Reason, tuple[str, str, ExitCode]]] = {
    Reason.UNKNOWN: (
        "the node that issued this invite does not know it",
        "ask for a new code: that node may have been set up anew, or have forgotten an old invite",
        ExitCode.REFUSED,
    ),
    Reason.EXPIRED: (
        "this invite has expired",
        "ask for a new code; --expires 7d there makes one that lasts longer",
        ExitCode.REFUSED,
    ),
    Reason.USED_UP: (
        "this invite has been used up: another node joined with it",
        "ask for a new code; who came in with this one is shown to its issuer under members",
        ExitCode.REFUSED,
    ),
    Reason.WRONG_SECRET: (
        "the request was not made with the code of this invite",
        "copy the code again, all of it",
        ExitCode.REFUSED,
    ),
    Reason.ISSUER_REVOKED: (
        "the node that issued this invite is no member of the swarm any more",
        "ask another member for a code",
        ExitCode.REFUSED,
    ),
    Reason.ISSUER_UNREACHABLE: (
        "the node that issued this invite cannot be reached now, and only it can decide",
        "try again when that node runs; the code stays good until it expires",
        ExitCode.PEER_UNREACHABLE,
    ),
    Reason.REVOKED: (
        "this node was a member of the swarm, and was revoked",
        "a revoked key never comes back: join with a new one (another --config folder)",
        ExitCode.REFUSED,
    ),
    Reason.WITHDRAWN: (
        "this invite was taken back by its issuer",
        "ask for a new code",
        ExitCode.REFUSED,
    ),
    Reason.BUSY: (
        "the nodes that were asked have too many requests to join at the moment",
        "try again in a minute",
        ExitCode.NOT_READY,
    ),
    Reason.MALFORMED: (
        "the node that was asked does not understand the request",
        "run the same release on both nodes",
        ExitCode.FAILED,
    ),
    Reason.CANNOT_RECORD: (
        "the node that issued this invite cannot write to its disk, and grants nothing that it could forget",
        "its owner finds the cause with `noded status`; the code stays good",
        ExitCode.NOT_READY,
    ),
    Reason.CANNOT_CERTIFY: (
        "the node that issued this invite may not certify this node",
        "its own certificate may be over, or this node may stand above it: ask another member for a code",
        ExitCode.REFUSED,
    ),
}


class JoinRefused(NodedError):
    """A request to join was refused.

    Attributes:
        reason: why.
    """

    def __init__(self, reason: Reason, *, more: str = "") -> None:
        message, hint, code = _TEXTS[reason]
        super().__init__(f"{message} ({more})" if more else message, hint=hint, exit_code=code)
        self.reason = reason
