"""What a swarm's shared document holds: who was made a member by whom, and who was revoked by whom; one signed statement each.

    certified   01 | chain         see `transport.trust.chain`: the last certificate in it is what was said
    revoked     02 | revocation    see `transport.trust.revocation`

A statement proves itself, so it may come from anybody; its id is the SHA-256 of its bytes.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from transport.trust.chain import (
    MAX_CERTIFICATES,
    Chain,
    IsSigned,
    parse_chain,
    signed,
    verify_chain,
)
from transport.trust.refusal import CertificateRefused, Refusal
from transport.trust.revocation import (
    MAX_REVOCATION_BYTES,
    Revocation,
    parse_revocation,
    verify_revocation,
)

Statement: TypeAlias = Chain | Revocation
MAX_STATEMENT_BYTES: Final = 1 + MAX_REVOCATION_BYTES
CERTIFIED: Final = b"\x01"
REVOKED: Final = b"\x02"


def encode_statement(statement: Statement) -> bytes:
    """The bytes that travel."""
    kind = CERTIFIED if isinstance(statement, Chain) else REVOKED
    return kind + statement.raw


def parse_statement(data_untrusted: bytes) -> Statement:
    """Read a statement; says nothing about signatures. Raises: CertificateRefused."""
    match data_untrusted[:1]:
        case b"\x01":
            return parse_chain(data_untrusted[1:])
        case b"\x02":
            return parse_revocation(data_untrusted[1:])
        case b"":
            raise CertificateRefused(Refusal.MISSING)
        case _:
            raise CertificateRefused(Refusal.UNKNOWN_VERSION, "a statement of another kind")


def verify_statement(statement: Statement, swarm_id: bytes, is_signed: IsSigned = signed) -> None:
    """Check that it was said in this swarm by who may say it, at whatever time. Raises: CertificateRefused."""
    if isinstance(statement, Chain):
        verify_chain(statement, swarm_id, None, is_signed)
    else:
        verify_revocation(statement, swarm_id, is_signed)


def author_of(statement: Statement) -> bytes:
    """Who answers for it: the public key of the first below the root that could have said it, the root's if that said it itself.

    Whoever may invite can make any number of members below itself, so that is whose share a statement takes. What a member says of itself is never
    the root's: it could say so for ever.
    """
    if isinstance(statement, Revocation):
        chain = statement.chain
        return statement.revoker if chain is None else chain.certificates[0].subject
    first = statement.certificates[0]
    return first.issuer if len(statement.certificates) == 1 else first.subject


def weight_of(statement: Statement) -> int:
    """Which goes last where there is no room for all: revocations, and of those the ones by who stands higher.

    Otherwise those below could push out that they, or each other, were revoked. 0 for a certificate, then 1 for who stands lowest, to 4 for the root.
    """
    if isinstance(statement, Chain):
        return 0
    if statement.chain is None:
        return MAX_CERTIFICATES + 1
    subjects = [certificate.subject for certificate in statement.chain.certificates]
    return MAX_CERTIFICATES - subjects.index(statement.revoker)


def said_at_ms(statement: Statement) -> int:
    """When, by the clock of who said it."""
    if isinstance(statement, Chain):
        return statement.leaf.issued_at_ms
    return statement.at_ms
