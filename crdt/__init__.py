"""Shared facts that every node may edit and that all nodes end up reading alike.

Pure values: no clock, randomness, socket or task in this room, and no import of another room.
`gossip` ships what is made here.

Values that replicas edit and join:

* `delta`: dots, sets of dots as ranges (a version vector is the one-range case), the join.
* `orset`, `map`, `mvregister`: add-wins set and map, multi-value register, no tombstones.
* `owned`: owner-keyed last-writer-wins map. `counter`: increments and decrements.
* `register`: last-writer-wins and max registers. `log`: the newest few entries of many writers.
* `document`: several of them under one name each. `clock`: hybrid logical clock.

The signed document of a run:

* `entry`: one signed statement, linked to the writer's last. `evidence`: proof of two stories.
* `part`: one writer's fields. `ledger`: all writers', bounded, leased. `verifier`: what it may cost.
* `record`: what the fields say. `rules`: who may say it. `state`: `RunState`, the document.

The document of a swarm, `statements`: a set that only grows, of statements that prove themselves.

Beneath both:

* `exchange`: what replicas tell and ask each other.
* `wire`: checks on what strangers send, and the one canonical encoding that digests use.
* `errors`: `CrdtError` and its kinds; nothing else escapes from this room.

What needs agreement (which members form an epoch, whether an operation committed) does not
belong here: a value that converges is not a value that has been decided.
"""

from crdt.clock import HybridClock, Timestamp
from crdt.entry import Author
from crdt.errors import (
    ClockSkew,
    CrdtError,
    Forged,
    MalformedState,
    NotTheAuthor,
    StateTooLarge,
)
from crdt.record import CheckpointInfo, LinkTime, MemberInfo, Metrics, Progress, Revocation, RunInfo
from crdt.state import RunState

__all__ = [
    "Author",
    "CheckpointInfo",
    "ClockSkew",
    "CrdtError",
    "Forged",
    "HybridClock",
    "LinkTime",
    "MalformedState",
    "MemberInfo",
    "Metrics",
    "NotTheAuthor",
    "Progress",
    "Revocation",
    "RunInfo",
    "RunState",
    "StateTooLarge",
    "Timestamp",
]
