"""The shared document of a run, at this node: made from its identity and files, and as JSON for people.

The run's creator registers the run in it, so that every member sees task, protocol and settings, pinned
by the manifest's hash, with who wrote it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from crdt.clock import HybridClock
from crdt.entry import MAX_ENTRY_BYTES, Author, Entry
from crdt.record import RunInfo
from crdt.state import RunState
from crdt.wire import canonical
from node.run import sequence
from node.run.manifest import RunManifest
from node.wall_clock import wall_ms
from transport.errors import TransportError
from transport.identity import Identity, NodeId, verify

__all__ = ["open_state", "run_info", "state_document"]

SHOWN_CHARACTERS = 200
"""Of a setting's value; the manifest has it in full."""
MAX_SETTINGS = 24
"""Of task and protocol each."""
REGISTERED_BYTES = MAX_ENTRY_BYTES - 256
"""Of what the registry says; the rest of the entry is its head and signature."""


def open_state(identity: Identity, manifest: RunManifest, directory: Path) -> RunState:
    """Begin this node's replica of the run's document.

    Args:
        identity: signs what this node says.
        manifest: its hash is the document's id, its creator may write the shared fields.
        directory: where the numbers used so far are noted.
    """
    try:
        creator = bytes(NodeId.parse(manifest.created_by))
    except TransportError:
        creator = b""
    used = directory / "sequence"
    state = RunState(
        Author(identity.public_key, identity.sign),
        HybridClock(identity.node_id, wall_ms),
        manifest.hash,
        verify,
        creator=creator,
        start=sequence.next_start(used),
        reserve=partial(sequence.reserve, used),
    )
    if state.node == creator:
        state.register_run(run_info(manifest))
    return state


def run_info(manifest: RunManifest) -> RunInfo:
    """What the registry says about a run; settings that are long are cut, for people only read them."""
    settings: dict[str, Any] = {
        "every": manifest.every,
        "min_members": manifest.min_members,
        "quorum": manifest.quorum,
        "seed": manifest.seed,
        "steps": manifest.steps,
    }
    for prefix, table in (
        ("task", manifest.task_settings),
        ("protocol", manifest.protocol_settings),
    ):
        for name in sorted(table)[:MAX_SETTINGS]:
            value = table[name]
            if isinstance(value, list | str):
                value = str(value).encode()[:SHOWN_CHARACTERS].decode(errors="ignore")
            settings[f"{prefix}.{name}"] = value
    info = RunInfo(manifest.name, manifest.hash, manifest.task, manifest.protocol, settings.items())
    # Long settings of many names must not keep the run from being registered.
    while len(canonical(info.to_wire())) > REGISTERED_BYTES and info.settings:
        info = RunInfo(info.name, info.manifest, info.task, info.protocol, info.settings[:-1])
    return info


def state_document(state: RunState, run: RunManifest) -> dict[str, Any]:
    """The replica as JSON: every field with its value, author, clock and lease."""
    now_ms = wall_ms()
    members = state.members()
    convicted = state.convicted()
    entries = [
        _row(entry, now_ms)
        for part in state.ledger.parts()
        for _, entry in sorted(part.fields.items())
    ]
    checkpoint, registered = state.checkpoint(), state.run()
    return {
        "schema": "noded.state/1",
        "run": run.name,
        "document": state.ledger.document.hex(),
        "digest": state.digest().hex(),
        "version": state.version,
        "node": _id(state.node),
        "writers": len(state),
        "bytes": state.ledger.size_bytes,
        "clock_ms": now_ms,
        "names": {_id(writer): member.name for writer, member in members.items()},
        "registered": registered is not None,
        "checkpoint": None
        if checkpoint is None
        else {
            "step": checkpoint.step,
            "round": checkpoint.round,
            "sha256": checkpoint.sha256.hex(),
            "holder": _id(checkpoint.holder),
        },
        "entries": entries,
        "revoked": [
            {"node": _id(each.writer), "since_ms": each.since_ms, "reason": each.reason}
            for each in state.revoked().values()
        ],
        "convicted": [
            {
                "node": _id(writer),
                "reason": proof.reason,
                "entries": [proof.first.id.hex(), proof.second.id.hex()],
            }
            for writer, proof in convicted.items()
        ],
        "ahead": [{"node": _id(writer), "ms": ms} for writer, ms in state.ahead.items()],
        "counters": dict(sorted(state.counters.items())),
    }


def _row(entry: Entry, now_ms: int) -> dict[str, Any]:
    expires_ms = entry.expires_ms
    return {
        "key": entry.key,
        "author": _id(entry.writer),
        "sequence": entry.sequence,
        "time_ms": entry.stamp.physical_ms,
        "counter": entry.stamp.counter,
        "age_s": round((now_ms - entry.stamp.physical_ms) / 1000, 3),
        "lease_left_s": None if expires_ms is None else round((expires_ms - now_ms) / 1000, 3),
        "bytes": len(entry.raw),
        "id": entry.id.hex(),
        "previous": entry.previous.hex(),
        "value": _plain(entry.key, entry.value),
    }


_FIELDS = {
    "member": ("name", "addresses", "role", "status", "model", "reason"),
    "progress": ("round", "step", "loss", "tokens", "tokens_per_s", "state_sha256"),
    "run": ("name", "manifest_sha256", "task", "protocol", "settings"),
}
_ROWS = {
    "links": ("destination", "us_per_mib", "transfers"),
    "checkpoints": ("step", "round", "sha256"),
    "revoked": ("node", "since_ms", "reason"),
}


def _plain(key: str, value: Any) -> Any:
    """The value of a field with names for its parts, and hex for bytes."""
    if key in _FIELDS:
        named = dict(zip(_FIELDS[key], map(_json, value), strict=True))
        if key == "run":
            named["settings"] = dict(named["settings"])
        return named
    if key in _ROWS:
        return [dict(zip(_ROWS[key], map(_json, row), strict=True)) for row in value]
    return dict(_json(value)) if key == "metrics" else _json(value)


def _json(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    return [_json(item) for item in value] if isinstance(value, list) else value


def _id(writer: bytes) -> str:
    return str(NodeId(writer))
