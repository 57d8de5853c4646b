"""The values a DHT node works with: what it knows of itself, asks its driver for, reports, and has under way.

They are apart from `node` so that the driver, the tests and the simulations can name them without its machinery.
"""

from __future__ import annotations

import enum

import attrs

from dht.contact import Contact
from dht.lookup import Lookup
from dht.messages import Query, QueryBody
from dht.reading import Findings
from dht.record import Sign, SignedRecord, Verify


@attrs.frozen
class Credentials:
    """Who this node is, and the two operations it needs from the identity's owner."""

    node_id: bytes
    public_key: bytes
    swarm_id: bytes
    sign: Sign
    verify: Verify


@attrs.frozen
class Call:
    """A query for the driver to carry to `contact`; `number` names it in `receive` and `fail`."""

    number: int
    contact: Contact
    query: Query


@attrs.frozen
class Found:
    """A search has ended: the nodes closest to its target that answered, and the verified records."""

    operation: int
    contacts: tuple[Contact, ...]
    records: tuple[SignedRecord, ...]
    hops: int = attrs.field(default=0, eq=False)
    """Answers in a row, each of which named the next node asked."""
    queries: int = attrs.field(default=0, eq=False)


@attrs.frozen
class Published:
    """A put has ended: how many other nodes say they hold the record."""

    operation: int
    holders: int
    hops: int = attrs.field(default=0, eq=False)
    queries: int = attrs.field(default=0, eq=False)


Event = Found | Published


class Purpose(enum.Enum):
    """Why a search runs."""

    FIND = "find"
    GET = "get"
    PUT = "put"
    JOIN = "join"
    REFRESH = "refresh"
    REPUBLISH = "republish"


PUBLISHING = (Purpose.PUT, Purpose.REPUBLISH)
BACKGROUND = (Purpose.REFRESH, Purpose.REPUBLISH)
UPKEEP = (Purpose.JOIN, Purpose.REFRESH)


@attrs.define
class Operation:
    """A search under way, and the storing that may follow it."""

    number: int
    purpose: Purpose
    lookup: Lookup
    query: QueryBody
    findings: Findings | None  # when it is records that are searched
    tokens: dict[bytes, bytes] = attrs.field(factory=dict)  # node id -> its write token
    stores: int = 0  # store calls not yet ended
    holders: int = 0
    storing: bool = False


@attrs.frozen
class Pending:
    """A call that has not ended; `operation` is None for pings and for what hands our records to newcomers."""

    contact: Contact
    query: QueryBody
    operation: int | None
