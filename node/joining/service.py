"""Joining in a daemon: answers newcomers, passes their requests on, and decides about those for its own invites.

Problem: decisions must be made one after the other and be on the disk before they leave, while the event loop goes on, and while
requests come from strangers, from members, and for other issuers. Idea: one lock around "decide, make durable, commit"; everything
before it (parsing, budgets) and after it (sealing the answer) is outside.

    a stranger asks us        `answer_stranger`: ours to decide, or passed on over an ordinary call to the issuer
    a member passes one on    `answer_member`: ours to decide, or refused: a request goes through one member only

Invariants: an answer with a certificate leaves only after `LedgerFile.store` has returned; a decision that has begun is finished
even if whoever asked is gone; every wait has a deadline.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import attrs
import trio

from node.errors import NodedError, NotReady, Refused
from node.joining.answer import Grant, MalformedAnswer, hearsay, refuse, seal_grant
from node.joining.code import MAX_ADDRESSES, InviteCode
from node.joining.facts import MAX_BOOTSTRAP, SwarmFacts
from node.joining.forwarder import Forwarder
from node.joining.issuer import Issuer, New, No
from node.joining.ledger import Invite
from node.joining.ledger_file import CannotRecord, LedgerFile
from node.joining.places import places
from node.joining.reasons import Reason
from node.joining.request import JoinRequest, MalformedRequest, parse_request
from node.wall_clock import wall_ms
from transport.address import Address
from transport.errors import TransportError, UsageError
from transport.identity import NodeId
from transport.peer import Peer
from transport.trust.certificate import Role
from transport.trust.chain import YEAR_MS, Chain, certify, parse_chain
from transport.trust.refusal import CertificateRefused, Refusal
from transport.trust.trust import Member, Trust

__all__ = ["PROTOCOL", "Joining", "open_joining"]

PROTOCOL: Final = "noded/join/1"
FORWARD_S: Final = 15.0
"""For reaching the issuer and its answer; below what a newcomer waits for one member."""

_log = logging.getLogger(__name__)


class JoinEndpoint(Protocol):
    """What joining needs of `transport.endpoint.Endpoint`."""

    @property
    def identity(self) -> Any: ...
    @property
    def peers(self) -> Mapping[NodeId, Peer]: ...
    @property
    def advertised(self) -> tuple[Address, ...]: ...
    async def connect(
        self, addresses: Sequence[Address], *, expected: NodeId | None = None
    ) -> Peer: ...
    def serve_calls(
        self, protocol: str, handler: Callable[[Peer, bytes], Awaitable[bytes]]
    ) -> None: ...
    def unserve(self, protocol: str) -> None: ...


Find = Callable[[bytes], Awaitable[list[tuple[NodeId, list[Address]]]]]
"""The first half of a node's id to those that it may mean, and where they may be."""


@attrs.frozen(kw_only=True)
class Surroundings:
    """What the joining service uses of its node."""

    endpoint: JoinEndpoint
    trust: Trust
    swarm_secret: bytes = attrs.field(repr=False)
    facts: SwarmFacts
    find: Find
    """Where the issuer of a request is, if it is not connected."""
    on_member: Callable[[Chain], object]
    """Told of every certificate that was given, again after a restart; idempotent."""
    wall_ms: Callable[[], int] = wall_ms
    random_bytes: Callable[[int], bytes] = os.urandom
    in_thread: Callable[[Callable[[Invite], None], Invite], Awaitable[None]] = (
        trio.to_thread.run_sync
    )
    """Runs what waits for the disk; must not be cancelled once it has begun."""
    lifetime_ms: int = YEAR_MS
    """Of the certificates it gives."""


class Joining:
    """Made by `open_joining`."""

    def __init__(self, around: Surroundings, ledger: LedgerFile, invites: Iterable[Invite]) -> None:
        self._around = around
        self._ledger = ledger
        self._lock = trio.Lock()
        self._issuer = Issuer(
            around.endpoint.identity,
            around.trust.swarm_id,
            invites,
            certify=self._certify,
            standing=self._standing,
        )
        self._forwarder = Forwarder(around.trust.swarm_id)

    def _start(self) -> None:
        """Forget what is long over, and tell of what was granted: the crash may have come in between."""
        for key in self._issuer.forgettable(self._around.wall_ms()):
            self._issuer.forget(key)
            with contextlib.suppress(OSError):
                self._ledger.remove(key)
        for invite in self._issuer.invites.values():
            for use in invite.used:
                self._around.on_member(parse_chain(use.chain))

    # What the operator asks for

    async def invite(
        self,
        *,
        uses: int = 1,
        life_ms: int,
        role: Role = "trainer",
        may_invite: bool = False,
        local: bool = False,
    ) -> tuple[InviteCode, Invite]:
        """Make an invite; it is on the disk when this returns.

        Args:
            uses: how many nodes may join with it.
            life_ms: how long it is good.
            role: of those nodes.
            may_invite: whether they may invite others.
            local: for nodes on this machine.

        Raises:
            Refused: this node may not invite, or not so.
            NotReady: there is no address that a newcomer could ask.
            CannotRecord: the disk is full or broken.
        """
        around = self._around
        self._check_may_issue(role, may_invite=may_invite)
        others = (peer.address for peer in around.endpoint.peers.values() if peer.initiated)
        addresses = places(around.endpoint.advertised, others, local=local, most=MAX_ADDRESSES)
        if not addresses:
            raise _no_place(around.endpoint.advertised, local=local)
        async with self._lock:
            code, invite = self._issuer.create(
                around.random_bytes(16),
                addresses,
                now_ms=around.wall_ms(),
                life_ms=life_ms,
                uses=uses,
                role=role,
                may_invite=may_invite,
            )
            await self._store(invite)
            self._issuer.commit(invite)
        return code, invite

    async def withdraw(self, prefix: str) -> Invite:
        """Take an invite back; who has joined with it stays.

        Args:
            prefix: the start of its id, hexadecimal.

        Raises:
            NodedError: none or several are meant.
            CannotRecord: the disk is full or broken.
        """
        wanted = prefix.strip().lower()
        async with self._lock:
            meant = [key for key in self._issuer.invites if wanted and key.hex().startswith(wanted)]
            if len(meant) != 1:
                raise NodedError(
                    f"{'no invite' if not meant else 'more than one invite'} of this node begins with {prefix!r}",
                    hint="noded invite --list shows them",
                )
            invite = self._issuer.withdraw(meant[0], self._around.wall_ms())
            assert invite is not None
            await self._store(invite)
            self._issuer.commit(invite)
        return invite

    def report(self) -> dict[str, Any]:
        """For `noded status --json`: counts, no secrets."""
        now_ms = self._around.wall_ms()
        return {
            "invites_open": sum(
                invite.closed(now_ms) is None for invite in self._issuer.invites.values()
            ),
            "requests": dict(self._issuer.counters),
            "forwarded": dict(self._forwarder.counters),
        }

    def invites(self) -> list[dict[str, Any]]:
        """The invites of this node, the newest first; no secrets."""
        now_ms = self._around.wall_ms()
        return [
            {
                "id": invite.id.hex(),
                "uses": invite.uses,
                "used": [
                    {"node": str(NodeId.of_public_key(use.subject)), "at_ms": use.at_ms}
                    for use in invite.used
                ],
                "role": invite.role,
                "may_invite": invite.may_invite,
                "created_ms": invite.created_ms,
                "expires_ms": invite.expires_ms,
                "state": "open" if (why := invite.closed(now_ms)) is None else why.word,
            }
            for invite in sorted(self._issuer.invites.values(), key=lambda each: -each.created_ms)
        ]

    # What newcomers and members ask for

    async def answer_stranger(self, data_untrusted: bytes, source: str) -> bytes:
        """The answer for a newcomer that is connected to us.

        Args:
            data_untrusted: its request.
            source: the network it comes from.
        """
        request = self._forwarder.admit(data_untrusted, source, trio.current_time())
        if isinstance(request, Reason):
            return hearsay(request)
        outcome = "abandoned"
        try:
            if request.is_for(self._around.endpoint.identity.node_id):
                answer = await self._decide(request, source)
                outcome = "decided"
            else:
                answer = await self._pass_on(request)
                outcome = "passed"
        except _Unreachable:
            outcome = Reason.ISSUER_UNREACHABLE.word
            return hearsay(Reason.ISSUER_UNREACHABLE)
        except _IssuerRevoked:
            outcome = Reason.ISSUER_REVOKED.word
            return hearsay(Reason.ISSUER_REVOKED)
        finally:
            self._forwarder.done(outcome)
        return answer

    async def answer_member(self, peer: Peer, data_untrusted: bytes) -> bytes:
        """The answer for a request that a member passes on."""
        try:
            request = parse_request(data_untrusted)
        except MalformedRequest:
            return hearsay(Reason.MALFORMED)
        if not request.is_for(self._around.endpoint.identity.node_id):
            return hearsay(Reason.ISSUER_UNREACHABLE)
        return await self._decide(request, str(peer.node_id))

    # Inside

    async def _decide(self, request: JoinRequest, source: str) -> bytes:
        around = self._around
        async with self._lock:
            decision = self._issuer.decide(
                request, source, now=trio.current_time(), now_ms=around.wall_ms()
            )
            if isinstance(decision, No):
                return decision.answer
            if isinstance(decision, New):
                try:
                    await self._store(decision.invite)
                except CannotRecord as error:
                    _log.error("a request to join is refused: %s", error)
                    return refuse(request, Reason.CANNOT_RECORD, around.endpoint.identity)
                self._issuer.commit(decision.invite)
                _log.info(
                    "%s joins as %s, by an invite of this node",
                    request.node_id.short,
                    decision.invite.role,
                )
        around.on_member(parse_chain(decision.use.chain))
        grant = Grant(
            chain=decision.use.chain,
            swarm_secret=around.swarm_secret,
            root_key=parse_chain(decision.use.chain).issuers[0],
            swarm_name=around.facts.name,
            bootstrap=tuple(map(str, self._bootstrap())),
        )
        try:
            return seal_grant(request, decision.invite.key, grant, around.random_bytes)
        except MalformedAnswer:
            return refuse(request, Reason.MALFORMED, around.endpoint.identity)

    async def _store(self, invite: Invite) -> None:
        """Durable when it returns; not cancelled half-way, and what was stored is committed by the caller without a pause."""
        await self._around.in_thread(self._ledger.store, invite)

    async def _pass_on(self, request: JoinRequest) -> bytes:
        with trio.move_on_after(FORWARD_S):
            try:
                peer = await self._issuer_of(request)
                return await peer.call(PROTOCOL, request.data)
            except TransportError as error:
                _log.debug("a request to join did not reach its issuer: %s", error)
        raise _Unreachable

    async def _issuer_of(self, request: JoinRequest) -> Peer:
        """Raises _Unreachable, _IssuerRevoked."""
        around = self._around
        for node_id, peer in around.endpoint.peers.items():
            if request.is_for(node_id):
                return peer
        for node_id, addresses in await around.find(request.issuer):
            try:
                return await around.endpoint.connect(addresses, expected=node_id)
            except TransportError as error:
                _log.debug("the issuer %s is not reached: %s", node_id.short, error)
        # Only now: that somebody has revoked it says nothing while it is still a member by others' word.
        if any(request.is_for(node_id) for node_id in around.trust.revoked):
            raise _IssuerRevoked
        raise _Unreachable

    def _bootstrap(self) -> Iterable[Address]:
        """Members to ask first; loopback only if this node has nothing else."""
        endpoint = self._around.endpoint
        others = [peer.address for peer in endpoint.peers.values() if peer.initiated]
        found = places(endpoint.advertised, others, most=MAX_BOOTSTRAP)
        return found or places(endpoint.advertised, (), local=True, most=MAX_BOOTSTRAP)

    def _certify(self, request: JoinRequest, invite: Invite, now_ms: int) -> bytes:
        """Raises UsageError."""
        chain = self._around.trust.own
        if chain is None:
            raise UsageError("this node has no certificate")
        return certify(
            self._around.endpoint.identity,
            chain,
            subject=request.subject,
            role=invite.role,
            may_invite=invite.may_invite,
            serial=self._around.random_bytes(16),
            now_ms=now_ms,
            lifetime_ms=self._around.lifetime_ms,
            invite=invite.id,
        ).raw

    def _standing(self, raw: bytes) -> Reason | None:
        chain = parse_chain(raw)
        member = Member(chain.node_id, chain.leaf.role, chain.leaf.may_invite, chain)
        try:
            self._around.trust.check_again(member, self._around.wall_ms())
        except CertificateRefused as error:
            return _REASONS.get(error.refusal, Reason.CANNOT_CERTIFY)
        return None

    def _check_may_issue(self, role: Role, *, may_invite: bool) -> None:
        """Try it on a key that nobody has: the same rules then say yes or no, and why."""
        own = self._around.trust.own
        if own is None:
            raise Refused(
                "this node has no certificate that lets it invite",
                hint="ask whoever invited it for a code for the other node",
            )
        try:
            certify(
                self._around.endpoint.identity,
                own,
                subject=_NOBODY,
                role=role,
                may_invite=may_invite,
                serial=bytes(16),
                now_ms=self._around.wall_ms(),
            )
        except TransportError as error:
            raise Refused(str(error), hint=error.hint) from None
        if (reason := self._standing(own.raw)) is not None:
            raise Refused(f"this node may not invite: {reason.word}")


class _Unreachable(Exception):
    """The issuer could not be asked."""


class _IssuerRevoked(Exception):
    """The issuer is no member any more."""


_REASONS: Final = {
    Refusal.REVOKED: Reason.REVOKED,
    Refusal.ISSUER_REVOKED: Reason.ISSUER_REVOKED,
    Refusal.EXPIRED: Reason.EXPIRED,
}
_NOBODY: Final = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
"""The public key of RFC 8032's first test vector."""


def _no_place(advertised: Sequence[Address], *, local: bool) -> NotReady:
    if local:
        return NotReady(
            "this node does not listen on this machine's own address",
            hint="leave out --local, or add 127.0.0.1:7447 to network.listen",
        )
    if any(each.is_loopback for each in advertised):
        return NotReady(
            "this node listens for this machine alone, so nobody elsewhere could use a code of it",
            hint="for nodes on this machine:  noded invite --local      else listen elsewhere (network.listen)",
        )
    return NotReady(
        "this node has no address that a newcomer could ask",
        hint="wait until it has found a relay (noded netcheck), or set network.advertise",
    )


@asynccontextmanager
async def open_joining(around: Surroundings, folder: Path) -> AsyncIterator[Joining]:
    """Answer requests to join while the block runs.

    Args:
        around: what it uses of the node.
        folder: of the ledger.

    Raises:
        NodedError: the ledger cannot be read.
    """
    ledger = LedgerFile(folder)
    invites, damaged = ledger.load()
    for error in damaged:
        _log.error("%s", error)
    joining = Joining(around, ledger, invites)
    joining._start()  # noqa: SLF001 (same module)
    around.endpoint.serve_calls(PROTOCOL, joining.answer_member)
    try:
        yield joining
    finally:
        around.endpoint.unserve(PROTOCOL)
