"""What all parts of one endpoint share: who we are, our budgets, and how our handshakes begin.

Problem: dialing, accepting, the registry and the bulk door each need the identity, the limits and
the counters, and none of them should know the others for that. Idea: one plain object, made by the
endpoint and handed to each part.

Invariant: every handshake of a node is made here, so that all say the same about it.
"""

import logging
import random
from collections import Counter
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Final

import attrs
import trio

from transport.address import Address
from transport.budget.scopes import Reservation, ResourceScopes
from transport.connect.dialed import RememberingNetwork
from transport.errors import EndpointClosed
from transport.identity import Identity, NodeId
from transport.limits import Admission, Limits
from transport.network import Network, Path, RawStream
from transport.reporter import Reporter
from transport.secure.first_flights import FirstFlights
from transport.secure.handshake import Handshake, HandshakeRole, Intro
from transport.secure.processor import can_use_aegis
from transport.swarm import Swarm
from transport.trust.trust import Member, Trust

if TYPE_CHECKING:
    from transport.connect.door import Door
    from transport.peer import Peer

LOGGER: Final = logging.getLogger("transport.endpoint")


class Context:
    """The shared part of one endpoint.

    Attributes:
        trust: who is a member.
        listening: what we really listen on.
        advertised: where we tell peers to dial us.
        closed: no new peer is taken any more.
        is_near: whether a private address may be in a network that we are in.
        leave_from_listener: whether a dial of this address shall leave from the port we listen on.
        on_observed: told as what address a peer sees us.
        on_probe: told of a dial-back test that reached us: who, and its nonce.
        door: answers nodes that are no members yet, if any are to be answered.
    """

    def __init__(
        self,
        identity: Identity,
        swarm: Swarm,
        network: Network,
        *,
        trust: Trust,
        wall_clock: Callable[[], float],
        name: str,
        limits: Limits,
        random_bytes: Callable[[int], bytes],
        rng: random.Random,
        nursery: trio.Nursery,
        aegis: bool | None,
    ) -> None:
        self.identity = identity
        self.swarm = swarm
        self.trust = trust
        self._wall_clock = wall_clock
        self.network = RememberingNetwork(network)
        self.name = name
        self.limits = limits
        self.random_bytes = random_bytes
        self.rng = rng
        self.nursery = nursery
        # A simulation needs no answer, so it does not load the library for one either.
        self._aegis = not network.seeded and can_use_aegis() if aegis is None else aegis
        self.counters: Counter[str] = Counter()
        self.reporter = Reporter(LOGGER, self.counters)
        self.admission = Admission(limits)
        self.first_flights = FirstFlights()
        self.scopes = ResourceScopes(limits)
        self.listening: tuple[Address, ...] = ()
        self.advertised: tuple[Address, ...] = ()
        self.closed = False
        self.is_near: Callable[[str], bool] = lambda _host: True
        self.leave_from_listener: Callable[[Address], bool] = lambda _address: True
        self.on_observed: list[Callable[[Peer, Address], None]] = []
        self.on_probe: Callable[[NodeId, bytes], None] | None = None
        self.door: Door | None = None

    @property
    def node_id(self) -> NodeId:
        """Who we are."""
        return self.identity.node_id

    def handshake(
        self,
        role: HandshakeRole,
        intro: Intro,
        expected: NodeId | None = None,
        *,
        punching: Collection[NodeId] = (),
    ) -> Handshake:
        """Make our side of one handshake, in its initial state; for the arguments see `Handshake`."""
        return Handshake(
            role=role,
            identity=self.identity,
            gate=self.swarm.gate,
            chain=self.trust.chain,
            judge=self.judge,
            intro=attrs.evolve(intro, aegis=self._aegis),
            random_bytes=self.random_bytes,
            expected=expected,
            punching=punching,
            is_new=self.first_flights.is_new,
            may_join=self._may_join,
        )

    def wall_ms(self) -> int:
        """Wall clock, ms since 1970: for certificates, and nothing else."""
        return int(self._wall_clock() * 1000)

    def _may_join(self) -> bool:
        return self.door is not None and self.door.may_enter(trio.current_time())

    def judge(self, chain_untrusted: bytes, public_key: bytes) -> Member:
        """Decide whether who has proved to hold `public_key` is a member now. Raises: CertificateRefused."""
        return self.trust.check(chain_untrusted, public_key, self.wall_ms())

    def control_intro(self, raw: RawStream, label: bytes = b"") -> Intro:
        """Make what we say about ourselves on a control connection over `raw`.

        Args:
            raw: the connection; over a relay we do not see where the peer is.
            label: the id of the connection that this one is to take over, if any.
        """
        observed = "" if raw.path is Path.RELAYED else str(raw.remote.direct)
        return Intro("control", self.name, self.advertised, label, observed=observed)

    def handshake_deadline(self) -> float:
        """Trio time by which a handshake that begins now must be done."""
        return trio.current_time() + self.limits.handshake_timeout_s

    def dialing(self, address: Address) -> Reservation:
        """Reserve for one dial, until it has become a connection or nothing.

        Raises:
            ScopeExceeded: too many are under way.
        """
        return self.scopes.unauthenticated.reserve(
            connections=1, descriptors=0 if address.relay else 1
        )

    def check_open(self) -> None:
        """Make sure that the endpoint is not closing.

        Raises:
            EndpointClosed: it is.
        """
        if self.closed:
            raise EndpointClosed("the endpoint is closed")
