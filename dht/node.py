"""One DHT node without input or output: answers queries, runs searches, looks after its table and records.

A driver feeds it and carries out what it asks for. The contract:
* `answer(query, ...)` for each query of an authenticated peer; its return value goes back.
* `outgoing(limit)` gives calls; each ends in exactly one `receive` (with the contact as authenticated by the
  connection) or `fail`, within the driver's query deadline.
* `tick` at `next_deadline`; `next_event` until it is None, after every call into this class.

Who enters the table: only a node that has just sent us an authenticated message, says that it serves, has
an address others could use, and is not one too many of its address group. What peers tell about third nodes goes into
searches, never into the table. Who says that it serves no longer leaves at once.

Its parts: `responder` answers, `lookup` searches, `reading` verifies, `publish` keeps our records alive, `upkeep` knows when to
search on our own account. Here they are put together.

Known limit: a node that tells us it serves, and answers on the connection it has opened, is taken to be reachable by all. One that
lies about it costs others a failed dial each, and never enters their tables.
"""

from __future__ import annotations

import math
import random
from collections import Counter, deque

from dht.bucket import Seen
from dht.contact import Contact, on_loopback
from dht.density import Density
from dht.errors import DhtBusy
from dht.key import check_key, distance
from dht.lookup import Lookup
from dht.messages import (
    VERSION,
    Answer,
    AnswerBody,
    FindNode,
    FindRecords,
    Nodes,
    Ping,
    Query,
    QueryBody,
    Records,
    Refused,
    Store,
    Stored,
    fits,
    from_hints,
)
from dht.operation import (
    BACKGROUND,
    PUBLISHING,
    UPKEEP,
    Call,
    Credentials,
    Event,
    Found,
    Operation,
    Pending,
    Published,
    Purpose,
)
from dht.publish import Publisher
from dht.reading import Findings, Memory
from dht.responder import Responder
from dht.settings import DhtSettings
from dht.store import RecordStore
from dht.table import Table
from dht.upkeep import Upkeep

# Searches at once, background included.
MAX_OPERATIONS = 64
# Calls waiting for the driver beyond those of searches (which are bounded by alpha each).
MAX_QUEUE = 512
# Failing contacts asked again at one tick.
_RETRIES_PER_TICK = 8
_EXPIRE_EVERY_S = 60.0
# Each path of a search begins with this many nodes of our own table, if there are so many.
_SEEDS_PER_PATH = 5
# What is counted; the driver adds the last two.
COUNTERS = (
    *("queries_in", "queries_out", "lookups", "unanswered", "bad_answers", "wrong_node"),
    *("forged_records", "stores_refused", "contacts_refused", "calls_dropped"),
    *("malformed_in", "internal_errors"),
)


class DhtNode:
    """A node's part in the DHT. `now` is monotonic seconds, `wall` seconds since 1970."""

    def __init__(
        self,
        credentials: Credentials,
        *,
        rng: random.Random,
        now: float,
        settings: DhtSettings | None = None,
    ) -> None:
        self._me = credentials
        self._settings = settings or DhtSettings()
        self._k = self._settings.lookup.k
        self.serving = self._settings.server
        """Whether to answer and be known to others; the driver changes it with what is known of our reachability."""
        self.table = Table(credentials.node_id, k=self._k)
        self.store = RecordStore(
            credentials.node_id,
            credentials.swarm_id,
            credentials.verify,
            per_signer=self._settings.records_per_signer,
            per_key=self._settings.records_per_key,
            total=self._settings.records_total,
        )
        self.publisher = Publisher(
            swarm_id=credentials.swarm_id,
            public_key=credentials.public_key,
            sign=credentials.sign,
            rng=rng,
            k=self._k,
            republish_s=self._settings.republish_s,
            limit=self._settings.records_per_signer,
        )
        self.counters: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))
        self._responder = Responder(
            credentials, self.table, self.store, self.publisher, self.counters, k=self._k
        )
        self._upkeep = Upkeep(self.table, rng=rng, refresh_s=self._settings.refresh_s, now=now)
        self._density = Density()
        self._memory = Memory()
        self._numbers = 0
        self._operations: dict[int, Operation] = {}
        self._pending: dict[int, Pending] = {}
        self._queue: deque[Call] = deque()
        self._events: deque[Event] = deque()
        self._pinging: set[bytes] = set()  # membership only, never iterated
        self._background: int | None = None
        self._expire_at = now + _EXPIRE_EVERY_S

    # Queries of others

    def answer(
        self, query: Query, sender: Contact, public_key: bytes, now: float, wall: float
    ) -> Answer:
        """Answer a peer's query.

        Args:
            query: decoded and validated.
            sender: the peer as authenticated by its connection.
            public_key: the peer's, from the same handshake.
            now: monotonic seconds.
            wall: seconds since 1970.
        """
        self.counters["queries_in"] += 1
        if query.version != VERSION:
            return self._say(Refused("version"))
        body = query.body
        if query.server:
            self._admit(sender, now, challenge=not isinstance(body, Ping))
        else:
            self.table.remove(sender.node_id)
        if not self.serving and not isinstance(body, Ping):
            return self._say(Refused("client"))
        return self._say(self._responder.answer(body, sender, public_key, now, wall))

    # What this node wants

    def find(self, target: bytes, now: float) -> int:
        """Search the nodes closest to `target`; ends in a `Found` of the returned number.

        Raises:
            InvalidKey, DhtBusy.
        """
        return self._start(Purpose.FIND, FindNode(check_key(target)), target, now, 0.0)

    def get(self, key: bytes, now: float, wall: float) -> int:
        """Search records; ends in a `Found` with the newest verified record of each signer."""
        return self._start(Purpose.GET, FindRecords(check_key(key)), key, now, wall)

    def put(self, key: bytes, value: bytes, ttl_s: float, now: float, wall: float) -> int:
        """Publish a record until withdrawn; ends in a `Published` once its first round is over.

        Raises:
            InvalidKey, InvalidRecord, TooManyRecords, DhtBusy, DhtError: nothing has been published.
        """
        check_key(key)
        self._check_busy()
        self.publisher.put(key, value, ttl_s, now, wall)
        self.publisher.started(key, now)
        return self._start(Purpose.PUT, FindRecords(key), key, now, wall)

    def withdraw(self, key: bytes) -> bool:
        """Stop publishing `key`."""
        return self.publisher.withdraw(key)

    def join(self, now: float) -> int:
        """Search our own id, so that neighbours learn of us; ends in a `Found`. All ranges follow."""
        self._upkeep.begun(now)
        me = self._me.node_id
        return self._start(Purpose.JOIN, FindNode(me), me, now, 0.0)

    def met(self, contact: Contact, now: float) -> None:
        """Take note of a server that answered outside of a call of ours (the driver's bootstrap)."""
        self._admit(contact, now)

    def greet(self, contact: Contact, now: float) -> None:
        """Ask a node we are connected to whether it takes part, unless it is known to."""
        last = self.table.last_seen(contact.node_id)
        if last is None or now - last > self._settings.fresh_s:
            self._ping(contact)

    def abandon(self, operation: int) -> None:
        """Take note that nobody waits for an operation any more.

        A search is forgotten (its open calls still teach the table); a put goes on in silence, since its
        record stays published.
        """
        running = self._operations.get(operation)
        if running is not None and running.purpose is Purpose.PUT:
            running.purpose = Purpose.REPUBLISH
            return
        self._operations.pop(operation, None)
        if self._background == operation:
            self._background = None

    def serve(self, serving: bool, now: float) -> None:
        """Take note that others can dial us, or no longer can; a search of our neighbourhood tells them."""
        if serving != self.serving:
            self.serving = serving
            self._upkeep.hurry(now)

    # The driver's side

    def outgoing(self, limit: int) -> list[Call]:
        """Return up to `limit` calls to carry out now."""
        count = min(limit, len(self._queue))
        return [self._queue.popleft() for _ in range(count)]

    def next_event(self) -> Event | None:
        """Return the next ended operation, or None."""
        return self._events.popleft() if self._events else None

    def next_deadline(self) -> float:
        """Return when `tick` has something to do (monotonic seconds)."""
        times = [self._expire_at, self.table.next_retry()]
        if self._background is None and len(self._operations) < MAX_OPERATIONS:
            soon = -math.inf if self._upkeep.waiting else self._upkeep.refresh_at
            times += [soon, self.publisher.next_due()]
        times += [operation.lookup.next_deadline() for operation in self._operations.values()]
        return min(time for time in times if time is not None)

    def receive(
        self, number: int, sender: Contact, answer: Answer, now: float, wall: float
    ) -> None:
        """Take the answer to call `number` from `sender`, as authenticated by its connection."""
        pending = self._pending.pop(number, None)
        if pending is None:
            return
        if isinstance(pending.query, Ping):
            self._pinging.discard(pending.contact.node_id)
        if sender.node_id != pending.contact.node_id:
            self._lied(pending, "wrong_node", now, wall)
            return
        body = answer.body
        refused = isinstance(body, Refused)
        if answer.version != VERSION or not (refused or fits(pending.query, body)):
            self._lied(pending, "bad_answers", now, wall)
            return
        operation = self._operation_of(pending)
        if isinstance(body, Records):
            findings = None if operation is None else operation.findings
            if findings is not None and not findings.take(body.records, wall):
                self._lied(pending, "forged_records", now, wall)
                return
        if answer.server:
            self._admit(sender, now)
        else:
            self.table.remove(sender.node_id)
        if isinstance(pending.query, Store) and isinstance(body, Stored):
            self.publisher.stored(pending.query.record.key, sender.node_id)
        if isinstance(pending.query, FindRecords) and isinstance(body, Records):
            self._take_token(pending, operation, body.token)
        if operation is None:
            return
        if isinstance(pending.query, Store):
            operation.holders += isinstance(body, Stored)
            operation.stores -= 1
        elif isinstance(body, Nodes | Records):
            hints = from_hints(body.contacts, own_id=self._me.node_id, loopback=on_loopback(sender))
            operation.lookup.answered(sender, hints, now)
        else:
            operation.lookup.failed(sender.node_id, now)
        self._advance(operation, now, wall)

    def fail(self, number: int, now: float, wall: float) -> None:
        """Take note that call `number` got no answer in time, or none that could be read."""
        pending = self._pending.pop(number, None)
        if pending is None:
            return
        if isinstance(pending.query, Ping):
            self._pinging.discard(pending.contact.node_id)
        self._lied(pending, "unanswered", now, wall)

    def tick(self, now: float, wall: float) -> None:
        """Do what time asks for: patience, retries, refresh, republication, expiry."""
        for operation in list(self._operations.values()):
            operation.lookup.tick(now)
            self._advance(operation, now, wall)
        for contact in self.table.due_retries(now, _RETRIES_PER_TICK):
            self._ping(contact)
        if now >= self._expire_at:
            self._expire_at = now + _EXPIRE_EVERY_S
            self.store.expire(wall)
        self._work_in_background(now, wall)

    def stats(self) -> dict[str, int]:
        """Return sizes and counters, always under the same names."""
        return {
            "contacts": len(self.table),
            "contacts_failing": self.table.failing(),
            "nodes_estimated": self._density.nodes(self._k, self.table.radius()),
            "records_held": len(self.store),
            "records_own": len(self.publisher),
            "operations": len(self._operations),
            "calls_open": len(self._pending),
            **{name: self.counters[name] for name in sorted(self.counters)},
        }

    # Inside

    def _say(self, body: AnswerBody) -> Answer:
        return Answer(server=self.serving, body=body)

    def _admit(self, contact: Contact, now: float, *, challenge: bool = True) -> None:
        """Let an authenticated server into the table, or have it wait.

        `challenge` is whether the oldest contact of a full bucket may be asked for its life. It is not after a
        mere ping: each ping would cause the next one somewhere else, and a large swarm would never be at rest.
        """
        if not contact.addresses or contact.node_id == self._me.node_id:
            return
        first = len(self.table) == 0
        seen, oldest = self.table.seen(contact, now)
        if seen is Seen.ADDED:
            for record in self.publisher.wanted_by(contact):
                self._call(contact, FindRecords(record.key), None)  # its answer brings the token
            if first:
                self._upkeep.hurry(now)
        elif seen is Seen.REFUSED:
            self.counters["contacts_refused"] += 1
        elif oldest is not None and challenge:
            self.greet(oldest, now)

    def _ping(self, contact: Contact) -> None:
        node_id = contact.node_id
        if node_id == self._me.node_id or node_id in self._pinging:
            return
        if self._call(contact, Ping(), None):
            self._pinging.add(node_id)

    def _call(self, contact: Contact, body: QueryBody, operation: int | None) -> bool:
        if operation is None and len(self._queue) >= MAX_QUEUE:
            self.counters["calls_dropped"] += 1
            return False
        self._numbers += 1
        query = Query(server=self.serving, body=body)
        self._pending[self._numbers] = Pending(contact, body, operation)
        self._queue.append(Call(self._numbers, contact, query))
        self.counters["queries_out"] += 1
        return True

    def _check_busy(self) -> None:
        if len(self._operations) >= MAX_OPERATIONS:
            raise DhtBusy(f"{MAX_OPERATIONS} searches are running", hint="wait for some to end")

    def _start(
        self, purpose: Purpose, query: QueryBody, target: bytes, now: float, wall: float
    ) -> int:
        self._check_busy()
        self._numbers += 1
        self.table.touch(target, now)
        paths = 1 if purpose in UPKEEP else self._settings.lookup.paths
        count = max(self._k, _SEEDS_PER_PATH * paths)
        # Those that just fell silent are asked only when there is nobody better.
        seeds = self.table.closest(target, count, retry_at=now) or self.table.closest(
            target, count, retry_at=math.inf
        )
        findings = None
        if isinstance(query, FindRecords):
            me = self._me
            findings = Findings(
                query.key, swarm_id=me.swarm_id, verify=me.verify, memory=self._memory
            )
            findings.trust(self._responder.local(query.key, wall))
        lookup = Lookup(
            target,
            seeds,
            own_id=self._me.node_id,
            now=now,
            settings=self._settings.lookup,
            paths=paths,
            region=0 if findings is None else self._density.region(self.table.radius()),
        )
        operation = Operation(self._numbers, purpose, lookup, query, findings)
        self._operations[operation.number] = operation
        if purpose in BACKGROUND:
            self._background = operation.number
        self.counters["lookups"] += 1
        self._advance(operation, now, wall)
        return operation.number

    def _operation_of(self, pending: Pending) -> Operation | None:
        return None if pending.operation is None else self._operations.get(pending.operation)

    def _lied(self, pending: Pending, reason: str, now: float, wall: float) -> None:
        """Treat silence, nonsense and forgery alike: no use, and not to be recommended."""
        self.counters[reason] += 1
        node_id = pending.contact.node_id
        self.table.failed(node_id, now)
        operation = self._operation_of(pending)
        if operation is None:
            return
        if isinstance(pending.query, Store):
            operation.stores -= 1
        else:
            operation.lookup.failed(node_id, now)
        self._advance(operation, now, wall)

    def _take_token(self, pending: Pending, operation: Operation | None, token: bytes) -> None:
        """Keep a write token for the end of a put, or use it at once at a newcomer that should hold our record."""
        if operation is not None:
            operation.tokens[pending.contact.node_id] = token
        elif pending.operation is None:
            record = self.publisher.get(pending.query.key)  # type: ignore[union-attr]
            if record is not None:
                self._call(pending.contact, Store(record, token), None)

    def _advance(self, operation: Operation, now: float, wall: float) -> None:
        if operation.number not in self._operations:
            return
        if not operation.storing:
            for contact in operation.lookup.outgoing(now):
                self._call(contact, operation.query, operation.number)
            if not operation.lookup.finished:
                return
            if operation.purpose in PUBLISHING:
                self._store_at_closest(operation, wall)
        if operation.stores == 0:
            self._end(operation, now)

    def _store_at_closest(self, operation: Operation, wall: float) -> None:
        operation.storing = True
        key = operation.lookup.target
        record = self.publisher.get(key)
        if record is None:
            return  # withdrawn meanwhile
        assert operation.findings is not None
        seen = operation.findings.of(self._me.public_key)
        if seen is not None and seen.sequence >= record.sequence and seen != record:
            record = self.publisher.renew(key, wall, above=seen.sequence) or record
        for contact in operation.lookup.responsible():
            token = operation.tokens.get(contact.node_id, b"")
            operation.stores += self._call(contact, Store(record, token), operation.number)

    def _end(self, operation: Operation, now: float) -> None:
        del self._operations[operation.number]
        lookup = operation.lookup
        contacts = tuple(lookup.closest())
        if self._background == operation.number:
            self._background = None
        if operation.purpose in PUBLISHING:
            self.publisher.ended(lookup.target, now)
        if operation.purpose in UPKEEP:
            if len(contacts) == self._k:  # a target that nobody chose
                self._density.saw(distance(contacts[-1].node_id, lookup.target))
            if lookup.target == self._me.node_id:
                self._upkeep.ended(now, everything=operation.purpose is Purpose.JOIN)
        hops, queries = lookup.hops, lookup.queries
        if operation.purpose is Purpose.PUT:
            event: Event = Published(operation.number, operation.holders, hops, queries)
            self._events.append(event)
        elif operation.purpose not in BACKGROUND:
            records = () if operation.findings is None else operation.findings.newest()
            self._events.append(Found(operation.number, contacts, records, hops, queries))

    def _work_in_background(self, now: float, wall: float) -> None:
        """Start the next search that nobody waits for; one at a time is enough and bounds the load."""
        if self._background is not None or len(self._operations) >= MAX_OPERATIONS:
            return
        key = self.publisher.due(now)
        if key is not None:
            self.publisher.renew(key, wall)
            self.publisher.started(key, now)
            self._start(Purpose.REPUBLISH, FindRecords(key), key, now, wall)
            return
        target = self._upkeep.next_target()
        if target is None and now >= self._upkeep.refresh_at:
            self._upkeep.begun(now)
            target = self._me.node_id
        if target is not None:
            self._start(Purpose.REFRESH, FindNode(target), target, now, wall)
