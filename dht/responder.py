"""What a node answers to the queries of others.

Who may store: only the signer, over its own connection, and with a token (see `tokens`). Other designs let anybody
carry records, and need more against floods of invented signers; here every signer costs an authenticated identity
with a bounded number of records and of stores per second, and the writer replicates (see `publish`).

A client (a node that cannot be dialled) answers pings and refuses everything else.

Invariants: an answer depends on the query and on what this node holds, never on an earlier answer; nothing is computed for a
store whose signer, token or rate is wrong.
"""

from __future__ import annotations

from collections import Counter

from dht.allowance import Allowance
from dht.contact import Contact
from dht.diversity import groups_of
from dht.messages import (
    MAX_RECORDS,
    AnswerBody,
    FindNode,
    FindRecords,
    Nodes,
    Ping,
    Pong,
    QueryBody,
    Records,
    Refused,
    Store,
    Stored,
    to_hint,
)
from dht.operation import Credentials
from dht.publish import Publisher
from dht.record import SignedRecord
from dht.store import Kept, RecordStore
from dht.table import Table
from dht.tokens import WriteTokens


class Responder:
    """The serving half of a node; `now` is monotonic seconds, `wall` seconds since 1970."""

    def __init__(
        self,
        credentials: Credentials,
        table: Table,
        store: RecordStore,
        publisher: Publisher,
        counters: Counter[str],
        *,
        k: int,
    ) -> None:
        self._table = table
        self._store = store
        self._publisher = publisher
        self._counters = counters
        self._k = k
        self._tokens = WriteTokens(credentials.sign)
        self._allowance = Allowance()

    def answer(
        self, body: QueryBody, sender: Contact, public_key: bytes, now: float, wall: float
    ) -> AnswerBody:
        """Answer `sender`, whose key and id its connection has proved."""
        match body:
            case Ping():
                return Pong()
            case FindNode():
                return Nodes([to_hint(each) for each in self._closest(body.target, sender)])
            case FindRecords():
                return Records(
                    [to_hint(each) for each in self._closest(body.key, sender)],
                    self.local(body.key, wall),
                    self._tokens.give(sender.node_id, body.key, now),
                )
            case Store():
                refusal = self._refusal(body, sender, public_key, now, wall)
                if refusal is None:
                    return Stored()
                self._counters["stores_refused"] += 1
                return Refused(refusal)

    def local(self, key: bytes, wall: float) -> list[SignedRecord]:
        """Return the live records under `key` that we hold or have written, our own first."""
        own = self._publisher.get(key)
        mine = [] if own is None or own.expired(wall) else [own]
        return (mine + self._store.get(key, wall))[:MAX_RECORDS]

    def _closest(self, target: bytes, sender: Contact) -> list[Contact]:
        near = self._table.closest(target, self._k + 1)
        return [contact for contact in near if contact.node_id != sender.node_id][: self._k]

    def _refusal(
        self, body: Store, sender: Contact, public_key: bytes, now: float, wall: float
    ) -> str | None:
        if body.record.public_key != public_key:
            return "not the signer"
        if not self._tokens.good(body.token, sender.node_id, body.record.key, now):
            return "token"
        if not self._allowance.take(public_key, now):
            return "too many stores"
        kept = self._store.offer(body.record, wall, groups_of(sender))
        return None if kept is Kept.STORED else kept.value
