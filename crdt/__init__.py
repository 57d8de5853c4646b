"""Shared facts that every node may edit and that all nodes end up reading alike.

Pure values: no clock, randomness, socket or task in this room, and no import of another room.
`gossip` ships what is made here.

* `delta`: dots, sets of dots as ranges (a version vector is the one-range case), the join.
* `clock`: hybrid logical clock. `register`: last-writer-wins and max registers.
* `counter`: increments and decrements. `orset`, `map`: add-wins set and map, no tombstones.
* `record`: what one member says about itself. `state`: `RunState`, the document of a run.
* `wire`: checks on what strangers send, and the one canonical encoding that digests use.
* `errors`: `CrdtError` and its kinds; nothing else escapes from this room.

What needs agreement (which members form an epoch, whether an operation committed) does not
belong here: a value that converges is not a value that has been decided.
"""

from crdt.clock import HybridClock, Timestamp
from crdt.errors import ClockSkew, CrdtError, MalformedState, StateTooLarge
from crdt.record import CheckpointInfo, MemberInfo, Progress
from crdt.state import RunState

__all__ = [
    "CheckpointInfo",
    "ClockSkew",
    "CrdtError",
    "HybridClock",
    "MalformedState",
    "MemberInfo",
    "Progress",
    "RunState",
    "StateTooLarge",
    "Timestamp",
]
