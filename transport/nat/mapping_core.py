"""Which method to ask for a mapping, when to renew it, and when it is gone; sans-IO.

Problem: a mapping is a promise by a box that restarts, forgets, is replaced, and lies. Idea: a small machine that is told what
happened (`mapped`, `failed`, `checked`, `announced`, `epoch_lost`, `gateway_changed`) and answers `next_step` with what to do now:

    no gateway -> Idle
    round:  Ask(method) for each method in turn; the first mapping ends the round; none -> Idle for a growing pause
    held:   Ask(same method) at half life, then at half of what is left (RFC 6887, section 11.2.1); Check(method) between,
            since a gateway that restarts while nobody listens says so only when asked
    restart, new external address -> Ask again soon
    new gateway, mapping run out, gateway silent -> a new round

Times are monotonic seconds of one clock. Chance (jitter) comes from a generator that is an argument.

Invariants: at most one mapping is held; lifetimes from the gateway are capped by what was asked for; no method is asked more
often than every MIN_RENEW_S, however often a neighbour shouts that the gateway has restarted.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from enum import StrEnum
from typing import Final

import attrs

from transport.address import Address
from transport.address_kinds import AddressKind, kind_of

MIN_RENEW_S: Final = 4.0
"""RFC 6887, section 11.2.1: no renewal sooner than this after the last."""
MIN_LIFETIME_S: Final = 30
"""A mapping that ends sooner is refused: nobody could rely on the address. RFC 6887, section 15, recommends 120 s at least."""
CHECK_EVERY_S: Final = 120.0
"""How soon a restart that was not announced is noticed."""
CHECK_AGAIN_S: Final = 10.0
"""After a check that was not answered."""
SILENT_CHECKS: Final = 3
"""So many unanswered checks in a row, and the mapping is not believed any more."""
PAUSE_FIRST_S: Final = 30.0
PAUSE_MAX_S: Final = 1800.0
"""Between rounds that brought nothing: doubling, so that a router without port mapping is asked twice an hour."""
REMAP_SPREAD_S: Final = 5.0
"""RFC 6887, section 14.1.3: wait a random time up to this after a restart, as all neighbours ask at once."""


class MapMethod(StrEnum):
    """How a gateway is asked."""

    PCP = "pcp"
    NATPMP = "natpmp"
    UPNP = "upnp"


@attrs.frozen
class Mapping:
    """A port of the gateway that leads to ours."""

    external: Address
    """What strangers dial."""
    method: MapMethod
    expires_at: float
    """When it ends unless renewed, on the clock of whoever drives the machine."""
    gateway: str


@attrs.frozen
class Grant:
    """What a gateway gave, not yet believed."""

    external_host: str
    external_port: int
    lifetime_s: float


@attrs.frozen
class Ask:
    """Map, or map again, by this method."""

    method: MapMethod
    gateway: str
    external_port: int
    """What to suggest: the port we had, else our own."""


@attrs.frozen
class Check:
    """Ask for the epoch (and the external address), by this method."""

    method: MapMethod
    gateway: str


@attrs.frozen
class Idle:
    """Nothing to do before `until` (infinite: until something happens)."""

    until: float


Step = Ask | Check | Idle


def fault_of(grant: Grant) -> str:
    """Why a grant is of no use, in words; "" if it is."""
    if not 0 < grant.external_port < 65536:
        return "the gateway named no usable port"
    if grant.lifetime_s < MIN_LIFETIME_S:
        return f"the gateway keeps a mapping for only {grant.lifetime_s:.0f} s"
    kind = kind_of(grant.external_host)
    if kind is AddressKind.GLOBAL and "%" not in grant.external_host:
        return ""
    if kind in {AddressKind.PRIVATE, AddressKind.CGNAT}:
        return (
            f"the gateway has no public address ({grant.external_host}): another NAT is before it"
        )
    return "the gateway named no usable external address"


class MappingCore:
    """The machine described at the top of the file.

    Attributes:
        mapping: what is held, or None.
        failures: method -> why its last attempt failed; a success removes the entry.
    """

    def __init__(
        self,
        *,
        port: int,
        lifetime_s: float,
        methods: Sequence[MapMethod],
        rng: random.Random,
    ) -> None:
        self.mapping: Mapping | None = None
        self.failures: dict[MapMethod, str] = {}  # at most one per method
        self._port = port
        self._lifetime_s = lifetime_s
        self._methods = tuple(dict.fromkeys(methods))
        self._rng = rng
        self._gateway: str | None = None
        self._next_method = 0  # index into methods while a round runs
        self._pause_s = PAUSE_FIRST_S
        self._ask_at = math.inf
        self._check_at = math.inf
        self._asked_at = -math.inf
        self._checked_at = -math.inf
        self._silent_checks = 0

    @property
    def gateway(self) -> str | None:
        """Whom we ask, or None."""
        return self._gateway

    @property
    def exhausted(self) -> bool:
        """Whether every method has been tried at this gateway and none has worked."""
        return set(self._methods) <= set(self.failures)

    def gateway_changed(self, gateway: str | None, now: float) -> None:
        """Another router, another address of ours, or none: what was mapped leads nowhere."""
        self._gateway = gateway
        self.mapping = None
        self.failures = {}
        if gateway is None:
            self.failures = dict.fromkeys(self._methods, "there is no default gateway")
        self._pause_s = PAUSE_FIRST_S
        self._begin_round(now if gateway is not None else math.inf)

    def next_step(self, now: float) -> Step:
        """What to do now. Ask and Check repeat until their outcome is reported."""
        if self._gateway is None or not self._methods:
            return Idle(math.inf)
        if self.mapping is not None and now >= self.mapping.expires_at:
            self._lose("the mapping ran out before the gateway renewed it", now)
        if now >= self._ask_at:
            held = self.mapping
            if held is not None:
                return Ask(held.method, self._gateway, held.external.port)
            return Ask(self._methods[self._next_method], self._gateway, self._port)
        if self.mapping is not None and now >= self._check_at:
            return Check(self.mapping.method, self._gateway)
        expires_at = self.mapping.expires_at if self.mapping is not None else math.inf
        return Idle(min(self._ask_at, self._check_at, expires_at))

    def mapped(self, method: MapMethod, grant: Grant, now: float) -> bool:
        """A gateway granted an `Ask`; False if the grant is of no use (it is then a failure)."""
        if self._gateway is None:
            return False
        if fault := fault_of(grant):
            if self.mapping is not None and self.mapping.method is method:
                self._lose(fault, now)  # it now says so of the very mapping that is held
            else:
                self.failed(method, fault, now)
            return False
        lifetime = min(grant.lifetime_s, self._lifetime_s)  # a giant one would never be renewed
        external = Address(grant.external_host, grant.external_port)
        self.mapping = Mapping(external, method, now + lifetime, self._gateway)
        self.failures.pop(method, None)
        self._asked_at = now
        self._ask_at = now + max(lifetime / 2, MIN_RENEW_S)
        self._check_at = now + CHECK_EVERY_S
        self._silent_checks = 0
        self._pause_s = PAUSE_FIRST_S
        return True

    def failed(
        self, method: MapMethod, reason: str, now: float, *, retry_after_s: float = 0.0
    ) -> None:
        """An `Ask` brought nothing.

        Args:
            method: which one.
            reason: one sentence without bytes from the gateway.
            now: the time.
            retry_after_s: how long the gateway said that it would refuse; believed up to half an hour.
        """
        self.failures[method] = reason
        self._asked_at = now
        held = self.mapping
        if held is not None:
            left = held.expires_at - now
            self._ask_at = now + max(left / 2, MIN_RENEW_S)
            return
        if self._methods[self._next_method] is method:
            self._next_method += 1
        if self._next_method < len(self._methods):
            self._ask_at = now
            return
        pause = min(max(self._pause_s, min(retry_after_s, PAUSE_MAX_S)), PAUSE_MAX_S)
        self._pause_s = min(self._pause_s * 2, PAUSE_MAX_S)
        self._begin_round(now + pause * self._rng.uniform(0.9, 1.1))

    def checked(self, now: float, *, external_host: str = "") -> None:
        """A `Check` was answered; another external address than the mapping's is a reason to map again."""
        self._silent_checks = 0
        self._checked_at = now
        self._check_at = now + CHECK_EVERY_S
        held = self.mapping
        if held is not None and external_host and external_host != held.external.host:
            self._ask_at = min(self._ask_at, max(now, self._asked_at + MIN_RENEW_S))

    def check_failed(self, now: float) -> None:
        """A `Check` was not answered: after a few, the mapping is gone for us and a new round begins."""
        self._silent_checks += 1
        self._checked_at = now
        self._check_at = now + CHECK_AGAIN_S
        if self._silent_checks >= SILENT_CHECKS and self.mapping is not None:
            self._lose("the gateway does not answer any more", now)

    def announced(self, now: float) -> None:
        """The gateway (or somebody in its name) told everybody that it has news: look soon.

        News alone change nothing, since anybody on the link can send them; the answer to our own question does. A mapping by
        one method is checked whatever method the news came by: gateways have one table, and may announce by PCP alone.
        """
        if self._gateway is None:
            return
        if self.mapping is not None:
            self._check_at = min(self._check_at, max(now, self._checked_at + MIN_RENEW_S))
        else:
            self._ask_at = min(self._ask_at, max(now, self._asked_at + PAUSE_FIRST_S))

    def epoch_lost(self, now: float) -> None:
        """The gateway's table is empty, as its epoch shows: map again after a random moment."""
        if self.mapping is not None:
            soonest = max(now, self._asked_at + MIN_RENEW_S)
            self._ask_at = min(self._ask_at, soonest + self._rng.uniform(0, REMAP_SPREAD_S))

    def _lose(self, reason: str, now: float) -> None:
        assert self.mapping is not None
        method = self.mapping.method
        self.mapping = None
        self._begin_round(max(now, self._asked_at + MIN_RENEW_S))
        self.failures[method] = reason

    def _begin_round(self, at: float) -> None:
        self._next_method = 0
        self._ask_at = at
        self._check_at = math.inf
        self._silent_checks = 0
