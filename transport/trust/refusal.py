"""Why a certificate was not accepted: one word for programs, one sentence for people, and what to do next.

Problem: "handshake failed" helps nobody whose certificate ran out last night, and counters need stable names. Idea: an enumeration of
reasons with a table beside it, and one error that carries the reason.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from transport.errors import HandshakeFailed


class Refusal(StrEnum):
    """Why; the values are stable words of `noded status`."""

    MISSING = "missing"
    MALFORMED = "malformed"
    TRUNCATED = "truncated"
    UNKNOWN_VERSION = "unknown-version"
    UNKNOWN_CRITICAL = "unknown-critical"
    OTHER_SWARM = "other-swarm"
    SELF_SIGNED = "self-signed"
    UNKNOWN_ROOT = "unknown-root"
    BROKEN_CHAIN = "broken-chain"
    TOO_LONG = "too-long"
    NOT_NARROWER = "not-narrower"
    FORGED = "forged"
    WRONG_KEY = "wrong-key"
    NOT_YET_VALID = "not-yet-valid"
    EXPIRED = "expired"
    REVOKED = "revoked"
    ISSUER_REVOKED = "issuer-revoked"


_WORDS: Final[dict[Refusal, tuple[str, str]]] = {
    Refusal.MISSING: ("there is no certificate", "join the swarm with an invite: noded join CODE"),
    Refusal.MALFORMED: ("the certificate does not parse", ""),
    Refusal.TRUNCATED: ("the certificate is cut short", ""),
    Refusal.UNKNOWN_VERSION: (
        "the certificate is of a version not known here",
        "run the same release on both nodes",
    ),
    Refusal.UNKNOWN_CRITICAL: (
        "the certificate makes a condition that this release does not know",
        "run a newer release on this node",
    ),
    Refusal.OTHER_SWARM: (
        "the certificate is for another swarm",
        "join this swarm with an invite: noded join CODE",
    ),
    Refusal.SELF_SIGNED: (
        "the certificate was signed by its own holder",
        "join the swarm with an invite: noded join CODE",
    ),
    Refusal.UNKNOWN_ROOT: (
        "the certificate does not lead to the swarm's root key",
        "join the swarm with an invite: noded join CODE",
    ),
    Refusal.BROKEN_CHAIN: ("a certificate was not signed by the holder of the one above it", ""),
    Refusal.TOO_LONG: (
        "more members have invited each other in a row than is allowed",
        "ask for an invite from a member nearer to the swarm's creator",
    ),
    Refusal.NOT_NARROWER: ("a certificate allows more than its issuer may give", ""),
    Refusal.FORGED: ("a certificate's signature is not its issuer's", ""),
    Refusal.WRONG_KEY: ("the certificate is for another key", ""),
    Refusal.NOT_YET_VALID: (
        "the certificate is not valid yet",
        "check the clocks of both machines",
    ),
    Refusal.EXPIRED: (
        "the certificate's time is over",
        "ask for a new invite: noded join CODE (and check the clocks of both machines)",
    ),
    Refusal.REVOKED: ("the node was revoked", ""),
    Refusal.ISSUER_REVOKED: (
        "the member that issued the certificate was revoked",
        "ask another member for an invite: noded join CODE",
    ),
}


YOUR_CERTIFICATE: Final = "your certificate is refused"
"""How the words begin with which a node is told so, sealed for it alone."""


class CertificateRefused(HandshakeFailed):
    """A certificate, or a chain of them, that is not accepted.

    Attributes:
        refusal: why, as a stable word.
    """

    def __init__(self, refusal: Refusal, detail: str = "") -> None:
        sentence, hint = _WORDS[refusal]
        super().__init__(f"{sentence}: {detail}" if detail else sentence, hint=hint)
        self.refusal = refusal
        self.code = f"certificate-{refusal}"
