"""What status and people see of trust: our certificate, who is out, and who was refused and why."""

from __future__ import annotations

from typing import Any, Final

from gossip.swarm.renewal import is_due
from gossip.swarm.service import SwarmService
from node.trust.membership import SwarmStanding
from node.wall_clock import wall_ms
from transport.endpoint import Endpoint

__all__ = ["trust_report"]

MAX_SHOWN: Final = 32
"""Refused keys in a status document: the latest."""


def trust_report(
    endpoint: Endpoint, standing: SwarmStanding, service: SwarmService
) -> dict[str, Any]:
    """The `swarm` part of the status document."""
    trust, own = standing.trust, standing.trust.own
    strangers = sum(peer.member.is_stranger for peer in endpoint.peers.values())
    return {
        "id": trust.swarm_id.hex(),
        "open": standing.swarm.is_open,
        "strangers": strangers,
        "certificate": None
        if own is None
        else {
            "role": own.leaf.role,
            "may_invite": own.can_extend,
            "expires_at_ms": own.leaf.expires_at_ms,
            "renewal_due": is_due(own, wall_ms()),
            "inviter": str(own.leaf.inviter) if any(own.leaf.inviter) else None,
        },
        "known": len(standing.document.statements),
        "revoked": len(trust.revoked),
        "refused": {str(reason): count for reason, count in sorted(trust.refusals.items())},
        "refused_keys": [
            {
                "id": str(node_id),
                "reason": str(refused.refusal),
                "count": refused.count,
                "last_ms": refused.last_ms,
            }
            for node_id, refused in reversed(list(trust.refused_keys.items())[-MAX_SHOWN:])
        ],
        "counters": dict(sorted(service.counters.items())),
    }
