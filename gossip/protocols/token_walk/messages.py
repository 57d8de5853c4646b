"""The token walk's messages (one msgpack map each; a model travels beside it).

========== ============ ==================================================================================
Token      one model    the token, after `n` steps; the receiver makes step n + 1
Receipt    no vector    the token has arrived, or is refused because of a higher term
Hold       no vector    the holder lives; to its guard, the one who keeps the lease
Release    no vector    the holder has handed the token over; to its guard
VisitQ     no vector    the holder asks a neighbour for its visit measure at step `n`
VisitA     no vector    the answer
Ask        no vector    where is the token, and who has its newest state; to everybody
Answer     no vector    the answer
Begin      no vector    nobody has the token, and the receiver has its newest state: it starts a new term
Fenced     no vector    the receiver's term is over
Last       one model    the run's last model; to everybody, and to whoever asks later
========== ============ ==================================================================================

`decode` is the only way in.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from gossip.protocols.token_walk.lease import Term
from transport.codec import decode_untrusted
from transport.identity import NODE_ID_BYTES

Step = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Number = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Id = Annotated[bytes, msgspec.Meta(min_length=NODE_ID_BYTES, max_length=NODE_ID_BYTES)]
Nonce = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
Life = Annotated[int, msgspec.Meta(ge=0, le=2**33)]
Measure = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Degree = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]

ANY_LIFE = 0
"""Of a token that is sent once only, by one who leaves."""


class Message(msgspec.Struct, frozen=True, tag_field="t"):
    """Base of all messages; the term is the highest that the sender has heard of, the one it acts in."""

    number: Number
    starter: Id

    @property
    def term(self) -> Term:
        """As a value."""
        return Term(self.number, self.starter)


class Token(Message, frozen=True, tag="token"):
    """`guard` keeps the lease on the receiver: the sender, unless it leaves."""

    n: Step
    guard: Id
    life: Life
    """That of the receiver which answered for its visits: one that has started anew since cannot know whether it had this token before."""


class Receipt(Message, frozen=True, tag="receipt"):
    """For `Token` of step n."""

    n: Step
    taken: bool


class Hold(Message, frozen=True, tag="hold"):
    """The token is here, after n steps."""

    n: Step


class Release(Message, frozen=True, tag="release"):
    """The token was here, until n steps."""

    n: Step


class VisitQ(Message, frozen=True, tag="visit-q"):
    """How much visited is the receiver at step n?"""

    n: Step


class VisitA(Message, frozen=True, tag="visit-a"):
    """x and degree of the sender at step n."""

    n: Step
    visits: Measure
    degree: Degree
    life: Life
    """Drawn when the sender started."""


class Ask(Message, frozen=True, tag="ask"):
    """To everybody."""

    n: Step
    """The newest step that the sender has heard of."""
    nonce: Nonce


class Answer(Message, frozen=True, tag="answer"):
    """Where the sender could start from, and whether it has the token."""

    nonce: Nonce
    state_number: Number
    state_starter: Id
    n: Step
    taken: Step
    """Steps of the term that the sender has answered for."""
    holding: bool


class Begin(Message, frozen=True, tag="begin"):
    """Start a term from the state of (term, n), if that is still the newest that the receiver has."""

    state_number: Number
    state_starter: Id
    n: Step


class Fenced(Message, frozen=True, tag="fenced"):
    """The term of this message has followed on yours."""


class Last(Message, frozen=True, tag="last"):
    """n steps, and that is all."""

    n: Step


AnyMessage = (
    Token | Receipt | Hold | Release | VisitQ | VisitA | Ask | Answer | Begin | Fenced | Last
)


def decode(data_untrusted: bytes) -> AnyMessage:
    """Parse one message.

    Raises:
        MalformedMessage: whatever is wrong with it.
    """
    kinds: Any = AnyMessage
    said: AnyMessage = decode_untrusted(data_untrusted, kinds)
    return said
