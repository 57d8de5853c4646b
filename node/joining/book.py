"""The swarm's membership as people read it: rows of members and of what happened, from the signed statements.

Idea: every certificate and every revocation is a signed statement that proves itself (`transport.trust.statement`), so the list of
members and their history are a function of a set of statements, the same on every node that holds the same set. Pure.

Who counts as out is what `transport.trust.trust` would say of all the node's chains, or of the newest if none holds; a member whose issuer was revoked is out with it,
unless its certificate was kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from node.errors import NodedError
from transport.identity import NodeId
from transport.trust.certificate import DIRECT
from transport.trust.chain import Chain
from transport.trust.refusal import CertificateRefused
from transport.trust.revocation import Revocation
from transport.trust.statement import Statement

__all__ = ["chains_by_node", "find_member", "history_rows", "member_rows"]

CheckAgain = Callable[[Chain], None]
"""Raises CertificateRefused for a chain that would not be accepted now."""


def chains_by_node(statements: Iterable[Statement]) -> dict[NodeId, Chain]:
    """Each node's newest chain, the first members first."""
    newest: dict[NodeId, Chain] = {}
    chains = [each for each in statements if isinstance(each, Chain)]
    for chain in sorted(chains, key=lambda each: (each.leaf.issued_at_ms, each.raw)):
        newest.pop(chain.node_id, None)
        newest[chain.node_id] = chain
    first = _first_certified(chains)
    return dict(sorted(newest.items(), key=lambda item: (first[item[0]], item[0])))


def member_rows(
    statements: Iterable[Statement],
    check_again: CheckAgain,
    *,
    names: Mapping[NodeId, str],
    connected: Iterable[NodeId],
) -> list[dict[str, Any]]:
    """One row for each node that ever was a member.

    Args:
        statements: what this node holds.
        check_again: judges a chain as of now.
        names: what nodes call themselves, where that is known.
        connected: nodes that are connected now, and this one.
    """
    statements = list(statements)
    first = _first_certified(each for each in statements if isinstance(each, Chain))
    here = frozenset(connected)
    by_node: dict[NodeId, list[Chain]] = {}
    for each in statements:
        if isinstance(each, Chain):
            by_node.setdefault(each.node_id, []).append(each)
    rows = []
    for node_id, newest in chains_by_node(statements).items():
        # The newest that holds: anybody who may invite can certify a member's key once more, and revoke that.
        chain = next(
            (each for each in _latest(by_node[node_id]) if _holds(each, check_again)), newest
        )
        state, why = "member", ""
        try:
            check_again(chain)
        except CertificateRefused as error:
            state, why = error.refusal.value, str(error)
            if any(
                isinstance(each, Revocation) and each.subject == node_id and each.by_subject
                for each in statements
            ):
                state = "left"
        leaf = chain.leaf
        rows.append(
            {
                "id": str(node_id),
                "name": names.get(node_id, ""),
                "state": state,
                "why": why,
                "connected": node_id in here,
                "role": leaf.role,
                "may_invite": chain.can_extend,
                "inviter": _inviter(chain),
                "issuer": "root" if chain.above is None else str(chain.above.node_id),
                "invite": None if leaf.invite == DIRECT else leaf.invite.hex(),
                "joined_ms": first[node_id],
                "expires_ms": leaf.expires_at_ms,
            }
        )
    return rows


def history_rows(statements: Iterable[Statement]) -> list[dict[str, Any]]:
    """What was said when, oldest first."""
    rows: list[dict[str, Any]] = []
    seen: set[NodeId] = set()
    for each in sorted(statements, key=lambda each: (_at(each), each.raw)):
        if isinstance(each, Chain):
            again = each.node_id in seen
            seen.add(each.node_id)
            invite = "" if each.leaf.invite == DIRECT else f", invite {each.leaf.invite.hex()[:8]}"
            rows.append(
                {
                    "at_ms": each.leaf.issued_at_ms,
                    "event": "renewed" if again else "joined",
                    "node": str(each.node_id),
                    "by": _inviter(each),
                    "detail": f"{each.leaf.role}{', may invite' if each.can_extend else ''}{invite}",
                }
            )
        else:
            rows.append(
                {
                    "at_ms": each.at_ms,
                    "event": "left" if each.by_subject else "revoked",
                    "node": str(each.subject),
                    "by": str(each.revoker_id) if each.chain is not None else "root",
                    "detail": each.reason,
                }
            )
    return rows


def find_member(wanted: str, statements: Iterable[Statement], names: Mapping[NodeId, str]) -> Chain:
    """The newest chain of the node that a text means: an id, the start of one, or a name.

    Raises:
        NodedError: none or several are meant.
    """
    text = wanted.strip().lower()
    chains = chains_by_node(statements)
    meant = [node for node in chains if str(node).startswith(text) and len(text) > len("nd-")]
    meant = meant or [node for node in chains if names.get(node) == wanted.strip()]
    if len(meant) != 1:
        raise NodedError(
            f"{'no' if not meant else 'more than one'} member of the swarm is meant by {wanted[:80]!r}",
            hint="noded members lists them; an id, the unique start of one, or a name will do",
        )
    return chains[meant[0]]


def _latest(chains: Iterable[Chain]) -> list[Chain]:
    return sorted(chains, key=lambda each: (each.leaf.issued_at_ms, each.raw), reverse=True)


def _holds(chain: Chain, check_again: CheckAgain) -> bool:
    try:
        check_again(chain)
    except CertificateRefused:
        return False
    return True


def _first_certified(chains: Iterable[Chain]) -> dict[NodeId, int]:
    first: dict[NodeId, int] = {}
    for chain in chains:
        at_ms = chain.leaf.issued_at_ms
        first[chain.node_id] = min(at_ms, first.get(chain.node_id, at_ms))
    return first


def _inviter(chain: Chain) -> str:
    return str(chain.leaf.inviter) if any(chain.leaf.inviter) else "root"


def _at(statement: Statement) -> int:
    return statement.leaf.issued_at_ms if isinstance(statement, Chain) else statement.at_ms
