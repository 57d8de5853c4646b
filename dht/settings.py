"""The DHT's numbers in one place, each with its reason."""

from __future__ import annotations

import attrs

from dht.errors import DhtError
from dht.lookup import MAX_PATHS, LookupSettings
from dht.messages import MAX_HINTS, MAX_RECORDS


@attrs.frozen(kw_only=True)
class DhtSettings:
    """How one node takes part; the defaults are right from two nodes to ten thousand."""

    server: bool = True
    """Answer queries and be known to others. False for nodes nobody can connect to: they only ask."""
    lookup: LookupSettings = attrs.field(factory=LookupSettings)
    query_s: float = 3.0
    """One query, connecting included."""
    concurrency: int = 32
    """Queries on the wire at once."""
    refresh_s: float = 600.0
    """How often own id and untouched bucket ranges are looked up."""
    republish_s: float = 2400.0
    """How often own records are signed anew and stored at the nodes closest by then."""
    fresh_s: float = 900.0
    """A contact heard from this recently is not asked whether it lives when a newcomer wants its place (BEP 5)."""
    records_per_signer: int = 64
    records_per_key: int = MAX_RECORDS
    records_total: int = 4096
    """About 6 MiB at most."""
    bootstrap_dial_s: float = 5.0
    """One attempt at a bootstrap address: name lookup, connecting and one answer."""
    bootstrap_first_s: float = 1.0
    """Pause before an unreachable bootstrap address is tried again; doubles, with jitter."""
    bootstrap_most_s: float = 60.0
    """Longest such pause; also how often reached addresses that were lost since are tried again, which is
    what joins a healed partition."""
    keep_connections: int = 128
    """Connections up to which the DHT closes none of those it opened: in a small swarm everybody stays
    connected to everybody and lookups take one round-trip."""

    def __attrs_post_init__(self) -> None:
        if not 1 <= self.lookup.k <= MAX_HINTS:
            raise DhtError(f"k is between 1 and {MAX_HINTS}, so that an answer fits its message")
        if not 1 <= self.records_per_key <= MAX_RECORDS:
            raise DhtError(f"records_per_key is between 1 and {MAX_RECORDS}")
        if not 1 <= self.lookup.paths <= MAX_PATHS:
            raise DhtError(f"paths are between 1 and {MAX_PATHS}")
        if self.concurrency < 1 or self.lookup.alpha < 1:
            raise DhtError("concurrency and alpha are at least 1")
