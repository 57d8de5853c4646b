"""What an issuer has promised and given: its invites, and for each the certificates that came of it.

Problem: "works once" must hold under any number of requests at the same moment and over a crash at any instant, and a node whose
answer was lost must get the same certificate when it asks again. Idea: one value per invite. To grant is to make a new value with
one grant more; it is written to disk whole before anything leaves (`node.joining.ledger_file`), and the same subject is answered
from the value for ever after.

The value holds the invite's *key*, which checks a request but does not tell the code. Whoever reads the ledger could still make a
request with it, so the file is closed to others like a private key.

Invariants: the grants of an invite are at most its uses, one for each subject; they are only ever added to.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec

from node.errors import NodedError
from node.joining.code import INVITE_ID_BYTES
from node.joining.reasons import Reason
from transport.trust.certificate import Role
from transport.trust.chain import MAX_CHAIN_BYTES

__all__ = ["MAX_USES", "Invite", "LedgerDamaged", "Use", "decode_invite", "encode_invite"]

MAX_USES: Final = 1000
"""Of one invite: its file stays below a few MB."""
MAX_INVITES: Final = 1000
"""That are good at the same time; somebody who needs more wants more uses each."""
KEPT_MS: Final = 30 * 86400 * 1000
"""How long a finished invite is still answered for: those who ask late are told why, or get what was theirs."""
MAX_FILE_BYTES: Final = 16 << 20

_Key: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class LedgerDamaged(NodedError):
    """A file of the ledger that is not what was written."""


class Use(msgspec.Struct, frozen=True):
    """One certificate that was given."""

    subject: _Key
    """The public key that it certifies."""
    chain: Annotated[bytes, msgspec.Meta(max_length=MAX_CHAIN_BYTES)]
    """The certificate with those above it."""
    at_ms: int
    """When, in milliseconds since 1970."""


class Invite(msgspec.Struct, frozen=True, kw_only=True):
    """One invite and all that came of it."""

    id: Annotated[bytes, msgspec.Meta(min_length=INVITE_ID_BYTES, max_length=INVITE_ID_BYTES)]
    key: _Key
    """Checks requests; a secret."""
    uses: Annotated[int, msgspec.Meta(ge=1, le=MAX_USES)]
    """Nodes that may join with it."""
    created_ms: int
    expires_ms: int
    role: Role = "trainer"
    may_invite: bool = False
    withdrawn_ms: int = 0
    """When it was taken back; 0: it was not."""
    used: tuple[Use, ...] = ()

    def __repr__(self) -> str:
        return f"<Invite {self.id.hex()} used {len(self.used)}/{self.uses}>"

    def use_of(self, subject: bytes) -> Use | None:
        """What was given to a subject before."""
        return next((use for use in self.used if use.subject == subject), None)

    def closed(self, now_ms: int) -> Reason | None:
        """Why a new subject cannot have a certificate; None if it can."""
        if self.withdrawn_ms:
            return Reason.WITHDRAWN
        if len(self.used) >= self.uses:
            return Reason.USED_UP
        return Reason.EXPIRED if now_ms >= self.expires_ms else None

    def forgettable(self, now_ms: int) -> bool:
        """Whether nobody needs an answer about it any more."""
        return now_ms >= max(self.expires_ms, self.withdrawn_ms) + KEPT_MS

    def with_use(self, use: Use) -> Invite:
        """The value after one certificate more.

        Raises:
            ValueError: it was given before, or none is left (bugs in the caller).
        """
        if len(self.used) >= self.uses or self.use_of(use.subject) is not None:
            raise ValueError(
                "an invite gives each subject one certificate, and no more than its uses"
            )
        return msgspec.structs.replace(self, used=(*self.used, use))


def encode_invite(invite: Invite) -> bytes:
    """The file of an invite."""
    return msgspec.msgpack.encode(invite)


def decode_invite(data: bytes) -> Invite:
    """The invite in a file.

    Raises:
        LedgerDamaged: it is not one.
    """
    try:
        invite = msgspec.msgpack.decode(data, type=Invite)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise LedgerDamaged(f"not an invite of the ledger: {error}") from None
    if len(invite.used) > invite.uses or len({use.subject for use in invite.used}) < len(
        invite.used
    ):
        raise LedgerDamaged("an invite of the ledger was used more often than it may be")
    return invite
