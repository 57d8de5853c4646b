"""The newcomer's side: one request, and judgement of whatever comes back from whomever.

Problem: the members that pass the request on may withhold the answer, change it, or say no in the issuer's name. Idea: an answer
counts if it is a grant for this request whose chain leads to the root that the code names and ends in our own key, or a refusal that
the issuer signed for this request. Anything else is one address that did not help; the next is asked.

Invariants: the same request goes to every address, so the issuer sees one subject however often it is asked; `receive` never raises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

import attrs
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from node.errors import NodedError, PeerNotReachable
from node.joining.answer import Grant, MalformedAnswer, Refusal, read_answer
from node.joining.code import InviteCode
from node.joining.reasons import JoinRefused, Reason
from node.joining.request import make_request
from transport.errors import TransportError
from transport.identity import Identity
from transport.trust.chain import Chain, parse_chain, root_swarm_id, verify_chain

__all__ = ["Joined", "Redeemer"]

_EXPIRED_HINT: Final = "the code's time is over as well, by this machine's clock: ask for a new one"

# What a person should hear of several answers, the most telling first.
_TELLING: Final = (
    Reason.ISSUER_REVOKED,
    Reason.ISSUER_UNREACHABLE,
    Reason.BUSY,
    Reason.MALFORMED,
)


@attrs.frozen
class Joined:
    """A verified grant."""

    grant: Grant
    chain: Chain

    @property
    def is_open(self) -> bool:
        """Whether the swarm is an open one."""
        return self.chain.leaf.swarm_id == root_swarm_id(self.grant.root_key, is_open=True)


Verdict: TypeAlias = Joined | JoinRefused | None
"""Joined, refused by the issuer, or nothing that ends the asking."""


class Redeemer:
    """One attempt to redeem a code; sans-IO.

    Args:
        code: what was pasted.
        identity: the key to be certified.
        random_bytes: source of the fresh exchange key.
    """

    def __init__(
        self, code: InviteCode, identity: Identity, random_bytes: Callable[[int], bytes]
    ) -> None:
        self._code = code
        self._identity = identity
        self._private = random_bytes(32)
        public = X25519PrivateKey.from_private_bytes(self._private).public_key().public_bytes_raw()
        self._request = make_request(code, identity, public)
        self._hearsay: set[Reason] = set()
        self.failures: dict[str, str] = {}
        """What each address came to, where it did not help; bounded by the code's addresses."""

    @property
    def request(self) -> bytes:
        """What to send, to as many members as there are."""
        return self._request.data

    def failed(self, address: str, why: str) -> None:
        """An address led to no answer."""
        self.failures[address] = why

    def receive(self, address: str, answer_untrusted: bytes, now_ms: int) -> Verdict:
        """Judge an answer.

        Args:
            address: who gave it, for the report.
            answer_untrusted: the bytes.
            now_ms: milliseconds since 1970.
        """
        try:
            answer = read_answer(answer_untrusted, self._request, self._code, self._private)
            if isinstance(answer, Grant):
                return Joined(answer, self._verified(answer, now_ms))
        except (MalformedAnswer, TransportError) as error:
            self.failures[address] = str(error)
            return None
        if isinstance(answer, Refusal) and answer.signed:
            return JoinRefused(answer.reason)
        self._hearsay.add(answer.reason)
        self.failures[address] = f"answered {answer.reason.word}"
        return None

    def given_up(self, now_ms: int) -> NodedError:
        """The error when no address helped."""
        tried = "; ".join(f"{address}: {why}" for address, why in self.failures.items())
        late = now_ms >= self._code.expires_s * 1000
        for reason in _TELLING:
            if reason in self._hearsay:
                refused = JoinRefused(reason, more=tried)
                if late:
                    refused.hint = _EXPIRED_HINT
                return refused
        return PeerNotReachable(
            f"no member of the swarm answers ({tried or 'the code names no address'})",
            hint=_EXPIRED_HINT
            if late
            else "check that a node at one of these addresses runs and that this machine can reach it, "
            "or ask for a new code: addresses change",
        )

    def _verified(self, grant: Grant, now_ms: int) -> Chain:
        """Raises TransportError, MalformedAnswer."""
        chain = parse_chain(grant.chain)
        verify_chain(chain, self._code.swarm_id, now_ms)
        ids = {root_swarm_id(grant.root_key, is_open=is_open) for is_open in (False, True)}
        if self._code.swarm_id not in ids:
            raise MalformedAnswer("the answer names another root key than the code")
        if chain.leaf.subject != self._identity.public_key:
            raise MalformedAnswer("the certificate is for another key")
        above = chain.above
        if above is None or not self._code.is_issuer(above.node_id):
            raise MalformedAnswer("the certificate is not of the node that issued the invite")
        return chain
