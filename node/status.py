"""The status document (`noded.status/1`): everything a person, a script or a check may ask.

Pure assembly from the daemon's parts; the text output of the command line is made from this
document, so it can show nothing that the document lacks. Unknown is null, never a zero.
"""

from __future__ import annotations

import os
import shutil
from typing import Any, Final

import attrs
import trio

from crdt.record import Progress
from dht.service import Dht
from gossip.collective.placing.rhythm import Ailment, Rhythm
from gossip.decentralized.network.delivery import Traffic
from gossip.membership.service import Membership
from gossip.membership.table import MemberState, MemberView
from gossip.swarm.renewal import is_due
from gossip.swarm.service import SwarmService
from node.blocks.service import NodeBlocks
from node.health import Facts, assess, verdict
from node.probe import LagProbe, descriptor_limit, open_descriptors, process_snapshot
from node.run.measured import rhythm_report, sentence
from node.run.run import RunService
from node.run.taking_part import TakingPart
from node.run.trainer import TrainerStatus
from node.schema import Config
from node.traffic import TrafficMeter
from node.trust.membership import SwarmStanding
from node.trust.report import trust_report
from node.wall_clock import DAY_MS, wall_ms
from transport.endpoint import Endpoint
from transport.identity import NodeId
from transport.peer import Peer
from transport.reach.reach import Reach
from transport.streams.frames import CloseCode
from transport.trust.refusal import YOUR_CERTIFICATE
from transport.watch import LostPeer

SCHEMA: Final = "noded.status/1"
GOODBYES: Final = frozenset({CloseCode.LEAVING, CloseCode.IDLE})
"""Why a connection ends when nothing is wrong: the other node stops, or nobody used it."""


LEFT_THE_SWARM: Final = "it left the swarm"
_GONE: Final = frozenset({MemberState.LEFT, MemberState.LOST})


@attrs.frozen
class Parts:
    """What a status document is made from."""

    version: str
    config: Config
    endpoint: Endpoint
    reach: Reach
    dht: Dht
    membership: Membership
    standing: SwarmStanding
    swarm: SwarmService
    blocks: NodeBlocks
    run: RunService | None
    lag: LagProbe
    traffic: TrafficMeter
    started_at: float


def status_document(parts: Parts, *, stopping: bool = False) -> dict[str, Any]:
    """The whole document at this moment."""
    warnings = assess(_facts(parts))
    peers = peer_rows(parts)
    return {
        "schema": SCHEMA,
        "version": parts.version,
        "state": _state(parts, stopping=stopping),
        "verdict": verdict(warnings),
        "node": {
            "id": str(parts.endpoint.node_id),
            "short_id": parts.endpoint.node_id.short,
            "name": parts.config.node.name,
            "addresses": [str(at) for at in parts.endpoint.advertised if not at.is_wildcard],
            "reach": parts.reach.diagnosis.standing.value,
            "uptime_s": round(trio.current_time() - parts.started_at, 1),
            "pid": os.getpid(),
        },
        "swarm": trust_report(parts.endpoint, parts.standing, parts.swarm),
        "run": _run(parts.run),
        "trainer": _trainer(parts),
        "peers": peers,
        "checkpoint": _checkpoint(parts.run),
        "relay": _relay(parts.reach),
        "traffic": {
            "bytes_sent": parts.traffic.bytes_sent,
            "bytes_received": parts.traffic.bytes_received,
        },
        "counters": dict(sorted(parts.endpoint.counters.items())),
        "dht": parts.dht.stats(),
        "membership": _membership(parts.membership),
        "bootstrap": parts.dht.bootstrap_status(),
        "health": [warning.to_json() for warning in warnings],
        "process": process_snapshot(parts.lag),
    }


def _state(parts: Parts, *, stopping: bool) -> str:
    run = parts.run
    if stopping:
        return "stopping"
    if run is None:
        return "idle"
    if run.failure:
        return "degraded"
    phase = run.figures.phase
    if phase == "waiting":
        # Waiting for others at the end of a round is training; without an epoch it is not.
        return "training" if _together(run) else "waiting"
    trainer = _trainer_state(run)
    if phase == "training" and trainer not in {"running", "attached"}:
        return "joining"
    return phase


def _together(run: RunService) -> bool:
    """Whether others are there to wait for: an epoch, or neighbours."""
    part = run.part
    if part is None:
        return False
    if part.driver is not None:
        return bool(part.driver.neighbours.nodes)
    return part.group is not None and part.group.epoch is not None


def _gossip(part: TakingPart[Any] | None) -> dict[str, Any] | None:
    """A decentralized protocol at work: its neighbours, what it says of itself, messages and bytes, losses by reason.

    `peers` says the same by neighbour, and how old its last model is (null: none came); `alone`, whether this node learns alone
    though it should not, for how many rounds, and why.
    """
    if part is None or part.driver is None:
        return None
    driver = part.driver
    statistics, alone = driver.statistics, part.solitude
    return {
        "neighbours": [str(node) for node in driver.neighbours.nodes],
        "core": driver.described,
        "messages_sent": statistics.messages_sent,
        "messages_received": statistics.messages_received,
        "bytes_sent": statistics.bytes_sent,
        "bytes_received": statistics.bytes_received,
        "lost": dict(sorted(statistics.lost.items())),
        "greetings": dict(sorted(driver.neighbours.counters.items())),
        "peers": [
            _exchanged(node, driver.delivery.traffic.get(node, Traffic()))
            for node in driver.neighbours.nodes
        ],
        "alone": None if alone is None else attrs.asdict(alone),
    }


def _exchanged(node: NodeId, traffic: Traffic) -> dict[str, Any]:
    last = traffic.last_model_at
    return {
        "id": str(node),
        "models_sent": traffic.models_sent,
        "models_received": traffic.models_received,
        "bytes_sent": traffic.bytes_sent,
        "bytes_received": traffic.bytes_received,
        "last_model_s": None if last is None else round(trio.current_time() - last, 1),
    }


def _run(run: RunService | None) -> dict[str, Any] | None:
    if run is None:
        return None
    manifest, figures = run.manifest, run.figures
    group = None if run.part is None else run.part.group
    epoch = None if group is None else group.epoch
    return {
        "name": run.section.name,
        "id": None if manifest is None else manifest.hash.hex(),
        "task": None if manifest is None else manifest.task,
        "protocol": None if manifest is None else manifest.protocol,
        "epoch": None
        if epoch is None
        else {
            "number": epoch.number,
            "id": epoch.id.hex(),
            "members": [str(member) for member in epoch.members],
        },
        "round": figures.round,
        "rounds_total": None if manifest is None or not manifest.rounds else manifest.rounds,
        "step": figures.step,
        "steps_total": None if manifest is None or not manifest.steps else manifest.steps,
        "loss": figures.loss,
        "val_loss": figures.val_loss,
        "accuracy": figures.accuracy,
        "tokens": figures.tokens,
        "tokens_per_s": figures.tokens_per_s,
        "members_last_round": figures.members_last_round,
        "round_seconds": figures.round_seconds,
        "state_sha256": figures.state.hex() or None,
        "phase": figures.phase,
        "failure": run.failure or None,
        "failure_hint": run.failure_hint or None,
        "quorum_missing": bool(group is not None and group.machine.quorum_missing),
        "rhythm": None if group is None else rhythm_report(group.rhythm),
        "aborted_operations": 0 if group is None else group.aborted_operations,
        "events": [] if group is None else list(group.notes),
        "gossip": _gossip(run.part),
    }


def _trainer(parts: Parts) -> dict[str, Any]:
    """`auto`: whether the daemon starts one; `socket`: where a script's attaches, once the run is found."""
    part = None if parts.run is None else parts.run.part
    status = TrainerStatus() if part is None else part.trainers.status
    return {
        "state": status.state,
        "pid": status.pid,
        "restarts": status.restarts,
        "error": status.error or None,
        "auto": parts.config.trainer.auto,
        "socket": None if part is None else str(parts.config.paths.trainer_socket),
    }


def _checkpoint(run: RunService | None) -> dict[str, Any] | None:
    if run is None or run.saves.newest is None:
        return None
    checkpoint, artefact = run.saves.newest, run.saves.artefact
    manifest = checkpoint.manifest
    return {
        "step": manifest.step,
        "round": manifest.round,
        "sha256": manifest.sha256,
        "path": str(checkpoint.path),
        "artefact": None if artefact is None else artefact.hex(),
    }


def _relay(reach: Reach) -> dict[str, Any]:
    """What this node gives to others as a relay.

    `serving` now or not; `reservations` (nodes that can be reached through it) and `circuits` (connections
    that it carries) now; since the start `circuits_opened`, `circuits_failed` (allowed, but the target did
    not take them), `carried_bytes` (both directions), `refused` and `ended` (how often, by reason);
    `budget_bytes` and what is left of it, restarts included.
    """
    service = reach.service
    figures = service.statistics()
    ledger = figures.ledger
    return {
        "serving": service.serving,
        "reservations": ledger.reservations,
        "circuits": ledger.circuits,
        "circuits_opened": figures.circuits_opened,
        "circuits_failed": figures.circuits_failed,
        "carried_bytes": ledger.carried_bytes,
        "budget_bytes": service.settings.budget_bytes,
        "budget_left_bytes": ledger.budget_left_bytes,
        "refused": dict(sorted(figures.refused.items())),
        "ended": dict(sorted(figures.ended.items())),
    }


def peer_rows(parts: Parts) -> list[dict[str, Any]]:
    """One row for each peer: the connected ones, then those that left or were lost.

    A peer that the members have given up is lost, though its connection waits for it a little longer.
    """
    endpoint, run = parts.endpoint, parts.run
    gone_members = [member for member in parts.membership.members() if member.state in _GONE]
    given_up = {member.node_id for member in gone_members}
    part = None if run is None else run.part
    progress = {} if part is None else part.presence.state.progress()
    members = _members(run)
    now = trio.current_time()
    rows = [
        _connected_row(
            peer,
            progress.get(bytes(node)),
            state="active"
            if node in members
            else "joining"
            if _standing(run, node) == "active"
            else "connected",
            now=now,
        )
        for node, peer in sorted(endpoint.peers.items())
        if node not in given_up
    ]
    revoked = parts.standing.trust.revoked
    for node, lost in sorted(endpoint.lost.items()):
        if node in endpoint.peers:
            continue
        out = revoked.get(node, ())
        by_itself = any(each.by_subject for each in out)
        member = parts.membership.member(node)
        gone = member is not None and member.state in _GONE
        left = _said_goodbye(run, node, lost) or (
            member is not None and member.state is MemberState.LEFT
        )
        rows.append(
            {
                **_progress_fields(progress.get(bytes(node))),
                "id": str(node),
                "name": lost.name,
                "state": "left" if left or by_itself else "lost",
                "path": None,
                "address": str(lost.address),
                "rtt_s": None,
                "bytes_sent": None,
                "bytes_received": None,
                "last_seen_s": round(now - lost.at, 1),
                "reason": LEFT_THE_SWARM
                if by_itself
                else f"revoked: {out[0].reason}".rstrip(": ")
                if out
                else member.reason
                if gone and member is not None
                else lost.reason,
            }
        )
    rows += [
        _gone_row(member, progress.get(bytes(member.node_id)), now=now)
        for member in gone_members
        if member.node_id in endpoint.peers or member.node_id not in endpoint.lost
    ]
    return rows


def _members(run: RunService | None) -> set[NodeId]:
    """Who takes part now: the epoch's members, or this node's neighbours."""
    part = None if run is None else run.part
    if part is None:
        return set()
    if part.driver is not None:
        return set(part.driver.neighbours.nodes)
    epoch = None if part.group is None else part.group.epoch
    return set() if epoch is None else set(epoch.members)


def _gone_row(member: MemberView, progress: Progress | None, *, now: float) -> dict[str, Any]:
    """A member that left or was lost, and of whose connection there is nothing to say."""
    return {
        **_progress_fields(progress),
        "id": str(member.node_id),
        "name": member.name,
        "state": member.state.value,
        "path": None,
        "address": None,
        "rtt_s": None,
        "bytes_sent": None,
        "bytes_received": None,
        "last_seen_s": None if member.heard_at is None else round(now - member.heard_at, 1),
        "reason": member.reason,
    }


def _membership(membership: Membership) -> dict[str, Any]:
    """Who takes part in the swarm, connected to us or not; `self_doubt` is 0 to 8."""
    states = [view.state for view in membership.members()]
    return {
        **{state.value: states.count(state) for state in MemberState},
        "self_doubt": membership.score,
        "counters": dict(sorted(membership.counters.items())),
    }


def _slow(endpoint: Endpoint, rhythm: Rhythm | None) -> list[tuple[str, str, float]]:
    """What has become slow, in the words of health lines."""
    if rhythm is None:
        return []
    return [
        (
            "link" if found.ailment is Ailment.LINK else "member",
            sentence(found, lambda node: _name_of(endpoint, node)),
            found.factor,
        )
        for found in rhythm.findings()
    ]


def _standing(run: RunService | None, node: bytes) -> str | None:
    """A node's status in the run's roster; None when it is not in there."""
    if run is None or run.part is None:
        return None
    member = run.part.presence.state.members().get(bytes(node))
    return None if member is None else member.status


def _name_of(endpoint: Endpoint, node: NodeId) -> str:
    if node == endpoint.node_id:
        return "this node"
    peer = endpoint.peers.get(node)
    return node.short if peer is None or not peer.name else peer.name


def _trainer_state(run: RunService) -> str:
    return "none" if run.part is None else run.part.trainers.status.state


def _said_goodbye(run: RunService | None, node: bytes, lost: LostPeer) -> bool:
    """Whether a node that is gone went in good order: out of the run, or if not in it, at all."""
    standing = _standing(run, node)
    return standing == "left" or (standing is None and lost.goodbye in GOODBYES)


def _connected_row(
    peer: Peer, progress: Progress | None, *, state: str, now: float
) -> dict[str, Any]:
    return {
        **_progress_fields(progress),
        "id": str(peer.node_id),
        "name": peer.name,
        "state": state,
        "path": peer.path,
        "relay": None if peer.relay is None else str(peer.relay),
        # How a connection for tensors was opened last: "direct", "dial-back", "over-stream"; null
        # if this node opened none.
        "bulk": peer.bulk_way or None,
        "address": str(peer.address),
        "rtt_s": peer.rtt_s,
        "bytes_sent": peer.bytes_sent,
        "bytes_received": peer.bytes_received,
        "last_seen_s": round(max(0.0, now - peer.last_seen), 1),
        "reason": None,
    }


def _progress_fields(progress: Progress | None) -> dict[str, Any]:
    return {
        "round": None if progress is None else progress.round,
        "step": None if progress is None else progress.step,
        "loss": None if progress is None else progress.loss,
        "tokens_per_s": None if progress is None else progress.tokens_per_s,
        "state_sha256": None if progress is None else progress.state_sha256.hex() or None,
    }


def _facts(parts: Parts) -> Facts:
    run, endpoint = parts.run, parts.endpoint
    status = parts.dht.bootstrap_status()
    figures = None if run is None else run.figures
    part = None if run is None else run.part
    trainers = None if part is None else part.trainers
    group = None if part is None else part.group
    solitude = None if part is None else part.solitude
    checkpoint = None if run is None else run.saves.newest
    ended = None if figures is None else figures.round_ended_at
    refusal = parts.standing.own_refusal(endpoint.identity)
    convicted = set() if part is None else set(part.presence.state.convicted())
    others_convicted = sorted(convicted - {bytes(endpoint.node_id)})
    return Facts(
        uptime_s=trio.current_time() - parts.started_at,
        bootstrap_configured=len(parts.config.network.bootstrap),
        bootstrap_reached=sum(1 for reason in status.values() if not reason) if status else None,
        bootstrap_reasons=[f"{at} does not answer: {why}" for at, why in status.items() if why],
        peers_connected=len(endpoint.peers),
        peers_lost=[
            (lost.name or node.short, lost.reason)
            for node, lost in sorted(endpoint.lost.items())
            if node not in endpoint.peers
            and _standing(run, node) == "active"
            and not parts.standing.trust.is_revoked(node)
        ],
        refused_wrong_swarm=sum(
            count for reason, count in endpoint.counters.items() if "wrong-swarm" in reason
        ),
        run=None if run is None else run.section.name,
        run_joined=run is None or run.manifest is not None,
        trainer="none" if trainers is None else trainers.status.state,
        other_runs=[] if part is None else [_name_of(endpoint, node) for node in part.namesakes],
        other_models=(0, 0) if part is None else part.presence.other_models(endpoint.peers),
        slow=_slow(endpoint, None if group is None else group.rhythm),
        convicted=[_name_of(endpoint, NodeId(writer)) for writer in others_convicted],
        convicted_itself=bytes(endpoint.node_id) in convicted,
        run_failure="" if run is None else run.failure,
        run_failure_hint="" if run is None else run.failure_hint,
        run_finished=figures is not None and figures.phase == "finished",
        trainer_error="" if trainers is None else trainers.status.error,
        trainer_restarts=0 if trainers is None else trainers.recent_restarts(),
        loss=None if figures is None else figures.loss,
        round_age_s=None
        if ended is None or figures is None or figures.phase == "finished" or group is None
        else trio.current_time() - ended,
        round_usual_s=None if figures is None else figures.usual_round_s,
        quorum_missing=group is not None and group.machine.quorum_missing,
        rounds_alone=solitude.rounds
        if solitude is not None
        else 0
        if figures is None or group is None
        else figures.rounds_alone,
        alone_reason="" if solitude is None else solitude.reason,
        alone_hint="" if solitude is None else solitude.hint,
        checkpoint_error="" if run is None else run.saves.error,
        checkpoint_damaged="" if run is None else run.saves.damaged,
        disk_free_bytes=_disk_free(parts.config),
        checkpoint_bytes=None if checkpoint is None else checkpoint.manifest.size,
        fds=open_descriptors(),
        fd_limit=descriptor_limit(),
        loop_lag_max_ms=parts.lag.max_ms,
        certificate_refusal=refused_by_all(endpoint) if refusal is None else str(refusal),
        certificate_hint="" if refusal is None else refusal.hint,
        certificate_days_left=_days_left(parts),
    )


def refused_by_all(endpoint: Endpoint) -> str:
    """What those said that closed on this node, where nobody else is left; "" if nobody did.

    A node that is cut off at once has not read the statement that put it out.
    """
    if endpoint.peers:
        return ""
    words = f"closed by the peer: {YOUR_CERTIFICATE}: "
    said = [lost.reason for lost in endpoint.lost.values() if lost.reason.startswith(words)]
    return said[0].removeprefix(words) if said else ""


def _days_left(parts: Parts) -> float | None:
    """Of a certificate whose renewal is due and has failed."""
    own, now_ms = parts.standing.trust.own, wall_ms()
    if own is None or not is_due(own, now_ms) or not parts.swarm.counters["renewals-failed"]:
        return None
    return (own.leaf.expires_at_ms - now_ms) / DAY_MS


def _disk_free(config: Config) -> int | None:
    try:
        return shutil.disk_usage(config.data_dir).free
    except OSError:
        return None
