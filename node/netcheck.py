"""`noded netcheck` without a daemon: a short-lived endpoint that looks around and leaves.

It listens where the daemon would (on another port if that one is taken), maps the port at the router and
gives it back, connects to the bootstrap addresses to be dialed back, and tries a hole punch with a member of the
configured run that is reached over a relay, if there is one. A node that has not been set up yet belongs to no swarm: then only what needs no peer is found out.
"""

from __future__ import annotations

import os
import random
import time
from typing import Any, Final

import attrs
import trio

from dht.service import Dht, open_dht
from dht.settings import DhtSettings
from node import keys
from node.errors import NodedError, first_error
from node.joining.facts import with_known_members
from node.punch_trial import try_punch
from node.reach_report import SCHEMA, no_trial, reach_report, refused_advice
from node.schema import Config
from node.trust.membership import SwarmStanding, load_standing
from transport.address import Address
from transport.endpoint import Endpoint, open_endpoint
from transport.errors import AddressInUse, TransportError
from transport.identity import Identity
from transport.reach.diagnosis import Standing
from transport.reach.reach import PORT_MAPPING_METHODS, Reach, ReachSettings, open_reach
from transport.relay.settings import RelaySettings
from transport.swarm import Swarm
from transport.tcp import TcpNetwork
from transport.trust.trust import Trust

POLL_S: Final = 0.2
MAPPING_S: Final = 12.0
"""How long a silent router is waited for; the methods are tried one after another."""
FINAL: Final = frozenset({Standing.DIRECT, Standing.RELAYED, Standing.PUNCHABLE})


def check_alone(config: Config, *, patience_s: float) -> dict[str, Any]:
    """Look around for at most `patience_s` seconds; returns the `noded.netcheck/1` document.

    Raises:
        NodedError: the listen address cannot be had for another reason than being in use.
    """
    try:
        return trio.run(_check, with_known_members(config), patience_s)
    except BaseExceptionGroup as group:
        raise first_error(group) from group


async def _check(config: Config, patience_s: float) -> dict[str, Any]:
    identity, standing = Identity.generate(os.urandom), None
    if config.paths.swarm_key.exists() and config.paths.node_key.exists():
        identity = keys.load_identity(config.paths.node_key)
        standing = load_standing(config.paths, identity, config.swarm)
    listen = [Address.parse(text) for text in config.network.listen]
    try:
        return await _look(config, identity, standing, listen, patience_s)
    except AddressInUse:
        return await _look(
            config,
            identity,
            standing,
            [attrs.evolve(address, port=0) for address in listen],
            patience_s,
        )
    except TransportError as error:
        raise NodedError(str(error), hint=error.hint) from error


async def _look(
    config: Config,
    identity: Identity,
    standing: SwarmStanding | None,
    listen: list[Address],
    patience_s: float,
) -> dict[str, Any]:
    rng = random.Random(os.urandom(16))
    settings = ReachSettings(
        configured=tuple(Address.parse(text) for text in config.network.advertise),
        port_mapping=PORT_MAPPING_METHODS if config.network.port_mapping else (),
        punch=config.network.hole_punching,
        knows_others=bool(config.network.bootstrap),
        relay=RelaySettings(serve="off", use=config.relay.use),
    )
    async with (
        # The node's own key: nobody else's is let in. The daemon that would use it does not run.
        open_endpoint(
            identity,
            Swarm(os.urandom(32), identity.public_key) if standing is None else standing.swarm,
            TcpNetwork(),
            listen,
            trust=Trust(bytes(32)) if standing is None else standing.trust,
            name="netcheck",
            limits=config.limits,
            rng=rng,
        ) as endpoint,
        open_reach(endpoint, settings, rng=rng) as reach,
        open_dht(
            endpoint, rng=rng, wall_clock=time.time, settings=DhtSettings(server=False)
        ) as dht,
    ):
        deadline = trio.current_time() + patience_s
        failures: dict[str, str] = {}
        async with trio.open_nursery() as nursery:
            for text in config.network.bootstrap if standing is not None else ():
                nursery.start_soon(_greet, endpoint, text, failures)
            await _wait(reach, deadline, alone=standing is None or not config.network.bootstrap)
            nursery.cancel_scope.cancel()
        run = None if config.run is None else config.run.name
        return {
            "schema": SCHEMA,
            **reach_report(reach),
            "daemon": False,
            "bootstrap_failures": failures,
            "punch_trial": await _trial(reach, dht, run),
            **refused_advice(None if standing is None else standing.own_refusal(identity)),
        }


async def _trial(reach: Reach, dht: Dht, run: str | None) -> dict[str, Any]:
    """Punch with somebody, where punches are what connects this node with others."""
    standing = reach.diagnosis.standing
    if reach.puncher is None:
        return no_trial("network.hole_punching is off")
    if standing is Standing.DIRECT:
        return no_trial("not needed: others can dial this node")
    if standing in (Standing.LOCAL, Standing.ISOLATED):
        return no_trial("nobody outside of this network is connected")
    return await try_punch(reach.endpoint, reach.puncher, dht, run)


async def _greet(endpoint: Endpoint, text: str, failures: dict[str, str]) -> None:
    try:
        await endpoint.connect([Address.parse(text)])
    except TransportError as error:
        failures[text] = str(error)


async def _wait(reach: Reach, deadline: float, *, alone: bool) -> None:
    """Until the verdict and the router's answer are there, or the time is over."""
    started = trio.current_time()
    while trio.current_time() < deadline:
        settled = alone or reach.diagnosis.standing in FINAL
        answered = all(mapper.settled for mapper in reach.mappers)
        if settled and (answered or trio.current_time() > started + MAPPING_S):
            return
        await trio.sleep(POLL_S)
