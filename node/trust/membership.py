"""This node's membership: loaded before it listens, kept with the others' while it runs.

    load       key files -> `SwarmStanding`: certificate, revocations of former lives, and the document they make. Nobody is listened to before
               that, so a revoked node finds no gap after a restart.
    keep       the document on all connections; who is revoked is closed, forgotten by the DHT, and written down

A node that is itself revoked, or whose certificate is over, starts all the same: it cannot connect to anybody, and says why.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import attrs
import trio

from gossip.swarm.document import SwarmDocument
from gossip.swarm.service import SwarmService, open_swarm_document
from node import keys
from node.errors import NodedError, Refused
from node.paths import NodePaths
from node.schema import SwarmSection
from node.trust.log import TrustLog
from node.wall_clock import DAY_MS, wall_ms
from transport.address import Address
from transport.endpoint import Endpoint
from transport.identity import Identity, NodeId
from transport.swarm import Swarm
from transport.trust.chain import Chain
from transport.trust.refusal import CertificateRefused, Refusal
from transport.trust.trust import Trust, self_issued

__all__ = ["SwarmStanding", "keep_membership", "load_standing"]

FLUSH_S: Final = 2.0
"""For the last statements at the end of a life."""

_log = logging.getLogger(__name__)


@attrs.frozen
class SwarmStanding:
    """What a node is in its swarm."""

    swarm: Swarm
    trust: Trust
    document: SwarmDocument
    log: TrustLog
    certificate: Path
    stored: frozenset[bytes] = attrs.field(repr=False)
    """What the log held."""

    def unwritten(self) -> list[bytes]:
        """Statements that the log does not hold yet."""
        held = self.document.statements.statements.values()
        return [raw for raw in held if raw not in self.stored]

    def own_refusal(self, identity: Identity) -> CertificateRefused | None:
        """Why others would not take this node now; None if they do. Costs no signature after the first time."""
        return self.trust.refusal_of(self.trust.chain, identity.public_key, wall_ms())


def _say_refusal(standing: SwarmStanding, identity: Identity) -> None:
    """To the log, where somebody looks who wonders why a node has gone quiet."""
    if refusal := standing.own_refusal(identity):
        _log.error("other members refuse this node: %s", refusal)


def load_standing(paths: NodePaths, identity: Identity, section: SwarmSection) -> SwarmStanding:
    """Read what a node needs before it may listen.

    Raises:
        NodedError: a file is missing or damaged.
        Refused: the certificate is of another swarm or another node.
    """
    if not os.path.lexists(paths.swarm_key):
        raise NodedError(
            f"the node in {paths.data_dir} is in no swarm",
            hint="join one:  noded join CODE      or make one:  noded init --force",
        )
    swarm = keys.load_swarm(paths.swarm_key)
    if swarm.is_open != section.open:
        wanted, found = ("open", "closed") if section.open else ("closed", "open")
        raise Refused(
            f"swarm.open says that the swarm is {wanted}, and the key in {paths.swarm_key} is of a {found} one",
            hint=f"set  swarm.open = {str(swarm.is_open).lower()}  if that is what you want",
        )
    if swarm.is_open and not os.path.lexists(paths.certificate):
        shown = self_issued(identity, swarm.id, serial=os.urandom(16), now_ms=wall_ms())
    else:
        shown = keys.load_chain(paths.certificate)
        _check_ours(shown, swarm, identity, paths)
    trust = Trust(swarm.id, shown.raw, strangers=section.strangers if swarm.is_open else None)
    log = TrustLog(paths.trust_log)
    stored = log.read()
    document = SwarmDocument(trust)
    if bad := document.load(stored):
        _log.warning("%d entries of %s are no good and were left out", bad, paths.trust_log)
    return SwarmStanding(swarm, trust, document, log, paths.certificate, frozenset(stored))


def _check_ours(chain: Chain, swarm: Swarm, identity: Identity, paths: NodePaths) -> None:
    """What can never come right by itself is said at once; time and revocations are for `own_refusal`."""
    try:
        Trust(swarm.id).check(chain.raw, identity.public_key, chain.leaf.issued_at_ms)
    except CertificateRefused as error:
        if error.refusal in {Refusal.EXPIRED, Refusal.NOT_YET_VALID}:
            return
        raise Refused(
            f"the certificate {paths.certificate} is of no use here: {error}",
            hint="join the swarm again with an invite:  noded join CODE",
        ) from None


@asynccontextmanager
async def keep_membership(
    endpoint: Endpoint,
    standing: SwarmStanding,
    *,
    rng: random.Random,
    lifetime_days: int,
    find: Callable[[NodeId], Awaitable[Sequence[Address]]],
    forget: Callable[[NodeId], None],
) -> AsyncIterator[SwarmService]:
    """Hold the swarm's document with all peers for the length of the block, and write down what is new.

    Args:
        endpoint: open; its trust is the standing's.
        standing: what `load_standing` gave.
        rng: jitter.
        lifetime_days: of certificates that are renewed here.
        find: where a member that is not connected can be dialed.
        forget: told of each node that was revoked, or put out.
    """
    writer = _Writer(standing)
    async with (
        open_swarm_document(
            endpoint,
            standing.document,
            rng=rng,
            wall_ms=wall_ms,
            lifetime_ms=lifetime_days * DAY_MS,
            find=find,
        ) as service,
        trio.open_nursery() as nursery,
    ):

        def expelled(node_id: NodeId) -> None:
            _log.warning("%s is no member any more and was disconnected", node_id.short)
            forget(node_id)

        def revoked(node_id: NodeId) -> None:
            if node_id == endpoint.node_id:
                _say_refusal(standing, endpoint.identity)
            forget(node_id)

        service.on_expelled = expelled
        standing.document.on_revoked = revoked
        _say_refusal(standing, endpoint.identity)
        service.on_renewed = writer.note_chain
        nursery.start_soon(writer.run)
        try:
            yield service
        finally:
            nursery.cancel_scope.cancel()
            with trio.move_on_after(FLUSH_S, shield=True):
                await writer.flush()


class _Writer:
    """Writes new statements, and a renewed certificate, in a thread, as they come."""

    def __init__(self, standing: SwarmStanding) -> None:
        self._standing = standing
        self._news = standing.unwritten()
        self._chain: Chain | None = None
        self._wake = trio.Event()
        self._limiter = trio.CapacityLimiter(1)
        self._failed = ""
        standing.document.on_taken = self._note

    def _note(self, raw: bytes) -> None:
        self._news.append(raw)  # until the next flush, that of a failing disk included
        self._wake.set()

    def note_chain(self, chain: Chain) -> None:
        """Our certificate was renewed."""
        _log.info("this node's certificate was renewed")
        self._chain = chain
        self._wake.set()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self.flush()
            await self._wake.wait()
            self._wake = trio.Event()

    async def flush(self) -> None:
        """Write what is new; a disk that does not take it is said once, and tried again with the next news."""
        news, chain = list(self._news), self._chain
        if not news and chain is None:
            return
        everything = list(self._standing.document.statements.statements.values())
        try:
            await trio.to_thread.run_sync(
                self._write, news, everything, chain, limiter=self._limiter
            )
        except NodedError as error:
            if str(error) != self._failed:
                _log.error("%s", error)
            self._failed = str(error)
            # The next attempt writes all that counts: one piece of news is enough to remember that there is something to write.
            del self._news[: max(0, len(news) - 1)]
            return
        self._failed = ""
        del self._news[: len(news)]
        if self._chain is chain:
            self._chain = None

    def _write(self, news: list[bytes], everything: list[bytes], chain: Chain | None) -> None:
        if news:
            self._standing.log.append(news, everything)
        if chain is not None:
            keys.store_chain(self._standing.certificate, chain)
