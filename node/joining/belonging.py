"""What a daemon does about membership: answers newcomers, makes invites, lists and ends memberships, and speaks up on its networks.

`open_belonging` puts the parts together; `Belonging.handlers` are the routes of the control API that the verbs `invite`, `members`, `revoke`
and `leave` ask.

Invariants: nothing that a handler returns holds a secret, but for the code of the invite that was just asked for.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, Protocol

import attrs
import trio

from node.control import Handlers
from node.errors import NodedError, Refused, UsageError
from node.joining import lan
from node.joining.book import find_member, history_rows, member_rows
from node.joining.code import ISSUER_BYTES
from node.joining.facts import SwarmFacts
from node.joining.service import Joining, Surroundings, open_joining
from node.paths import NodePaths
from node.wall_clock import wall_ms
from transport.address import Address
from transport.endpoint import Endpoint
from transport.errors import InvalidAddress, TransportError
from transport.identity import NodeId
from transport.trust.certificate import ROLES
from transport.trust.chain import YEAR_MS, Chain
from transport.trust.refusal import CertificateRefused
from transport.trust.revocation import Revocation, revoke
from transport.trust.statement import Statement
from transport.trust.trust import Member, Trust

__all__ = ["Belonging", "Finds", "Statements", "open_belonging"]

FIND_S: Final = 8.0
GOODBYE_S: Final = 1.0
"""For the other members to hear that this node leaves."""


class Statements(Protocol):
    """The swarm's signed statements, as this node holds them; what is said here reaches the other members."""

    def all(self) -> Iterable[Statement]:
        """Those that are known, in no order."""
        ...

    def members(self) -> Collection[NodeId]:
        """Nodes that a known certificate is for; cheap, since strangers can make us ask."""
        ...

    def issued_by(self, issuer: NodeId, now_ms: int) -> list[bytes]:
        """Marks of the certificates that a revocation of `issuer` should keep."""
        ...

    def say(self, statement: Statement) -> object:
        """Add one that proves itself; known ones are ignored."""
        ...


class Finds(Protocol):
    """What this needs of `dht.service.Dht`."""

    async def find_node(self, target: bytes) -> list[Any]: ...  # noqa: D102
    async def locate(self, node_id: bytes) -> tuple[str, ...]: ...  # noqa: D102


@attrs.frozen(kw_only=True)
class Belonging:
    """Made by `open_belonging`."""

    endpoint: Endpoint
    trust: Trust
    statements: Statements
    joining: Joining
    stop: Callable[[], None]
    """Asks the daemon to end."""
    own_name: str

    def handlers(self) -> Handlers:
        """The routes, for the control API."""
        return {
            ("POST", "/v1/invites"): self._answer_invite,
            ("GET", "/v1/invites"): self._answer_invites,
            ("POST", "/v1/invites/withdraw"): self._answer_withdraw,
            ("GET", "/v1/members"): self._answer_members,
            ("POST", "/v1/revoke"): self._answer_revoke,
            ("POST", "/v1/leave"): self._answer_leave,
        }

    async def _answer_invite(self, body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        asked = body or {}
        uses, life_ms = asked.get("uses", 1), asked.get("life_ms", 86_400_000)
        role = asked.get("role", "trainer")
        whole = all(type(value) is int for value in (uses, life_ms))
        if not whole or role not in ROLES:
            raise UsageError(
                'invite wants {"uses": INT, "life_ms": INT, "role": "trainer", "relay" or "observer"}'
            )
        code, invite = await self.joining.invite(
            uses=uses,
            life_ms=life_ms,
            role=role,
            may_invite=asked.get("may_invite") is True,
            local=asked.get("local") is True,
        )
        return 200, {
            "schema": "noded.invite/1",
            "code": code.text,
            "id": invite.id.hex(),
            "uses": invite.uses,
            "role": invite.role,
            "may_invite": invite.may_invite,
            "expires_ms": invite.expires_ms,
            "addresses": [str(address) for address in code.addresses],
        }

    async def _answer_invites(self, _body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        return 200, {"schema": "noded.invites/1", "invites": self.joining.invites()}

    async def _answer_withdraw(self, body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        invite = await self.joining.withdraw(str((body or {}).get("id", "")))
        return 200, {"schema": "noded.invite-withdraw/1", "id": invite.id.hex()}

    async def _answer_members(self, _body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        statements = list(self.statements.all())
        return 200, {
            "schema": "noded.members/1",
            "swarm": self.trust.swarm_id.hex(),
            "members": member_rows(
                statements,
                self._check_again,
                names=self._names(),
                connected=[self.endpoint.node_id, *self.endpoint.peers],
            ),
            "history": history_rows(statements),
        }

    async def _answer_revoke(self, body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        asked = body or {}
        wanted, reason = asked.get("node"), asked.get("reason", "")
        if not isinstance(wanted, str) or not isinstance(reason, str):
            raise UsageError('revoke wants {"node": TEXT, "reason": TEXT}')
        statements = list(self.statements.all())
        chain = find_member(wanted, statements, self._names())
        if chain.node_id == self.endpoint.node_id:
            raise UsageError("that is this node itself", hint="noded leave gives its membership up")
        chain = self._below_us(chain, statements)
        keep = asked.get("all_below") is not True
        kept = self.statements.issued_by(chain.node_id, wall_ms()) if keep else []
        self._say_revoked(chain, reason=reason, kept=kept)
        return 200, {
            "schema": "noded.revoke/1",
            "node": str(chain.node_id),
            "reason": reason,
            "kept": len(kept),
        }

    async def _answer_leave(self, _body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        own = self.trust.own
        announced = False
        if own is not None and self.endpoint.peers:
            with suppress(
                NodedError
            ):  # whoever wants to go goes, also where there is no room to say so
                self._say_revoked(own, reason="", keeps_all=True)
                announced = True
            await trio.sleep(GOODBYE_S)  # what is said leaves with the next turn of each connection
        self.stop()
        return 200, {"schema": "noded.leave/1", "announced": announced}

    # Inside

    def _say_revoked(
        self, chain: Chain, *, reason: str, kept: Iterable[bytes] = (), keeps_all: bool = False
    ) -> None:
        try:
            revocation: Revocation = revoke(
                self.endpoint.identity,
                swarm_id=self.trust.swarm_id,
                subject=chain.node_id,
                at_ms=wall_ms(),
                reason=reason,
                kept=kept,
                keeps_all=keeps_all,
                chain=chain,
            )
        except TransportError as error:
            raise Refused(
                str(error),
                hint="ask the member that invited that node, or whoever invited that one",
            ) from None
        self.statements.say(revocation)
        try:
            self._check_again(chain)
        except CertificateRefused:
            return
        raise NodedError(
            f"nothing was revoked: there is no room for what this node says of {chain.node_id.short}",
            hint="the swarm's root key always finds some; so does whoever stands nearer to it",
        )

    def _below_us(self, chain: Chain, statements: Iterable[Statement]) -> Chain:
        """The newest chain of the same node in which we stand above it, whoever else has certified it since; else the given one."""
        key = self.endpoint.identity.public_key
        ours = [
            each
            for each in statements
            if isinstance(each, Chain) and each.node_id == chain.node_id and key in each.issuers
        ]
        return max(ours, key=lambda each: (each.leaf.issued_at_ms, each.raw), default=chain)

    def _check_again(self, chain: Chain) -> None:
        leaf = chain.leaf
        member = Member(chain.node_id, leaf.role, leaf.may_invite, chain)
        self.trust.check_again(member, wall_ms())

    def _names(self) -> Mapping[NodeId, str]:
        names = {node_id: peer.name for node_id, peer in self.endpoint.peers.items()}
        names[self.endpoint.node_id] = self.own_name
        return names


def _finder(
    dht: Finds, statements: Statements
) -> Callable[[bytes], Awaitable[list[tuple[NodeId, list[Address]]]]]:
    """Where a node may be whose id begins so: by its full id, if it is a member that we know of."""

    async def find(half: bytes) -> list[tuple[NodeId, list[Address]]]:
        known = [node for node in statements.members() if node[:ISSUER_BYTES] == half]
        found: list[tuple[NodeId, Iterable[str]]] = []
        with trio.move_on_after(FIND_S):
            if known:
                found = [(node, await dht.locate(bytes(node))) for node in known[:2]]
            else:
                contacts = await dht.find_node(half + bytes(32 - len(half)))
                found = [(NodeId(each.node_id), each.addresses) for each in contacts]
        return [
            (node, addresses)
            for node, texts in found
            if node[:ISSUER_BYTES] == half and (addresses := _parsed(texts))
        ]

    return find


def _parsed(texts: Iterable[str]) -> list[Address]:
    addresses = []
    for text in texts:
        with suppress(InvalidAddress):  # hearsay
            addresses.append(Address.parse(text))
    return addresses


@asynccontextmanager
async def open_belonging(
    endpoint: Endpoint,
    *,
    paths: NodePaths,
    trust: Trust,
    statements: Statements,
    facts: SwarmFacts,
    dht: Finds,
    stop: Callable[[], None],
    rng: random.Random,
    lan_discovery: bool,
    lifetime_ms: int = YEAR_MS,
    own_name: str = "",
) -> AsyncIterator[Belonging]:
    """Take part in the swarm's membership while the block runs.

    Args:
        endpoint: of the node.
        paths: where its invites are.
        trust: who is a member.
        statements: what was signed about that.
        facts: what this node was told when it joined.
        dht: finds issuers.
        stop: asks the daemon to end, after `noded leave`.
        rng: for jitter.
        lan_discovery: whether to speak up on this machine's networks; done only if it listens beyond this machine.
        lifetime_ms: of the certificates that this node gives.
        own_name: what people call this node.

    Raises:
        NodedError: the invites cannot be read.
    """
    around = Surroundings(
        endpoint=endpoint,
        trust=trust,
        swarm_secret=endpoint.swarm.key,
        facts=facts,
        find=_finder(dht, statements),
        on_member=statements.say,
        lifetime_ms=lifetime_ms,
    )
    async with open_joining(around, paths.invites) as joining, trio.open_nursery() as nursery:
        endpoint.open_door(joining.answer_stranger)
        if lan_discovery and lan.announces(endpoint.addresses):
            nursery.start_soon(_discover, endpoint, rng)
        try:
            yield Belonging(
                endpoint=endpoint,
                trust=trust,
                statements=statements,
                joining=joining,
                stop=stop,
                own_name=own_name,
            )
        finally:
            endpoint.close_door()
            nursery.cancel_scope.cancel()


async def _discover(endpoint: Endpoint, rng: random.Random) -> None:
    await lan.discover(endpoint, rng=rng)
