"""Who may say what in a run's document, and what a field's value looks like.

    key           its writer               lease      value
    member        any node, about itself   1 day      `MemberInfo`   (1 hour once it has left)
    progress      any node, about itself   1 day      `Progress`
    metrics       any node, about itself   1 day      `Metrics`
    links         any node, what it saw    1 day      `LinkTime` list
    site          any node, about itself   1 day      the name of its site
    checkpoints   any node, what it holds  1 day      `CheckpointInfo` list
    run           the run's creator        none       `RunInfo`, with the manifest's hash
    revoked       the run's creator        none       `Revocation` list
    x/...         any node, about itself   any        anything: of releases to come

That a node speaks about itself alone follows from the form of the document: an entry names no other
subject than its writer. The two shared fields belong to the creator, whose id the manifest names and
whose manifest the document's id is the hash of: who may write them needs no further agreement.

A rule depends on the entry and the document's own constants only, so that all replicas judge alike.
"""

from typing import Final

import attrs

from crdt.entry import MAX_LEASE_S, Entry
from crdt.errors import MalformedState, NotTheAuthor
from crdt.record import (
    MemberInfo,
    Metrics,
    Progress,
    RunInfo,
    checkpoints_from_wire,
    links_from_wire,
    revocations_from_wire,
    site_from_wire,
)
from crdt.wire import Wire, as_list, as_scalar

MEMBER: Final = "member"
PROGRESS: Final = "progress"
METRICS: Final = "metrics"
LINKS: Final = "links"
SITE: Final = "site"
CHECKPOINTS: Final = "checkpoints"
RUN: Final = "run"
REVOKED: Final = "revoked"
LATER: Final = "x/"
"""Prefix of keys that this release passes on without knowing them."""

SHARED: Final = frozenset({RUN, REVOKED})
LEASE_S: Final = MAX_LEASE_S
LEFT_LEASE_S: Final = 3600
"""Those that have left are shown for an hour."""
MAX_DEPTH: Final = 4


@attrs.frozen
class RunRules:
    """The rules of one run's document."""

    document: bytes
    creator: bytes = b""
    """Who may write the shared fields; empty: nobody."""

    def check(self, entry: Entry) -> None:
        """Raises: NotTheAuthor, MalformedState, StateTooLarge."""
        if entry.key in SHARED and entry.writer != self.creator:
            raise NotTheAuthor(f"{entry.key!r} is the creator's to write")
        if entry.key not in SHARED and not entry.lease_s and not entry.key.startswith(LATER):
            raise MalformedState(f"{entry.key!r} needs a lease")
        match entry.key:
            case "member":
                MemberInfo.from_wire(entry.value)
            case "progress":
                Progress.from_wire(entry.value)
            case "metrics":
                Metrics.from_wire(entry.value)
            case "site":
                site_from_wire(entry.value)
            case "links":
                links_from_wire(entry.value)
            case "checkpoints":
                checkpoints_from_wire(entry.value, entry.writer)
            case "run":
                if RunInfo.from_wire(entry.value).manifest != self.document:
                    raise MalformedState("run: the hash is not that of this run's manifest")
            case "revoked":
                revocations_from_wire(entry.value)
            case _ if entry.key.startswith(LATER):
                _check_plain(entry.value, MAX_DEPTH)
            case _:
                raise MalformedState(f"a field {entry.key!r} is not known here")


def _check_plain(untrusted: Wire, depth: int) -> None:
    if depth and isinstance(untrusted, list):
        for item in as_list(untrusted, "field", most=1024):
            _check_plain(item, depth - 1)
    else:
        as_scalar(untrusted, "field")
