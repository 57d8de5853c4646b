"""What `transport.reach` knows, as plain values for JSON: the body of `noded.netcheck/1`.

Unknown is None, never a zero or a missing key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import trio

from transport.identity import NodeId
from transport.nat.portmap import PortMapper
from transport.punch.upgrader import PunchRecord
from transport.reach.diagnosis import diagnose
from transport.reach.reach import Reach
from transport.trust.refusal import CertificateRefused

SCHEMA: Final = "noded.netcheck/1"


def daemon_netcheck(reach: Reach, bootstrap: Mapping[str, str]) -> dict[str, Any]:
    """The document of a running daemon.

    Args:
        reach: its own.
        bootstrap: what came of each bootstrap address; "" if it answered.
    """
    if reach.upgrader is None:
        trial = no_trial("network.hole_punching is off")
    elif not reach.upgrader.records:
        trial = no_trial("no peer has been reached over a relay so far")
    else:
        node_id, record = next(reversed(reach.upgrader.records.items()))
        trial = punch_row(node_id, record, trio.current_time())
    return {
        "schema": SCHEMA,
        **reach_report(reach),
        "daemon": True,
        "bootstrap_failures": {at: reason for at, reason in bootstrap.items() if reason},
        "punch_trial": trial,
    }


def refused_advice(refusal: CertificateRefused | None) -> dict[str, str]:
    """What takes the place of the report's advice where no address and no router is to blame; nothing without a refusal."""
    if refusal is None:
        return {}
    return {"advice": f"other members refuse this node: {refusal}; {refusal.hint}".rstrip("; ")}


def last_punch(reach: Reach, node_id: NodeId) -> dict[str, Any] | None:
    """What came of the last attempt to connect directly to a relayed peer; None without one."""
    record = None if reach.upgrader is None else reach.upgrader.records.get(node_id)
    return None if record is None else punch_row(node_id, record, trio.current_time())


def reach_report(reach: Reach) -> dict[str, Any]:
    """Everything about being reached, now."""
    facts, now = reach.facts(), trio.current_time()
    diagnosis, observations = diagnose(facts), reach.evidence.observations
    records = {} if reach.upgrader is None else reach.upgrader.records
    return {
        "verdict": diagnosis.standing.value,
        "sentence": diagnosis.sentence,
        "advice": diagnosis.advice,
        "peers": facts.peers,
        "far_peers": facts.far_peers,
        "interfaces": list(facts.interfaces),
        "listening": [str(address) for address in reach.endpoint.addresses],
        "advertised": [str(address) for address in reach.endpoint.advertised],
        "tested": [
            {"address": str(address), "reached": verdict, "open": address in facts.open}
            for address, verdict in facts.reached.items()
        ],
        "observed": [str(address) for address in facts.observed],
        "mapping": {
            "ipv4": facts.mapping,
            "ipv6": str(observations.mapping(now, six=True)),
            "observers": observations.observers(now),
        },
        "port_mapping": [_mapped_port(mapper, now) for mapper in reach.mappers],
        "relays": [
            {
                "node": str(relay.node_id),
                "name": _name(reach, relay.node_id),
                "rtt_s": relay.rtt_s,
                "addresses": [str(address) for address in relay.addresses],
                "expires_in_s": round(relay.expires_at - now, 1),
            }
            for relay in reach.relays.relays
        ],
        "relay_service": reach.service.serving,
        "punches": {
            "succeeded": facts.punches[0],
            "tried": facts.punches[1],
            "last": [
                punch_row(node_id, record, now) for node_id, record in reversed(records.items())
            ],
        },
    }


def _name(reach: Reach, node_id: NodeId) -> str | None:
    peer = reach.endpoint.peers.get(node_id)
    return peer.name if peer is not None and peer.name else None


def _mapped_port(mapper: PortMapper, now: float) -> dict[str, Any]:
    held = mapper.mapping
    return {
        "port": mapper.listen_port,
        "method": None if held is None else str(held.method),
        "external": None if held is None else str(held.external),
        "expires_in_s": None if held is None else round(held.expires_at - now, 1),
        "failures": dict(mapper.failures),
    }


def no_trial(reason: str) -> dict[str, Any]:
    """There was no punch, and why."""
    return {
        "node": None,
        "ago_s": None,
        "ok": None,
        "path": None,
        "reason": reason,
        "took_s": None,
        "attempts": [],
    }


def punch_row(node_id: NodeId, record: PunchRecord, now: float) -> dict[str, Any]:
    """What came of the last attempt to connect directly to a relayed peer."""
    report = record.report
    return {
        "node": str(node_id),
        "ago_s": round(now - record.at, 1),
        "ok": report.ok,
        "path": None if report.path is None else report.path.value,
        "reason": report.reason,
        "took_s": round(report.took_s, 3),
        "attempts": [
            {
                "address": str(attempt.address),
                "reason": attempt.reason,
                "count": attempt.count,
            }
            for attempt in report.attempts
        ],
    }
